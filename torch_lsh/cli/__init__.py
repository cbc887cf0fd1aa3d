"""The command line, ``python -m torch_lsh``: finds the module of a command, runs it, reports errors in one line.

A command lives in a module with two functions for it: ``<command>_options(parser)`` adds its options, and
``<command>(arguments)`` runs it and returns the exit status. The module is imported when the command is given.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch

from .. import __version__, interrupts
from ..io import format_of, is_safetensors
from .arguments import positive


class Command(NamedTuple):
    """A command and the modules that know it.

    Attributes:
        help: One line for ``--help``.
        module: The module that runs it.
        safetensors: The module that runs it on a safetensors file other than an XMC model's and adds options for that;
            None: the same.
        reads_model: Whether ``arguments.model`` is a file that it reads.
    """

    help: str
    module: str
    safetensors: str | None = None
    reads_model: bool = False


class Kind(NamedTuple):
    """What a file of ours holds, and the commands that take it."""

    what: str
    commands: tuple[str, ...]


_XMC, _TEXT = "torch_lsh.cli.xmc", "torch_lsh.text.cli"

COMMANDS = {
    "train": Command("train a model on a file in the XMC format", _XMC),
    "evaluate": Command("measure the quality of a model on a file", _XMC, _TEXT, True),
    "predict": Command("print the best labels of each row: label:logit, or JSON lines for texts", _XMC, _TEXT, True),
    "train-text": Command("train a text classifier on a CSV, TSV, JSONL or Parquet file", _TEXT),
    "serve": Command("answer HTTP requests with a model", _TEXT, None, True),
    "inspect": Command("show what the hash tables of a saved model find, and how full they are", _XMC, _TEXT, True),
    "bench": Command("time a training step and top-k beside PyTorch's, on this machine", "torch_lsh.cli.bench"),
}

#: By the name of the format, without its version.
KINDS = {
    "torch_lsh.TextClassifier": Kind("a text model", ("evaluate", "predict", "inspect", "serve")),
    "torch_lsh.XMCClassifier": Kind("an XMC model", ("evaluate", "predict", "inspect", "serve")),
    "torch_lsh.fit": Kind("the state of a training run", ("inspect", "train --checkpoint")),
}


class _CommandParser(argparse.ArgumentParser):
    """Parses the options of a command; imports its modules no earlier."""

    def __init__(self, *args: Any, command: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        command = COMMANDS[self._command]
        for name in filter(None, (command.module, command.safetensors)):
            _function(importlib.import_module(name), f"{self._command}_options")(self)
        return super().parse_known_args(args, namespace)


def _function(module: ModuleType, command: str) -> Any:
    return getattr(module, command.replace("-", "_"))


def _run(arguments: argparse.Namespace) -> int:
    command = COMMANDS[arguments.command]
    if command.reads_model:
        _check_takes(arguments.command, arguments.model)
    name = command.module
    if command.safetensors is not None and is_safetensors(arguments.model):
        is_xmc = (format_of(arguments.model) or "").startswith("torch_lsh.XMCClassifier/")
        name = command.module if is_xmc else command.safetensors
    return int(_function(importlib.import_module(name), arguments.command)(arguments))


def _check_takes(command: str, path: str) -> None:
    """Refuses files of ours that are for other commands; the loaders refuse what is none of ours."""
    kind = KINDS.get((format_of(path) or "").split("/")[0])
    if kind is not None and command not in kind.commands:
        raise ValueError(f"{path} holds {kind.what}, which is for {', '.join(kind.commands)}; {command} takes none")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torch_lsh", description="Very wide PyTorch layers on CPUs.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--threads", type=positive, help="number of compute threads; default: PyTorch's")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_CommandParser)
    for name, command in COMMANDS.items():
        commands.add_parser(name, command=name, help=command.help)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command and its arguments; None means those of the process.

    Returns:
        The exit status: 0, 2 after bad input (with one line on standard error), 130 after SIGINT.
    """
    try:
        interrupts.raise_from_now_on()
        parsed = _parser().parse_args(arguments)
        if parsed.threads is not None:
            torch.set_num_threads(parsed.threads)
        status = _run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python would complain at exit, when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if not _is_users(error):
            raise
        print("torch_lsh:", " ".join(str(error).removeprefix("torch_lsh: ").split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupts.MESSAGE, file=sys.stderr)
        return interrupts.STATUS


def run() -> NoReturn:
    """Runs the command of the process and ends it; Ctrl-C never shows a traceback."""
    sys.unraisablehook = _unraisable
    try:
        status = main()
    except KeyboardInterrupt:  # the second one, while the first was told
        status = interrupts.STATUS
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes milliseconds
    sys.exit(status)


def _unraisable(unraisable: Any) -> None:
    """An interrupt in a callback (``__del__``, say) would be printed and forgotten."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        interrupts.end()
    sys.__unraisablehook__(unraisable)


def _is_users(error: Exception) -> bool:
    """Whether bad input, a file or memory caused the error. Any other error is a bug and keeps its traceback."""
    # Operators name the bad argument in a RuntimeError; PyTorch's allocator says how much memory it wanted.
    text = str(error)
    return not isinstance(error, RuntimeError) or text.startswith("torch_lsh: ") or "can't allocate memory" in text
