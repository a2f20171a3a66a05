# SPDX-License-Identifier: Apache-2.0
"""Vantages: probe counters and witness readings -> one Observation per vantage and tick."""
