# SPDX-License-Identifier: Apache-2.0
"""Verbs with several actions, ``mvps VERB ACTION ...``, and the files that such actions read and write.

What an action makes goes to stdout, or with ``--out`` to a file that must not exist yet. Everything else it says
goes to stderr, so that stdout can be redirected.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from mvps.cli import exits

# name, summary, examples -> the action's parser
AddAction: TypeAlias = Callable[[str, str, str], argparse.ArgumentParser]


def actions_of(parser: argparse.ArgumentParser, *, required: bool = True) -> AddAction:
    """What adds an action to a verb; the parsed name is in ``arguments.action``, None where none is required."""
    places = parser.add_subparsers(dest="action", metavar="ACTION", required=required)

    def add(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
        action = places.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return action

    return add


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option ``--out``."""
    parser.add_argument("--out", metavar="FILE", type=Path, help="write to this new file instead of stdout")


def need_matplotlib() -> None:
    """Failure with advice where there is nothing to draw with; to be asked before anything is computed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise exits.Failure(
            exits.NOT_PERMITTED,
            "matplotlib is missing: pip install 'mvps[plot]'; --json gives the figures without it",
        ) from None


def read(path: Path, limit: int) -> bytes:
    """Content of a file of at most ``limit`` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        code = exits.NOT_PERMITTED if isinstance(error, PermissionError) else exits.USAGE
        raise exits.Failure(code, f"cannot read {path}: {error.strerror}") from None
    if len(content) > limit:
        raise exits.Failure(exits.USAGE, f"{path} has more than {limit} bytes: this is another kind of file")
    return content


def read_text(path: Path, limit: int) -> str:
    """Content of a text file."""
    try:
        return read(path, limit).decode()
    except UnicodeDecodeError:
        raise exits.Failure(exits.USAGE, f"{path} is no text file") from None


def give(content: bytes, out: Path | None) -> None:
    """Print ``content``, or write it to a new file."""
    if out is None:
        sys.stdout.buffer.write(content)
        return
    try:
        with open(out, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise exits.Failure(exits.NOT_PERMITTED, f"{out} exists and is kept: give another name") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            out.unlink()
        raise exits.Failure(exits.NOT_PERMITTED, f"cannot write {out}: {error.strerror}") from None
    say(f"wrote {out}")


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file that was read before; it holds the old or the new content at every moment."""
    fresh = path.with_name(path.name + ".new")
    try:
        with open(fresh, "wb") as file:
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise exits.Failure(exits.NOT_PERMITTED, f"cannot write {path}: {error.strerror}") from None


def say(line: str) -> None:
    """Tell the user something that is not the result."""
    print(line, file=sys.stderr)
