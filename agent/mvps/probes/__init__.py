# SPDX-License-Identifier: Apache-2.0
"""Kernel probes: load the CO-RE objects, read their cells as numpy arrays, account for what they cost."""
