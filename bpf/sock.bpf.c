// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * V_sock: how far TCP round trips are above their floor, and what the stack drops.
 *
 * Why these hooks: tcp_probe fires for every segment an established connection receives, in every namespace and for
 * sockets older than we are (sock_ops misses those). The severity is srtt / min_rtt, which needs no knowledge of the
 * path's length. tcp_retransmit_skb is the loss the sender saw; kfree_skb's reason says where the host dropped.
 */
#ifdef MVPS_BCC
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#endif
#include "common.h"

#define LOWEST_BIT 4 /* severity is in 1/16 of min RTT: bin 1 starts at ratio 1 */

/* Drop reasons differ by kernel (6.1 has 70, 6.18 has 130); user space names them from BTF. Larger values come from
 * subsystems (mac80211, openvswitch) and share the last slot. */
#define DROP_REASONS 160

struct sock_cell {
    u64 hist[HIST_BINS];
    u64 segments;
    u64 retransmits;
    u64 buffer_limit;
    u64 send_queue_bytes;
    u64 no_rtt;
    u64 objects_full;
    struct first_over first_over;
    struct object_slot objects[OBJECT_SLOTS];
    u64 drops[DROP_REASONS];
} CELL_ALIGNED;

CELLS(sock_cells, struct sock_cell);

static __always_inline u64 owner(struct sock *sk)
{
    struct cgroup *cgroup = READ(sk, sk_cgrp_data.cgroup);

    return cgroup ? READ(READ(cgroup, kn), id) : 0;
}

static __always_inline bool out_of_scope(struct sock *sk)
{
    if (scope_netns && READ(READ(sk, __sk_common.skc_net.net), ns.inum) != scope_netns)
        return 1;
    return !in_scope(READ(sk, sk_cgrp_data.cgroup));
}

int HOOK(tcp_probe, sock_segment, struct sock *sk)
{
    struct sock_cell *cell = own_cell(MAP(sock_cells));
    struct tcp_sock *tp = TCP_SOCK(sk);
    u64 key = owner(sk);
    u32 srtt, floor, bin;
    int queued;

    if (!cell || !tp || out_of_scope(sk))
        return 0;
    add(&cell->segments, 1);
    srtt = READ(tp, srtt_us); /* 1/8 us */
    floor = READ(tp, rtt_min.s[0].v);
    if (!srtt || !floor || floor == ~0U) { /* nothing acknowledged yet */
        add(&cell->no_rtt, 1);
        return 0;
    }
    bin = hist_slot((u64)srtt * 2 / floor, LOWEST_BIT);
    add(&cell->hist[WITHIN(bin, HIST_BINS)], 1);
    queued = READ(sk, sk_wmem_queued);
    if (queued > 0)
        add(&cell->send_queue_bytes, queued);
    touch(cell->objects, &cell->objects_full, key, 0);
    mark_over(&cell->first_over, bin);
    return 0;
}

int HOOK(tcp_retransmit_skb, sock_retransmit, struct sock *sk)
{
    struct sock_cell *cell = own_cell(MAP(sock_cells));
    u64 key = owner(sk);

    if (!cell || out_of_scope(sk))
        return 0;
    /* A retransmission is the worst thing an RTT can be: the last bin, beside the segment's own count. */
    add(&cell->retransmits, 1);
    touch(cell->objects, &cell->objects_full, key, 1);
    mark_over(&cell->first_over, HIST_BINS - 1);
    return 0;
}

int HOOK(sock_exceed_buf_limit, sock_buffer_limit, struct sock *sk)
{
    struct sock_cell *cell = own_cell(MAP(sock_cells));

    if (!cell || out_of_scope(sk))
        return 0;
    add(&cell->buffer_limit, 1);
    return 0;
}

int HOOK(kfree_skb, sock_dropped, struct sk_buff *skb, void *location, unsigned int reason)
{
    struct sock_cell *cell = own_cell(MAP(sock_cells));
    u64 slot;

    if (!cell)
        return 0;
    if (scope_netns && (!READ(skb, dev) || READ(READ(READ(skb, dev), nd_net.net), ns.inum) != scope_netns))
        return 0;
    slot = reason < DROP_REASONS ? reason : DROP_REASONS - 1;
    barrier_var(slot); /* the compiler knows the bound and would drop the check that the verifier wants to see */
    if (slot < DROP_REASONS)
        add(&cell->drops[slot], 1);
    return 0;
}

LICENSED;
