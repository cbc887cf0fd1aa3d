"""Imports run down the floors that docs/architecture.md draws, and never in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the sources are not here")


def floors() -> dict[str, int]:
    """Every folder and module of the package with its floor, 0 on top: the boxes of the first drawing."""
    drawing = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    lines = re.findall(r"^ +│ (.+?) │", drawing, re.MULTILINE)
    return {name: floor for floor, line in enumerate(lines) for name in re.split(r"\s{2,}", line.strip())}


def imports(path: Path) -> set[Path]:
    """The files of the package that a file imports when it is imported; lazy imports do not count."""
    found = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.ImportFrom) and statement.level > 0:
            folder = path.parents[statement.level - 1].joinpath(*(statement.module or "").split("."))
            for name in statement.names:
                for module in (folder / f"{name.name}.py", folder / name.name / "__init__.py"):
                    found |= {module} if module.is_file() else set()
            module = folder.with_suffix(".py") if folder.with_suffix(".py").is_file() else folder / "__init__.py"
            found |= {module} if statement.module else set()
    return found - {path}


PACKAGE = {path: imports(path) for path in sorted((ROOT / "torch_lsh").rglob("*.py"))}


def unit(path: Path) -> str:
    return path.relative_to(ROOT / "torch_lsh").parts[0].removesuffix(".py")


def test_every_folder_is_drawn():
    assert {unit(path) for path in PACKAGE} - floors().keys() == {"__init__", "__main__"}


def test_imports_run_down():
    floor_of = floors()
    upwards = [
        f"{path.relative_to(ROOT)} imports {unit(target)}"
        for path, targets in PACKAGE.items()
        for target in targets
        if unit(path) != unit(target)
        and unit(path) not in ("__init__", "__main__")
        and not floor_of[unit(path)] < floor_of[unit(target)]
    ]
    assert upwards == []


def test_no_imports_in_a_circle():
    list(TopologicalSorter(PACKAGE).static_order())
