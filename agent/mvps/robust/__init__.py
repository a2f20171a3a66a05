# SPDX-License-Identifier: Apache-2.0
"""Coherence of a fleet whose vantages may lie: pure functions on arrays, for the broker (001 part B)."""
