"""Rows of text and labels from CSV, TSV, JSONL, fastText and Parquet files, read as a stream."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..io import DECOMPRESSION_ERRORS, byte_order_mark, is_damage

Column = str | int

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DELIMITED = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_FASTTEXT = (".txt",)
_LABEL = "__label__"  # what a word that is a label begins with in fastText's format
_PARQUET = (".parquet",)


class TextRow(NamedTuple):
    """One row of a :class:`TextFile`.

    Attributes:
        text: the text, valid Unicode.
        labels: the labels; None where the file was opened without a label column.
        place: where the row stands, for messages: ``"data.csv, row 3 (line 4)"``.
    """

    text: str
    labels: list[Any] | None
    place: str


class TextFile:
    r"""A file of texts with labels that can be read again and again, whatever its size.

    The format follows from the name: ``.csv`` (RFC 4180), ``.tsv`` (tab-separated, without quoting, as the media type
    has it), ``.jsonl`` and ``.ndjson`` (one object per line) or ``.parquet`` (needs pyarrow); all but the last may be
    compressed (``.gz``, ``.xz``, ``.bz2``). A ``.txt`` file is in fastText's format: a text per line, in which words
    such as ``__label__good`` are labels; it has no columns.

    Args:
        path: the file; ``"-"``: standard input, which can be read once.
        text: column of the text, or several columns whose texts are joined by a space. A name from the header or, in
            CSV and TSV files without a header line, a number from 0.
        label: column of the label, of the same kind; None: texts alone.
        delimiter: of the fields of a CSV or TSV file; None: a comma or a tab.
        encoding: of the file.
        format: the end of a name, such as ``".csv"``, that says the format in place of the file's own; None: that of
            the name, and fastText's for standard input.
        label_separator: cells hold several labels (or none), separated by this; blanks around a label are dropped. In
            JSONL and Parquet a list needs no separator.

    Raises:
        ValueError: the format is not known, a column is missing, or (while reading) a row is malformed: file, row (from
            1, without the header), line and reason.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "data.csv"
    >>> _ = path.write_text('text,label\n"Good, really",pos\nDull,neg\n')
    >>> for row in TextFile(path):
    ...     print(row.text, row.labels)
    Good, really ['pos']
    Dull ['neg']
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        text: Column | Sequence[Column] = "text",
        label: Column | None = "label",
        label_separator: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        format: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.text: list[Column] = [text] if isinstance(text, (str, int)) else list(text)
        self.label = label
        self.label_separator = label_separator
        self.encoding = _known_encoding(encoding)
        self._is_input, self._was_read = os.fspath(path) == "-", False
        name = Path("-.txt" if self._is_input else path) if format is None else Path(f"{path}{format}")
        suffixes = [suffix.lower() for suffix in name.suffixes]
        self._opener = _OPENERS.get(suffixes[-1]) if suffixes else None
        self._format = suffixes[-2 if self._opener else -1] if len(suffixes) > (self._opener is not None) else ""
        if self._format not in (*_DELIMITED, *_JSON_LINES, *_FASTTEXT, *_PARQUET) or (
            self._format in _PARQUET and self._opener
        ):
            known = ", ".join((*_DELIMITED, *_JSON_LINES, *_FASTTEXT, *_PARQUET))
            raise ValueError(f"{path}: the format is not known; wanted a name that ends in one of {known}")
        self.delimiter = _DELIMITED.get(self._format, "") if delimiter is None else delimiter
        if delimiter is not None and (self._format not in _DELIMITED or len(delimiter) != 1 or delimiter in '\r\n"'):
            raise ValueError(f"{path}: delimiter is {delimiter!r}; wanted one character, for a CSV or TSV file")
        columns = [*self.text, *([] if label is None else [label])]
        if not self.text or not all(isinstance(column, (str, int)) for column in columns):
            raise ValueError(f"text is {text!r} and label is {label!r}; wanted names or numbers of columns")
        self._numbers = any(isinstance(column, int) for column in columns)
        if self._numbers and not (self._format in _DELIMITED and all(isinstance(c, int) and c >= 0 for c in columns)):
            raise ValueError(
                f"text is {text!r} and label is {label!r}; wanted names of columns, or for all of them "
                "numbers from 0 in a CSV or TSV file without a header"
            )
        if label_separator == "":
            raise ValueError("label_separator is empty; wanted a character or None")
        if self._is_input and (self._opener is not None or self._format in _PARQUET):
            raise ValueError(f"format is {format!r}; wanted one of text for standard input")
        if not self._is_input and not self.path.is_file():  # now, not when the first row is wanted
            raise FileNotFoundError(f"{path}: there is no such file")

    def __iter__(self) -> Iterator[TextRow]:
        if self._format in _PARQUET:
            return self._parquet()
        if self._format in _FASTTEXT:
            return self._guarded(self._fasttext_lines())
        return self._guarded(self._delimited() if self._format in _DELIMITED else self._json_lines())

    def bytes(self) -> int:
        """About how much text there is; compressed files are taken to hold three times their size."""
        if self._is_input:
            raise ValueError(
                "standard input can be read once, and training reads its data several times; wanted a file"
            )
        return self.path.stat().st_size * (3 if self._opener or self._format in _PARQUET else 1)

    # --- formats ---

    def _guarded(self, rows: Iterator[TextRow]) -> Iterator[TextRow]:
        last = str(self.path)
        try:
            for row in rows:
                last = f"after {row.place}"
                yield row
        except UnicodeError as error:
            raise ValueError(f"{last}: the file is not {self._encoding_name()} ({error})") from None
        except DECOMPRESSION_ERRORS as error:
            if not is_damage(error):
                raise
            raise ValueError(f"{last}: the compressed file is damaged or cut off ({error})") from error

    def _open(self) -> IO[str]:
        # Bytes that are not UTF-8 come through as lone surrogates, so that the row they are in can be named.
        options: dict[str, Any] = {"encoding": self.encoding, "errors": "surrogateescape", "newline": ""}
        if self._is_input:
            if self._was_read:
                raise ValueError("standard input can be read once; wanted a file")
            self._was_read = True
            return io.TextIOWrapper(sys.stdin.buffer, **options)
        opener: Any = self._opener or open
        if self.encoding != "utf-8-sig":
            return opener(self.path, "rt", **options)
        with opener(self.path, "rb") as file:
            encoding = byte_order_mark(file.read(4)) or "UTF-8"
        if encoding != "UTF-8":
            raise ValueError(f"{self.path} is {encoding}; wanted UTF-8, which iconv -f {encoding} -t UTF-8 makes")
        return opener(self.path, "rt", **options)

    def _delimited(self) -> Iterator[TextRow]:
        delimiter, quoted = self.delimiter, self._format == ".csv"
        quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))  # a field may be a book
        with self._open() as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            names = None if self._numbers else self._next(reader, 0)
            if not self._numbers and names is None:
                raise ValueError(f"{self.path} is empty; wanted a header line")
            where = [self._position(names, column) for column in self.text]
            label_at = None if self.label is None else self._position(names, self.label)
            needed = max([*where, *([] if label_at is None else [label_at])]) + 1
            most = None if names is None else len(names)
            number = 0
            while True:
                number += 1
                cells = self._next(reader, number)
                if cells is None:
                    return
                if not cells:  # an empty line
                    number -= 1
                    continue
                place = self._place(number, reader.line_num)
                if len(cells) < needed:
                    raise ValueError(f"{place}: there are {len(cells)} fields; wanted at least {needed}")
                most = most or len(cells)  # without a header, the first row says
                if len(cells) > most and any(cells[most:]):
                    raise ValueError(
                        f"{place}: there are {len(cells)} fields; wanted at most the {most} of the first line; a field "
                        f"with {delimiter!r} in it needs quotes" + ("" if quoted else ", thus a .csv file")
                    )
                text = cells[where[0]] if len(where) == 1 else " ".join(cells[at] for at in where)
                yield self._row(text, None if label_at is None else cells[label_at], place)

    def _next(self, reader: Any, number: int) -> list[str] | None:
        line = reader.line_num + 1
        try:
            return next(reader, None)
        except csv.Error as error:
            what = str(error)
            if reader.line_num > line or what == "unexpected end of data":
                what = f"a field begins with a quote that is not closed in its line ({what} in line {reader.line_num})"
            raise ValueError(f"{self._place(number, line)}: {what}") from None

    def _position(self, names: list[str] | None, column: Column) -> int:
        if isinstance(column, int):
            return column
        assert names is not None
        if column not in names:
            raise self._no_column(column, names)
        return names.index(column)

    def _json_lines(self) -> Iterator[TextRow]:
        with self._open() as file:
            number = 0
            for line_number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                number += 1
                place = self._place(number, line_number)
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
                    raise ValueError(f"{place}: not JSON: {error}") from None
                if not isinstance(record, dict):
                    raise ValueError(f"{place}: a JSON {type(record).__name__}; wanted an object")
                yield self._record(record, place)

    def _fasttext_lines(self) -> Iterator[TextRow]:
        with self._open() as file:
            number = 0
            for line_number, line in enumerate(file, 1):
                words = line.split()
                if not words:
                    continue
                number += 1
                labels = [word.removeprefix(_LABEL) for word in words if word.startswith(_LABEL)]
                text = " ".join(word for word in words if not word.startswith(_LABEL))
                yield self._row(text, labels, self._place(number, line_number))

    def _parquet(self) -> Iterator[TextRow]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("Parquet files need pyarrow: pip install pyarrow") from error
        columns = [str(column) for column in self.text] + ([] if self.label is None else [str(self.label)])
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                for column in columns:
                    if column not in file.schema_arrow.names:
                        raise self._no_column(column, file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=4096, columns=columns):
                    for record in batch.to_pylist():
                        number += 1
                        yield self._record(record, self._place(number, None))
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{self.path}, after row {number}: not a Parquet file, or damaged: {error}") from error

    # --- cells ---

    def _record(self, record: dict[str, Any], place: str) -> TextRow:
        def cell(column: Column) -> Any:
            if column not in record:
                raise ValueError(f"{place}: there is no {column!r}; there are {', '.join(map(repr, record))}")
            return record[str(column)]

        texts = [cell(column) for column in self.text]
        for column, text in zip(self.text, texts):
            if not isinstance(text, str):
                raise ValueError(f"{place}: {column!r} is {text!r:.50}; wanted text")
        return self._row(" ".join(texts), None if self.label is None else cell(self.label), place)

    def _row(self, text: str, cell: Any, place: str) -> TextRow:
        if not text.isascii():
            self._check_utf8(text, "the text", place)
        return TextRow(text, None if self.label is None else self._labels(cell, place), place)

    def _labels(self, cell: Any, place: str) -> list[Any]:
        if isinstance(cell, list):
            labels = cell
        elif isinstance(cell, str) and self.label_separator is not None:
            labels = [label for part in cell.split(self.label_separator) if (label := part.strip())]
        else:
            labels = [cell]
        for label in labels:
            if label is None or label == "" or not isinstance(label, (str, int)):
                raise ValueError(f"{place}: the label is {label!r}; wanted text or a whole number")
            if isinstance(label, int) and not -(2**63) <= label < 2**63:
                raise ValueError(f"{place}: the label is {label!r:.40}; wanted a whole number of 64 bits")
            if isinstance(label, str) and not label.isascii():
                self._check_utf8(label, "the label", place)
        return labels

    def _check_utf8(self, text: str, what: str, place: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = ord(text[error.start])
            shown = f"byte 0x{found - 0xDC00:02x}" if 0xDC80 <= found <= 0xDCFF else f"surrogate U+{found:04X}"
            raise ValueError(
                f"{place}: {what} is not {self._encoding_name()} ({shown} at character {error.start})"
            ) from None

    def _encoding_name(self) -> str:
        return "UTF-8" if self.encoding == "utf-8-sig" else self.encoding

    def _place(self, number: int, line: int | None) -> str:
        row = f"row {number}" if number > 0 else "header"
        return f"{self.path}, {row}" + ("" if line is None else f" (line {line})")

    def _no_column(self, column: Column, names: Sequence[str]) -> ValueError:
        return ValueError(f"{self.path} has no column {column!r}; it has {', '.join(map(repr, names))}")


def _known_encoding(encoding: str) -> str:
    """The encoding as it is opened; that of UTF-8 allows for a byte order mark."""
    try:
        "".encode(encoding)  # refuses codecs of bytes, such as "hex"
        name = codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(
            f"encoding is {encoding!r}; wanted one that Python knows, such as 'utf-8' or 'cp1252'"
        ) from None
    return "utf-8-sig" if name in ("utf-8", "utf-8-sig") else name
