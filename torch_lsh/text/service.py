"""A text classifier behind the HTTP server."""

from __future__ import annotations

from typing import Any

from ..io import FilePath
from .classifier import TextClassifier


class TextService:
    """Answers ``{"text": "..."}`` and ``{"texts": ["...", ...]}``; see :class:`torch_lsh.serving.service.Service`.

    Args:
        model: Fitted.
    """

    fields = frozenset({"text", "texts"})

    def __init__(self, model: TextClassifier) -> None:
        self._model = model
        self.classes = len(model.classes_)

    @classmethod
    def load(cls, path: FilePath) -> TextService:
        """Loads a model and tries it.

        Raises:
            ValueError: The file holds none, or one that does not predict.
        """
        service = cls(TextClassifier.load(path))
        service.predict(["a trial"], 1)
        return service

    def inputs(self, content: dict[str, Any]) -> list[str]:
        if ("text" in content) == ("texts" in content):
            raise ValueError('the body has neither or both of "text" and "texts"; wanted an object with one')
        texts = [content["text"]] if "text" in content else content["texts"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError('"text" must be a string, "texts" a list of at least one string')
        return texts

    def predict(self, inputs: list[str], k: int) -> list[dict[str, Any]]:
        labels, probabilities = self._model.top_k(inputs, k)
        return [{"labels": some, "probabilities": p} for some, p in zip(labels.tolist(), probabilities.tolist())]
