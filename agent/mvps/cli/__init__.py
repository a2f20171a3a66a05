# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""The ``mvps`` command: one file per verb group, each imported only when its verb is used."""
