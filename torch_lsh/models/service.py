"""An XMC model behind the HTTP server."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..data import XMCRows
from ..io import FilePath
from .rows import DenseRows, Rows, batch_of
from .xmc import XMCClassifier

_ONE, _SEVERAL = "features", "rows"


class XMCService:
    """Answers ``{"features": row}`` and ``{"rows": [row, ...]}``; see :class:`torch_lsh.serving.service.Service`.

    A row is an object from feature ids to values, ``{"3": 0.5, "17": 1}``; of a model with dense input, a list of
    numbers. An answer has ``labels`` and ``scores``.

    Args:
        model: Trained.
    """

    fields = frozenset({_ONE, _SEVERAL})

    def __init__(self, model: XMCClassifier) -> None:
        self._model = model.eval()
        self.classes = model.num_labels

    @classmethod
    def load(cls, path: FilePath) -> XMCService:
        """Loads a model and tries it.

        Raises:
            ValueError: The file holds none, or one that does not predict.
        """
        service = cls(XMCClassifier.load(path, mmap=True))
        trial = [0.0] * service._model.num_features if service._model.dense_input else {}
        service.predict([trial], 1)
        return service

    def inputs(self, content: dict[str, Any]) -> list[Any]:
        if (_ONE in content) == (_SEVERAL in content):
            raise ValueError(f'the body has neither or both of "{_ONE}" and "{_SEVERAL}"; wanted an object with one')
        rows = [content[_ONE]] if _ONE in content else content[_SEVERAL]
        if not isinstance(rows, list) or not rows:
            raise ValueError(f'"{_SEVERAL}" must be a list of at least one row')
        read = self._dense_row if self._model.dense_input else self._sparse_row
        return [read(row) for row in rows]

    def _sparse_row(self, row: Any) -> dict[int, float]:
        if not isinstance(row, dict):
            raise ValueError("a row must be an object from feature ids to values")
        found = {}
        for name, value in row.items():
            if not (name.isascii() and name.isdecimal() and len(name) < 19 and int(name) < self._model.num_features):
                raise ValueError(f"a feature is {name!r:.50}; wanted 0 to {self._model.num_features - 1}")
            found[int(name)] = _number(value)
        return dict(sorted(found.items()))

    def _dense_row(self, row: Any) -> list[float]:
        if not isinstance(row, list) or len(row) != self._model.num_features:
            raise ValueError(f"a row must be a list of {self._model.num_features} numbers")
        return [_number(value) for value in row]

    def predict(self, inputs: list[Any], k: int) -> list[dict[str, Any]]:
        scores, labels = self._model.predict(batch_of(self._rows(inputs)).features, k)
        return [{"labels": some, "scores": values} for some, values in zip(labels.tolist(), scores.tolist())]

    def _rows(self, inputs: list[Any]) -> Rows:
        start, none = torch.zeros(len(inputs) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
        if self._model.dense_input:
            return DenseRows(torch.tensor(inputs), start, none, self.classes)
        counts = torch.tensor([len(row) for row in inputs])
        features = torch.tensor([feature for row in inputs for feature in row], dtype=torch.int32)
        values: Tensor = torch.tensor([value for row in inputs for value in row.values()], dtype=torch.float32)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return XMCRows(offsets, features, values, start, none, self._model.num_features, self.classes)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 1e30:
        raise ValueError(f"a value is {value!r:.50}; wanted a finite number")
    return float(value)
