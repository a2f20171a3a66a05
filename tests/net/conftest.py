# SPDX-License-Identifier: Apache-2.0
"""Makes tests/net/path_agent.py importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
