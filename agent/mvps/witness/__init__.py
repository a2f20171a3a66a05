# SPDX-License-Identifier: Apache-2.0
"""The witness as a program: what it remembers, and its HTTP service (C2SP tlog-witness)."""
