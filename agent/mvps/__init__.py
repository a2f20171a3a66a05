# SPDX-License-Identifier: Apache-2.0
"""MVPS: multi-vantage coherence of Linux hosts and the services on them."""

__version__ = "0.1.0"
