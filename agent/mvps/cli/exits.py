# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""Exit codes of every ``mvps`` verb, and the one exception that carries them.

The codes are part of the interface (docs/operations.md): scripts and service managers act on them.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FOUND: Final = 1  # the verb worked and found what it looks for: a failed check, a refused reload
USAGE: Final = 2  # wrong arguments or settings; trying again will not help
UNREACHABLE: Final = 3  # no agent or broker answers there
NOT_PERMITTED: Final = 4  # a privilege, a kernel feature or a file permission is missing
INTERNAL: Final = 70  # a defect of this program (EX_SOFTWARE)
INTERRUPTED: Final = 130  # by SIGINT, where that is not the normal way to end

MEANINGS: Final = {
    OK: "done, nothing wrong",
    FOUND: "a failure was found",
    USAGE: "wrong arguments or settings",
    UNREACHABLE: "cannot reach the agent or the broker",
    NOT_PERMITTED: "a privilege, kernel feature or permission is missing",
    INTERNAL: "internal error; --debug shows where",
    INTERRUPTED: "interrupted",
}


class Failure(Exception):  # noqa: N818 - it ends a verb; "exits.Failure" reads as what it is
    """Ends the verb with ``code`` and a message that says what to do."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code
