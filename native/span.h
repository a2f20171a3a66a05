// SPDX-License-Identifier: Apache-2.0
//
// Bytes somewhere else: never owned, never ended by a zero.
#ifndef MVPS_SPAN_H
#define MVPS_SPAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct span {
    const uint8_t *at;
    size_t size;
};

static inline uint64_t load_be64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

static inline uint32_t load_be32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap32(value);
}

// The integers and floats of protobuf are little-endian, as is every machine this is built for.
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "this code loads little-endian values as they are");

static inline uint64_t load_le64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

#endif
