# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""MVPS: multi-vantage coherence of Linux hosts and the services on them."""

__version__ = "0.1.0"
