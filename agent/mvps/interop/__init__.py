# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""The companion drafts' datagrams, as far as their layouts are public: read, written, named where unknown."""
