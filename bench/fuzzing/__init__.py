# SPDX-License-Identifier: Apache-2.0
"""Readers to be attacked by bench/fuzz.py, by what they read."""
