# SPDX-License-Identifier: Apache-2.0
"""Structured log lines on standard error: an event name and fields, as key=value text or JSON.

Every line is ``event(logger, level, "event_name", field=value, ...)``. Event names are stable words to search
for; what varies is in the fields. Bytes are never printed, only their length, so that a key or a body that
strays into a log call stays out of the log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import Literal, TextIO

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_ROOT = "mvps"
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+\-\[\]]+")
# journald reads "<N>" at the start of a line as its priority.
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def logger(name: str) -> logging.Logger:
    """The logger of one part of the program, for example ``"service"``."""
    return logging.getLogger(f"{_ROOT}.{name}")


def event(log: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    """Log one event with its fields."""
    if log.isEnabledFor(level):
        log.log(level, name, extra={"fields": fields})


def configure(
    level: str, form: Literal["text", "json"], stream: TextIO | None = None, *, journal: bool | None = None
) -> None:
    """Send the program's log to ``stream`` (standard error); calling it again replaces level and format.

    journal: lines are read by journald, which adds its own time; found out from $JOURNAL_STREAM when None.
    """
    if journal is None:
        journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else KeyValueLines(journal=journal))
    root = logging.getLogger(_ROOT)
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    root.propagate = False


class KeyValueLines(logging.Formatter):
    """``time level part event key=value ...``; under journald without time and with a priority."""

    def __init__(self, *, journal: bool = False):
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line for one record."""
        head = (
            f"<{_PRIORITY.get(record.levelno, 6)}>"
            if self._journal
            else f"{_timestamp(record.created)} {record.levelname.lower()} "
        )
        words = [f"{record.name.removeprefix(_ROOT + '.')}", record.getMessage()]
        words += [f"{key}={_quoted(_printable(value))}" for key, value in _fields(record).items()]
        return head + " ".join(words)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, part, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for one record."""
        line: dict[str, object] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "part": record.name.removeprefix(_ROOT + "."),
            "event": record.getMessage(),
        }
        line.update({key: _printable(value) for key, value in _fields(record).items()})
        return json.dumps(line, allow_nan=True)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        fields.setdefault("error", record.exc_info[1])
    return fields


def _printable(value: object) -> str | int | float | bool | None:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(str(_printable(v)) for v in value)
    return str(value)


def _quoted(value: str | int | float | bool | None) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "" if value is None else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
