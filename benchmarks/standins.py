"""Makes wide sets that no default was chosen on, from package lists of Debian and from other data sets.

    python benchmarks/standins.py out debian-da --lists /var/lib/apt/lists
    python benchmarks/models.py --file debian-da out/debian-da/train.tsv out/debian-da/test.tsv

Nothing is downloaded; a set whose source is not there is named. What brings the sources:

    apt-get -o Acquire::Languages::=da update   descriptions in Danish, for example
    a line deb-src in sources.list              debian-builds, debian-uploaders
    apt-get install apt-file; apt-get update    lists of files: debian-files
    apt-get install wordnet-base                wordnet-above, wordnet-parent

The other sets come from the folder that TORCH_LSH_DATA names. Rows are split at random, with a fixed seed; a label that
no training row has stays with the test rows. Text files have lines ``label,label TAB text``; the others are those that
``XMCDataset`` reads.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import debian_sets as debian
from corpora import DATA, read_lines, read_words
from rows_of_sets import Row, halves, once, words_of, write

_IS = re.compile(r" (?:is|was|are|were) ")
_CONTEXT, _NEXT = 20, 5  # words
_REVIEWS = 12_500
_RARE = 0.01  # share of the reviews that have a rare word, at most
_SESSIONS = 40_000
_TITLE = re.compile(r"= [^=].*[^=] =")


def agnews() -> list[Row]:
    """Description of a news item -> the words of its title."""
    items = csv.reader(io.StringIO("\n".join(read_lines(DATA / "agnews" / "test.csv.xz"))))
    return [Row(text, words_of(title)) for _, title, text in items]


def dbpedia() -> list[Row]:
    """An abstract without its beginning -> the words of that, which ends before the first "is" or "was"."""
    rows = []
    for line in read_lines(DATA / "dbpedia-14k" / "train.csv.xz"):
        subject, *rest = _IS.split(line.split(",", 1)[1], maxsplit=1)
        rows += [Row(" ".join(rest[0].split()), words_of(re.sub(r"\(.*", "", subject)))] if rest else []
    return rows


def gowalla() -> list[Row]:
    """Half of the places of a user -> the other half; both parts of the set together."""
    places: dict[str, list[str]] = {}
    for split in ("train", "test"):
        for line in read_lines(DATA / "gowalla" / f"{split}.txt.xz"):
            user, *items = line.split()
            places.setdefault(user, []).extend(items)
    return halves(places.values())


def _sessions() -> list[list[str]]:
    return [line.split() for line in read_lines(DATA / "diginetica" / "train_sessions.txt.xz")]


def diginetica() -> list[Row]:
    """Half of the items of a shopping session -> the other half."""
    return halves(_sessions())


def diginetica_next() -> list[Row]:
    """All items of a shopping session but the last one -> that one."""
    return [Row(Counter(items[:-1]), [items[-1]]) for items in _sessions() if len(items) > 1][:_SESSIONS]


def wikitext() -> list[Row]:
    """20 words -> the five words that follow them; the passages do not overlap."""
    words = read_words(DATA / "wikitext-2", "train")
    starts = range(0, len(words) + 1, _CONTEXT + _NEXT)
    passages = (words[begin:end] for begin, end in pairwise(starts))
    return [Row(Counter(some[:_CONTEXT]), list(dict.fromkeys(some[_CONTEXT:]))) for some in passages]


def wikitext_articles() -> list[Row]:
    """A paragraph -> the article that it stands in."""
    rows, title = [], ""
    for line in map(str.strip, read_lines(DATA / "wikitext-2" / "train.txt.xz")):
        if _TITLE.fullmatch(line):
            title = line
        elif line and title and not line.startswith("="):
            rows.append(Row(" ".join(line.split()), [title]))
    return rows


def imdb() -> list[Row]:
    """Counts of the frequent words of a review -> its rare words."""
    lines = read_lines(DATA / "imdb" / "train.tsv.xz")[:_REVIEWS]
    reviews = [Counter(re.findall(r"\w+", line.split("\t")[2].lower())) for line in lines]
    counts, most = Counter(word for words in reviews for word in words), _RARE * _REVIEWS
    return [
        Row(Counter({w: n for w, n in words.items() if counts[w] > most}), [w for w in words if 1 < counts[w] <= most])
        for words in reviews
    ]


def wordnet(whole: bool, folder: Path) -> list[Row]:
    """The gloss of a noun's meaning -> the meanings just above it, or all that are above."""
    above: dict[str, list[str]] = {}
    glosses: dict[str, str] = {}
    for line in (folder / "data.noun").read_text(encoding="latin-1").split("\n"):
        meaning, _, rest = line.partition(" ")
        if meaning.isdigit():
            data, _, gloss = rest.partition("|")
            parts = data.split(" ")
            above[meaning] = [other for sign, other in pairwise(parts) if sign in ("@", "@i")]
            glosses[meaning] = gloss.strip()

    def all_above(meaning: str) -> list[str]:
        todo, found = list(above[meaning]), []
        while todo:
            one = todo.pop()
            if one not in found:
                found.append(one)
                todo += above[one]
        return found

    return once(Row(gloss, all_above(one) if whole else above[one]) for one, gloss in glosses.items())


def sets_from(lists: Path, wordnet_folder: Path) -> dict[str, Callable[[], list[Row]]]:
    """What makes each set."""
    first_lines = {"da", "it", "de"}
    languages = ("en", "da", "it", "fr", "de", "sk", "ko", "pt_BR", "ja", "ru", "pl", "uk", "cs", "pt")
    return {
        **{f"debian-{some}": partial(debian.needs, lists, some, some not in first_lines) for some in languages},
        "debian-tags": partial(debian.tags, lists),
        "debian-common-tags": partial(debian.tags, lists, least=100),
        "debian-maintainers": partial(debian.maintainers, lists),
        "debian-teams": partial(debian.maintainers, lists, least=100),
        "debian-names": partial(debian.names, lists),
        "debian-files": partial(debian.files, lists),
        "debian-uploaders": partial(debian.uploaders, lists),
        "debian-builds": partial(debian.builds, lists),
        "wordnet-above": partial(wordnet, True, wordnet_folder),
        "wordnet-parent": partial(wordnet, False, wordnet_folder),
        "agnews-titles": agnews,
        "dbpedia-subjects": dbpedia,
        "imdb-words": imdb,
        "gowalla-halves": gowalla,
        "diginetica-halves": diginetica,
        "diginetica-next": diginetica_next,
        "wikitext-next": wikitext,
        "wikitext-articles": wikitext_articles,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("sets", nargs="*", help="default: all")
    parser.add_argument("--lists", type=Path, default=Path("/var/lib/apt/lists"), help="package lists of apt")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of data.noun")
    arguments = parser.parse_args()
    sets = sets_from(arguments.lists, arguments.wordnet)
    if unknown := set(arguments.sets) - set(sets):
        parser.error(f"sets is {min(unknown)!r}; wanted some of {', '.join(sets)}")
    for name in arguments.sets or sets:
        try:
            rows = sets[name]()
        except FileNotFoundError as error:
            print(f"{name}: {error.filename} is not there", flush=True)
            continue
        print(f"{name}: {write(rows, arguments.out / name) if rows else 'its source is not there'}", flush=True)


if __name__ == "__main__":
    main()
