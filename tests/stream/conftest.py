# SPDX-License-Identifier: Apache-2.0
"""Makes tests/broker/wire_samples.py and this folder's own helpers importable."""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "broker")]
