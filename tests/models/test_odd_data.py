"""What no caller means: numbers that are no weights or labels, batches that count for nothing, Ctrl-C."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from torch_lsh.data import XMCDataset, XMCStream, synthetic_xmc
from torch_lsh.models import TextClassifier, XMCClassifier
from torch_lsh.text.sources import FileColumns, source_of

sparse = pytest.importorskip("scipy.sparse")

FEATURES, LABELS = 400, 520


@pytest.fixture(scope="module")
def data():
    return synthetic_xmc(400, 60, num_features=FEATURES, num_labels=LABELS)


def made():
    torch.manual_seed(0)
    return XMCClassifier(FEATURES, LABELS, hidden=8)


@pytest.mark.parametrize("dense", [False, True])
def test_batches_that_weigh_nothing_leave_finite_parameters(data, dense):
    model = XMCClassifier(FEATURES, LABELS, hidden=8, dense=dense)
    weights = torch.zeros(LABELS)
    weights[int(data[0].rows.labels[0])] = 1.0
    history = model.fit(data[0], epochs=1, batch_size=8, neighbours=0, progress=False, class_weight=weights)
    assert math.isfinite(history[0]["loss"])
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_text_batch_that_weighs_nothing_with_label_smoothing():
    texts, labels = ["a b", "c d", "e f"] * 30, ["x", "y", "z"] * 30
    model = TextClassifier(epochs=2, batch_size=1, label_smoothing=0.1)
    model.fit(texts, labels, class_weight={"x": 0.0, "y": 0.0})
    assert all(bool(parameter.isfinite().all()) for parameter in model.network_.parameters())
    assert model.predict(["e f"]).tolist() == ["z"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"sample_weight": [1.0] * 399 + [-2.0]},
            r"sample_weight\[399\] is -2.0; wanted a finite number of at least 0",
        ),
        ({"sample_weight": [math.nan] * 400}, r"sample_weight\[0\] is nan"),
        ({"sample_weight": [0] * 400}, "sample_weight has the sum 0.0; wanted a positive, finite one"),
        ({"sample_weight": [3e38] * 400}, "sample_weight has the sum inf"),
        ({"class_weight": torch.zeros(LABELS)}, "class_weight is 0 for every label of the rows"),
        ({"class_weight": {3: -1.0}}, r"class_weight\[3\] is -1.0"),
        ({"lr": 0.0}, "lr is 0.0; wanted a positive number"),
        ({"lr": math.inf}, "lr is inf; wanted a positive number"),
    ],
)
def test_what_is_no_weight_and_no_rate_is_named(data, options, words):
    model = made()
    with pytest.raises(ValueError, match=words):
        model.fit(data[0], progress=False, **options)
    assert torch.equal(model.output.weight, made().output.weight)


@pytest.mark.parametrize("value", [-1.0, 0.5, math.nan, 2.0])
@pytest.mark.parametrize("kind", ["scipy", "torch"])
def test_a_sparse_matrix_of_labels_holds_zeros_and_ones(value, kind):
    matrix = sparse.csr_matrix(([1.0, 0.0, value], [1, 2, 4], [0, 1, 3]), shape=(2, LABELS))
    if kind == "torch":
        matrix = torch.sparse_csr_tensor(matrix.indptr, matrix.indices, matrix.data, matrix.shape)
    with pytest.raises(ValueError, match=f"labels hold {value} in row 1, column 4; wanted zeros and ones"):
        made().fit((sparse.eye(2, FEATURES, format="csr"), matrix), progress=False)
    with pytest.raises(ValueError, match=f"labels hold {value} in row 1, column 4"):
        TextClassifier().fit(["a", "b"], matrix)


def test_a_wide_sparse_matrix_of_labels_stays_sparse():
    """Dense, it would take 80 TB."""
    classes = 10**12
    matrix = sparse.csr_matrix(([1, 1], [5, classes - 1], [0, 1, 2]), shape=(2, classes))
    assert [row.labels for row in source_of(["a", "b"], matrix, FileColumns())] == [[5], [classes - 1]]


def test_sparse_and_dense_matrices_of_labels_are_the_same():
    dense = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]] * 5)
    texts = ["a b", "c", "d", "e"] * 5
    forms = [dense, sparse.csr_matrix(dense), torch.tensor(dense).to_sparse_csr(), torch.tensor(dense).to_sparse()]
    found = [TextClassifier(epochs=1).fit(texts, form).predict_proba(texts) for form in forms]
    assert all((some == found[0]).all() for some in found)


@pytest.mark.parametrize(
    "labels", [[np.array([1, 2]), [3]], [torch.tensor([1, 2]), torch.tensor([3])], [(1, 2), np.int64([3])]]
)
def test_labels_of_rows_as_arrays(labels):
    features = sparse.eye(2, FEATURES, format="csr")
    found = [made() for _ in range(2)]
    for model, form in zip(found, (labels, [[1, 2], [3]])):
        model.fit((features, form), progress=False, epochs=1)
    assert torch.equal(found[0].output.weight, found[1].output.weight)


def test_no_rows_are_named_as_such(data):
    with pytest.raises(ValueError, match="the training data has no rows"):
        made().fit((sparse.csr_matrix((0, FEATURES)), []), progress=False)
    with pytest.raises(ValueError, match=r"features have layout torch.sparse_coo; wanted torch.sparse_csr"):
        made().fit((torch.eye(FEATURES)[:2].to_sparse(), [0, 1]), progress=False)


def test_an_interrupted_partial_fit_keeps_the_neighbours(data, monkeypatch):
    model = made()
    model.fit(data[0], epochs=1, progress=False)
    new, _ = synthetic_xmc(50, 0, num_features=FEATURES, num_labels=LABELS + 40, seed=3)
    known, interrupted = copy.deepcopy(model), copy.deepcopy(model)
    known.partial_fit(new)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch_lsh.models.network.softmax_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupted.partial_fit(new)
    assert not interrupted.training
    assert interrupted.num_labels == known.num_labels == LABELS + 40
    assert interrupted.evaluate(new)["precision@1"] > known.evaluate(new)["precision@1"] - 0.1
    assert interrupted.evaluate(data[1])["precision@1"] > known.evaluate(data[1])["precision@1"] - 0.1


def test_a_refused_or_interrupted_fit_keeps_the_neighbours(data, tmp_path):
    model = made()
    model.fit(data[0], epochs=1, progress=False, checkpoint=tmp_path / "run")
    wanted = model.predict(data[1])
    with pytest.raises(ValueError, match="belongs to a run with schedule"):
        model.fit(data[0], epochs=1, seed=1, progress=False, checkpoint=tmp_path / "run")
    assert torch.equal(model.predict(data[1])[0], wanted[0])

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(data[0], epochs=1, progress=False, callbacks=[interrupt])
    assert model.mixture is not None


def test_no_new_rows_change_nothing(data):
    model = made()
    model.fit(data[0], epochs=1, progress=False)
    with pytest.raises(ValueError, match="the training data has no rows"):
        model.partial_fit((sparse.csr_matrix((0, FEATURES + 5), dtype=np.float32), []))
    assert model.num_features == FEATURES


@pytest.mark.parametrize("number", [1e300, 1e38, -1e38, math.nan])
def test_sparse_numbers_that_weights_would_make_infinite(data, number):
    model, features = made(), sparse.csr_matrix(([1.0, number], [3, 5], [0, 2]), shape=(1, FEATURES))
    for call in (model.predict, lambda rows: model.fit((rows, [1]), progress=False)):
        with pytest.raises(ValueError, match=r"features hold a NaN or a number beyond 1e\+30; wanted smaller ones"):
            call(features)
        with pytest.raises(ValueError, match=r"features have dtype torch\.complex128; wanted real numbers"):
            call(sparse.csr_matrix(([1.0j], [3], [0, 1]), shape=(1, FEATURES)))


def test_files_of_numbers_that_weights_would_make_infinite(tmp_path):
    (tmp_path / "train.txt").write_text(f"1 {FEATURES} {LABELS}\n3 2:1e38\n")
    for read in (XMCDataset, XMCStream.from_file):
        with pytest.raises(ValueError, match=r"features hold a NaN or a number beyond 1e\+30; wanted smaller ones"):
            made().fit(read(tmp_path / "train.txt"), progress=False)


def test_dense_numbers_whose_squares_do_not_add_up():
    model = XMCClassifier(2, 5, hidden=4, dense_input=True)
    for large in (1e13, float("nan")):
        for call in (model.predict, lambda rows: model.fit((rows, [1]), progress=False)):
            with pytest.raises(ValueError, match=r"features hold a NaN or a number beyond 1e\+12; wanted smaller ones"):
                call(torch.tensor([[1.0, large]]))


def test_validation_rows_without_labels_decide_nothing(data):
    for none in (sparse.csr_matrix((0, FEATURES)), []), (sparse.eye(2, FEATURES, format="csr"), [[], []]):
        with pytest.raises(ValueError, match="validation has no row with a label"):
            made().fit(data[0], progress=False, validation=none)
