"""An XMC model behind the HTTP server."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import XMCRows
from ..io import FilePath
from .rows import DenseRows, Rows, batch_of
from .xmc import XMCClassifier

_ONE, _SEVERAL = "features", "rows"
FILTERS = frozenset({"allowed", "excluded"})


class Filter(NamedTuple):
    """The labels that a request permits.

    Attributes:
        allowed, excluded: Labels as the model takes them; None means no such list.
        permitted: How many labels are left.
    """

    allowed: list[Any] | None
    excluded: list[Any] | None
    permitted: int


class Input(NamedTuple):
    """An input of a request, and the filter that all inputs of the request share."""

    value: Any
    filter: Filter | None


def filter_of(content: dict[str, Any], number: Callable[[Any, str], int], num_labels: int) -> Filter | None:
    """The filter of a request, None if it has none.

    Args:
        content: The JSON object.
        number: The number of a label; gets the label and the name of the list, and raises a ValueError for labels that
            the model does not know.
        num_labels: How many labels the model has.
    """
    lists: dict[str, list[Any] | None] = {}
    numbers: dict[str, set[int]] = {}
    for name in sorted(FILTERS & content.keys()):
        some = lists[name] = content[name]
        if not isinstance(some, list) or not all(type(label) in (str, int) for label in some):
            raise ValueError(f'"{name}" must be a list of labels')
        numbers[name] = {number(label, name) for label in some}
    if not lists:
        return None
    allowed, excluded = numbers.get("allowed"), numbers.get("excluded", set())
    permitted = num_labels - len(excluded) if allowed is None else len(allowed - excluded)
    if permitted == 0:
        raise ValueError('"allowed" and "excluded" leave no label')
    return Filter(lists.get("allowed"), lists.get("excluded"), permitted)


def by_filter(inputs: list[Input]) -> Iterator[tuple[list[Any], Filter | None]]:
    """The values of consecutive inputs that share a filter."""
    for _, group in itertools.groupby(inputs, key=lambda one: id(one.filter)):
        some = list(group)
        yield [one.value for one in some], some[0].filter


class XMCService:
    """Answers ``{"features": row}`` and ``{"rows": [row, ...]}``; see :class:`torch_lsh.serving.service.Service`.

    A row is an object from feature ids to values, ``{"3": 0.5, "17": 1}``; of a model with dense input, a list of
    numbers. Lists ``allowed`` and ``excluded`` of label ids hold for all rows of a request. An answer has ``labels``
    and ``scores``, fewer than ``k`` where fewer labels are permitted.

    Args:
        model: Trained.
    """

    fields = FILTERS | {_ONE, _SEVERAL}

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
        service.predict([Input(trial, None)], 1)
        return service

    def inputs(self, content: dict[str, Any]) -> list[Input]:
        if (_ONE in content) == (_SEVERAL in content):
            raise ValueError(f'the body has neither or both of "{_ONE}" and "{_SEVERAL}"; wanted an object with one')
        rows = [content[_ONE]] if _ONE in content else content[_SEVERAL]
        if not isinstance(rows, list) or not rows:
            raise ValueError(f'"{_SEVERAL}" must be a list of at least one row')
        read = self._dense_row if self._model.dense_input else self._sparse_row
        labels = filter_of(content, self._label, self.classes)
        return [Input(read(row), labels) for row in rows]

    def _label(self, label: Any, name: str) -> int:
        if type(label) is not int or not 0 <= label < self.classes:
            raise ValueError(f'"{name}" has {label!r:.50}; wanted 0 to {self.classes - 1}')
        return label

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

    def predict(self, inputs: list[Input], k: int) -> list[dict[str, Any]]:
        answers = []
        for rows, labels in by_filter(inputs):
            allowed, excluded, permitted = labels or (None, None, self.classes)
            features = batch_of(self._rows(rows)).features
            scores, found = self._model.predict(features, min(k, permitted), allowed=allowed, excluded=excluded)
            answers += [{"labels": some, "scores": values} for some, values in zip(found.tolist(), scores.tolist())]
        return answers

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
