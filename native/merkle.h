// SPDX-License-Identifier: Apache-2.0
//
// The growing Merkle tree of RFC 9162 as mvps.trust.merkle describes it, for many leaves at a time.
#ifndef MVPS_MERKLE_H
#define MVPS_MERKLE_H

#include "hmac.h"

#define HASH_BYTES SHA256_DIGEST_LENGTH
#define MAX_PEAKS  64

struct tree {
    uint64_t size;
    size_t count; // of peaks: the ones in `size`
    uint8_t peaks[MAX_PEAKS][HASH_BYTES];
};

static inline void leaf_hash(struct span header, struct span body, struct span tag, uint8_t hash[HASH_BYTES])
{
    static const uint8_t leaf = 0;
    SHA256_CTX context;
    SHA256_Init(&context);
    SHA256_Update(&context, &leaf, 1);
    SHA256_Update(&context, header.at, header.size);
    SHA256_Update(&context, body.at, body.size);
    SHA256_Update(&context, tag.at, tag.size);
    SHA256_Final(hash, &context);
}

// Nodes in storage order that `leaves` more leaves add.
static inline size_t merkle_new_nodes(uint64_t size, uint64_t leaves)
{
    uint64_t grown = size + leaves;
    return (size_t)(2 * leaves + (unsigned)__builtin_popcountll(size) - (unsigned)__builtin_popcountll(grown));
}

// Appends leaf hashes and writes the new nodes; there is room for merkle_new_nodes of them.
static inline void merkle_append(struct tree *tree, const uint8_t *hashes, uint64_t leaves, uint8_t *nodes)
{
    for (uint64_t i = 0; i < leaves; i++) {
        uint8_t joined[1 + 2 * HASH_BYTES] = {1}, *node = joined + 1 + HASH_BYTES;
        memcpy(node, hashes + i * HASH_BYTES, HASH_BYTES);
        memcpy(nodes, node, HASH_BYTES);
        nodes += HASH_BYTES;
        for (uint64_t carry = tree->size; carry & 1; carry >>= 1) { // a full subtree stands to the left: join it
            memcpy(joined + 1, tree->peaks[--tree->count], HASH_BYTES);
            sha256((struct span){joined, sizeof joined}, node);
            memcpy(nodes, node, HASH_BYTES);
            nodes += HASH_BYTES;
        }
        memcpy(tree->peaks[tree->count++], node, HASH_BYTES);
        tree->size++;
    }
}

#endif
