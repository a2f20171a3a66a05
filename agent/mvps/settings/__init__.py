# SPDX-License-Identifier: Apache-2.0
"""Settings files of every long-running role: TOML, checked as a whole before anything is done with them."""
