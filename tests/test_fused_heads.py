"""Causal language models of transformers, and the fused head of trl, on the sampled path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear

transformers = pytest.importorskip("transformers")

N, WIDTH = 3_000, 16
ALL = LSHConfig(active=N)
SOME = LSHConfig(active=300)


def language_model(tied=True):
    config = transformers.GPT2Config(
        vocab_size=N, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=2, tie_word_embeddings=tied,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).train()


def tokens():
    return torch.randint(0, N, (2, 9))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_of_the_model_itself(tied):
    ids, models = tokens(), [language_model(tied), torch_lsh.patch(language_model(tied), ALL)]
    assert isinstance(models[1].get_output_embeddings(), LSHLinear)
    losses = [model(input_ids=ids, labels=ids).loss for model in models]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(gradients(models[1]), gradients(models[0]))
    assert (models[1].lm_head.weight is models[1].transformer.wte.weight) == tied


def fused(model, outputs, temperature=0.7):
    utilities = pytest.importorskip("trl.trainer.utils")
    utilities.add_fused_lm_head(model, temperature, outputs=outputs)
    return model


OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def test_the_fused_head_of_trl_with_every_row_active():
    ids = tokens()
    labels = ids.clone()
    labels[0, :4] = -100
    results = []
    for model in (language_model(), torch_lsh.patch(language_model(), ALL)):
        output = fused(model, OUTPUTS)(input_ids=ids, labels=labels, fused_lm_head=True)
        output.loss.backward()
        results.append([output.loss, *(getattr(output, name) for name in OUTPUTS), gradients(model)])
    torch.testing.assert_close(results[1], results[0])


def test_the_fused_head_of_trl_computes_active_rows_alone():
    model = fused(torch_lsh.patch(language_model(tied=False), SOME), ("log_probs", "entropy", "is_top1"))
    optimizer = torch_lsh.optim.AdamW(model.parameters())
    ids = tokens()
    model(input_ids=ids, labels=ids, fused_lm_head=True).loss.backward()
    gradient = model.lm_head.weight.grad
    assert gradient.layout is torch.sparse_coo
    assert gradient._nnz() == 300
    optimizer.step()
    model.eval()
    with torch.no_grad():
        exact = model(input_ids=ids, labels=ids, fused_lm_head=True)
        logits = model(input_ids=ids).logits.dense()[:, :-1] / 0.7
    torch.testing.assert_close(exact.log_probs, logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_entropy_and_accuracy_of_active_rows_do_not_depend_on_the_way(tied, temperature):
    """Mean logits are not fused: then the logits of the active rows are made. The draws are the same."""
    ids, results = tokens(), []
    ids[:, 1::2] = ids[:, :-1:2]  # the token that was read last is the best
    for outputs in (OUTPUTS, ("log_probs", "entropy", "is_top1")):
        model = torch_lsh.patch(language_model(tied), SOME)
        with torch.no_grad():
            model.lm_head.weight.copy_(model.transformer.wte.weight.mul_(20))
        output = fused(model, outputs, temperature)(input_ids=ids, labels=ids, fused_lm_head=True)
        output.log_probs[0, 2:].sum().backward()
        results.append([output.log_probs, output.entropy, output.is_top1, gradients(model)])
        assert model.lm_head.stats().paths["sampled"] == 1
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert 0 < results[0][2].sum() < results[0][2].numel()


def test_other_models_keep_the_fused_head_of_trl():
    torch_lsh.patch(language_model())
    model, ids = fused(language_model(tied=False), OUTPUTS), tokens()
    model(input_ids=ids, labels=ids, fused_lm_head=True).loss.backward()
    assert model.lm_head.weight.grad.layout is torch.strided


def test_a_model_without_linear_output_layer():
    with pytest.raises(TypeError, match=r"wanted an nn\.Linear"):
        torch_lsh.patch(nn.Linear(2, 2))
