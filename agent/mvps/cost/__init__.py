# SPDX-License-Identifier: Apache-2.0
"""What watching costs: closed forms of the sources, and the constants they need, measured on this machine."""
