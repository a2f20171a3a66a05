# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""``python -m mvps``: the same as ``mvps``."""

import sys

from mvps.cli.main import main

sys.exit(main())
