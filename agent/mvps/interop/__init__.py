# SPDX-License-Identifier: Apache-2.0
"""The companion drafts' datagrams, as far as their layouts are public: read, written, named where unknown."""
