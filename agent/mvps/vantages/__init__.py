# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""Vantages: probe counters and witness readings -> one Observation per vantage and tick."""
