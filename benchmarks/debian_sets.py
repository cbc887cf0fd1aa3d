"""Wide sets from the package lists of Debian that apt keeps; see standins.py for what has to be there."""

from __future__ import annotations

import glob
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from rows_of_sets import Row, halves, once, words_of

_LARGEST_SHARE = 0.01  # of the packages that may need another one: more, as libc6 has, tell nothing
_MOST_PATHS = 2_000  # distinct words of the paths of a package, at which further paths are left out
_EVERYWHERE = {"debhelper", "debhelper-compat"}  # needed to build almost anything


def content_of(path: str) -> str:
    """The text of a list, compressed or not."""
    command = ["/usr/lib/apt/apt-helper", "cat-file", path]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode(errors="replace")


def stanzas(lists: Path, pattern: str) -> Iterable[dict[str, str]]:
    """The fields of each paragraph of the lists whose names match."""
    for path in glob.glob(f"{lists}/{pattern}"):
        for paragraph in content_of(path).split("\n\n"):
            fields = re.split(r"^([\w-]+):", paragraph, flags=re.MULTILINE)
            yield {name: value.strip() for name, value in zip(fields[1::2], fields[2::2])}


def packages(lists: Path) -> Iterable[dict[str, str]]:
    return stanzas(lists, "*_main_binary-*_Packages*")


def sources(lists: Path) -> Iterable[dict[str, str]]:
    return stanzas(lists, "*_main_source_Sources*")


def needed_packages(lists: Path) -> dict[str, list[str]]:
    """What each package depends on or recommends, alternatives included, without what many packages need."""
    needed: dict[str, list[str]] = {}
    for package in packages(lists):
        names = re.split(r"[,|]", f"{package.get('Depends', '')},{package.get('Recommends', '')}")
        needed[package.get("Package", "")] = sorted({re.sub(r"[\s(:].*", "", name.strip()) for name in names} - {""})
    counts = Counter(name for names in needed.values() for name in names)
    most = _LARGEST_SHARE * len(needed)
    return {package: [name for name in names if counts[name] <= most] for package, names in needed.items()}


def descriptions(lists: Path, language: str, whole: bool) -> dict[str, str]:
    """The description of each package in a language: its first line, or all of it."""
    found = {}
    name = quote(language, safe="").replace("_", "%5f")
    for package in stanzas(lists, f"*_main_i18n_Translation-{name}*"):
        text = package.get(f"Description-{language}", "")
        found[package.get("Package", "")] = " ".join(text.split()) if whole else text.split("\n")[0]
    return found


def needs(lists: Path, language: str, whole: bool) -> list[Row]:
    """Description -> the packages that are needed."""
    needed = needed_packages(lists)
    texts = descriptions(lists, language, whole)
    return once(Row(text, needed.get(package, ())) for package, text in texts.items())


def tags(lists: Path, least: int = 0) -> list[Row]:
    """Description -> debtags of at least so many packages."""
    texts = descriptions(lists, "en", whole=True)
    tagged = {p["Package"]: p["Tag"].replace("\n", " ").split(",") for p in packages(lists) if "Tag" in p}
    found = {package: [tag.strip() for tag in some if tag.strip()] for package, some in tagged.items()}
    counts = Counter(tag for some in found.values() for tag in some)
    return once(Row(texts.get(p, ""), [tag for tag in some if counts[tag] >= least]) for p, some in found.items())


def maintainers(lists: Path, least: int = 0) -> list[Row]:
    """Description -> the one who maintains the package, if it is one of at least so many."""
    texts = descriptions(lists, "en", whole=True)
    found = [(p.get("Package", ""), p.get("Maintainer", "")) for p in packages(lists)]
    counts = Counter(maintainer for _, maintainer in found)
    return once(Row(texts.get(p, ""), [who] if who and counts[who] >= least else []) for p, who in found)


def names(lists: Path) -> list[Row]:
    """The parts of a package's name -> the words of its description's first line."""
    texts = descriptions(lists, "en", whole=False)
    return [Row(" ".join(re.split(r"[-.+]", package)), words_of(text)) for package, text in texts.items()]


def files(lists: Path) -> list[Row]:
    """How often each word stands in the paths of a package's files -> the packages that are needed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path in glob.glob(f"{lists}/*_main_Contents-*"):
        for line in content_of(path).splitlines():
            name, where = line.rsplit(None, 1)
            for package in where.split(","):
                words = counts[package.rsplit("/", 1)[-1]]
                if len(words) < _MOST_PATHS:
                    words.update(re.findall(r"[a-zA-Z]+", name.lower()))
    needed = needed_packages(lists)
    return [Row(words, needed.get(package, ())) for package, words in counts.items()]


def _needed_to_build(source: dict[str, str]) -> list[str]:
    needed = re.split(r"[,|]", f"{source.get('Build-Depends', '')},{source.get('Build-Depends-Indep', '')}")
    return sorted({re.sub(r"[\s(:\[<].*", "", name.strip(), flags=re.DOTALL) for name in needed} - {""})


def uploaders(lists: Path) -> list[Row]:
    """What a source package needs to be built -> the addresses of those who maintain and upload it."""
    rows = []
    for source in sources(lists):
        people = re.findall(r"<([^>]+)>", f"{source.get('Maintainer', '')},{source.get('Uploaders', '')}")
        rows.append(Row(Counter(_needed_to_build(source)), sorted(set(people))))
    return rows


def builds(lists: Path) -> list[Row]:
    """A random half of what a source package needs to be built -> the other half."""
    needed = ([name for name in _needed_to_build(source) if name not in _EVERYWHERE] for source in sources(lists))
    return halves(some for some in needed if len(some) > 1)
