# SPDX-License-Identifier: Apache-2.0
"""Makes the helpers of this folder and the samples of tests/broker importable."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "broker"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
