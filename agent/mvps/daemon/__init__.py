# SPDX-License-Identifier: Apache-2.0
"""The agent: one process per host that reads the vantages, decides, seals and streams on every tick."""
