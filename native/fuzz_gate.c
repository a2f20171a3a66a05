// SPDX-License-Identifier: Apache-2.0
//
// libFuzzer target: header and body readers over any bytes, with address and undefined-behaviour sanitizers;
// native/fuzz.sh runs it. What is right is tested in tests/trust/test_gate.py; this looks for reads and arithmetic that
// are not.
#include <stdlib.h>

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
    if (check_snapshot(body, &claims, is_printable_stub, NULL, &first) ||
        check_snapshot(body, &claims, is_printable_stub, NULL, &again))
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
    read_body(input);
    read_sealed(input);
    return 0;
}
