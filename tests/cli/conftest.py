# SPDX-License-Identifier: Apache-2.0
"""Makes tests/cli/operator_desk.py importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
