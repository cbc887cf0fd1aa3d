"""Rows in a sparse matrix most of whose entries are there, and features of very different size."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from torch_lsh.data import XMCRows
from torch_lsh.models import XMCClassifier
from torch_lsh.models.neighbours import DenseNeighbours, SparseNeighbours
from torch_lsh.models.rows import DenseRows
from torch_lsh.models.weighting import UnitLength, are_mostly_there

FEATURES, LABELS, ROWS = 24, 100, 6_000


def generate(rows, seed):
    """Rows near one of the centres, one of a label each; half of the numbers are negative."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(LABELS, FEATURES))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, LABELS, rows)
    return (centres[labels] + 1.2 * generator.normal(size=(rows, FEATURES))).astype(np.float32), labels


def matrix_of(labels):
    return scipy.sparse.csr_matrix((np.ones(len(labels)), labels, np.arange(len(labels) + 1)), (len(labels), LABELS))


def fitted(features, labels, **options):
    dense = isinstance(features, np.ndarray)
    model = XMCClassifier(FEATURES, LABELS, hidden=8, dense_input=dense)
    model.fit((features, matrix_of(labels)), progress=False, **options)
    return model


def precision(model, features, labels):
    return float((model.predict(features, 1)[1][:, 0].numpy() == labels).mean())


@pytest.fixture(scope="module")
def data():
    return generate(ROWS, 1), generate(500, 2)


@pytest.fixture(scope="module")
def model(data):
    (features, labels), _ = data
    return fitted(scipy.sparse.csr_matrix(features), labels)


def test_they_are_ranked_as_dense_rows(data, model):
    _, (features, labels) = data
    assert isinstance(model.mixture.neighbours, DenseNeighbours)
    assert precision(model, scipy.sparse.csr_matrix(features), labels) > 0.75


def test_files_and_more_rows(data, model, tmp_path):
    _, (features, labels) = data
    rows = scipy.sparse.csr_matrix(features)
    model.save(tmp_path / "model")
    loaded = XMCClassifier.load(tmp_path / "model")
    assert torch.equal(loaded.predict(rows, 5)[0], model.predict(rows, 5)[0])
    wide = scipy.sparse.hstack([rows, scipy.sparse.csr_matrix(np.ones((500, 2), np.float32))]).tocsr()
    loaded.partial_fit((wide, matrix_of(labels)))  # with two new features, which are left out
    assert len(loaded.mixture.neighbours) == ROWS + 500
    assert precision(loaded, wide, labels) > precision(model, rows, labels)
    loaded.save(tmp_path / "larger")
    again = XMCClassifier.load(tmp_path / "larger")
    assert torch.equal(again.predict(wide, 5)[1], loaded.predict(wide, 5)[1])


def test_a_file_with_another_scale_is_refused(data, model, tmp_path):
    scale = model.mixture.weighting.scale.clone()
    try:
        model.mixture.weighting.scale[3] = -1
        model.save(tmp_path / "model")
    finally:
        model.mixture.weighting.scale[:] = scale
    with pytest.raises(ValueError, match="scale holds a number"):
        XMCClassifier.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_the_size_of_single_features_does_not_matter(data, kind):
    (features, labels), (test, test_labels) = data
    size = np.logspace(-4, 4, FEATURES).astype(np.float32)

    def made(some):
        return scipy.sparse.csr_matrix(some) if kind == "sparse" else some

    # A network would learn the sizes where it is trained.
    found = precision(fitted(made(features * size), labels, epochs=0), made(test * size), test_labels)
    assert found > 0.75  # without the scale: 0.37 and 0.13


def test_features_of_like_size_are_left_alone(data):
    (features, labels), _ = data
    dense = DenseRows(torch.from_numpy(features), torch.arange(ROWS + 1), torch.from_numpy(labels).int(), LABELS)
    assert UnitLength.of(dense).scale is None
    some = torch.from_numpy(features[:4])
    weighting = UnitLength.of(sparse_rows(torch.from_numpy(features)))
    assert bool((weighting.scale == 1).all())
    torch.testing.assert_close(weighting(some.to_sparse_csr()), torch.nn.functional.normalize(some, dim=1))
    torch.testing.assert_close(weighting.rows(sparse_rows(some)).features, weighting(some))
    zeros = DenseRows(torch.zeros(3, 5), torch.arange(4), torch.zeros(3, dtype=torch.int32), 1)
    assert UnitLength.of(zeros).scale is None


def sparse_rows(matrix):
    csr = matrix.to_sparse_csr()
    labels = torch.arange(len(matrix) + 1), torch.zeros(len(matrix), dtype=torch.int32)
    return XMCRows(csr.crow_indices(), csr.col_indices().int(), csr.values(), *labels, matrix.shape[1], 1)


def test_rows_with_few_of_the_entries_stay_sparse(data):
    (features, labels), _ = data
    few = features * (np.random.default_rng(3).random(features.shape) < 0.3)
    assert not are_mostly_there(sparse_rows(torch.from_numpy(few)))
    assert isinstance(fitted(scipy.sparse.csr_matrix(few), labels).mixture.neighbours, SparseNeighbours)
