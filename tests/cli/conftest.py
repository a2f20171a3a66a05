# SPDX-License-Identifier: Apache-2.0
"""Makes tests/cli/operator_desk.py, tests/trust/authority.py and tests/broker/wire_samples.py importable."""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "trust"), str(_HERE.parent / "broker")]
