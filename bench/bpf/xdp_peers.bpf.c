// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What `bench/run xdp` holds the limiter against. Not shipped.
 *
 * empty_drop is the least an XDP program can be. token_bucket is what one writes first: IPv4 only, one bucket per
 * source address in an LRU hash, refilled by the clock of the moment, one count per outcome; no lock, so not exact.
 */
#include "kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

enum {
    BPF_MAP_TYPE_PERCPU_ARRAY = 6,
    BPF_MAP_TYPE_LRU_HASH = 9,
    XDP_DROP = 1,
    XDP_PASS = 2,
};

#define RATE  22 /* packets per second, as the limiter grants a vantage at 1 Hz */
#define BURST 900

struct xdp_md {
    u32 data;
    u32 data_end;
};

struct bucket {
    u64 tokens;
    u64 filled_ns;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, u32);
    __type(value, struct bucket);
} buckets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, u32);
    __type(value, u64);
} outcomes SEC(".maps");

SEC("xdp")
int empty_drop(struct xdp_md *ctx)
{
    return XDP_DROP;
}

SEC("xdp")
int empty_pass(struct xdp_md *ctx)
{
    return XDP_PASS;
}

SEC("xdp")
int token_bucket(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct bucket *bucket;
    u64 now, tokens, *outcome;
    u32 source, passed = 0;

    if (data + 34 > end || *(u16 *)(data + 12) != bpf_htons(0x0800))
        return XDP_PASS;
    source = *(u32 *)(data + 26);
    now = bpf_ktime_get_ns();
    bucket = bpf_map_lookup_elem(&buckets, &source);
    if (!bucket) {
        struct bucket fresh = {BURST, now};

        bpf_map_update_elem(&buckets, &source, &fresh, 0);
        return XDP_PASS;
    }
    tokens = bucket->tokens + (now - bucket->filled_ns) * RATE / 1000000000;
    if (tokens > bucket->tokens) {
        bucket->tokens = tokens < BURST ? tokens : BURST;
        bucket->filled_ns = now;
    }
    if (bucket->tokens) {
        bucket->tokens--;
        passed = 1;
    }
    outcome = bpf_map_lookup_elem(&outcomes, &passed);
    if (outcome)
        ++*outcome;
    return passed ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
