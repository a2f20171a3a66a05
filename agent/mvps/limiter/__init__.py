# SPDX-License-Identifier: Apache-2.0
"""The broker's XDP limiter: what may reach its port, planned from the manifest, loaded, pinned and read."""
