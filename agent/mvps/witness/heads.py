# SPDX-License-Identifier: Apache-2.0
"""What a witness has cosigned last for each log, on disk before it answers.

One JSON file (ours), replaced as a whole, so that after a crash either the old or the new content is there::

    {"mvps-witness-v1": {"<origin>": {"size": 17, "root": "<base64>"}}}
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Final

from mvps.trust.durable import claim, replace
from mvps.trust.merkle import EMPTY, HASH_BYTES, TreeHead

_FORMAT: Final = "mvps-witness-v1"
_MAX_FILE: Final = 16 << 20


class HeadsError(Exception):
    """The state file cannot be used. The message says what to do."""


class HeadsFile:
    """Heads in a file, locked against a second witness until :meth:`close`.

    new: the file must not exist and is made; otherwise it must exist. A witness that forgot what it cosigned would
    cosign a second history, so a missing file is never taken for an empty one.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self._path = path
        self._lock = _claim(path)
        try:
            if new:
                if path.exists():
                    raise HeadsError(f"{path} exists: start without --new, so that what was cosigned is remembered")
                self._heads: dict[str, TreeHead] = {}
                try:
                    self._write()
                except OSError as error:
                    raise HeadsError(f"cannot write {path}: {error.strerror}") from None
            else:
                self._heads = _read(path)
        except BaseException:
            self.close()
            raise

    def head(self, origin: str) -> TreeHead:
        """Head that was cosigned last; the empty tree if none was."""
        return self._heads.get(origin, EMPTY)

    def record(self, origin: str, head: TreeHead) -> None:
        """Keep a head; it is on disk when this returns. OSError if it cannot be, and nothing changes then."""
        before = dict(self._heads)
        self._heads[origin] = head
        try:
            self._write()
        except OSError:
            self._heads = before
            raise

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write(self) -> None:
        logs = {
            origin: {"size": head.size, "root": base64.b64encode(head.root).decode()}
            for origin, head in sorted(self._heads.items())
        }
        replace(self._path, json.dumps({_FORMAT: logs}, indent=1).encode() + b"\n")


def _claim(path: Path) -> int:
    try:
        return claim(path)
    except BlockingIOError:
        raise HeadsError(f"another witness uses {path}: stop it, or give this one its own state file") from None
    except OSError as error:
        raise HeadsError(f"cannot open {path}.lock: {error.strerror}; does {path.parent} exist?") from None


def _read(path: Path) -> dict[str, TreeHead]:
    damaged = HeadsError(
        f"{path} is damaged: put it back from a backup. A witness without its memory could cosign a second history; "
        "start one with a new key and --new instead"
    )
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise HeadsError(
            f"{path} is missing: put it back, or give --new if this witness has never cosigned anything"
        ) from None
    except OSError as error:
        raise HeadsError(f"cannot read {path}: {error.strerror}") from None
    heads: dict[str, TreeHead] = {}
    try:
        for origin, kept in json.loads(content)[_FORMAT].items():
            size, root = kept["size"], base64.b64decode(kept["root"], validate=True)
            if type(size) is not int or size < 0 or len(root) != HASH_BYTES:
                raise damaged
            heads[origin] = TreeHead(size, root)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise damaged from None
    return heads
