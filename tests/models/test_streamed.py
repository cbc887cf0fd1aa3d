"""Rows that are read in blocks train the models that rows in memory do."""

from __future__ import annotations

import pytest
import torch

from torch_lsh.data import XMCDataset, XMCStream, synthetic_xmc, write_xmc
from torch_lsh.data.xmc import XMCRows, join_rows
from torch_lsh.models import XMCClassifier
from torch_lsh.models.held_out import Purpose
from torch_lsh.models.streamed import Streamed

F, N = 300, 600


@pytest.fixture(scope="module")
def rows():
    return synthetic_xmc(2_200, 100, F, N)


@pytest.fixture(scope="module")
def path(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "train.txt.gz"
    write_xmc(rows[0], path)
    return path


def in_blocks(rows, size):
    blocks = [rows.rows.take(some) for some in torch.arange(len(rows)).split(size)]
    return XMCStream(lambda: blocks, F, N)


def fitted(data, **options):
    torch.manual_seed(0)
    model = XMCClassifier(F, N, hidden=8)
    history = model.fit(data, **{"epochs": 1, "lr": 0.01, "progress": False, **options})
    return model, history


def numbers(model):
    return [value for value in model.state_dict().values() if isinstance(value, torch.Tensor)]


@pytest.fixture(scope="module")
def several(rows):
    return fitted(in_blocks(rows[0], 500))[0]


@pytest.mark.parametrize("options", [{}, {"neighbours": 0, "validation_fraction": 0.0}])
def test_one_block_is_as_in_memory(rows, path, several, options):
    """The same rows are held out, the order is the same, and all rows become neighbours: bit for bit."""
    whole, stream = (fitted(data, **options)[0] for data in (rows[0], XMCStream.from_file(path)))
    assert all(map(torch.equal, numbers(whole), numbers(stream)))
    assert torch.equal(whole.predict(rows[1])[0], stream.predict(rows[1])[0])
    if not options:  # several blocks have another order, and teach as much
        at_1 = [model.evaluate(rows[1])["precision@1"] for model in (whole, several)]
        assert at_1[0] > 0.2
        assert at_1[1] > at_1[0] - 0.08


def test_weights_belong_to_their_rows():
    count = 100
    start = torch.arange(count + 1)
    numbered = XMCRows(
        start, start[:-1].int(), 1.0 + start[:-1], start, torch.zeros(count, dtype=torch.int32), count, 1
    )
    blocks = [numbered.take(some) for some in start[:-1].split(30)]
    source = Streamed(XMCStream(lambda: blocks, count, 1), 1, numbered.values, 0.2, Purpose(10), 1 << 20, 0)
    for rows, weights in source.blocks():
        assert torch.equal(rows.values, weights)
    kept = torch.cat([rows.features for rows, _ in source.blocks()])
    assert source.size == len(kept) == count - len(source.held_out.features)
    assert torch.equal(torch.cat([kept, source.held_out.features]).sort().values, numbered.features)
    assert source.label_counts.tolist() == [len(kept)]


def test_an_interrupted_run_goes_on(rows, tmp_path):
    options = {"neighbours": 0, "batch_size": 64, "epochs": 2}
    whole, history = fitted(in_blocks(rows[0], 500), **options)
    fitted(in_blocks(rows[0], 500), checkpoint=tmp_path / "run", checkpoint_every=5, max_steps=48, **options)
    resumed, again = fitted(in_blocks(rows[0], 500), checkpoint=tmp_path / "run", **options)
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in again]
    assert all(map(torch.equal, numbers(whole), numbers(resumed)))
    for size, other in ((499, {}), (500, {"sample_weight": torch.arange(2_200) % 3})):
        with pytest.raises(ValueError, match=r"belongs to a run with schedule .*'checksum of rows'"):
            fitted(in_blocks(rows[0], size), checkpoint=tmp_path / "run", **options, **other)


def test_a_pass_that_is_not_like_the_first_one(rows):
    passes = iter([[rows[0].rows], [rows[0].rows], [rows[0].rows.take(torch.arange(1_000))]])
    with pytest.raises(ValueError, match="a pass over train_dataset gave 1000 rows; wanted 2200"):
        fitted(XMCStream(lambda: next(passes), F, N))
    blocks = iter([rows[0].rows])
    with pytest.raises(ValueError, match="a pass over train_dataset gave 0 rows; wanted 2200"):
        fitted(XMCStream(lambda: blocks, F, N))


def test_little_memory_keeps_some_rows_as_neighbours(rows, several):
    some = fitted(in_blocks(rows[0], 500), memory=60_000)[0].mixture.neighbours
    held_out = 100  # and more, which are neighbours in any case
    assert held_out < len(some.row_start) < len(rows[0]) / 2
    assert len(several.mixture.neighbours.row_start) == len(rows[0]) + 1


def test_blocks_of_a_file_are_its_rows(rows, path):
    blocks = list(XMCStream.from_file(path, entries=1))
    for ours, theirs in zip(join_rows(blocks), XMCDataset(path).rows):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_a_file_without_a_header(tmp_path):
    path = tmp_path / "train.svm"
    path.write_text("0 1:1.5 3:2\n2,2 2:1\n")
    (rows,) = XMCStream.from_file(path, header=False, one_based=True, num_features=3, num_labels=3, normalize="l2")
    assert rows.features.tolist() == [0, 2, 1]
    assert rows.labels.tolist() == [0, 2]
    torch.testing.assert_close(rows.values, torch.tensor([0.6, 0.8, 1.0]))
    path.write_text("0 1:1.5\n2 0:1\n")
    stream = XMCStream.from_file(path, header=False, one_based=True, num_features=3, num_labels=3)
    with pytest.raises(ValueError, match=r"train.svm, line 2: feature is '0'; wanted 1 or more"):
        list(stream)
    with pytest.raises(ValueError, match="num_features is None and num_labels is 3; wanted both"):
        XMCStream.from_file(path, header=False, num_labels=3)


def test_what_does_not_fit_is_named(rows, tmp_path):
    stream = in_blocks(rows[0], 500)
    with pytest.raises(ValueError, match=r"the data has 300 features and 600 labels; the model takes 299 and 600"):
        XMCClassifier(299, N, hidden=4).fit(stream, progress=False)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(7,\); wanted 2200 numbers"):
        fitted(stream, sample_weight=torch.ones(7))
    with pytest.raises(ValueError, match="train_dataset is an XMCStream; the model takes dense input"):
        XMCClassifier(F, N, hidden=4, dense_input=True).fit(stream, progress=False)
    with pytest.raises(TypeError, match="blocks is a list; wanted a function that begins a pass"):
        XMCStream([rows[0].rows], F, N)
    with pytest.raises(TypeError, match=r"a block is a XMCDataset; wanted XMCRows, as dataset.rows is"):
        list(XMCStream(lambda: [rows[0]], F, N))
    other = XMCStream(lambda: [rows[0].rows], F + 1, N)
    with pytest.raises(ValueError, match=r"a block has 300 features and 600 labels; wanted 301 and 600"):
        list(other)
    path = tmp_path / "short.txt"
    path.write_text("3 4 5\n1 2:1\n")
    with pytest.raises(ValueError, match=r"line 3: the file ends after 1 rows, but the header says 3"):
        list(XMCStream.from_file(path))
