"""EmbeddingBag: the first layer of a model with sparse features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..eager import eager
from ..row_sparse.parameters import note_forward, wants_row_sparse
from .compiled import wants_gradient
from .sampled_path import is_compiled, is_traced, is_transformed, leaf_call


class EmbeddingBag(nn.EmbeddingBag):
    """An :class:`torch.nn.EmbeddingBag` (same constructor and keys) that also takes sparse CSR batches.

    The gradient of the weight is row-sparse if an optimizer of :mod:`torch_lsh.optim` updates it. Otherwise it is as in
    PyTorch: dense, or sparse with ``sparse=True``. PyTorch's implementation serves ``mode="max"``, ``max_norm``,
    ``scale_grad_by_freq``, devices other than the CPU and other dtypes than float32, float64 and bfloat16.

    Args:
        num_embeddings: number of features.
        embedding_dim: width of the output.
        mode: ``"sum"``, ``"mean"`` (the default, as in PyTorch) or ``"max"``.
        others: as in :class:`torch.nn.EmbeddingBag`.

    Shape:
        - Input: sparse CSR ``[B, num_embeddings]``, whose values are the weights of the features; or, as in PyTorch,
          feature numbers ``[B, P]``, or ``[nnz]`` with ``offsets``, with optional ``per_sample_weights``.
        - Output: ``[B, embedding_dim]``. With ``mode="sum"``, a CSR input gives its matrix product with the weight;
          ``"mean"`` divides each row by the number of its stored features. Features equal to ``padding_idx`` do not
          count. A sample without features gives zeros.

    >>> bag = EmbeddingBag(10, 4, mode="sum")
    >>> x = torch.tensor([[0.0, 2.0] + [0.0] * 8]).to_sparse_csr()
    >>> torch.equal(bag(x), 2 * bag.weight[[1]])
    True
    """

    def reset_parameters(self) -> None:
        """Draws new weights, as in PyTorch; not without memory for them, where PyTorch would import its compiler."""
        if self.weight.is_meta:
            return
        ops.prepare_memory(self.weight)
        super().reset_parameters()

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """The bags of ``input``.

        Args:
            input: see Shape above.
            offsets: ``[B]``, where each bag begins, or ``[B + 1]`` with ``include_last_offset``; for ``[nnz]`` only.
            per_sample_weights: weights of the features, of the shape of ``input``; with ``mode="sum"`` only.

        Raises:
            IndexError: a feature is out of range.
            ValueError: arguments do not fit together.
        """
        if isinstance(input, torch.fx.Proxy):
            arguments = input, offsets, per_sample_weights
            return super().forward(*arguments) if input.tracer.root is self else leaf_call(self, *arguments)
        is_sparse = input.layout is torch.sparse_csr
        if is_compiled() and (is_sparse or wants_gradient(self.weight)):
            return self._outside_of_graph(input, offsets, per_sample_weights)
        if is_traced() and not is_sparse:
            return super().forward(input, offsets, per_sample_weights)
        return self._forward_eager(input, offsets, per_sample_weights)

    @eager(
        "row-sparse gradients and sparse batches cannot be part of a graph; compile without fullgraph=True, or "
        "the layers after the bag"
    )
    def _outside_of_graph(self, input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
        return self._forward_eager(input, offsets, per_sample_weights)

    def _forward_eager(self, input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
        note_forward(self.weight)
        if input.layout is torch.sparse_csr:
            return self._forward_csr(input, offsets, per_sample_weights)
        # PyTorch also raises the errors for arguments that neither implementation takes.
        if (
            self._pytorch_only()
            or input.device.type != "cpu"
            or (per_sample_weights is not None and (self.mode != "sum" or per_sample_weights.shape != input.shape))
            or (input.dim() == 2) != (offsets is None)
            or input.dim() not in (1, 2)
        ):
            if offsets is not None and offsets.numel() == 0:
                self._bounds(offsets, input.numel())  # PyTorch's implementation may crash
            return super().forward(input, offsets, per_sample_weights)
        if offsets is None:
            samples, length = input.shape
            crow = torch.arange(samples + 1, device="cpu") * length
        else:
            crow = self._bounds(offsets.long(), input.numel())
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        return self._bags(crow, input.reshape(-1).long(), weights)

    def _bounds(self, offsets: Tensor, count: int) -> Tensor:
        """Where each of the bags of ``count`` features begins and the last one ends: ``[B + 1]``."""
        bounds = offsets if self.include_last_offset else F.pad(offsets, (0, 1), value=count)
        if bounds.dim() != 1 or len(bounds) == 0 or int(bounds[0]) != 0 or int(bounds[-1]) != count:
            first_last = [int(bounds[0]), int(bounds[-1])] if bounds.dim() == 1 and len(bounds) > 0 else []
            raise ValueError(
                f"offsets of shape {tuple(offsets.shape)} with input of {count} features make bags that "
                f"begin and end at {first_last}; wanted [0, {count}]"
            )
        if bool((bounds.diff() < 0).any()):
            raise ValueError("offsets decrease; wanted increasing numbers")
        return bounds

    def _forward_csr(self, input: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
        if offsets is not None or per_sample_weights is not None:
            raise ValueError(
                "input is a sparse CSR tensor, which holds offsets and weights itself; wanted offsets=None and "
                "per_sample_weights=None"
            )
        if input.dim() != 2 or input.shape[1] != self.num_embeddings:
            raise ValueError(f"input has shape {tuple(input.shape)}; wanted [B, {self.num_embeddings}]")
        crow, col, values = input.crow_indices().long(), input.col_indices().long(), input.values()
        if not self._pytorch_only():
            return self._bags(crow, col, values)
        if self.mode != "sum" or self.scale_grad_by_freq:
            raise ValueError(
                f"input is a sparse CSR tensor, and the bag has mode={self.mode!r}, max_norm={self.max_norm}, "
                f"scale_grad_by_freq={self.scale_grad_by_freq}, sparse={self.sparse}, {self.weight.dtype} on "
                f"{self.weight.device}; wanted mode 'sum', or 'mean' without the others"
            )
        return F.embedding_bag(
            col,
            self.weight,
            crow,
            self.max_norm,
            self.norm_type,
            mode="sum",
            sparse=self.sparse,
            per_sample_weights=values.to(self.weight.dtype),
            include_last_offset=True,
            padding_idx=self.padding_idx,
        )

    def _pytorch_only(self) -> bool:
        """Whether the options or a function transform need PyTorch's implementation."""
        return (
            self.mode == "max"
            or is_transformed()
            or self.max_norm is not None
            or self.scale_grad_by_freq
            or (self.sparse and not wants_row_sparse(self.weight))
            or self.weight.device.type != "cpu"
            or self.weight.dtype not in (torch.float32, torch.float64, torch.bfloat16)
        )

    def _bags(self, crow: Tensor, col: Tensor, values: Tensor | None) -> Tensor:
        if len(col) > 0:
            low, high = map(int, col.aminmax())
            if low < 0 or high >= self.num_embeddings:
                raise IndexError(f"input has features {low} to {high}; wanted 0 to {self.num_embeddings - 1}")
        counts = crow.diff()
        if self.padding_idx is not None:
            kept = col != self.padding_idx
            counts = torch.bincount(torch.repeat_interleave(counts)[kept], minlength=len(counts))
            crow, col = F.pad(counts.cumsum(0), (1, 0)), col[kept]
            values = None if values is None else values[kept]
        if values is not None:
            values = values.to(self.weight.dtype).contiguous()
        bags = ops.embedding_bag(self.weight, crow.contiguous(), col.contiguous(), values)
        return bags / counts.clamp(min=1).unsqueeze(1).to(bags.dtype) if self.mode == "mean" else bags
