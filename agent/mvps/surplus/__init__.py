# SPDX-License-Identifier: Apache-2.0
"""Surplus-aware control of decoding (002): pure functions on arrays, no clock and no I/O.

``trust_region`` bounds how far decoding may be moved, ``candidates`` finds what can be moved, ``geometry`` measures
where a text stands, ``controller`` turns both into a move; ``reservoirs`` and ``indicators`` measure the host,
``schedule`` and ``policy`` say how hard to push, and ``packets`` is what is written down about it.
"""
