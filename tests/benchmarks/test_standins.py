"""Wide sets for the benchmark of models: which rows they have, and that the models read what is written."""

from __future__ import annotations

from collections import Counter

import standins
from rows_of_sets import Row, halves, once, write

from torch_lsh.data import XMCDataset


def test_halves_share_no_item():
    rows = halves([["a", "b", "a", "c"], ["d"]])
    assert [sorted([*row.text, *row.labels]) for row in rows] == [["a", "b", "c"], ["d"]]
    assert [len(row.labels) for row in rows] == [1, 0]


def test_first_of_equal_texts_is_kept():
    assert once([Row("a", ["x"]), Row("b", []), Row("a", ["y"])]) == [Row("a", ["x"]), Row("b", [])]


def test_written_counts_are_read(tmp_path):
    rows = [Row(Counter({f"word {i}": 2, "every": 1}), [f"label {i % 5}", f"label {i}"]) for i in range(40)]
    assert write([*rows, Row(Counter(), ["none"]), Row(Counter("a"), [])], tmp_path).startswith("36 training rows, 4 ")
    train, test = (XMCDataset(tmp_path / f"{part}.txt") for part in ("train", "test"))
    assert (train.num_features, train.num_labels) == (test.num_features, test.num_labels) == (37, 40)
    assert [len(train), len(test)] == [36, 4]
    assert sorted(train.rows.values.tolist()) == [1.0] * 36 + [2.0] * 36
    assert test.rows.values.tolist() == [1.0] * 4  # no training row has their other words


def test_written_texts_have_their_labels(tmp_path):
    write([Row(f"text {i}", ["odd" if i % 2 else "even"]) for i in range(20)], tmp_path)
    lines = [line.split("\t") for part in ("train", "test") for line in (tmp_path / f"{part}.tsv").open()]
    kinds = {label: {int(text.split()[1]) % 2 for other, text in lines if other == label} for label, _ in lines}
    assert sorted(map(sorted, kinds.values())) == [[0], [1]]


def test_meanings_above_a_noun(tmp_path):
    (tmp_path / "data.noun").write_text(
        "  1 a licence\n"
        "01 03 n 01 entity 0 000 | all there is  \n"
        "02 03 n 01 animal 0 001 @ 01 n 0000 | moves\n"
        '03 03 n 01 dog 0 002 @ 02 n 0000 ~ 04 n 0000 | barks; "a dog"\n',
        encoding="latin-1",
    )
    glosses = ["all there is", "moves", 'barks; "a dog"']
    assert standins.wordnet(False, tmp_path) == [Row(g, some) for g, some in zip(glosses, ([], ["01"], ["02"]))]
    assert standins.wordnet(True, tmp_path)[2].labels == ["02", "01"]
