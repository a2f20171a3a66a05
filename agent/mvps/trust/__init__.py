# SPDX-License-Identifier: Apache-2.0
"""Keys, seals, counters and the replay rule: who said what, once, and when (DESIGN.md section 5)."""
