// SPDX-License-Identifier: Apache-2.0
//
// The envelope sealed snapshots come in: mvps.v1.Batch as it travels. Nothing vouches for it, so it is read as a
// protobuf library reads it (unknown fields are skipped, of a singular field that comes twice the last one counts), and
// only the seals inside decide. Refused all the same are groups, which nobody writes.
#ifndef MVPS_ENVELOPE_H
#define MVPS_ENVELOPE_H

#include <stdbool.h>

#include "span.h"

struct sealed {
    struct span header, body, tag;
};

struct envelope {
    struct span nonce;
    size_t count; // of items, also those that did not fit
};

// False for bytes that are no Batch. Writes at most `most` items.
bool read_envelope(struct span message, struct envelope *out, struct sealed *items, size_t most);

#endif
