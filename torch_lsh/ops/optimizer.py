"""Optimizer steps on some rows of a parameter."""

from __future__ import annotations

from torch import Tensor

from .declaration import operator


@operator
def row_sparse_adam_(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    rows: Tensor,
    gradient: Tensor,
    decays: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bias_correction1: float,
    bias_correction2: float,
    decoupled: bool,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One step of Adam, or of AdamW (``decoupled``), on some rows of a parameter, in place.

    Args:
        parameter: ``[N, width]`` or ``[N]`` float32, float64 or bfloat16, contiguous.
        first, second: the moments, of the shape of ``parameter``: both float64 for a float64 parameter, else both
            float32 or both bfloat16.
        rows: ``[A]`` int64, strictly increasing.
        gradient: ``[A, width]`` or ``[A]``; with ``factor`` ``[A, K]`` of any strides.
        decays: ``[A, 3]`` float64, or None: what first moment, second moment and weights of each row are multiplied by
            before the step. It makes up for the steps that a row missed.
        lr, beta1, beta2, eps, weight_decay, maximize: as in :class:`torch.optim.Adam`.
        bias_correction1, bias_correction2: ``1 - beta ** step``.
        decoupled: decays weights as AdamW does.
        factor: ``[K, width]``, or None. The gradient is then ``gradient @ factor``, computed some rows at a time and
            never stored. Not for bfloat16 parameters.
        seed: of the stochastic rounding of bfloat16 weights and moments; negative: round to nearest.

    Raises:
        RuntimeError: an argument does not fit. Nothing was changed then.

    >>> import torch
    >>> parameter, first, second = torch.ones(3), torch.zeros(3), torch.zeros(3)
    >>> options = dict(lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, weight_decay=0.0, decoupled=False, maximize=False)
    >>> options |= dict(bias_correction1=0.1, bias_correction2=0.01)
    >>> row_sparse_adam_(parameter, first, second, torch.tensor([1]), torch.tensor([5.0]), None, **options)
    >>> parameter
    tensor([1.0000, 0.9000, 1.0000])

    Kingma & Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015; Loshchilov & Hutter, *Decoupled Weight Decay
    Regularization*, ICLR 2019.
    """


@operator
def row_sparse_sgd_(
    parameter: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One step of SGD on some rows of a parameter, in place.

    Args:
        parameter, rows, gradient, factor, seed: as in :func:`row_sparse_adam_`.
        momentum_buffer: of the shape of ``parameter``, or None: no momentum.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`.

    Raises:
        RuntimeError: an argument does not fit. Nothing was changed then.

    >>> import torch
    >>> parameter, rows, gradient = torch.ones(3), torch.tensor([1]), torch.tensor([5.0])
    >>> row_sparse_sgd_(parameter, None, rows, gradient, 0.1, 0.0, 0.0, 0.0, nesterov=False, maximize=False)
    >>> parameter
    tensor([1.0000, 0.5000, 1.0000])
    """


@operator
def row_sparse_adagrad_(
    parameter: Tensor,
    squares: Tensor,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One step of Adagrad on some rows of a parameter, in place.

    Args:
        parameter, rows, gradient, factor, seed: as in :func:`row_sparse_adam_`.
        squares: sums of the squared gradients, of the shape of ``parameter``.
        lr, eps, weight_decay, maximize: as in :class:`torch.optim.Adagrad`.

    Raises:
        RuntimeError: an argument does not fit. Nothing was changed then.

    >>> import torch
    >>> parameter, squares = torch.ones(3), torch.zeros(3)
    >>> row_sparse_adagrad_(parameter, squares, torch.tensor([1]), torch.tensor([5.0]), 0.1, 0.0, 0.0, maximize=False)
    >>> parameter, squares
    (tensor([1.0000, 0.9000, 1.0000]), tensor([ 0., 25.,  0.]))

    Duchi et al., *Adaptive Subgradient Methods for Online Learning and Stochastic Optimization*, JMLR 2011.
    """


@operator
def row_sparse_lion_(
    parameter: Tensor,
    average: Tensor,
    rows: Tensor,
    gradient: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    maximize: bool,
    factor: Tensor | None = None,
    seed: int = -1,
) -> None:
    """One step of Lion on some rows of a parameter, in place.

    Args:
        parameter, rows, gradient, factor, seed: as in :func:`row_sparse_adam_`.
        average: exponential average of the gradients, of the shape of ``parameter``.
        lr, beta1, beta2, weight_decay, maximize: as in :class:`torch_lsh.optim.Lion`.

    Raises:
        RuntimeError: an argument does not fit. Nothing was changed then.

    >>> import torch
    >>> parameter, average, rows, gradient = torch.ones(3), torch.zeros(3), torch.tensor([1]), torch.tensor([5.0])
    >>> row_sparse_lion_(parameter, average, rows, gradient, 0.1, 0.9, 0.8, 0.0, maximize=False)
    >>> parameter, average
    (tensor([1.0000, 0.9000, 1.0000]), tensor([0., 1., 0.]))

    Chen et al., *Symbolic Discovery of Optimization Algorithms*, NeurIPS 2023.
    """
