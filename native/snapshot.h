// SPDX-License-Identifier: Apache-2.0
//
// Is this body a snapshot that a broker may take at its word? Wire format, closed schema, limits and domains.
//
// One pass over the bytes, no allocation, and a call depth that the schema fixes and no input can change. Structure
// comes from proto/mvps/v1/snapshot.proto and limits from mvps.trust.limits, by way of the generated schema.h; the
// domains are in snapshot.c.
//
// Canonical only: what a protobuf library writes, in any order of fields, is accepted, and nothing else, so that no
// two parsers can disagree about what an accepted body says. MALFORMED are therefore also: a varint that is longer
// than it needs to be or than its type; a singular field, or a packed one, that comes twice; a packed field that is not
// packed; a default value that is written out where it never is; a map entry without key or value; groups.
//
// Of several faults the gravest is reported: malformed, unknown field, unknown schema version, header mismatch, over a
// limit, invalid value, in this order.
#ifndef MVPS_SNAPSHOT_H
#define MVPS_SNAPSHOT_H

#include <stdbool.h>

#include "header.h"

#define SCHEMA_VERSION 1
#define MIN_PERIOD_NS  50000000ull
#define MAX_PERIOD_NS  60000000000ull

// What the seal's header says, which the body has to agree with, and how far a seal may be from its tick.
struct claims {
    struct span vantage_id;
    uint64_t tick, time_ns;
    uint64_t past_ns, future_ns;
};

// What an accepted body says, as far as a broker looks at every one. Spans point into the body. Without a decision, the
// phase is PHASE_UNSPECIFIED and d2 0.
struct surface_figures {
    struct span name, farthest;
    uint8_t phase;
    double d2, s;
};

struct figures {
    uint64_t tick_period_ns, lateness_ns;
    struct span lead;
    uint32_t baselines, extensions, surface_count;
    struct surface_figures surfaces[MAX_SURFACES];
};

// Whether text of valid UTF-8 that is not all ASCII can be printed: 1, 0, or -1 to stop with an error of the caller's.
typedef int is_printable(void *context, struct span text);

// Returns 0, or -1 where `printable` did; `out` has reason 0 for a body that is accepted. Only then `figures` count.
int check_snapshot(struct span body, const struct claims *claims, is_printable *printable, void *context,
                   struct refusal *out, struct figures *figures);

// One observation of an accepted body that says how far its vantage is from its own baseline. The distribution is empty
// where none travelled; how many ticks ago it did is in `unchanged`.
struct observation {
    struct span vantage, distribution;
    double own_distance, events, checked, violated;
    uint64_t unchanged;
};

// False to stop.
typedef bool on_observation(void *context, const struct observation *one);

// Calls `found` for each of them in their order; only for a body that check_snapshot has accepted. False when stopped.
bool each_observation(struct span body, on_observation *found, void *context);

#endif
