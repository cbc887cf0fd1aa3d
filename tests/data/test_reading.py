"""The forms in which sets of sparse rows come: compressed, in two files, without a header."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma

import pytest

from torch_lsh.data import XMCDataset

TEXT = b"3 4 5\n0,4 1:0.5 3:2\n 0:1\n2\n"
FEATURES, LABELS = b"3 4\n1:0.5 3:2\n0:1\n\n", b"3 5\n0:1 4:1\n3:0\n2:1.0\n"
WITHOUT_HEADER = b"0,4 2:0.5 4:2\n 1:1\n2\n"


def contents(dataset):
    rows = dataset.rows
    pairs = list(zip(rows.features.tolist(), rows.values.tolist()))
    features = [pairs[a:b] for a, b in itertools.pairwise(rows.feature_start.tolist())]
    labels = [rows.labels[a:b].tolist() for a, b in itertools.pairwise(rows.label_start.tolist())]
    return features, labels, rows.num_features, rows.num_labels


EXPECTED = ([[(1, 0.5), (3, 2.0)], [(0, 1.0)], []], [[0, 4], [], [2]], 4, 5)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("rows.TXT", bytes),
        ("rows.TXT.GZ", gzip.compress),
        ("rows.txt.Xz", lzma.compress),
        ("rows.txt.bz2", bz2.compress),
        ("rows.BZ2", bz2.compress),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_compressed_in_upper_case_and_marked(tmp_path, name, compress, mark):
    assert contents(XMCDataset(write(tmp_path / name, compress(mark + TEXT)))) == EXPECTED


def test_features_and_labels_in_two_files(tmp_path):
    features = write(tmp_path / "trn_X_Xf.txt", b"\xef\xbb\xbf" + FEATURES)
    labels = write(tmp_path / "trn_X_Y.txt.bz2", bz2.compress(LABELS))
    assert contents(XMCDataset(features, labels=labels)) == EXPECTED
    scaled = XMCDataset(features, labels=labels, normalize="l2").rows.values
    assert scaled.tolist() == pytest.approx([0.5 / 4.25**0.5, 2 / 4.25**0.5, 1])


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (TEXT, LABELS, "features.txt, line 1: the header is '3 4 5'; wanted 'rows features'"),
        (FEATURES, b"", "labels.txt, line 1: the file is empty; wanted a header 'rows labels'"),
        (FEATURES, b"3 5\n0:1\n1:1\n5:1\n", "labels.txt, line 4: label is '5'; wanted 0 to 4"),
        (FEATURES, b"3 5\n0:1\n0:x\n1:1\n", "labels.txt, line 3: entry is '0:x'; wanted a float32"),
        (FEATURES, b"2 5\n0:1\n0:1\n", "labels.txt has 2 rows and .*features.txt has 3; wanted as many"),
        (b"3 4\n1:1\n4:1\n\n", LABELS, "features.txt, line 3: feature is '4'; wanted 0 to 3"),
        (b"3 4\n1:1\n", LABELS, "features.txt, line 3: the file ends after 1 rows, but the header says 3"),
    ],
)
def test_malformed_pairs(tmp_path, features, labels, message):
    paths = write(tmp_path / "features.txt", features), write(tmp_path / "labels.txt", labels)
    with pytest.raises(ValueError, match=message):
        XMCDataset(paths[0], labels=paths[1])


def test_without_a_header(tmp_path):
    path = write(tmp_path / "rows.svm", b"\xef\xbb\xbf" + WITHOUT_HEADER)
    assert contents(XMCDataset(path, header=False, one_based=True)) == EXPECTED
    zero_based = contents(XMCDataset(path, header=False))
    assert zero_based == ([[(2, 0.5), (4, 2.0)], [(1, 1.0)], []], EXPECTED[1], 5, 5)
    wider = XMCDataset(path, header=False, one_based=True, num_features=9, num_labels=7)
    assert contents(wider) == (*EXPECTED[:2], 9, 7)
    assert contents(XMCDataset(write(path, b""), header=False)) == ([], [], 0, 0)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"0 1:1\n0 2:1 0:1\n", {"one_based": True}, "rows.svm, line 2: feature is '0'; wanted 1 or more"),
        (b"0 1:1\n0 3:1\n", {"num_features": 3}, "rows.svm, line 2: feature is '3'; wanted 0 to 2"),
        (b"0 1:1\n0 4:1\n", {"num_features": 3, "one_based": True}, "rows.svm, line 2: feature is '4'"),
        (b"0 1:1\n2 0:1\n", {"num_labels": 2}, "rows.svm, line 2: label is '2'; wanted 0 to 1"),
        (b"0 1:1\n1.5 0:1\n", {}, "rows.svm, line 2: separator is '.5'"),
        (b"0 1:1\n", {"num_labels": -1}, "num_labels is -1"),
        (b"0 1:1\n", {"labels": "other"}, "labels is given and header is False"),
        (b"0 1:1\n", {"header": True, "one_based": True}, "wanted header=False beside them"),
    ],
)
def test_malformed_without_a_header(tmp_path, content, options, message):
    with pytest.raises(ValueError, match=message):
        XMCDataset(write(tmp_path / "rows.svm", content), **{"header": False, **options})
