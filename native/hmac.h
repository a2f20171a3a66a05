// SPDX-License-Identifier: Apache-2.0
//
// HMAC-SHA256 (RFC 2104) with both pads hashed once per key, and plain SHA-256.
//
// The low-level SHA256_* functions are deprecated in OpenSSL 3 in favour of EVP, and used here all the same: their
// state is 112 bytes that are copied by assignment, so that a key is 224 bytes without a pointer, a tag allocates
// nothing and nothing can fail between header and verdict. Measured for a snapshot of 760 bytes with SHA extensions:
// 0.58 us a tag, through EVP contexts made beforehand 0.62 us.
#ifndef MVPS_HMAC_H
#define MVPS_HMAC_H

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "span.h"

#define SHA256_BLOCK 64

struct hmac_key {
    SHA256_CTX inner, outer;
};

static inline void sha256(struct span data, uint8_t digest[SHA256_DIGEST_LENGTH])
{
    SHA256_CTX context;
    SHA256_Init(&context);
    SHA256_Update(&context, data.at, data.size);
    SHA256_Final(digest, &context);
}

static inline void hmac_init(struct hmac_key *key, struct span secret)
{
    uint8_t block[SHA256_BLOCK] = {0};
    if (secret.size > sizeof block)
        sha256(secret, block);
    else if (secret.size)
        memcpy(block, secret.at, secret.size);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] ^= 0x36;
    SHA256_Init(&key->inner);
    SHA256_Update(&key->inner, block, sizeof block);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] ^= 0x36 ^ 0x5c;
    SHA256_Init(&key->outer);
    SHA256_Update(&key->outer, block, sizeof block);
    OPENSSL_cleanse(block, sizeof block);
}

static inline void hmac_tag(const struct hmac_key *key, struct span header, struct span body,
                            uint8_t tag[SHA256_DIGEST_LENGTH])
{
    SHA256_CTX context = key->inner;
    SHA256_Update(&context, header.at, header.size);
    SHA256_Update(&context, body.at, body.size);
    SHA256_Final(tag, &context);
    context = key->outer;
    SHA256_Update(&context, tag, SHA256_DIGEST_LENGTH);
    SHA256_Final(tag, &context);
}

// In constant time; a tag of another length never holds.
static inline int hmac_holds(const struct hmac_key *key, struct span header, struct span body, struct span tag)
{
    uint8_t right[SHA256_DIGEST_LENGTH];
    if (tag.size != sizeof right)
        return 0;
    hmac_tag(key, header, body, right);
    return CRYPTO_memcmp(right, tag.at, sizeof right) == 0;
}

#endif
