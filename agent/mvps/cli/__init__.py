# SPDX-License-Identifier: Apache-2.0
"""The ``mvps`` command: one file per verb group, each imported only when its verb is used."""
