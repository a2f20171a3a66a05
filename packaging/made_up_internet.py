# SPDX-License-Identifier: Apache-2.0
"""Write the AS graph that ships with the command line, in CAIDA's serial-1 form.

usage: python packaging/made_up_internet.py > agent/mvps/cli/made-up.as-rel.txt    (mvps importable)
"""

from __future__ import annotations

from collections.abc import Iterator

from mvps.robust.as_graph import relationship_lines, synthetic_internet

ASES = 400
SEED = 0


def lines() -> Iterator[str]:
    """The file, line by line."""
    yield f"# made up: {ASES} networks that do not exist, by packaging/made_up_internet.py with seed {SEED}"
    yield "# provider|customer|-1"
    yield "# peer|peer|0"
    yield from relationship_lines(synthetic_internet(ASES, SEED))


if __name__ == "__main__":
    print("\n".join(lines()))
