# SPDX-License-Identifier: Apache-2.0
"""Which surface leads: the coupling of a network and an AI surface. Pure functions on arrays (000, 001 part C)."""
