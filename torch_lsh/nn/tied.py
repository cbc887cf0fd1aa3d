"""Embeddings that share their weight with a wide layer: both uses give the weight row-sparse gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..row_sparse.parameters import wants_row_sparse
from .compiled import embedding_in_graph, wants_gradient
from .linear import LSHLinear
from .sampled_path import is_compiled


def tied_embeddings(model: nn.Module, weight: Tensor) -> list[tuple[str, nn.Embedding]]:
    """The embeddings of ``model`` whose weight is ``weight``, with their names."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module._parameters.get("weight") is weight
    ]


def follow_tied_embeddings(model: nn.Module) -> None:
    """Calls :func:`follow_optimizer` for every embedding that shares its weight with an :class:`LSHLinear`."""
    for layer in model.modules():
        if isinstance(layer, LSHLinear):
            for _, embedding in tied_embeddings(model, layer.weight):
                follow_optimizer(embedding)


def follow_optimizer(embedding: nn.Embedding) -> None:
    """Makes the gradient of an embedding row-sparse while an optimizer takes that, as an :class:`LSHLinear` does.

    Embeddings that have ``sparse=True`` or ``scale_grad_by_freq=True`` stay as they are.
    """
    if not embedding.sparse and not embedding.scale_grad_by_freq and not follows_optimizer(embedding):
        embedding.register_forward_pre_hook(_choose_layout)
        embedding.register_forward_hook(_take_operator)


def follows_optimizer(embedding: nn.Embedding) -> bool:
    """Whether :func:`follow_optimizer` was called."""
    return _choose_layout in embedding._forward_pre_hooks.values()


def stop_following(embedding: nn.Embedding) -> None:
    """Undoes :func:`follow_optimizer`."""
    for hooks in (embedding._forward_pre_hooks, embedding._forward_hooks):
        for number, hook in list(hooks.items()):
            if hook in (_choose_layout, _take_operator):
                del hooks[number]
                embedding.sparse = False


def _choose_layout(embedding: nn.Embedding, args: Any) -> None:
    # Compiled graphs have no sparse gradients of their own.
    embedding.sparse = not torch.compiler.is_compiling() and wants_row_sparse(embedding.weight)


def _take_operator(embedding: nn.Embedding, args: Any, output: Tensor) -> Tensor | None:
    """The output in a compiled graph, computed by an operator that has row-sparse gradients."""
    plain = type(embedding).forward is nn.Embedding.forward and embedding.max_norm is None and len(args) == 1
    if not plain or not is_compiled() or not wants_gradient(embedding.weight):
        return None
    return embedding_in_graph(args[0], embedding.weight, embedding.padding_idx)
