// SPDX-License-Identifier: Apache-2.0
//
// The fixed binary header of a seal; its layout is in mvps.trust.seal.
#ifndef MVPS_HEADER_H
#define MVPS_HEADER_H

#include "schema.h"
#include "span.h"

#define FIXED_HEADER_BYTES 56
#define KEY_ID_BYTES       8

enum { SCHEME_HMAC_SHA256 = 1, SCHEME_ED25519 = 2 };
enum { PURPOSE_SNAPSHOT = 1, PURPOSE_CONTROL = 2, PURPOSE_BFD = 3 };
enum { LANE_LIVE = 1, LANE_BACKFILL = 2 };

struct header {
    uint8_t scheme, purpose, lane;
    uint32_t body_bytes;
    uint64_t epoch_id, counter, tick, time_ns;
    const uint8_t *key_id; // KEY_ID_BYTES of them
    struct span vantage_id;
};

// Why something is refused. `reason` is 0 where it is not; `detail` never ends in memory that is freed.
struct refusal {
    enum reason reason;
    const char *detail;
};

struct refusal parse_header(struct span bytes, struct header *out);

#endif
