"""A tiny random GPT-2 whose head is tied to its embedding, and token sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trainers import task

import torch_lsh

transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH, LENGTH = 2_000, 8, 6


def make(active: int | None = 100, tied: bool = True) -> nn.Module:
    """The model; with ``active=None`` as transformers makes it."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=1, n_head=2, tie_word_embeddings=tied,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    if active is not None:
        torch_lsh.patch(model, torch_lsh.LSHConfig(active=active, rehash=torch_lsh.FixedInterval(2, touches=1)))
    return model


def sequences() -> Tensor:
    """Every batch has sequences of its own."""
    return torch.randint(1, VOCABULARY, (task.BATCH * task.STEPS, LENGTH), generator=torch.Generator().manual_seed(1))


def trained_by_hand(epochs: int = 1) -> nn.Module:
    """What a trainer's model must equal, bit for bit; a checkpoint is taken between epochs."""
    model = make().train()
    optimizer = task.make_optimizer(model)
    for epoch in range(epochs):
        if epoch > 0:
            model.state_dict()
        for ids in sequences().split(task.BATCH):
            loss = model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(ids.numel())).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def assert_sampled(model: nn.Module) -> None:
    """Every step drew its rows, and the gradient of the tied weight was row-sparse: some rows never moved."""
    head = model.get_output_embeddings()
    assert head.sampler.draws == task.STEPS
    assert head.weight is model.get_input_embeddings().weight
    moved = (head.weight != make().get_output_embeddings().weight).any(1)
    assert 0 < moved.sum() < VOCABULARY
