// SPDX-License-Identifier: Apache-2.0
#include "envelope.h"

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
enum { BATCH_STREAM_NONCE = 1, BATCH_ITEMS = 2 };
enum { SEALED_HEADER = 1, SEALED_BODY = 2, SEALED_TAG = 3 };

enum { MOST_OF_TAG = 5, MOST_OF_VALUE = 10 };

// Of at most `most` bytes; what is beyond 64 bits is dropped, as protobuf does it.
static bool read_varint(struct span *in, unsigned most, uint64_t *value)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < most && i < in->size; i++) {
        uint8_t byte = in->at[i];
        sum |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            in->at += i + 1;
            in->size -= i + 1;
            *value = sum;
            return true;
        }
    }
    return false;
}

// The next field. `data` is empty unless it has bytes; `number` is 0 for one whose wire type is another.
static bool next(struct span *in, uint64_t *number, struct span *data)
{
    uint64_t tag, size;
    if (!read_varint(in, MOST_OF_TAG, &tag) || tag < 8 || tag > UINT32_MAX)
        return false;
    *number = 0;
    switch (tag & 7) {
    case VARINT:
        return read_varint(in, MOST_OF_VALUE, &size);
    case FIXED64:
        size = 8;
        break;
    case FIXED32:
        size = 4;
        break;
    case BYTES:
        if (!read_varint(in, MOST_OF_TAG, &size))
            return false;
        *number = tag >> 3;
        break;
    default:
        return false;
    }
    if (size > in->size)
        return false;
    *data = (struct span){in->at, size};
    in->at += size;
    in->size -= size;
    return true;
}

static bool read_sealed(struct span in, struct sealed *out)
{
    static const uint8_t nothing[1];
    uint64_t number;
    struct span data;
    *out = (struct sealed){{nothing, 0}, {nothing, 0}, {nothing, 0}};
    while (in.size) {
        if (!next(&in, &number, &data))
            return false;
        if (number == SEALED_HEADER)
            out->header = data;
        else if (number == SEALED_BODY)
            out->body = data;
        else if (number == SEALED_TAG)
            out->tag = data;
    }
    return true;
}

bool read_envelope(struct span message, struct envelope *out, struct sealed *items, size_t most)
{
    uint64_t number;
    struct span data;
    struct sealed beyond;
    *out = (struct envelope){{message.at, 0}, 0};
    while (message.size) {
        if (!next(&message, &number, &data))
            return false;
        if (number == BATCH_STREAM_NONCE) {
            out->nonce = data;
        } else if (number == BATCH_ITEMS) {
            if (!read_sealed(data, out->count < most ? &items[out->count] : &beyond))
                return false;
            out->count++;
        }
    }
    return true;
}
