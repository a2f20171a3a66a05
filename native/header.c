// SPDX-License-Identifier: Apache-2.0
#include "header.h"

static int is_alphanumeric(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

// Vantage ids end up in logs, metrics and file names.
static int is_vantage_id(struct span id)
{
    if (id.size < 1 || id.size > MAX_VANTAGE_ID || !is_alphanumeric(id.at[0]))
        return 0;
    for (size_t i = 1; i < id.size; i++) {
        uint8_t c = id.at[i];
        if (!is_alphanumeric(c) && c != '.' && c != '_' && c != '-' && c != ':' && c != '@')
            return 0;
    }
    return 1;
}

struct refusal parse_header(struct span bytes, struct header *out)
{
    const uint8_t *at = bytes.at;
    if (bytes.size < FIXED_HEADER_BYTES)
        return (struct refusal){REASON_TRUNCATED, "the header is shorter than its fixed part"};
    if (memcmp(at, "MVPS", 4) != 0)
        return (struct refusal){REASON_BAD_MAGIC, "these bytes are no MVPS seal"};
    if (at[4] != 1)
        return (struct refusal){REASON_UNKNOWN_VERSION, "this side knows header version 1 only"};
    out->scheme = at[5];
    if (out->scheme != SCHEME_HMAC_SHA256 && out->scheme != SCHEME_ED25519)
        return (struct refusal){REASON_UNKNOWN_SCHEME, "this side knows the seal schemes 1 and 2 only"};
    out->purpose = at[6];
    if (out->purpose < PURPOSE_SNAPSHOT || out->purpose > PURPOSE_BFD)
        return (struct refusal){REASON_WRONG_PURPOSE, "the purpose is not defined"};
    out->lane = at[7];
    if (out->lane != LANE_LIVE && out->lane != LANE_BACKFILL)
        return (struct refusal){REASON_UNKNOWN_LANE, "the lane is not defined"};
    if (at[8] | at[9] | at[11])
        return (struct refusal){REASON_BAD_FLAGS, "flags or reserved byte set; no bit of them is defined"};
    if (bytes.size != FIXED_HEADER_BYTES + (size_t)at[10])
        return (struct refusal){REASON_BAD_LENGTH, "the header announces a vantage id of another length"};
    out->body_bytes = load_be32(at + 12);
    if (out->body_bytes > MAX_BODY)
        return (struct refusal){REASON_OVERSIZE, "the header announces a body larger than is allowed"};
    out->epoch_id = load_be64(at + 16);
    out->counter = load_be64(at + 24);
    out->tick = load_be64(at + 32);
    out->time_ns = load_be64(at + 40);
    out->key_id = at + 48;
    out->vantage_id = (struct span){at + FIXED_HEADER_BYTES, at[10]};
    if (!is_vantage_id(out->vantage_id))
        return (struct refusal){REASON_BAD_VANTAGE_ID, "the vantage id has characters that are not allowed"};
    return (struct refusal){REASON_NONE, ""};
}
