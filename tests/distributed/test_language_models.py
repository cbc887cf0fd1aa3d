"""Language models of transformers in several processes: a patched head that is sharded, or whose rows are exchanged."""

from __future__ import annotations

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import torch_lsh
from torch_lsh import LSHConfig
from torch_lsh.distributed import ShardedLSHLinear, exchange_rows_

from .processes import in_processes

transformers = pytest.importorskip("transformers")
try:  # here, so that processes find it imported; patch() wants it, too
    from trl.trainer.utils import add_fused_lm_head
except ImportError:
    add_fused_lm_head = None

N, WIDTH = 500, 8


def language_model() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=N, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=2, tie_word_embeddings=False,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).train()


def ids_of(rank: int) -> torch.Tensor:
    return torch.randint(N, (2, 9), generator=torch.Generator().manual_seed(rank))


def step(model: torch.nn.Module, wrapper: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = wrapper(input_ids=ids, labels=ids).loss
    loss.backward()
    return {"loss": loss.detach(), "trunk": model.transformer.wte.weight.grad, "head": model.lm_head.weight.grad}


def work(rank: int) -> dict[str, dict]:
    found = {}
    for name in ("sharded", "exchanged"):
        model = torch_lsh.patch(language_model(), LSHConfig(active=N))
        if name == "sharded":
            ShardedLSHLinear.shard_(model.lm_head)
        exchange_rows_(model)
        optimizer = torch_lsh.optim.Adam(model.parameters())  # takes row-sparse gradients
        found[name] = step(model, DistributedDataParallel(model), ids_of(rank))
        del optimizer
        found[name]["path"] = model.lm_head.paths.last
    found["refused"] = refusals(ids_of(rank))
    return found


def refusals(ids: torch.Tensor) -> list[str]:
    """What patch and the fused head of trl, if that is here, say about a sharded head."""
    model = language_model()
    ShardedLSHLinear.shard_(model.lm_head)
    with pytest.raises(TypeError) as of_patch:
        torch_lsh.patch(model)
    if add_fused_lm_head is None:
        return [str(of_patch.value)]
    add_fused_lm_head(model, 1.0, outputs=("log_probs",))
    with pytest.raises(RuntimeError) as of_trl:
        model(input_ids=ids, labels=ids, fused_lm_head=True)
    return [str(of_patch.value), str(of_trl.value)]


def test_a_step_is_that_of_one_process(tmp_path):
    ranks = in_processes(work, 2, tmp_path)
    model = language_model()
    losses = [model(input_ids=ids_of(rank), labels=ids_of(rank)).loss for rank in range(2)]
    (sum(losses) / 2).backward()
    wanted = model.transformer.wte.weight.grad, model.lm_head.weight.grad
    for rank, found in enumerate(ranks):
        assert "is a ShardedLSHLinear; wanted an nn.Linear" in found["refused"][0]
        assert all("wanted the whole layer" in text for text in found["refused"][1:])
        for name in ("sharded", "exchanged"):
            one = found[name]
            assert one["path"] == "sampled"
            torch.testing.assert_close(one["loss"], losses[rank].detach())
            torch.testing.assert_close(one["trunk"].to_dense(), wanted[0])
            rows = slice(rank * N // 2, (rank + 1) * N // 2) if name == "sharded" else slice(None)
            assert one["head"].is_sparse
            torch.testing.assert_close(one["head"].to_dense(), wanted[1][rows])
