# SPDX-License-Identifier: Apache-2.0
"""Coherence of replicas of a language model: pure functions on arrays, no clock and no I/O (001 part A).

``transport``, ``sliced`` and ``mmd`` measure how far answers are apart, ``calibrated`` makes C_2^W2 of it, ``cka`` is
C_3^CKA, ``latency`` C_1; ``c4`` and ``cbf`` ask whether the consensus is true, ``profiles`` decides, ``attribution``
names the replica, and ``conformance`` says what the decision may be based on.
"""
