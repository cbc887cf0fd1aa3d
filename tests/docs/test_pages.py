"""The pages: their Python runs, their links lead somewhere, their tables list every field."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import torch_lsh

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the sources are not here")


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page with their first lines; a block marked ```python fragment is not one of them."""
    found = re.finditer(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(page.read_text()[: match.start(1)].count("\n"), match.group(1)) for match in found]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=named)
def test_the_blocks_of_a_page_run_one_after_another(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page if path == "" else (page.parent / path).resolve()
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_quick_start_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


@pytest.mark.parametrize("name", ["LSHConfig", "HashTableConfig", "PartitionConfig", "SignCodeConfig"])
def test_the_configuration_page_lists_every_field_with_its_default(name):
    """Rows of its tables begin with the field and its default, ``| `active` | `None` |``."""
    settings = getattr(torch_lsh, name)
    page = (ROOT / "docs" / "configuration.md").read_text()
    section = re.search(rf"^## `?{name}`?.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    listed = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section.group(), re.MULTILINE))
    assert list(listed) == [field.name for field in fields(settings)]
    for field, default in listed.items():
        assert eval(default, vars(torch_lsh)) == getattr(settings(), field), field


def test_one_minimum_of_torch():
    """pyproject.toml has it; everything else that names it agrees."""
    minimum = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= tuple(map(int, minimum.split(".")))
    for name in ("README.md", "setup.py", "torch_lsh/_library.py"):
        text = (ROOT / name).read_text()
        assert set(re.findall(r"PyTorch (\d+\.\d+) or newer|torch>=(\d+\.\d+)", text)) <= {(minimum, ""), ("", minimum)}
    assert f'torch: ["{minimum}", ' in (ROOT / ".github/workflows/test.yml").read_text()
