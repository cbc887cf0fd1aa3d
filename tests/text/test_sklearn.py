"""The conventions of scikit-learn, by its own checks.

They make numbers, not texts. So they run on a TextClassifier that reads a row of numbers as a text with a word for each
value; whatever is about numbers (NaN, sparse input, number of features, ...) is scikit-learn's own validation, all
else is TextClassifier.
"""

from __future__ import annotations

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

from torch_lsh.data import HashedText  # noqa: E402
from torch_lsh.models import TextClassifier  # noqa: E402


def as_texts(X):
    return [" ".join(f"x{column}v{round(float(2 * value))}" for column, value in enumerate(row)) for row in X]


class RowsAsTexts(TextClassifier):
    """Its parameters are the class's."""

    def fit(self, X, y, **options):
        X, y = validate_data(self, X, y, multi_output=True)
        return super().fit(as_texts(X), y, **options)

    def partial_fit(self, X, y, classes=None):
        first = not hasattr(self, "network_")
        X = validate_data(self, X, reset=first)
        return super().partial_fit(X if first else as_texts(X), y, classes)

    def predict(self, X):
        return super().predict(self.texts(X))

    def predict_proba(self, X):
        return super().predict_proba(self.texts(X))

    def evaluate(self, X, y):
        return super().evaluate(self.texts(X), y)

    def texts(self, X):
        if isinstance(X, list) and X and isinstance(X[0], str):
            return X  # of predict, which calls predict_proba
        check_is_fitted(self)
        return as_texts(validate_data(self, X, reset=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        return tags


@parametrize_with_checks([RowsAsTexts(epochs=6)])
def test_check_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_estimators_of_texts_are_known_as_such():
    """Of an estimator that takes texts, scikit-learn checks what needs no data."""
    for estimator in (TextClassifier(), HashedText(bits=8)):
        results = check_estimator(estimator, on_skip=None)
        assert [result["status"] for result in results] == ["passed"]
        assert estimator.__sklearn_tags__().input_tags.string


def test_multi_hot_labels_come_back_as_such(tmp_path):
    texts = ["alpha beta", "alpha", "beta gamma", "gamma"] * 10
    y = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]] * 10)  # nothing is of the last class
    model = TextClassifier(epochs=30).fit(texts, y)
    np.testing.assert_array_equal(model.predict(texts[:4]), y[:4])
    assert model.predict_proba(texts[:2]).shape == (2, 4)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(TextClassifier.load(tmp_path / "model").predict(texts[:4]), y[:4])
