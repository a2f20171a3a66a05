# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: one module per name, each with ``SUMMARY``, optional ``options(parser)`` and ``run(given) -> Result``."""
