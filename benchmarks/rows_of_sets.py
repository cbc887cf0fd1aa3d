"""Rows of wide sets, and the files that hold them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SEED = 0
_WORDS = re.compile(r"\w+")


class Row(NamedTuple):
    """A text, or features with their counts, and labels."""

    text: str | Counter[str]
    labels: Sequence[str]


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, each once."""
    return list(dict.fromkeys(_WORDS.findall(text.lower())))


def once(rows: Iterable[Row]) -> list[Row]:
    """The first of the rows with equal texts."""
    first: dict[str | Counter[str], Row] = {}
    for row in rows:
        first.setdefault(row.text, row)
    return list(first.values())


def halves(lines: Iterable[Sequence[str]]) -> list[Row]:
    """A random half of the items -> the other half."""
    generator, rows = random.Random(SEED), []
    for line in lines:
        items = list(dict.fromkeys(line))
        generator.shuffle(items)
        rows.append(Row(Counter(items[: (len(items) + 1) // 2]), items[(len(items) + 1) // 2 :]))
    return rows


def write(rows: list[Row], folder: Path) -> str:
    """Writes the rows that have a text and a label, a tenth of them (at most 10,000) as test rows."""
    rows = [row for row in rows if row.text and row.labels]
    random.Random(SEED).shuffle(rows)
    tested = min(10_000, len(rows) // 10)
    labels = {label: i for i, label in enumerate(dict.fromkeys(label for row in rows[tested:] for label in row.labels))}
    known = len(labels)
    for row in rows[:tested]:
        for label in row.labels:
            labels.setdefault(label, len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    texts = isinstance(rows[0].text, str)
    of_rows = (text for text, _ in rows[tested:] if not isinstance(text, str))
    features = {feature: i for i, feature in enumerate(dict.fromkeys(f for counts in of_rows for f in counts))}
    for name, part in (("train", rows[tested:]), ("test", rows[:tested])):
        lines = []
        for text, some in part:
            numbers = ",".join(str(labels[label]) for label in some)
            if isinstance(text, str):
                lines.append(f"{numbers}\t{text}\n")
            else:
                counts = sorted((features[feature], n) for feature, n in text.items() if feature in features)
                lines.append(f"{numbers} {' '.join(f'{f}:{n}' for f, n in counts)}\n")
        header = "" if texts else f"{len(part)} {len(features)} {len(labels)}\n"
        (folder / f"{name}.{'tsv' if texts else 'txt'}").write_text(header + "".join(lines), encoding="utf-8")
    return f"{len(rows) - tested:,} training rows, {tested:,} test rows, {known:,} labels"
