"""Text files: formats, and what is wrong with a row, by its number."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import json
import lzma

import pytest

from torch_lsh.text import TextFile

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not here")

ROWS = [('good, "really" good', "pos"), ("dull", "neg"), ("naïve 北京\nsecond line", "pos")]
CSV = 'id,text,label\n1,"good, ""really"" good",pos\n2,dull,neg\n3,"naïve 北京\nsecond line",pos\n'


def rows(path, **options):
    return [(row.text, *row.labels) for row in TextFile(path, **options)]


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open), (".bz2", bz2.open)])
def test_csv(tmp_path, suffix, opener):
    path = tmp_path / f"data.csv{suffix}"
    with opener(path, "wb") as file:
        file.write(CSV.encode())
    assert rows(path) == ROWS
    assert rows(path) == ROWS  # again and again


def test_csv_by_number_without_a_header_and_with_several_columns_of_text(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('"3","Title","Some text"\n"1","Other","More"\n\n"1","","End"')
    assert rows(path, text=[1, 2], label=0) == [("Title Some text", "3"), ("Other More", "1"), (" End", "1")]


def test_csv_with_a_byte_order_mark_and_line_ends_of_windows(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\ngood,pos\r\n")
    assert rows(path) == [("good", "pos")]


def test_empty_fields_beyond_the_header_are_no_loss(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,b,,\nc,d\n")
    assert rows(path) == [("a", "b"), ("c", "d")]


def test_without_a_header_the_first_row_says_how_many_fields_there_are(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("pos,fine\npos,I liked it, very much\n")
    with pytest.raises(ValueError, match=r"row 2 \(line 2\): there are 3 fields; wanted at most the 2"):
        rows(path, text=1, label=0)


def test_an_error_of_the_disk_is_not_one_of_the_content(tmp_path, monkeypatch):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n")
    monkeypatch.setattr(TextFile, "_open", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        rows(path)


def test_tsv_has_no_quoting(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text('label\ttext\npos\t"good" he said\nneg\t"\n')
    assert rows(path) == [('"good" he said', "pos"), ('"', "neg")]


def test_json_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n\n" for text, label in ROWS))
    assert rows(path) == ROWS
    path.write_text('{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n{"text": "c", "label": 3}\n')
    assert rows(path) == [("a", "x", "y"), ("b",), ("c", 3)]


@needs_pyarrow
def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "data.parquet"
    texts, labels = zip(*ROWS * 2000)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels, "n": range(6000)}), path)
    assert rows(path) == ROWS * 2000
    with pytest.raises(ValueError, match=r"has no column 'body'; it has 'text', 'label', 'n'"):
        rows(path, text="body")
    with pytest.raises(ValueError, match=r"row 1: 'n' is 0; wanted text"):
        rows(path, text="n")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a Parquet file, or damaged"):
        rows(path)


def test_several_labels_in_a_cell(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x; y\nb,\nc, z ;\n")
    assert rows(path, label_separator=";") == [("a", "x", "y"), ("b",), ("c", "z")]


def test_ten_megabytes_in_one_field(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(f"text,label\n{'word ' * 2_000_000},x\n")
    assert len(rows(path)[0][0]) == 10_000_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "a.csv is empty; wanted a header line"),
        ("a.csv", b"body,label\n", "has no column 'text'; it has 'body', 'label'"),
        ("a.csv", b"text,tag\n", "has no column 'label'; it has 'text', 'tag'"),
        ("a.csv", b"text,label\na,b\n\nc\n", r"a.csv, row 2 \(line 4\): there are 1 fields; wanted at least 2"),
        ("a.csv", b"text,label\na,b\na,\n", r"row 2 \(line 3\): the label is ''"),
        ("a.csv", b'text,label\na,b\n"a"b,c\n', r"row 2 \(line 3\): .*expected after"),
        ("a.csv", b'text,label\na,b\n"a,b\nc,d\n', r"row 2 \(line 3\): .*quote that is not closed .* in line 4\)$"),
        ("a.csv", b'text,label\na,b\n"a,b\n"c",d\n', r"row 2 \(line 3\): .*quote that is not closed .* in line 4\)$"),
        ("a.csv", b'text,label\na,b\n"a,c\n', r"row 2 \(line 3\): .*quote that is not closed"),
        ("a.csv", b"text,label\na,b\nb\xff,c\n", r"row 2 \(line 3\): the text is not UTF-8 \(byte 0xff at char"),
        ("a.csv", b"text,label\na,b\nb,\xc3\n", r"row 2 \(line 3\): the label is not UTF-8 \(byte 0xc3"),
        ("a.tsv", b"text\tlabel\na\n", r"row 1 \(line 2\): there are 1 fields"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n\n{"text":\n', r"row 2 \(line 3\): not JSON"),
        ("a.jsonl", b"[1]\n", r"row 1 \(line 1\): a JSON list; wanted an object"),
        ("a.jsonl", b'{"text": "a"}\n', r"row 1 \(line 1\): there is no 'label'; there are 'text'"),
        ("a.jsonl", b'{"text": 3, "label": "b"}\n', r"row 1 \(line 1\): 'text' is 3; wanted text"),
        ("a.jsonl", b'{"text": "a", "label": null}\n', "the label is None; wanted text or a whole number"),
        ("a.jsonl", b'{"text": "a", "label": 0.5}\n', r"the label is 0.5"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', r"row 1 .*not UTF-8 \(surrogate U\+D800"),
        ("a.csv.gz", gzip.compress(b"text,label\n" + b"a,b\n" * 99_999)[:-50], "damaged or cut off"),
        ("a.csv.gz", b"text,label\n", "damaged or cut off"),
        ("a.csv.bz2", b"text,label\n", r"a.csv.bz2: the compressed file is damaged or cut off \(Invalid data stream"),
        ("a.csv.bz2", bz2.compress(b"text,label\n" + b"a,b\n" * 9)[:-9], "a.csv.bz2.*: the compressed file is damaged"),
        ("a.jsonl.xz", b"[1]", r"a.jsonl.xz: the compressed file is damaged"),
        (
            "a.csv",
            b"label,text\npos,I liked it, very much\n",
            r"row 1 \(line 2\): there are 3 fields; wanted at most the 2",
        ),
        ("a.csv", b"label,text\npos,a\npos,,,b\n", r"row 2 \(line 3\): .*a field with ',' in it needs quotes$"),
        ("a.tsv", b"label\ttext\npos\ta\tb\n", r"row 1 \(line 2\): there are 3 fields.*thus a .csv file"),
        ("a.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}", r"a.jsonl, row 1 \(line 1\): not JSON: Exceeds"),
        (
            "a.jsonl",
            b'{"text": "a", "label": ' + b"1" * 50 + b"}",
            r"row 1 .*: the label is 1+; wanted a whole number of",
        ),
        (
            "a.csv",
            "text,label\na,b\n".encode("utf-16"),
            "a.csv is UTF-16; wanted UTF-8, which iconv -f UTF-16 -t UTF-8",
        ),
        ("a.tsv", "text\tlabel\na\tb\n".encode("utf-32"), "a.tsv is UTF-32; wanted UTF-8"),
        ("a.jsonl.gz", gzip.compress('{"text": "a"}'.encode("utf-16")), "a.jsonl.gz is UTF-16; wanted UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_the_row(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        rows(path)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.doc", {}, "the format is not known; wanted a name that ends in one of .csv"),
        ("a", {}, "the format is not known"),
        ("a.gz", {}, "the format is not known"),
        ("a.parquet.gz", {}, "the format is not known"),
        ("a.csv", {"text": []}, r"text is \[\]"),
        ("a.csv", {"text": 1}, "text is 1 and label is 'label'; wanted names of columns, or for all of them numbers"),
        ("a.csv", {"text": -1, "label": 0}, "text is -1"),
        ("a.jsonl", {"text": 1, "label": 0}, "in a CSV or TSV file"),
        ("a.csv", {"label_separator": ""}, "label_separator is empty"),
    ],
)
def test_bad_arguments(tmp_path, name, options, words):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=words):
        TextFile(tmp_path / name, **options)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.csv: there is no such file"):
        TextFile(tmp_path / "data.csv")


def test_lines_of_fasttext(tmp_path):
    path = tmp_path / "train.txt.GZ"
    path.write_bytes(
        gzip.compress("\ufeff__label__pos __label__new a fine film\n\nno label\nna\u00efve __label__neg\n".encode())
    )
    assert [(row.text, row.labels, row.place) for row in TextFile(path)] == [
        ("a fine film", ["pos", "new"], f"{path}, row 1 (line 1)"),
        ("no label", [], f"{path}, row 2 (line 3)"),
        ("na\u00efve", ["neg"], f"{path}, row 3 (line 4)"),
    ]
    assert [row.labels for row in TextFile(path, label=None)] == [None] * 3
    path = tmp_path / "bad.txt"
    path.write_bytes(b"__label__pos a\n__label__ b\n")
    with pytest.raises(ValueError, match=r"bad.txt, row 2 \(line 2\): the label is ''"):
        rows(path)


def test_delimiter_and_encoding(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes('text;label\n"gr\u00fcn; rot";pos\n'.encode("cp1252"))
    assert rows(path, delimiter=";", encoding="cp1252") == [("gr\u00fcn; rot", "pos")]
    with pytest.raises(ValueError, match=r"row 1 \(line 2\): the text is not UTF-8"):
        rows(path, delimiter=";")
    for encoding in ("latin-99", "hex"):
        with pytest.raises(ValueError, match=f"encoding is '{encoding}'; wanted one that Python knows"):
            rows(path, encoding=encoding)
    with pytest.raises(ValueError, match=r"data.csv: the file is not utf-16 \("):
        rows(path, delimiter=";", encoding="utf-16")
    with pytest.raises(ValueError, match=r"row 1 \(line 2\): the text is not ascii \(byte 0xfc"):
        rows(path, delimiter=";", encoding="ascii")
    for delimiter in ("", ";;", "\n"):
        with pytest.raises(ValueError, match=r"delimiter is .*; wanted one character"):
            rows(path, delimiter=delimiter)
