# SPDX-License-Identifier: Apache-2.0
"""The broker: admits sealed snapshots, verifies them, stores them, answers, and can be asked."""
