# SPDX-License-Identifier: Apache-2.0
"""The road from an agent to its broker."""
