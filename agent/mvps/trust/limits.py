# SPDX-License-Identifier: Apache-2.0
"""Every limit on what crosses a process boundary, in one place (values ours).

A sender checks them before it seals and a broker before it allocates or parses, in this order: fixed
header, these limits, seal, and only then the parser. Both sides share the numbers, so that a sender never
seals what a broker would refuse before it can vouch for the sender.
"""

from __future__ import annotations

from typing import Final

# ---- Sealed envelope
MAX_VANTAGE_ID: Final = 64  # bytes
MAX_BODY: Final = 512 * 1024  # bytes; a snapshot that carries no baseline has a few KiB
TAG_BYTES: Final = 32  # scheme 1, HMAC-SHA256
SIGNATURE_BYTES: Final = 64  # scheme 2, Ed25519
NONCE_BYTES: Final = 16

# ---- Stream
MAX_BATCH_ITEMS: Final = 256
# One largest snapshot and its envelope fit; also bounds what gRPC buffers for one message.
MAX_BATCH_BYTES: Final = 1024 * 1024
MAX_MESSAGE_BYTES: Final = MAX_BATCH_BYTES + 64 * 1024
# Sent and unanswered at a time on one stream.
MAX_IN_FLIGHT: Final = 1024

# ---- Body of a snapshot (entries)
MAX_SURFACES: Final = 8
MAX_VANTAGES_PER_SURFACE: Final = 32
MAX_LABELS: Final = 64  # alphabet size
MAX_OBJECTS: Final = 256  # hashes of one object sketch
MAX_CONTRIBUTIONS: Final = 32
MAX_LOSS_CAUSES: Final = 256
MAX_BASELINES: Final = 8
MAX_BASELINE_BYTES: Final = 256 * 1024
MAX_EXTENSIONS: Final = 16
MAX_EXTENSION_BYTES: Final = 16 * 1024
MAX_UNCHANGED_TICKS: Final = 600  # a heartbeat may lean on what was sent so long ago
MAX_NAME: Final = 256  # bytes of UTF-8 of any name, cause or reason

# ---- Broker
MAX_VANTAGES: Final = 100_000  # identities one broker keeps state for
MAX_BASELINES_KEPT: Final = 16  # per vantage
MAX_BASELINES_HELD: Final = 4096  # parsed, in memory, of all vantages
MAX_HISTORY_ROWS: Final = 1000  # per query

# ---- Operator epoch manifest
MAX_MANIFEST_BYTES: Final = 32 * 1024 * 1024  # 100,000 vantages with two source prefixes each
MAX_MANIFESTS: Final = 16  # epochs one process keeps
# Brokers pass on manifests up to this size (about 2000 vantages); larger ones are distributed as files.
MAX_PUSHED_MANIFEST_BYTES: Final = 480 * 1024
MAX_ROLES: Final = 8  # per vantage
MAX_PREFIXES: Final = 16  # per vantage
MAX_WITNESSES: Final = 32
MAX_REVOKED: Final = 10_000
MAX_SEALING_KEYS: Final = 4 * MAX_VANTAGES  # derived keys in memory; one takes 0.6 KiB
MAX_ENROLMENT_BYTES: Final = 8 * 1024
