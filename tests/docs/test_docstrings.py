"""Public classes, functions and methods have docstrings that name every argument. (ruff checks their form.)"""

from __future__ import annotations

import inspect
import re

import pytest

import torch_lsh

MODULES = (torch_lsh, torch_lsh.data, torch_lsh.distributed, torch_lsh.models, torch_lsh.nn, torch_lsh.optim)
# PyTorch and scikit-learn document these.
CONVENTIONS = {"state_dict", "load_state_dict", "get_params", "set_params", "fit_transform"}
COMMON = {"self", "cls", "args", "kwargs", "device", "dtype"}


def public() -> dict[str, object]:
    """The public classes and functions, and the methods that these classes add to their bases, by name."""
    found: dict[str, object] = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing) or not thing.__module__.startswith("torch_lsh"):
                continue
            found[name] = thing
            for key, member in vars(thing).items() if inspect.isclass(thing) else ():
                method = getattr(member, "__func__", member)
                inherited = any(hasattr(base, key) for base in thing.__bases__)
                if inspect.isfunction(method) and not key.startswith("_") and not inherited and key not in CONVENTIONS:
                    found[f"{name}.{key}"] = method
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing)
    assert text
    arguments = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    signed = inspect.isfunction(thing) or "__init__" in vars(thing)
    if signed and arguments is not None and "as in :class:`torch." not in arguments.group(1):
        names = inspect.signature(thing).parameters.keys() - COMMON
        assert {one for one in names if not re.search(rf"\b{one}\b", arguments.group(1))} == set()
