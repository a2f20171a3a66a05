// SPDX-License-Identifier: Apache-2.0
//
// libFuzzer target: envelope, header and body readers over any bytes, with address and undefined-behaviour sanitizers;
// native/fuzz.sh runs it. What is right is tested in tests/trust/test_gate.py; this looks for reads and arithmetic that
// are not.
#include <math.h>
#include <stdlib.h>

#include "envelope.h"
#include "header.h"
#include "hmac.h"
#include "snapshot.h"

// Stands for Python's str.isprintable. It must only be asked about text that can be decoded.
static int is_printable_stub(void *context, struct span text)
{
    (void)context;
    if (!text.size || text.size > MAX_NAME)
        abort();
    return text.at[text.size - 1] % 3 != 0;
}

static int inside(struct span outer, struct span inner)
{
    return !inner.size || (inner.at >= outer.at && inner.at + inner.size <= outer.at + outer.size);
}

static bool check_said(void *context, const struct observation *one)
{
    const struct span *body = context;
    if (!inside(*body, one->vantage) || !inside(*body, one->distribution) || one->distribution.size % sizeof(float))
        abort();
    if (!isfinite(one->own_distance) || !isfinite(one->events) || !(one->violated <= one->checked))
        abort();
    return true;
}

static void read_message(struct span message)
{
    enum { MOST = 3 };
    struct sealed items[MOST];
    struct envelope envelope;
    if (!read_envelope(message, &envelope, items, MOST))
        return;
    if (!inside(message, envelope.nonce))
        abort();
    for (size_t i = 0; i < envelope.count && i < MOST; i++)
        if (!inside(message, items[i].header) || !inside(message, items[i].body) || !inside(message, items[i].tag))
            abort();
}

static void read_body(struct span body)
{
    // As native/fuzz.sh makes its first body, so that the fuzzer gets past the header's claims.
    const struct claims claims = {
        .vantage_id = {(const uint8_t *)"host-1", 6},
        .tick = 1790000000,
        .time_ns = 1790000000005000000,
        .past_ns = 300000000000,
        .future_ns = 10000000000,
    };
    struct refusal first, again;
    struct figures figures;
    if (check_snapshot(body, &claims, is_printable_stub, NULL, &first, &figures) ||
        check_snapshot(body, &claims, is_printable_stub, NULL, &again, &figures))
        abort();
    if (!first.reason && (figures.surface_count > MAX_SURFACES || !inside(body, figures.lead)))
        abort();
    if (!first.reason && !each_observation(body, check_said, &body))
        abort();
    for (uint32_t i = 0; !first.reason && i < figures.surface_count; i++)
        if (!inside(body, figures.surfaces[i].name) || !inside(body, figures.surfaces[i].farthest))
            abort();
    if (first.reason != again.reason || first.detail != again.detail || (first.reason && !*first.detail))
        abort();
}

static void read_sealed(struct span bytes)
{
    struct header header;
    if (parse_header(bytes, &header).reason)
        return;
    struct hmac_key key;
    hmac_init(&key, header.vantage_id);
    if (hmac_holds(&key, bytes, bytes, bytes))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span input = {data, size};
    read_message(input);
    read_body(input);
    read_sealed(input);
    return 0;
}
