"""Makes wide sets that no default was chosen on, from package lists of Debian and from other data sets.

    python benchmarks/standins.py out --lists /var/lib/apt/lists
    python benchmarks/models.py --file debian-da out/debian-da/train.tsv out/debian-da/test.tsv

Nothing is downloaded. ``apt-get -o Acquire::Languages::=da update`` brings the Danish descriptions, for example. The
other sets come from the folder that TORCH_LSH_DATA names. Rows are split at random, with a fixed seed; a label that no
training row has stays with the test rows. Text files have lines ``label,label TAB text``; the others are those that
``XMCDataset`` reads.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from corpora import DATA, read_lines, read_words

_LARGEST_SHARE = 0.01  # of the packages that may need another one: more, as libc6 has, tell nothing
_WORDS = re.compile(r"\w+")
_IS = re.compile(r" (?:is|was|are|were) ")
_CONTEXT, _NEXT = 20, 5  # words
_SEED = 0


class Row(NamedTuple):
    """A text, or features with their counts, and labels."""

    text: str | Counter[str]
    labels: Sequence[str]


# --- Debian -----------------------------------------------------------------------------------------------------------


def stanzas(path: str) -> Iterable[dict[str, str]]:
    """The fields of each paragraph of a package list, compressed or not."""
    content = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], stdout=subprocess.PIPE, check=True).stdout
    for paragraph in content.decode().split("\n\n"):
        fields = re.split(r"^([\w-]+):", paragraph, flags=re.MULTILINE)
        yield {name: value.strip() for name, value in zip(fields[1::2], fields[2::2])}


def needed_packages(lists: Path) -> dict[str, list[str]]:
    """What each package depends on or recommends, alternatives included, without what many packages need."""
    needed: dict[str, list[str]] = {}
    for path in glob.glob(f"{lists}/*_main_binary-*_Packages*"):
        for package in stanzas(path):
            names = re.split(r"[,|]", f"{package.get('Depends', '')},{package.get('Recommends', '')}")
            needed[package.get("Package", "")] = sorted(
                {re.sub(r"[\s(:].*", "", name.strip()) for name in names} - {""}
            )
    counts = Counter(name for names in needed.values() for name in names)
    most = _LARGEST_SHARE * len(needed)
    return {package: [name for name in names if counts[name] <= most] for package, names in needed.items()}


def descriptions(lists: Path, language: str, whole: bool) -> dict[str, str]:
    """The description of each package in a language: its first line, or all of it."""
    found = {}
    for path in glob.glob(f"{lists}/*_main_i18n_Translation-{quote(language, safe='').replace('_', '%5f')}*"):
        for package in stanzas(path):
            text = package.get(f"Description-{language}", "")
            found[package.get("Package", "")] = " ".join(text.split()) if whole else text.split("\n")[0]
    return found


def debian(lists: Path, language: str, whole: bool) -> list[Row]:
    """Description -> the packages that are needed. Of equal texts the first one is kept."""
    needed = needed_packages(lists)
    first: dict[str, Row] = {}
    for package, text in descriptions(lists, language, whole).items():
        first.setdefault(text, Row(text, needed.get(package, ())))
    return list(first.values())


# --- other data sets --------------------------------------------------------------------------------------------------


def agnews() -> list[Row]:
    """Description of a news item -> the words of its title."""
    items = csv.reader(io.StringIO("\n".join(read_lines(DATA / "agnews" / "test.csv.xz"))))
    return [Row(text, _words(title)) for _, title, text in items]


def dbpedia() -> list[Row]:
    """An abstract without its beginning -> the words of that, which ends before the first "is" or "was"."""
    rows = []
    for line in read_lines(DATA / "dbpedia-14k" / "train.csv.xz"):
        subject, *rest = _IS.split(line.split(",", 1)[1], maxsplit=1)
        rows += [Row(" ".join(rest[0].split()), _words(re.sub(r"\(.*", "", subject)))] if rest else []
    return rows


def halves(lines: Iterable[Sequence[str]]) -> list[Row]:
    """A random half of the items -> the other half."""
    generator, rows = random.Random(_SEED), []
    for line in lines:
        items = list(dict.fromkeys(line))
        generator.shuffle(items)
        rows.append(Row(Counter(items[: (len(items) + 1) // 2]), items[(len(items) + 1) // 2 :]))
    return rows


def gowalla() -> list[Row]:
    """Half of the places of a user -> the other half; both parts of the set together."""
    places: dict[str, list[str]] = {}
    for split in ("train", "test"):
        for line in read_lines(DATA / "gowalla" / f"{split}.txt.xz"):
            user, *items = line.split()
            places.setdefault(user, []).extend(items)
    return halves(places.values())


def diginetica() -> list[Row]:
    """Half of the items of a shopping session -> the other half."""
    return halves(line.split() for line in read_lines(DATA / "diginetica" / "train_sessions.txt.xz"))


def wikitext() -> list[Row]:
    """20 words -> the five words that follow them; the passages do not overlap."""
    words = read_words(DATA / "wikitext-2", "train")
    starts = range(0, len(words) + 1, _CONTEXT + _NEXT)
    passages = (words[begin:end] for begin, end in pairwise(starts))
    return [Row(Counter(some[:_CONTEXT]), list(dict.fromkeys(some[_CONTEXT:]))) for some in passages]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(_WORDS.findall(text.lower())))


# --- files ------------------------------------------------------------------------------------------------------------


def write(rows: list[Row], folder: Path) -> str:
    """Writes the rows that have a text and a label, a tenth of them (at most 10,000) as test rows."""
    rows = [row for row in rows if row.text and row.labels]
    random.Random(_SEED).shuffle(rows)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--lists", type=Path, default=Path("/var/lib/apt/lists"), help="package lists of apt")
    arguments = parser.parse_args()
    sets: dict[str, Callable[[], list[Row]]] = {
        "debian-en": lambda: debian(arguments.lists, "en", whole=True),
        "debian-da": lambda: debian(arguments.lists, "da", whole=False),
        "debian-it": lambda: debian(arguments.lists, "it", whole=False),
        "debian-fr": lambda: debian(arguments.lists, "fr", whole=True),
        "debian-de": lambda: debian(arguments.lists, "de", whole=False),
        "agnews-titles": agnews,
        "dbpedia-subjects": dbpedia,
        "gowalla-halves": gowalla,
        "diginetica-halves": diginetica,
        "wikitext-next": wikitext,
    }
    for name, make in sets.items():
        rows = make()
        print(f"{name}: {write(rows, arguments.out / name) if rows else 'its source is not there'}", flush=True)


if __name__ == "__main__":
    main()
