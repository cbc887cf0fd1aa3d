"""SIGINT, which Ctrl-C sends to a process and to all that it started.

On the command line it is one line and exit status 130 at any time. The package is imported before its command line is,
and imports take seconds; so this module is imported first of all, and where it finds that the process is the command
line, an interrupt ends it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

MESSAGE = "torch_lsh: interrupted"
STATUS = 130  # 128 + SIGINT, as shells have it


def end(*_: Any) -> NoReturn:
    """Ends the process at once, as a handler of signals may. Files are written whole or not at all."""
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(STATUS)


def _is_command_line() -> bool:
    """Whether the process is ``python -m torch_lsh`` or the script ``torch_lsh``, and imports this package for it."""
    if sys.argv[:1] == ["-m"]:  # while the module is being found, thus its package imported
        return "torch_lsh" in sys.orig_argv
    return bool(sys.argv) and os.path.basename(sys.argv[0]) == "torch_lsh"


if _is_command_line() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


def raise_from_now_on() -> None:
    """From now on an interrupt raises KeyboardInterrupt, as it does in other processes."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delivers SIGINT after the block. Processes started in the block never get it.

    For workers of a DataLoader, which would print tracebacks beside the message of the process that they work for. They
    end with it.
    """
    if sys.platform == "win32":  # has no masks of signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def quiet_worker(_: int = 0) -> None:
    """Begins a worker of a DataLoader that prints nothing where the process that it works for ends during a transfer.

    A thread of multiprocessing hands tensors over, and passes errors of the connection to ``sys.excepthook``.
    """
    show = sys.excepthook

    def show_others(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, (EOFError, ConnectionError)):
            show(kind, error, trace)

    sys.excepthook = show_others
