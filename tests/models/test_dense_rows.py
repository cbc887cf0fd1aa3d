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
from torch_lsh.models.neighbours import DenseNeighbours, neighbours_from, neighbours_of
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
    assert grown.lacks(torch.tensor([8]))
    found = grown(dense.features[:1], torch.tensor([[8, -1]]))[0, 0]
    torch.testing.assert_close(found, torch.stack([made.bias[made.bias != 0].mean(), made.bias[0]]))
    with pytest.raises(ValueError, match="rows of labels have 24 features; wanted 23"):
        grown.check(23)


def clustered(rows=2000, width=64):
    """Rows in clusters, with one label each, and as many queries as 200."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(40, width, generator=generator)
    labels = torch.randint(40, (rows + 200,), generator=generator, dtype=torch.int32)
    features = F.normalize(centers[labels.long()] + torch.randn(rows + 200, width, generator=generator), dim=1)
    return DenseRows(features[:rows], torch.arange(rows + 1), labels[:rows], 40), features[rows:]


def test_many_rows_have_codes(monkeypatch, threads):
    rows, queries = clustered()
    assert neighbours_of(rows, k=10).codes is None
    monkeypatch.setattr(neighbours, "_CODED", 0)
    monkeypatch.setattr(neighbours, "_WIDE", 65)
    assert neighbours_of(rows, k=10).codes is None
    monkeypatch.setattr(neighbours, "_WIDE", 64)
    assert neighbours_of(rows, k=63).codes is None
    kept = neighbours_of(rows, k=10)
    cosines, found = kept.search(3 * queries)
    torch.testing.assert_close(cosines, (queries @ rows.features.T).gather(1, found))
    best = (queries @ rows.features.T).topk(10).indices
    share = (best.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean()
    assert 0.8 < share < 1.0  # all rows were compared, were it 1
    for number in (0, 7):  # one by one as in a batch
        assert torch.equal(kept.search(queries[number : number + 1])[1][0], found[number])
    torch.set_num_threads(1)
    assert torch.equal(neighbours_of(rows, k=10).codes, kept.codes)
    assert torch.equal(kept.search(3 * queries)[1], found)


@pytest.mark.parametrize("mmap", [False, True])
def test_files_hold_codes(data, monkeypatch, tmp_path, mmap):
    features, labels = data[0]
    before = fitted((features[:500], labels[:500]))
    before.save(tmp_path / "before")  # as earlier versions did: without codes
    monkeypatch.setattr(neighbours, "_CODED", 0)
    monkeypatch.setattr(neighbours, "_WIDE", 0)
    monkeypatch.setattr(neighbours, "_SPARED", 0)
    model = fitted((features[:500], labels[:500]))
    assert len(model.mixture.neighbours.codes) == 8
    model.save(tmp_path / "model")
    for name, saved in (("model", model), ("before", before)):
        loaded = XMCClassifier.load(tmp_path / name, mmap=mmap)
        assert (loaded.mixture.neighbours.codes is None) == (saved is before)
        for ours, theirs in zip(saved.predict(data[1][0]), loaded.predict(data[1][0]), strict=True):
            assert torch.equal(ours, theirs)


def test_loaded_codes_count(monkeypatch):
    monkeypatch.setattr(neighbours, "_CODED", 0)
    monkeypatch.setattr(neighbours, "_WIDE", 0)
    rows, queries = clustered()
    kept = neighbours_of(rows, k=10)
    found = kept.search(queries)[1]
    kept.load_state_dict({**kept.state_dict(), "codes": torch.zeros_like(kept.codes)})
    assert not torch.equal(kept.search(queries)[1], found)


def test_a_configuration_without_codes(monkeypatch):
    monkeypatch.setattr(neighbours, "_CODED", 0)
    monkeypatch.setattr(neighbours, "_WIDE", 0)
    configuration = neighbours_of(clustered()[0], k=10).configuration()
    assert configuration.pop("coded")
    assert neighbours_from(configuration, 40).codes is None


@pytest.mark.parametrize("begin", [0, 1500])
def test_rows_are_compared_with_those_of_near_cells(monkeypatch, threads, begin):
    rows, _ = clustered()
    kept = neighbours_of(rows, k=10)
    wanted = torch.arange(2000) >= begin
    everything = [torch.cat(parts) for parts in zip(*kept.alike(wanted))]
    assert torch.equal(everything[0], torch.arange(begin, 2000))
    products = rows.features[begin:] @ rows.features.T
    best = products.topk(33).indices
    assert (best == everything[2]).float().mean() > 0.8  # where bfloat16 tells them apart
    monkeypatch.setattr(neighbours, "_ALIKE", 300)
    monkeypatch.setattr(neighbours, "_IN_CELL", 50)
    some, cosines, near = (torch.cat(parts) for parts in zip(*kept.alike(wanted)))
    assert torch.equal(some.sort().values, torch.arange(begin, 2000))
    torch.testing.assert_close(cosines, products[some - begin].gather(1, near), rtol=0, atol=0.01)
    assert 0.75 < (best[some - begin].unsqueeze(2) == near.unsqueeze(1)).any(2).float().mean() < 1
    torch.set_num_threads(1)
    for ours, theirs in zip((some, cosines, near), (torch.cat(parts) for parts in zip(*kept.alike(wanted)))):
        assert torch.equal(ours, theirs)


def test_equal_rows_of_one_cell_are_compared_with_some(monkeypatch):
    monkeypatch.setattr(neighbours, "_ALIKE", 50)
    rows, _ = clustered()
    kept = neighbours_of(rows._replace(features=rows.features[:1].expand(2000, -1)), k=10)
    compared = [len(near.unique()) for _, _, near in kept.alike(torch.ones(2000, dtype=torch.bool))]
    assert max(compared) <= 200


def test_the_network_scales_rows_once(data):
    network = WideNetwork(WIDTH, LABELS, 8, dense_input=True)
    features, labels = data[0]
    rows = DenseRows(features / 50, torch.arange(len(labels) + 1), labels[:, 0].int(), LABELS)
    network.adapt_to(InMemory(rows, LABELS))
    scaled = rows.features * network.scale
    torch.testing.assert_close(scaled.square().sum(1).mean().sqrt(), torch.tensor(6.0))
    network.adapt_to(InMemory(rows._replace(features=torch.zeros(3000, WIDTH)), LABELS))
    assert float(network.scale) > 0
