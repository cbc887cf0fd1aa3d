"""Logs as JSON lines: one object per event, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

logger = logging.getLogger("torch_lsh.serving")


class JSONLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "details", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def start() -> None:
    """Sends the events of this package, of uvicorn and of asyncio to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    for name, level in ((logger.name, logging.INFO), ("uvicorn.error", logging.WARNING), ("asyncio", logging.WARNING)):
        source = logging.getLogger(name)
        source.handlers, source.propagate = [handler], False
        source.setLevel(level)


def log(event: str, level: int = logging.INFO, exc_info: bool = False, **details: Any) -> None:
    """Writes an event with its details."""
    logger.log(level, event, exc_info=exc_info, extra={"details": details})
