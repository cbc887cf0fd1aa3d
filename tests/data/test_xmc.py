from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import math
import pickle
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from torch_lsh import ops
from torch_lsh.data import XMCDataset, XMCRows, collate_xmc, reading, synthetic_xmc, write_xmc

# Rows with everything, without features (with and without a blank), without labels (twice), and empty.
TEXT = "6 10 5\n0,4 1:0.5 9:-2e-1\n3\n2 \n 7:1\n0:3.25 5:0\n\n"
FEATURES = [{1: 0.5, 9: -0.2}, {}, {}, {7: 1.0}, {0: 3.25, 5: 0.0}, {}]
LABELS = [[0, 4], [3], [2], [], [], []]


def contents(rows):
    starts = itertools.pairwise(rows.feature_start.tolist())
    features = [
        dict(zip(rows.features[a:b].tolist(), [round(v, 6) for v in rows.values[a:b].tolist()])) for a, b in starts
    ]
    return features, [rows.labels[a:b].tolist() for a, b in itertools.pairwise(rows.label_start.tolist())]


def read(tmp_path, text, name="rows.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return XMCDataset(path)


def assert_same_rows(left, right):
    for name, a, b in zip(XMCRows._fields, left, right):
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b, name


# --- what is legal ---


@pytest.mark.parametrize(
    "text", [TEXT, TEXT.replace("\n", "\r\n"), TEXT.replace("\n", "  \n"), TEXT.replace(" ", "\t")]
)
def test_legal_rows(tmp_path, text):
    dataset = read(tmp_path, text)
    assert (len(dataset), dataset.num_features, dataset.num_labels) == (6, 10, 5)
    assert contents(dataset.rows) == (FEATURES, LABELS)


def test_missing_final_newline(tmp_path):
    assert contents(read(tmp_path, "2 10 5\n1 2:3\n4 5:0.25").rows) == ([{2: 3.0}, {5: 0.25}], [[1], [4]])


def test_no_rows(tmp_path):
    for text in ("0 3 4\n", "0 3 4"):
        dataset = read(tmp_path, text)
        assert len(dataset) == 0
        assert dataset.rows.values.dtype is torch.float32


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_compressed(tmp_path, suffix):
    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix]
    assert contents(read(tmp_path, compress(TEXT.encode()), "rows.txt" + suffix).rows) == (FEATURES, LABELS)


@pytest.mark.parametrize(
    "text",
    ["1", "0.1", "-0.25", "+4", ".5", "5.", "1e5", "-1.5E-3", "123456789", "0.30000001192092896", "16777217", "1e-45",
     "3.4028235e38", "1e-60", "0.000000000000000000000000000001", "00012.50", "-0", "9999999", "0.0000001",
     "1e-300", "1e-400", "-1e-400", "1e-99999999999999999999", "0." + "0" * 400 + "1", "0." + "0" * 400 + "1e370",
     "1" + "0" * 400 + "e-500", "1" + "0" * 400 + "e-390"],
)  # fmt: skip
def test_values_are_rounded_correctly(tmp_path, text):
    value = read(tmp_path, f"1 1 1\n0 0:{text}\n").rows.values.numpy()[0]
    assert value == np.float32(text)
    assert np.signbit(value) == np.signbit(np.float32(text))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch, threads, block):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", block)
    assert contents(read(tmp_path, TEXT).rows) == (FEATURES, LABELS)
    assert contents(read(tmp_path, gzip.compress(TEXT.encode()), "rows.gz").rows) == (FEATURES, LABELS)


def test_duplicate_features_add_up(tmp_path):
    dataset = read(tmp_path, "1 4 1\n0 2:1 1:5 2:0.5\n")
    assert len(dataset.rows.features) == 3
    assert collate_xmc([dataset[0]])[0].to_dense().tolist() == [[0.0, 5.0, 1.5, 0.0]]


def test_normalize(tmp_path):
    text = "3 4 1\n0 0:3 1:4\n0\n0 2:0\n"
    (tmp_path / "rows.txt").write_text(text)
    assert XMCDataset(tmp_path / "rows.txt", normalize="l2").rows.values.tolist() == pytest.approx([0.6, 0.8, 0.0])
    with pytest.raises(ValueError, match="normalize is 'l1'; wanted 'l2' or None"):
        XMCDataset(tmp_path / "rows.txt", normalize="l1")


# --- what is not ---


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "the file is empty"),
        ("\n", 1, "the header is ''"),
        ("0,2 1:0.5\n", 1, "the header is '0,2 1:0.5'; wanted 'rows features labels'"),
        ("1 2\n0 1:1\n", 1, "the header is '1 2'"),
        ("1 2 -3\n0 1:1\n", 1, "the header is '1 2 -3'"),
        ("9" * 5000 + " 2 3\n", 1, "the header is '99999"),
        ("1 2147483648 1\n", 1, r"the header says 2147483648 features; wanted fewer than 2\*\*31"),
        ("3 4 5\n0 1:1\n0 1:1\n", 4, "the file ends after 2 rows, but the header says 3"),
        ("1 4 5\n0 1:1\n0 1:1\n", 3, "the header says 1 rows, but there are more"),
        ("1 4 5\n0 1:1\n\n", 3, "the header says 1 rows, but there are more"),
        ("2 4 5\n0 1:1\n5 1:1\n", 3, "label is '5'; wanted 0 to 4"),
        ("2 4 5\n0 1:1\n0 4:1\n", 3, "feature is '4'; wanted 0 to 3"),
        ("1 4 5\n-1 1:1\n", 2, "label is '-1'; wanted 0 to 4"),
        ("1 4 5\n0 -1:1\n", 2, "feature is '-1'; wanted 0 to 3"),
        ("1 4 5\n99999999999999999999 1:1\n", 2, "label is '99999999999999999999'; wanted 0 to 4"),
        ("1 0 5\n1 0:1\n", 2, "feature is '0'; wanted none, as the header says"),
        ("1 4 5\n1,,2 1:1\n", 2, "label is ',2'; wanted 0 to "),
        ("1 4 5\n1, 1:1\n", 2, "label is ''; wanted 0 to "),
        ("1 4 5\n1;2 1:1\n", 2, "separator is ';2'; wanted a comma between labels"),
        ("1 4 5\nx 1:1\n", 2, "label is 'x'; wanted 0 to "),
        ("1 4 5\n1 2\n", 2, "entry is '2'; wanted feature:value"),
        ("1 4 5\n1 2:\n", 2, "entry is '2:'; wanted a float32 number after the colon"),
        ("1 4 5\n1 2:x\n", 2, "entry is '2:x'; wanted a float32 number after the colon"),
        ("1 4 5\n1 2:1:1\n", 2, "entry is '2:1:1'; wanted a float32 number after the colon"),
        ("1 4 5\n1 2:+-1\n", 2, "entry is .*; wanted a float32 number"),
        ("1 4 5\n1 2:-\n", 2, "entry is .*; wanted a float32 number"),
        ("1 4 5\n1 2:.\n", 2, "entry is .*; wanted a float32 number"),
        ("1 4 5\n1 2:1e39\n", 2, "entry is .*; wanted a float32 number"),
        ("1 4 5\n1 2:1e400\n", 2, "entry is .*; wanted a float32 number"),
        ("1 4 5\n1 2:0x1\n", 2, "entry is .*; wanted a float32 number"),
        ("1 4 5\n1 :1\n", 2, "feature is ':1'; wanted 0 to "),
        ("1 4 5\n1 2:nan\n", 2, "entry is '2:nan'; wanted a finite value"),
        ("1 4 5\n1 2:-inf\n", 2, "entry is '2:-inf'; wanted a finite value"),
        ("1 4 5\n1 2:1\r3 2:1\n", 2, "entry is '3'; wanted feature:value"),
        (b"1 4 5\n\x00\x01\xff\xfe\n", 2, r"label is '\?\?\?\?'; wanted 0 to "),
        (bytes(range(256)) * 10, 1, "the header is"),
    ],
)
def test_malformed(tmp_path, threads, text, line, reason):
    with pytest.raises(ValueError, match=rf"rows\.txt, line {line}: {reason}"):
        read(tmp_path, text)


@pytest.mark.parametrize("bad_line", [2, 3, 150, 301])
@pytest.mark.parametrize("block", [50, 1000, 1 << 20])
def test_the_first_bad_line_is_named(tmp_path, monkeypatch, threads, bad_line, block):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", block)
    lines = ["300 10 10", *["1,2 3:0.5 4:1"] * 300]
    lines[bad_line - 1] = "1,2 3:0.5 4:oops"
    lines[300] = lines[300].replace("1,2", "1,10")  # a later one
    reason = "label is '10'" if bad_line == 301 else "entry is '4:oops'; wanted a float32 number"
    with pytest.raises(ValueError, match=f"line {bad_line}: {reason}"):
        read(tmp_path, "\n".join(lines))


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(reading, "_LONGEST_LINE", 1 << 20)
    with pytest.raises(ValueError, match=r"line 2: the line is longer than 1 MB"):
        read(tmp_path, b"1 4 5\n" + b"0" * (3 << 20))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_damaged_compression(tmp_path, suffix):
    text = "2000 10 10\n" + "".join(f"1,2 3:0.{i} 4:1\n" for i in range(2000))
    whole = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix](text.encode())
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], whole[:-4], whole[:9], bytes(flipped), text.encode()):
        with pytest.raises(ValueError, match=rf"rows\{suffix}, line \d+"):
            read(tmp_path, damaged, "rows" + suffix)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_is_named_with_the_remedy(tmp_path, encoding):
    name = encoding.upper()
    with pytest.raises(ValueError, match=rf"rows.txt, line 1: .*the byte order mark of {name}; wanted ASCII, which"):
        read(tmp_path, "1 1 1\n0 0:1\n".encode(encoding))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        XMCDataset(tmp_path / "nothing.txt")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(tmp_path_factory, garbage):
    folder = tmp_path_factory.mktemp("garbage")
    for text in (garbage, b"2 5 5\n" + garbage):
        try:
            rows = read(folder, text).rows
        except ValueError as error:
            assert "rows.txt, line " in str(error)  # noqa: PT017  (most examples raise, some are legal)
        else:
            assert rows.values.isfinite().all()


# --- the operator ---

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
labels = st.lists(st.integers(0, 4), max_size=4, unique=True)
row = st.tuples(labels, st.lists(st.tuples(st.integers(0, 9), floats), max_size=6))


@settings(max_examples=50, deadline=None)
@given(st.lists(row, max_size=12))
def test_round_trip(tmp_path_factory, rows):
    def starts(lists):
        return torch.tensor([0, *itertools.accumulate(map(len, lists))])

    labels, features = [r[0] for r in rows], [r[1] for r in rows]
    flat = list(itertools.chain.from_iterable(features))
    given_rows = XMCRows(
        starts(features),
        torch.tensor([f for f, _ in flat], dtype=torch.int32),
        torch.tensor([v for _, v in flat], dtype=torch.float32),
        starts(labels),
        torch.tensor(list(itertools.chain.from_iterable(labels)), dtype=torch.int32),
        10,
        5,
    )
    path = tmp_path_factory.mktemp("round") / "rows.txt"
    write_xmc(XMCDataset.from_rows(given_rows), path)
    assert_same_rows(XMCDataset(path).rows, given_rows)
    body = torch.frombuffer(bytearray(path.read_bytes().partition(b"\n")[2] + b" "), dtype=torch.uint8)[:-1]
    for mine, twin in zip(ops.parse_xmc(body, 10, 5), twins.parse_xmc(body, 10, 5)):
        assert torch.equal(mine, twin) if isinstance(twin, torch.Tensor) else mine == twin


def test_operator_names_the_bad_argument():
    with pytest.raises(RuntimeError, match="text has dtype Int; wanted Byte"):
        ops.parse_xmc(torch.zeros(3, dtype=torch.int32), 1, 1)
    with pytest.raises(RuntimeError, match="text has shape"):
        ops.parse_xmc(torch.zeros(3, 3, dtype=torch.uint8), 1, 1)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_write_leaves_nothing_beside(tmp_path, suffix):
    dataset, _ = synthetic_xmc(300, 0, num_features=500, num_labels=400)
    path = tmp_path / f"rows.txt{suffix}"
    write_xmc(dataset, path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same_rows(XMCDataset(path).rows, dataset.rows)
    with pytest.raises(FileNotFoundError):
        write_xmc(dataset, tmp_path / "no_folder" / "rows.txt")


# --- the Dataset ---


@pytest.fixture(scope="module")
def dataset():
    return synthetic_xmc(1000, 0, num_features=300, num_labels=200)[0]


def dense(dataset, rows):
    features, labels = torch.zeros(len(rows), dataset.num_features), torch.zeros(len(rows), dataset.num_labels)
    for i, number in enumerate(rows):
        item = dataset[number]
        features[i, item.features.long()] = item.values
        labels[i, item.labels.long()] = 1
    return features, labels


def multi_hot(padded, num_labels):
    return torch.zeros(len(padded), num_labels + 1).scatter_(1, padded.where(padded >= 0, num_labels), 1)[:, :-1]


def test_items(tmp_path):
    dataset = read(tmp_path, TEXT)
    for i in range(-6, 6):
        assert contents(dataset[i]) == ([FEATURES[i]], [LABELS[i]])
    for outside in (6, -7):
        with pytest.raises(IndexError, match=f"index is {outside}; wanted -6 to 5"):
            dataset[outside]
    for outside in ([0, 6], [-1]):
        with pytest.raises(IndexError, match="wanted 0 to 5"):
            dataset.__getitems__(outside)


@pytest.mark.parametrize("rows", [[0], [5, 5, 2], list(range(1000)), [999, 0, 500]])
def test_collate(dataset, rows):
    features, labels = dense(dataset, rows)
    for batch in (dataset.__getitems__(rows), [dataset[i] for i in rows]):
        x, y = collate_xmc(batch)
        assert (x.layout, x.dtype, x.shape) == (torch.sparse_csr, torch.float32, features.shape)
        assert torch.equal(x.to_dense(), features)
        assert y.dtype is torch.int64
        assert torch.equal(multi_hot(y, dataset.num_labels), labels)
        assert (y[y < 0] == -100).all()
        assert y.shape[1] == (y >= 0).sum(1).max()
        _, multi = collate_xmc(batch, labels="csr")
        assert multi.layout is torch.sparse_csr
        assert torch.equal(multi.to_dense(), labels)


def test_arrays_and_numbers_of_rows_may_have_gaps(dataset):
    spread = [torch.stack([part, part], 1)[:, 0] if isinstance(part, torch.Tensor) else part for part in dataset.rows]
    numbers = torch.arange(1000)[::7]
    taken, wanted = XMCDataset.from_rows(XMCRows(*spread)).rows.take(numbers), dataset.rows.take(numbers.clone())
    assert all(torch.equal(*pair) for pair in zip(taken[:5], wanted[:5]))
    assert taken[5:] == wanted[5:]


def test_collate_of_rows_without_labels_or_features(tmp_path):
    dataset = read(tmp_path, TEXT)
    x, y = collate_xmc(dataset.__getitems__([1, 3, 5]))
    assert y.tolist() == [[3], [-100], [-100]]
    assert x.to_dense().count_nonzero(1).tolist() == [0, 1, 0]
    x, y = collate_xmc(dataset.__getitems__([5, 5]))
    assert y.tolist() == [[-100], [-100]]
    assert x.shape == (2, 10)
    assert collate_xmc(dataset.__getitems__([3, 5]), labels="csr")[1].to_dense().sum() == 0


def test_multi_hot_labels_are_valid_csr(tmp_path):
    """Also where the file has them in any order and repeated."""
    batch = read(tmp_path, "2 1 9\n7,2,7,0\n8\n").__getitems__([0, 1])
    _, labels = collate_xmc(batch, labels="csr")
    torch.sparse_csr_tensor(
        labels.crow_indices(), labels.col_indices(), labels.values(), labels.shape, check_invariants=True
    )
    assert labels.to_dense().tolist() == [[1, 0, 1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1]]


def test_a_repeated_label_counts_once_in_every_form(tmp_path):
    dataset = read(tmp_path, "3 1 9\n7,2,7,7\n8\n1,1\n")
    assert dataset.rows.labels.tolist() == [7, 2, 8, 1]
    padded, multi = (collate_xmc(dataset.__getitems__([0, 1, 2]), labels=form)[1] for form in ("padded", "csr"))
    assert padded.tolist() == [[7, 2], [8, -100], [1, -100]]
    assert torch.equal(multi_hot(padded, 9), multi.to_dense())
    rows = dataset.rows._replace(
        label_start=torch.tensor([0, 4, 5, 7]), labels=torch.tensor([7, 2, 7, 7, 8, 1, 1], dtype=torch.int32)
    )
    assert XMCDataset.from_rows(rows).rows.labels.tolist() == [7, 2, 8, 1]


def test_collate_refuses(dataset):
    with pytest.raises(ValueError, match="labels is 'dense'; wanted 'padded' or 'csr'"):
        collate_xmc([dataset[0]], labels="dense")
    with pytest.raises(ValueError, match="batch is empty"):
        collate_xmc([])


@pytest.mark.parametrize("workers", [(0, None), (2, "fork")])
@pytest.mark.filterwarnings("error:Sparse CSR")
def test_loader(dataset, workers):
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(3))[:300].tolist()
    loader = DataLoader(
        Subset(dataset, rows), 128, collate_fn=collate_xmc, num_workers=workers[0], multiprocessing_context=workers[1]
    )
    batches = list(loader)
    assert [x.shape[0] for x, _ in batches] == [128, 128, 44]
    features, labels = dense(dataset, rows)
    assert torch.equal(torch.cat([x.to_dense() for x, _ in batches]), features)
    assert torch.equal(torch.cat([multi_hot(y, dataset.num_labels) for _, y in batches]), labels)


def test_loader_with_multi_hot_labels(dataset):
    collate = partial(collate_xmc, labels="csr")
    (_, labels), *_ = DataLoader(dataset, 64, collate_fn=collate, num_workers=1)
    assert torch.equal(labels.to_dense(), dense(dataset, range(64))[1])


def test_pickle(dataset):
    assert_same_rows(pickle.loads(pickle.dumps(dataset)).rows, dataset.rows)


def test_from_scipy():
    features = scipy.sparse.random(20, 30, 0.2, random_state=0, dtype=np.float32)
    labels = scipy.sparse.random(20, 9, 0.3, random_state=1) > 0
    dataset = XMCDataset.from_scipy(features, labels)
    x, y = dense(dataset, range(20))
    assert np.array_equal(x.numpy(), features.toarray())
    assert np.array_equal(y.numpy(), labels.toarray())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.tensor([1, 3], dtype=torch.int32)}, "features runs from 1 to 3; wanted 0 to 2"),
        ({"labels": torch.tensor([-1], dtype=torch.int32)}, "labels runs from -1 to -1; wanted 0 to 1"),
        ({"features": torch.tensor([1, 2])}, "features has shape .* wanted .* int32"),
        ({"values": torch.tensor([1.0, math.nan])}, "values holds a NaN"),
        ({"values": torch.tensor([1.0])}, "values has shape"),
        ({"feature_start": torch.tensor([0, 3, 2])}, "feature_start must rise from 0 to 2"),
        ({"label_start": torch.tensor([0, 1])}, "label_start has shape"),
        ({"label_start": torch.tensor([0, 1, 2])}, "label_start must rise from 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    rows = XMCRows(
        torch.tensor([0, 1, 2]),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([1.0, 2.0]),
        torch.tensor([0, 1, 1]),
        torch.tensor([0], dtype=torch.int32),
        3,
        2,
    )
    XMCDataset.from_rows(rows)
    with pytest.raises(ValueError, match=message):
        XMCDataset.from_rows(rows._replace(**change))


# --- real files ---


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "split", "rows", "num_features", "num_labels", "labels_per_row", "features_per_row", "without_labels"),
    [
        ("delicious", "train", 12_920, 500, 983, 19, 18, 13),
        ("delicious", "test", 3_185, 500, 983, 19, 18, 1),
        ("citeulike-t", "train", 20_778, 20_000, 52_946, 11.2, 19, 0),
        ("citeulike-t", "test", 5_166, 20_000, 52_946, 11.2, 19, 0),
        ("yso-en", "test", 68_399, 94_154, 27_754, 2.4, 11, 0),
    ],
)
def test_real_files(
    real_data, name, split, rows, num_features, num_labels, labels_per_row, features_per_row, without_labels
):
    dataset = XMCDataset(real_data / name / f"{split}.txt.xz")
    assert (len(dataset), dataset.num_features, dataset.num_labels) == (rows, num_features, num_labels)
    assert len(dataset.rows.labels) / rows == pytest.approx(labels_per_row, rel=0.05)
    assert len(dataset.rows.features) / rows == pytest.approx(features_per_row, rel=0.1)
    assert (dataset.rows.label_start.diff() == 0).sum() == without_labels


@pytest.mark.realdata
def test_rows_without_features_of_a_real_file(real_data):
    dataset = XMCDataset(real_data / "yso-en" / "test.txt.xz")
    assert (dataset.rows.feature_start.diff() == 0).sum() == 269
