// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The broker's limiter: decides at XDP, before the stack sees it, what of the traffic to the broker's port goes on.
 *
 * On-kernel protocol
 *  - Only TCP to `limits.port` is judged, plus TCP whose port cannot be read (later fragments, cut-short headers, too
 *    many extension headers). Everything else passes at once and is not counted.
 *  - A *proven flow* is an entry of `flows`: source address and port of a connection on which the broker has verified
 *    a seal. The broker alone adds and removes entries (hash, not LRU: nobody can push another's flow out). Its packets
 *    draw from the flow's own budget and then from the total of its prefix, never from anything a stranger can empty.
 *  - Everything else draws from handshake budgets: per CPU, per prefix of the manifest (the longest that matches; shard
 * 0 for unlisted sources), one for SYNs and one for the rest, then from one total per CPU. Nothing is inserted for it.
 *  - A budget is a GCRA in one u64: the time until which it is spent, in ns. The clock is jiffies times `jiffy_ns`, a
 *    plain load, where the coarse clock's helper took 4 ns of 36 here; it steps every 1 to 10 ms. A frame costs
 *    `packet_ns` plus its length in bytes (Ethernet header included, checksum not) times `byte_ns_x1024` / 1024, and
 *    fits while the spent time stays within `burst_ns` of now. Packets alone, bytes alone and any mix of them are so
 *    held by one compare-and-swap; one that keeps failing drops the packet and is counted as `contended`.
 *  - `limits`, `shards`, `prefixes4` and `prefixes6` belong to one plan and are replaced together with the program;
 *    `flows`, `verdicts` and `sources` outlive it. A flow that another plan left looks up its shard once more.
 *  - Every frame judged is counted once in `verdicts` (per CPU; NAPI does not nest on a CPU, so a plain add is exact).
 *    `handshakes` and `shards` count the drops of each prefix. `sources` names who was dropped: bounded, LRU, touched
 *    by one drop in SAMPLE, which stands for SAMPLE of them; IPv6 by /64.
 *  - A flow without a packet for `idle_ns` is a stranger again: a broker that died does not leave its flows open.
 */
#include "kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define ETH_P_IP     0x0800
#define ETH_P_IPV6   0x86DD
#define ETH_P_8021Q  0x8100
#define ETH_P_8021AD 0x88A8

#define IPPROTO_HOPOPTS  0
#define IPPROTO_TCP      6
#define IPPROTO_ROUTING  43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH       51
#define IPPROTO_DSTOPTS  60

#define IP_OFFSET      0x1FFF
#define IP6_OFFSET     0xFFF8
#define MORE_FRAGMENTS 0x2000
#define TCP_SYN        0x02
#define TCP_ACK        0x10

#define MAX_TAGS       2
#define MAX_EXTENSIONS 6
#define MAX_LENGTHS    8 /* different prefix lengths of one family */
#define GCRA_TRIES     4
#define SAMPLE         64

enum {
    BPF_MAP_TYPE_HASH = 1,
    BPF_MAP_TYPE_PERCPU_ARRAY = 6,
    BPF_MAP_TYPE_LRU_HASH = 9,
    XDP_DROP = 1,
    XDP_PASS = 2,
};

struct xdp_md {
    u32 data;
    u32 data_end;
    u32 data_meta;
    u32 ingress_ifindex;
    u32 rx_queue_index;
    u32 egress_ifindex;
};

struct ethernet {
    u8 destination[6];
    u8 source[6];
    __be16 protocol;
};

struct vlan_tag {
    __be16 control;
    __be16 protocol;
};

struct ipv4 {
    u8 version_length;
    u8 service;
    __be16 length;
    __be16 id;
    __be16 fragment;
    u8 ttl;
    u8 protocol;
    __be16 checksum;
    u32 source;
    u32 destination;
};

struct ipv6 {
    u32 version_class_label;
    __be16 length;
    u8 next;
    u8 hop_limit;
    u32 source[4];
    u32 destination[4];
};

struct extension {
    u8 next;
    u8 length;     /* in 8 B beyond the first 8; AH counts in 4 B beyond the first 8 */
    __be16 offset; /* of a fragment header */
    u32 rest;
};

struct tcp {
    __be16 source_port;
    __be16 port;
    u32 sequence;
    u32 acknowledgement;
    u8 offset;
    u8 flags;
    __be16 window;
    __be16 checksum;
    __be16 urgent;
};

/* What became of a frame. Up to UNREADABLE they passed, from FLOW_OVER on they were dropped. */
enum verdict {
    VERDICT_PROVEN,
    VERDICT_SYN,
    VERDICT_STRANGER,
    VERDICT_FRAGMENT,
    VERDICT_UNREADABLE,
    VERDICT_FLOW_OVER,
    VERDICT_PREFIX_OVER,
    VERDICT_SYN_OVER,
    VERDICT_STRANGER_OVER,
    VERDICT_FRAGMENT_OVER,
    VERDICT_UNREADABLE_OVER,
    VERDICT_HOST_OVER,
    VERDICT_CONTENDED,
    VERDICTS,
};
#define OVER (VERDICT_SYN_OVER - VERDICT_SYN) /* from a kind that passed to the same kind dropped */

struct verdict_cell {
    u64 packets[VERDICTS];
    u64 bytes[VERDICTS];
    u64 idle_flows; /* packets of flows that were idle for too long; they are judged, and counted, as strangers */
    u64 spent;      /* of the host's budget for all that is not proven */
    u64 drops;      /* for sampling */
};

struct flow_key {
    u32 address[4]; /* IPv4 as ::ffff:a.b.c.d */
    __be16 port;
    u16 reserved;
};

struct flow {
    u64 spent; /* the broker writes 0 */
    u64 dropped;
    u32 plan; /* which shards `shard` counts in; the broker writes 0 */
    u32 shard;
    u32 vantages; /* that share the flow, each with a budget */
    u32 reserved;
};

struct price {
    u64 packet_ns;
    u64 byte_ns_x1024;
    u64 burst_ns;
};

/* A length of prefixes that the plan uses. */
struct mask6 {
    u32 mask[4];
    u32 length;
};

struct limits {
    struct price flow;
    struct price host; /* of everything unproven, per CPU */
    u64 idle_ns;
    u32 plan;
    u16 port; /* as read, not in network order */
    u16 reserved;
    u32 jiffy_ns;
    u32 program; /* id of the program that goes with this plan; for readers, who may not open a link */
    u32 masks4;  /* how many of the following are used, longest first */
    u32 masks6;
    u32 mask4[MAX_LENGTHS];
    struct mask6 mask6[MAX_LENGTHS];
};

struct shard {
    struct price handshake; /* per CPU, for SYNs and again for the rest */
    struct price total;     /* of the prefix's proven flows */
    u64 spent;
    u64 dropped;
    u64 reserved[8]; /* no two shards in one pair of cache lines */
};

struct handshake {
    u64 syn_spent;
    u64 rest_spent;
    u64 syn_dropped;
    u64 rest_dropped;
};

struct prefix4 {
    u32 address;
    u32 mask;
};

struct prefix6 {
    u32 address[4];
    u32 length;
};

struct source {
    u64 packets;
    u64 bytes;
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 16384);
    __type(key, struct flow_key);
    __type(value, struct flow);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct limits);
} limits SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct shard);
} shards SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct handshake);
} handshakes SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1);
    __type(key, struct prefix4);
    __type(value, u32);
} prefixes4 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1);
    __type(key, struct prefix6);
    __type(value, u32);
} prefixes6 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct verdict_cell);
} verdicts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 1024);
    __type(key, u32[4]);
    __type(value, struct source);
} sources SEC(".maps");

static __always_inline bool is_ipv4(const u32 *address)
{
    return !address[0] && !address[1] && address[2] == bpf_htonl(0xFFFF);
}

/* Charge a frame of `length` bytes. 0: it fits, 1: it does not, -1: others kept changing the budget. */
static __always_inline int charge(u64 *spent, u64 now, const struct price *price, u32 length, u32 share)
{
    u64 cost = price->packet_ns + (length * price->byte_ns_x1024 >> 10);
    int i;

    if (share > 1)
        cost /= share;
#pragma unroll
    for (i = 0; i < GCRA_TRIES; i++) {
        u64 seen = *(volatile u64 *)spent;
        u64 until = (seen > now ? seen : now) + cost;

        if (until - now > price->burst_ns)
            return 1;
        if (__sync_val_compare_and_swap(spent, seen, until) == seen)
            return 0;
    }
    return -1;
}

/* The shard of the longest prefix that holds an address. A lookup per length that is in use: fleets use one or two,
 * and a trie of a thousand hosts' addresses took 50 ns here, a lookup 8. */
static __always_inline u32 shard_of(const u32 *address, const struct limits *limit)
{
    u32 i, *found;

    if (is_ipv4(address)) {
        for (i = 0; i < MAX_LENGTHS && i < limit->masks4; i++) {
            struct prefix4 key = {address[3] & limit->mask4[i], limit->mask4[i]};

            found = bpf_map_lookup_elem(&prefixes4, &key);
            if (found)
                return *found;
        }
    } else {
        for (i = 0; i < MAX_LENGTHS && i < limit->masks6; i++) {
            const struct mask6 *of = &limit->mask6[i];
            struct prefix6 key = {{address[0] & of->mask[0], address[1] & of->mask[1], address[2] & of->mask[2],
                                   address[3] & of->mask[3]},
                                  of->length};

            found = bpf_map_lookup_elem(&prefixes6, &key);
            if (found)
                return *found;
        }
    }
    return 0;
}

static __always_inline int count(enum verdict verdict, u32 length, struct verdict_cell *cell)
{
    cell->packets[verdict]++;
    cell->bytes[verdict] += length;
    return verdict < VERDICT_FLOW_OVER ? XDP_PASS : XDP_DROP;
}

/* One drop in SAMPLE is remembered by its source. Not inlined: it runs seldom, and the hot path stays small. */
static __attribute__((noinline)) int remember(struct flow_key *key, u32 length)
{
    u32 who[4];
    struct source *known;

    if (!key)
        return 0;
    who[0] = key->address[0];
    who[1] = key->address[1];
    who[2] = is_ipv4(key->address) ? key->address[2] : 0;
    who[3] = is_ipv4(key->address) ? key->address[3] : 0;
    known = bpf_map_lookup_elem(&sources, who);
    if (known) {
        __sync_fetch_and_add(&known->packets, SAMPLE);
        __sync_fetch_and_add(&known->bytes, (u64)length * SAMPLE);
    } else {
        struct source fresh = {SAMPLE, (u64)length * SAMPLE};
        bpf_map_update_elem(&sources, who, &fresh, 0);
    }
    return 0;
}

static __always_inline int drop(enum verdict verdict, struct flow_key *key, u32 length, struct verdict_cell *cell)
{
    if (!(cell->drops++ & (SAMPLE - 1)))
        remember(key, length);
    return count(verdict, length, cell);
}

static __always_inline int judge_flow(struct flow *flow, struct flow_key *key, const struct limits *limit,
                                      struct verdict_cell *cell, u64 now, u32 length)
{
    struct shard *shard;
    u32 index;
    int over;

    if (flow->plan != limit->plan) {
        flow->shard = shard_of(key->address, limit);
        flow->plan = limit->plan;
    }
    index = flow->shard;
    shard = bpf_map_lookup_elem(&shards, &index);
    if (!shard)
        return count(VERDICT_PROVEN, length, cell); /* cannot be: the index comes from this plan's prefixes */
    over = charge(&flow->spent, now, &limit->flow, length, flow->vantages);
    if (over) {
        __sync_fetch_and_add(&flow->dropped, 1);
        return drop(over > 0 ? VERDICT_FLOW_OVER : VERDICT_CONTENDED, key, length, cell);
    }
    over = charge(&shard->spent, now, &shard->total, length, 1);
    if (over) {
        __sync_fetch_and_add(&shard->dropped, 1);
        return drop(over > 0 ? VERDICT_PREFIX_OVER : VERDICT_CONTENDED, key, length, cell);
    }
    return count(VERDICT_PROVEN, length, cell);
}

static __always_inline int judge_stranger(enum verdict kind, struct flow_key *key, const struct limits *limit,
                                          struct verdict_cell *cell, u64 now, u32 length)
{
    u32 index = shard_of(key->address, limit);
    struct shard *shard = bpf_map_lookup_elem(&shards, &index);
    struct handshake *own = bpf_map_lookup_elem(&handshakes, &index);
    bool syn = kind == VERDICT_SYN;
    int over;

    if (!shard || !own)
        return drop(VERDICT_CONTENDED, key, length, cell); /* cannot be, as above; rather closed than open */
    over = charge(syn ? &own->syn_spent : &own->rest_spent, now, &shard->handshake, length, 1);
    if (over) {
        if (syn)
            own->syn_dropped++;
        else
            own->rest_dropped++;
        return drop(over > 0 ? kind + OVER : VERDICT_CONTENDED, key, length, cell);
    }
    over = charge(&cell->spent, now, &limit->host, length, 1);
    if (over)
        return drop(over > 0 ? VERDICT_HOST_OVER : VERDICT_CONTENDED, key, length, cell);
    return count(kind, length, cell);
}

/* Reads source, port and kind of TCP to `port`. VERDICTS means: not ours, let it pass. */
static __always_inline enum verdict read_tcp(void *at, void *end, u16 port, bool first_fragment, struct flow_key *key)
{
    struct tcp *tcp = at;

    if (at + 4 > end)
        return VERDICT_UNREADABLE;
    if (tcp->port != port)
        return VERDICTS;
    key->port = tcp->source_port;
    if (first_fragment)
        return VERDICT_FRAGMENT;
    if ((void *)(tcp + 1) > end)
        return VERDICT_UNREADABLE;
    return (tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN ? VERDICT_SYN : VERDICT_STRANGER;
}

static __always_inline enum verdict read_ipv4(void *at, void *end, u16 port, struct flow_key *key)
{
    struct ipv4 *ip = at;
    u32 length;

    if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP)
        return VERDICTS;
    length = (ip->version_length & 0xF) * 4;
    if (length < sizeof(*ip))
        return VERDICTS; /* the stack drops it at its first look */
    key->address[2] = bpf_htonl(0xFFFF);
    key->address[3] = ip->source;
    if (ip->fragment & bpf_htons(IP_OFFSET))
        return VERDICT_FRAGMENT;
    return read_tcp(at + length, end, port, ip->fragment & bpf_htons(MORE_FRAGMENTS), key);
}

static __always_inline enum verdict read_ipv6(void *at, void *end, u16 port, struct flow_key *key)
{
    struct ipv6 *ip = at;
    bool fragment = 0;
    u32 i;
    u8 next;

    if ((void *)(ip + 1) > end)
        return VERDICTS;
    __builtin_memcpy(key->address, ip->source, sizeof(key->address));
    next = ip->next;
    at = ip + 1;
    for (i = 0; i < MAX_EXTENSIONS && next != IPPROTO_TCP; i++) {
        struct extension *extension = at;

        if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_FRAGMENT && next != IPPROTO_AH &&
            next != IPPROTO_DSTOPTS)
            return VERDICTS;
        if ((void *)(extension + 1) > end)
            return VERDICT_UNREADABLE;
        if (next == IPPROTO_FRAGMENT) {
            u16 offset = bpf_ntohs(extension->offset);

            next = extension->next;
            if (offset & IP6_OFFSET) /* what follows is payload; only these can be or hide TCP */
                return next == IPPROTO_TCP || next == IPPROTO_DSTOPTS || next == IPPROTO_AH ? VERDICT_FRAGMENT
                                                                                            : VERDICTS;
            fragment |= offset & 1;
            at += 8;
        } else if (next == IPPROTO_AH) {
            next = extension->next;
            at += (extension->length + 2) * 4;
        } else {
            next = extension->next;
            at += (extension->length + 1) * 8;
        }
    }
    if (next != IPPROTO_TCP)
        return VERDICT_UNREADABLE;
    return read_tcp(at, end, port, fragment, key);
}

SEC("xdp.frags")
int limiter(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *at;
    struct ethernet *frame = data;
    struct flow_key key = {};
    struct limits *limit;
    struct verdict_cell *cell;
    struct flow *flow;
    enum verdict kind;
    __be16 protocol;
    u32 zero = 0, length, i;
    u64 now;

    if ((void *)(frame + 1) > end)
        return XDP_PASS;
    protocol = frame->protocol;
    at = frame + 1;
#pragma unroll
    for (i = 0; i < MAX_TAGS; i++) {
        struct vlan_tag *tag = at;

        if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
            break;
        if ((void *)(tag + 1) > end)
            return XDP_PASS;
        protocol = tag->protocol;
        at = tag + 1;
    }
    limit = bpf_map_lookup_elem(&limits, &zero);
    cell = bpf_map_lookup_elem(&verdicts, &zero);
    if (!limit || !cell)
        return XDP_PASS;
    if (protocol == bpf_htons(ETH_P_IP))
        kind = read_ipv4(at, end, bpf_htons(limit->port), &key);
    else if (protocol == bpf_htons(ETH_P_IPV6))
        kind = read_ipv6(at, end, bpf_htons(limit->port), &key);
    else
        return XDP_PASS;
    if (kind == VERDICTS)
        return XDP_PASS;
    length = bpf_xdp_get_buff_len(ctx);
    now = bpf_jiffies64() * limit->jiffy_ns;
    if (kind == VERDICT_STRANGER) {
        flow = bpf_map_lookup_elem(&flows, &key);
        if (flow) {
            if (!flow->spent || now < flow->spent + limit->idle_ns)
                return judge_flow(flow, &key, limit, cell, now, length);
            cell->idle_flows++;
        }
    }
    return judge_stranger(kind, &key, limit, cell, now, length);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
