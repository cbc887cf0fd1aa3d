"""A text classifier behind the HTTP server."""

from __future__ import annotations

from typing import Any

from ..io import FilePath
from ..models.service import FILTERS, Input, by_filter, filter_of
from .classifier import TextClassifier
from .training_data import Labels


class TextService:
    """Answers ``{"text": "..."}`` and ``{"texts": ["...", ...]}``; see :class:`torch_lsh.serving.service.Service`.

    Lists ``allowed`` and ``excluded`` of labels hold for all texts of a request. An answer has ``labels`` and
    ``probabilities``, fewer than ``k`` where fewer labels are permitted.

    Args:
        model: Fitted.
    """

    fields = FILTERS | {"text", "texts"}

    def __init__(self, model: TextClassifier) -> None:
        self._model = model
        self.classes = len(model.classes_)
        self._labels = Labels(model.classes_.tolist())

    @classmethod
    def load(cls, path: FilePath) -> TextService:
        """Loads a model and tries it.

        Raises:
            ValueError: The file holds none, or one that does not predict.
        """
        service = cls(TextClassifier.load(path))
        service.predict([Input("a trial", None)], 1)
        return service

    def inputs(self, content: dict[str, Any]) -> list[Input]:
        if ("text" in content) == ("texts" in content):
            raise ValueError('the body has neither or both of "text" and "texts"; wanted an object with one')
        texts = [content["text"]] if "text" in content else content["texts"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError('"text" must be a string, "texts" a list of at least one string')
        labels = filter_of(content, self._labels.number, self.classes)
        return [Input(text, labels) for text in texts]

    def predict(self, inputs: list[Input], k: int) -> list[dict[str, Any]]:
        answers = []
        for texts, labels in by_filter(inputs):
            allowed, excluded, permitted = labels or (None, None, self.classes)
            found, probabilities = self._model.top_k(texts, min(k, permitted), allowed=allowed, excluded=excluded)
            answers += [
                {"labels": some, "probabilities": values}
                for some, values in zip(found.tolist(), probabilities.tolist())
            ]
        return answers
