"""Optimizers for dense and row-sparse parameters in one list, and gradient clipping for both.

:class:`Adam`, :class:`AdamW`, :class:`SGD` and :class:`Adagrad` subclass those of :mod:`torch.optim` and take the same
arguments and state, so a ``state_dict`` goes either way. An optimizer marks the parameters that it can update row by
row (:mod:`torch_lsh.row_sparse`). Layers of this library then produce row-sparse gradients for them, and a step reads
and writes only the rows of the gradient. Dense gradients go to PyTorch's own step, which is fused unless the caller
chose otherwise. A parameter may switch between the two kinds from step to step. All options below may be set per group.
:class:`Lion`, which PyTorch lacks, takes both kinds of gradients itself.

**Lazy updates.** A row without a gradient does not move and its moments do not decay, as in
:class:`torch.optim.SparseAdam`. Bias corrections use the parameter's step count, and weight decay acts on touched rows.
With ``catch_up=True`` (:class:`Adam`, :class:`AdamW`) a row first gets the decay that it missed since it was last
touched: its moments times ``beta ** missed``, and under AdamW its weights times ``(1 - lr * weight_decay) ** missed``,
at the present learning rate. Catch-up does not move weights by the momentum of missed steps, nor apply their L2
penalty.

**Learning rates of language models.** A dense optimizer moves rows of rare words at every step, a lazy one moves them
seldom, so the two want different learning rates. On a tenth of wikitext-2, lazy Adam was better at 3e-2 than at 1e-2,
and best there with ``catch_up=True``; :class:`Adagrad` was as good at 0.05 as at 0.1
(``benchmarks/language_model.py``).

**bfloat16.** State of bfloat16 parameters is float32 by default, for dense gradients too, and arithmetic is float32.
With ``moment_dtype=torch.bfloat16`` the state of bfloat16 and float32 parameters takes 2 bytes per number. Results are
rounded to bfloat16 stochastically, up or down with probabilities that make the mean exact: rounding to nearest would
lose every step smaller than 1/256 of the weight. The random numbers are a function of step, row and column, so results
repeat. ``stochastic_rounding=False`` rounds to nearest, as PyTorch does.

**Updates in the backward pass.** With ``in_backward=True`` an optimizer updates rows as soon as the backward pass has
their gradient, which is never stored; for the rows of an :class:`torch_lsh.LSHLinear` it is not even computed as a
whole. ``step()`` then updates parameters with dense gradients and ends the step. A second gradient for a parameter
before ``step()`` is an error, because the first is gone and cannot be added to. Gradients cannot be clipped or
inspected in this mode.

**Repeated rows.** Gradients accumulated over several backward passes may hold a row more than once; such rows are
summed first.

**Unsupported.** ``amsgrad``, ``capturable``, ``differentiable`` and parameters that are not contiguous CPU tensors of
float32, float64 or bfloat16 have no row-sparse update. Such parameters are not marked, so they get dense gradients and
train as in PyTorch. :class:`Lion` refuses them.
"""

from .adagrad import Adagrad
from .adam import Adam, AdamW
from .lion import Lion
from .sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion"]
