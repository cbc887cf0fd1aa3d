"""EmbeddingBag: the input side of a model with sparse features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops


class EmbeddingBag(nn.EmbeddingBag):
    """An :class:`torch.nn.EmbeddingBag` (same constructor and keys) that takes sparse batches and touches few rows.

    Its gradient is row-sparse where a ``torch_lsh.optim`` optimizer updates the weight, else dense. ``mode="max"``,
    ``max_norm`` and ``scale_grad_by_freq`` are left to PyTorch's implementation.

    Args:
        num_embeddings: F, number of features.
        embedding_dim: width of the result.
        mode: ``"sum"`` (the default here), ``"mean"`` or ``"max"``.
        others: as in :class:`torch.nn.EmbeddingBag`.

    Shape:
        input: a sparse CSR tensor ``[B, num_embeddings]``, whose values weigh the features; or, as in PyTorch, feature
        numbers ``[B, P]``, or ``[nnz]`` with ``offsets``, with optional ``per_sample_weights``. Output
        ``[B, embedding_dim]``, zeros for a sample without features.

    >>> bag = EmbeddingBag(10, 4)
    >>> x = torch.tensor([[0.0, 2.0] + [0.0] * 8]).to_sparse_csr()
    >>> torch.equal(bag(x), 2 * bag.weight[[1]])
    True
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, **kwargs)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if input.layout is torch.sparse_csr:
            if offsets is not None or per_sample_weights is not None:
                raise ValueError(
                    "input is a sparse CSR tensor, which holds offsets and weights itself; wanted no others"
                )
            if input.dim() != 2 or input.shape[1] != self.num_embeddings:
                raise ValueError(f"input has shape {tuple(input.shape)}; wanted [B, {self.num_embeddings}]")
            crow, col, values = input.crow_indices().long(), input.col_indices().long(), input.values()
            return self._bags(crow, col, values)
        if self.mode == "max" or self.max_norm is not None or self.scale_grad_by_freq or input.device.type != "cpu":
            return super().forward(input, offsets, per_sample_weights)
        if per_sample_weights is not None and self.mode != "sum":
            raise ValueError(f"per_sample_weights came with mode={self.mode!r}; wanted mode='sum'")
        if per_sample_weights is not None and per_sample_weights.shape != input.shape:
            raise ValueError(
                f"per_sample_weights has shape {tuple(per_sample_weights.shape)}; wanted {tuple(input.shape)}"
            )
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("offsets came with a 2-D input, whose rows are the bags; wanted None")
            crow = torch.arange(0, input.numel() + 1, max(1, input.shape[1]))
            if input.shape[1] == 0:
                crow = torch.zeros(len(input) + 1, dtype=torch.int64)
        elif input.dim() == 1 and offsets is not None:
            crow = offsets.long() if self.include_last_offset else F.pad(offsets.long(), (0, 1), value=input.numel())
        else:
            raise ValueError(f"input has shape {tuple(input.shape)}; wanted [B, P], or [nnz] with offsets")
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        return self._bags(crow, input.reshape(-1).long(), weights)

    def _bags(self, crow: Tensor, col: Tensor, values: Tensor | None) -> Tensor:
        weight = self.weight
        values = weight.new_ones(len(col)) if values is None else values.to(weight.dtype)
        counts = crow.diff()
        if self.padding_idx is not None:
            kept = col != self.padding_idx
            sample = torch.repeat_interleave(counts)
            counts = torch.bincount(sample[kept], minlength=len(counts))
            crow, col, values = F.pad(counts.cumsum(0), (1, 0)), col[kept], values[kept]
        bags = ops.embedding_bag(weight, crow.contiguous(), col.contiguous(), values.contiguous())
        return bags / counts.clamp(min=1).unsqueeze(1).to(bags.dtype) if self.mode == "mean" else bags
