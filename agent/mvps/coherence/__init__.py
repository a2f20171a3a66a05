# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""The coherence algebra: observations of several vantages -> coherence vector -> decision.

Pure functions on arrays: no I/O, no clock, no protobuf, numpy only (the agent loads this package).
"""
