"""XMCClassifier of dense rows, with a ranker: quality, files, more rows, and parts beside those of sparse rows."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import torch_lsh
from torch_lsh.data import XMCRows
from torch_lsh.models import XMCClassifier, model_file, neighbours
from torch_lsh.models.dense_label_rows import DenseCentroids, DenseClassifiers
from torch_lsh.models.label_rows import Centroids
from torch_lsh.models.neighbours import DenseNeighbours, neighbours_of
from torch_lsh.models.network import WideNetwork
from torch_lsh.models.ranker import LabelRanker
from torch_lsh.models.rows import DenseRows, InMemory, batch_of
from torch_lsh.nn import QuantizedLinear

WIDTH, LABELS = 24, 300


def embeddings(rows, seed, centers=None):
    """Rows of two labels each, near the sum of what belongs to these; those of a label lie in two places."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(2, LABELS, WIDTH, generator=torch.Generator().manual_seed(9)) if centers is None else centers
    labels = torch.randint(LABELS, (rows, 2), generator=generator)
    place = torch.randint(2, (rows, 2), generator=generator)
    features = centers[place, labels].sum(1)
    return features + 0.3 * torch.randn(features.shape, generator=generator), labels


@pytest.fixture(scope="module")
def data():
    return embeddings(3000, 0), embeddings(300, 1)


def fitted(rows, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = XMCClassifier(WIDTH, LABELS, hidden=16, dense_input=True)
        made.fit(rows, progress=False, **options)
    return made


@pytest.fixture(scope="module")
def model(data):
    return fitted(data[0], epochs=2)


def precision(model, rows):
    return model.evaluate(rows)["precision@1"]


def test_many_labels_have_a_ranker_of_all_rows(data, model):
    assert isinstance(model.mixture, LabelRanker)
    assert isinstance(model.mixture.neighbours, DenseNeighbours)
    assert len(model.mixture.neighbours) == 3000
    assert model.mixture.uses_logits


def test_it_is_better_than_the_network_and_than_votes(data, model):
    alone = fitted(data[0], epochs=2, neighbours=0)
    features, labels = data[1]
    votes = model.mixture.neighbours(features).argmax(1, keepdim=True)
    assert precision(model, data[1]) > precision(alone, data[1]) + 0.5
    assert precision(model, data[1]) > float((votes == labels).any(1).float().mean()) + 0.01


@torch.no_grad()
def test_predictions_are_the_best_of_all_scores(data, model):
    features, _ = data[1]
    values, labels = model.predict(features, k=5)
    everything = model.scores(features).topk(5)
    assert torch.equal(labels, everything.indices)
    torch.testing.assert_close(values, everything.values)


@pytest.mark.parametrize("mmap", [False, True])
def test_files(data, model, tmp_path, mmap):
    model.save(tmp_path / "model")
    loaded = XMCClassifier.load(tmp_path / "model", mmap=mmap)
    for ours, theirs in zip(model.predict(data[1][0]), loaded.predict(data[1][0]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_quantised_model_has_candidates_of_its_network(data, model):
    quantised = torch_lsh.quantize_(copy.deepcopy(model))
    assert isinstance(quantised.output, QuantizedLinear)
    assert abs(precision(quantised, data[1]) - precision(model, data[1])) < 0.02


def test_a_file_of_an_earlier_version_has_no_scale(data, model):
    description = model_file.describe(model)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    tensors.pop("scale")
    with torch.device("meta"):
        made = WideNetwork(WIDTH, LABELS, 16, **model_file.arguments(description))
    model_file.restore(made, description, tensors, check=True)
    assert float(made.scale) == 1.0
    assert float(model.scale) != 1.0
    assert torch.equal(made.input.weight, model.input.weight)


@pytest.mark.parametrize("factor", [2.0**-8, 2.0**12])
def test_the_lengths_of_all_rows_do_not_matter(data, model, factor):
    features, labels = data[0]
    scaled = fitted((features * factor, labels), epochs=2)
    for ours, theirs in zip(model.predict(data[1][0]), scaled.predict(data[1][0] * factor), strict=True):
        assert torch.equal(ours, theirs)


def test_more_rows_with_a_new_label(data, model):
    more = copy.deepcopy(model)
    features = torch.full((40, WIDTH), 3.0) + 0.3 * torch.randn(40, WIDTH)
    more.partial_fit((features, torch.full((40,), LABELS + 1)), epochs=3)
    assert more.num_labels == LABELS + 2
    assert len(more.mixture.neighbours) == 3040
    assert more.predict(torch.full((1, WIDTH), 3.0), k=1)[1].item() == LABELS + 1
    assert precision(more, data[1]) > precision(model, data[1]) - 0.05


def test_runs_of_equal_seeds_are_equal(data, model, threads):
    again = fitted(data[0], epochs=2)
    for name, value in model.mixture.state_dict().items():
        torch.testing.assert_close(again.mixture.state_dict()[name], value, rtol=1e-4, atol=1e-4)


def test_a_stopped_run_ends_as_one_that_never_stopped(data, model, tmp_path):
    path = tmp_path / "run"
    options = {"epochs": 2, "checkpoint": path, "checkpoint_every": 4}
    whole = fitted(data[0], **options)
    path.unlink()
    fitted(data[0], max_steps=6, **options)
    resumed = fitted(data[0], **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_refused_checkpoint_leaves_a_ready_model_as_it_was(data, model, tmp_path):
    path = tmp_path / "run"
    features, labels = data[0]
    fitted(data[0], epochs=1, checkpoint=path)
    ready = copy.deepcopy(model)
    with pytest.raises(ValueError, match="belongs to a run"):
        ready.fit((features * 50, labels), epochs=1, checkpoint=path, progress=False)
    for ours, theirs in zip(ready.predict(data[1][0]), model.predict(data[1][0]), strict=True):
        assert torch.equal(ours, theirs)


def test_without_the_network_centroids_have_candidates(data):
    made = fitted(data[0], epochs=0)
    assert isinstance(made.mixture, LabelRanker)
    assert not made.mixture.uses_logits
    votes = made.mixture.neighbours(data[1][0]).argmax(1, keepdim=True)
    assert precision(made, data[1]) > float((votes == data[1][1]).any(1).float().mean())


def test_rows_of_nothing_but_zeros(data, model):
    scores, labels = model.predict(torch.zeros(2, WIDTH), k=3)
    assert scores.isfinite().all()
    assert ((labels >= 0) & (labels < LABELS)).all()
    features = data[0][0].clone()
    features[::7] = 0
    made = fitted((features, data[0][1]), epochs=1)
    assert made.predict(data[1][0], k=5)[0].isfinite().all()
    assert made.predict(torch.zeros(1, WIDTH), k=5)[0].isfinite().all()


@pytest.mark.parametrize(("rows", "network_counts"), [(240, False), (999, False), (1000, True)])
def test_few_rows_have_a_ranker_without_the_network(data, rows, network_counts, capsys):
    features, labels = data[0]
    model = XMCClassifier(WIDTH, LABELS, hidden=16, dense_input=True)
    history = model.fit((features[:rows], labels[:rows]))
    assert model.mixture.uses_logits == network_counts
    assert ("of so few dense rows other sources rank better" in capsys.readouterr().err) != network_counts
    assert (history[-1]["epoch"] > 0) == network_counts
    assert len(model.mixture.neighbours) == rows


def test_a_file_without_the_network_becomes_a_whole_model(data, tmp_path):
    features, labels = data[0]
    fitted((features[:500], labels[:500])).save(tmp_path / "model")
    loaded = XMCClassifier.load(tmp_path / "model")
    assert loaded.scale.is_meta
    assert loaded.logits(features[:2]).isfinite().all()
    assert float(loaded.scale) == 1.0
    loaded = XMCClassifier.load(tmp_path / "model")
    loaded.fit((features[:1200], labels[:1200]), epochs=1, progress=False)
    assert loaded.mixture.uses_logits
    assert loaded.predict(features[:2], k=3)[0].isfinite().all()


def test_fewer_have_none(data):
    features, labels = data[0]
    assert fitted((features[:190], labels[:190])).mixture is None
    assert fitted((features[:900], labels[:900]), epochs=1).mixture is None


# --- parts ------------------------------------------------------------------------------------------------------------


def both_kinds(rows=60, labels=7):
    """The same rows, of unit length, as dense and as sparse ones."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1)
    start = torch.arange(rows + 1)
    of_rows = torch.randint(labels, (rows,), generator=generator, dtype=torch.int32)
    dense = DenseRows(features, start, of_rows, labels + 1)  # no row has the last label
    csr = features.to_sparse_csr()
    sparse = XMCRows(csr.crow_indices(), csr.col_indices().int(), csr.values(), start, of_rows, WIDTH, labels + 1)
    return dense, sparse


def test_centroids_are_those_of_sparse_rows():
    dense, sparse = both_kinds()
    wanted, found = Centroids.of(sparse), DenseCentroids.of(dense)
    queries = batch_of(sparse).features
    labels = torch.randint(-1, 8, (60, 5))
    ours, theirs = found(dense.features, labels), wanted(queries, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)  # small entries are left out of theirs
    assert torch.equal(ours == 0, (labels < 0) | (labels == 7))
    best = found.search(dense.features, 10)
    assert best.shape == (60, 10)
    assert (best[:, 8:] == -1).all()
    assert torch.equal(best[:, 0], (dense.features @ found.vectors.T).argmax(1))


def test_classifiers_tell_rows_of_a_label_from_others():
    dense, _ = both_kinds(20, 4)
    everything = torch.arange(4).repeat(20, 1)
    made = DenseClassifiers.of(dense, everything)
    margins = made(dense.features, everything)
    assert margins.shape == (1, 20, 4)
    own = dense.labels.long().unsqueeze(1)
    assert (margins[0].argmax(1, keepdim=True) == own).float().mean() > 0.9
    assert not made.lacks(dense.labels)
    assert made.lacks(torch.tensor([4]))
    assert made.lacks(torch.tensor([99]))
    grown = made.grown(9, WIDTH)
    assert torch.equal(grown(dense.features, everything), margins)
    assert grown(dense.features[:1], torch.tensor([[8, -1]])).tolist() == [[[0.0, float(made.bias[0])]]]
    with pytest.raises(ValueError, match="rows of labels have 24 features; wanted 23"):
        grown.check(23)


def test_a_quick_search_looks_at_some_of_many_rows(monkeypatch):
    monkeypatch.setattr(neighbours, "_COMPARED", 10)
    dense, _ = both_kinds()
    kept = neighbours_of(dense, k=5)
    cosines, rows = kept.search_of_many()(dense.features)
    assert rows.shape == (60, 10)
    assert len(rows.unique()) == 10
    torch.testing.assert_close(cosines, (dense.features @ dense.features.T).gather(1, rows))


def test_the_network_scales_rows_once(data):
    network = WideNetwork(WIDTH, LABELS, 8, dense_input=True)
    features, labels = data[0]
    rows = DenseRows(features / 50, torch.arange(len(labels) + 1), labels[:, 0].int(), LABELS)
    network.adapt_to(InMemory(rows, LABELS))
    scaled = rows.features * network.scale
    torch.testing.assert_close(scaled.square().sum(1).mean().sqrt(), torch.tensor(6.0))
    network.adapt_to(InMemory(rows._replace(features=torch.zeros(3000, WIDTH)), LABELS))
    assert float(network.scale) > 0
