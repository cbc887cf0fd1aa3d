"""StatsWriter: writes the stats of LSH layers to TensorBoard while a model trains."""

from __future__ import annotations

import os
from typing import Any, Protocol, runtime_checkable

from torch import nn

from .nn.linear import lsh_layers


@runtime_checkable
class ScalarWriter(Protocol):
    """What a ``torch.utils.tensorboard.SummaryWriter`` offers; loggers with the same method do as well."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class StatsWriter:
    """Writes :meth:`torch_lsh.LSHLinear.stats` of every LSH layer of a model, every so many steps.

    Call it after every training step, or give it to ``XMCClassifier.fit(callbacks=[...])``. The layers are watched
    (:meth:`torch_lsh.LSHLinear.watch`) until :meth:`close`. Recall is measured on the inputs of the last step; times
    are means since the last write. Training is not affected.

    Args:
        model: a module; all LSH layers in it are watched.
        writer: a ``SummaryWriter``, anything with its ``add_scalar``, or the path of a folder; the latter needs
            tensorboard.
        every: steps between two writes. A write costs a pass over the weights of each layer, for the exact best rows of
            ``queries`` inputs, and one over the index.
        k, queries: as in :meth:`torch_lsh.LSHLinear.stats`.
        prefix: of the tags, ``prefix/layer/number``.

    Raises:
        ValueError: an argument does not fit, or there is no LSH layer.
        ImportError: a path was given, and tensorboard is not installed.

    >>> import torch, torch_lsh
    >>> class Print:
    ...     def add_scalar(self, tag, scalar_value, global_step):
    ...         if tag.endswith("stale_rows"):
    ...             print(tag, scalar_value, global_step)
    >>> model = torch.nn.Sequential(torch_lsh.LSHLinear(8, 2_000))
    >>> write = StatsWriter(model, Print(), every=2)
    >>> for _ in range(2):
    ...     loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 8)), torch.tensor([1, 2, 3, 4]))
    ...     write()
    torch_lsh/0/stale_rows 0 2
    """

    def __init__(
        self,
        model: nn.Module,
        writer: ScalarWriter | str | os.PathLike[str],
        *,
        every: int = 100,
        k: int = 10,
        queries: int = 64,
        prefix: str = "torch_lsh",
    ) -> None:
        for name, number in (("every", every), ("k", k), ("queries", queries)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is {number!r}; wanted a positive int")
        self._layers = lsh_layers(model)
        for name, layer in self._layers.items():
            if k > layer.out_features:
                raise ValueError(f"k is {k}; wanted at most {layer.out_features}, the rows of {name or 'the model'}")
        self._owned: Any = None
        if isinstance(writer, (str, os.PathLike)):
            writer = self._owned = _summary_writer(writer)
        if not isinstance(writer, ScalarWriter):
            raise ValueError(f"writer is a {type(writer).__name__}; wanted a SummaryWriter or the path of a folder")
        self.writer, self.every, self.k, self.queries, self.prefix = writer, every, k, queries, prefix
        self._steps = 0
        for layer in self._layers.values():
            layer.watch()

    def __call__(self) -> None:
        """Counts one training step and writes when it is time."""
        self._steps += 1
        if self._steps % self.every == 0:
            self.write()

    def write(self) -> None:
        """Writes now."""
        for name, layer in self._layers.items():
            stats = layer.stats(k=self.k, queries=self.queries, seed=self._steps)
            if layer.sampler.stopwatch is not None:
                layer.sampler.stopwatch.reset()
            prefix = "/".join(filter(None, (self.prefix, name)))
            for key, value in stats.as_dict().items():
                key = key.replace("recall", f"recall@{self.k}") if "recall" in key else key
                self.writer.add_scalar(f"{prefix}/{key}", value, self._steps)

    def close(self) -> None:
        """Stops watching, and closes a writer that was made from a path."""
        for layer in self._layers.values():
            layer.watch(False)
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> StatsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = int(state_dict["steps"])


def _summary_writer(folder: str | os.PathLike[str]) -> ScalarWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "writing to TensorBoard needs tensorboard: pip install 'torch_lsh[tensorboard]', or pass a writer"
        ) from error
    return SummaryWriter(os.fspath(folder))
