// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * V_path: which next hops carry the host's traffic, and how far away each is.
 *
 * Why these hooks: net_dev_start_xmit sees each packet that is handed to a driver, with its Ethernet header in place
 * and after multipath has chosen; the destination MAC names the next hop (user space joins it to routes through the
 * neighbour table, because the packet's dst is dropped by then). net_dev_queue, one step earlier, also counts what the
 * queueing discipline then drops, and so disagrees with the interface's own counters just when it matters. tcp_probe
 * names the next hop the *socket's route* points to, with its RTT: a second road to the same shares. netif_receive_skb
 * gives the TTL packets from a neighbour arrive with: it moves when the path behind the neighbour changes length.
 */
#ifdef MVPS_BCC
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <net/ip6_fib.h>
#include <net/net_namespace.h>
#include <net/route.h>
#endif
#include "common.h"

#define AF_INET  2
#define AF_INET6 10

#define ETH_P_IP   0x0800
#define ETH_P_IPV6 0x86DD

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP    1
#define IPPROTO_IGMP    2
#define IPPROTO_ICMPV6  58

#define FNV_OFFSET 0xcbf29ce484222325ULL
#define FNV_PRIME  0x100000001b3ULL

struct path_cell {
    struct object_slot egress[OBJECT_SLOTS]; /* key: link_key(ifindex, destination MAC); amount: bytes */
    struct object_slot routed[OBJECT_SLOTS]; /* key: gateway_key(ifindex, gateway); amount: sum of srtt in us */
    struct object_slot ttl[OBJECT_SLOTS];    /* key: link_key(ifindex, source MAC) with the TTL in the low byte */
    u64 packets;
    u64 segments;
    u64 received;
    u64 egress_full;
    u64 routed_full;
    u64 ttl_full;
    u64 read_failed;
} CELL_ALIGNED;

CELLS(path_cells, struct path_cell);

/* Only Ethernet frames have a next hop to name; loopback has none. */
static __always_inline bool foreign(struct net_device *dev)
{
    return !dev || READ(dev, ifindex) == 1 || (scope_netns && READ(READ(dev, nd_net.net), ns.inum) != scope_netns);
}

/* FNV-1a over words: user space computes the same key from its route and neighbour tables. */
static __always_inline u64 mix(u64 hash, u64 word)
{
    return (hash ^ word) * FNV_PRIME;
}

static __always_inline u64 link_key(u32 ifindex, const u8 *mac)
{
    u64 hash = mix(FNV_OFFSET, ifindex);

    hash = mix(hash, (u64)mac[0] << 16 | (u64)mac[1] << 8 | mac[2]);
    hash = mix(hash, (u64)mac[3] << 16 | (u64)mac[4] << 8 | mac[5]);
    return hash & ~0xFFULL;
}

int HOOK(net_dev_start_xmit, path_egress, struct sk_buff *skb, struct net_device *dev)
{
    struct path_cell *cell = own_cell(MAP(path_cells));
    u8 mac[6];

    if (!cell || foreign(dev))
        return 0;
    add(&cell->packets, 1);
    if (bpf_probe_read_kernel(mac, sizeof(mac), READ(skb, data))) {
        add(&cell->read_failed, 1);
        return 0;
    }
    touch(cell->egress, &cell->egress_full, link_key(READ(dev, ifindex), mac), READ(skb, len));
    return 0;
}

int HOOK(netif_receive_skb, path_received, struct sk_buff *skb)
{
    struct path_cell *cell = own_cell(MAP(path_cells));
    struct net_device *dev = READ(skb, dev);
    u16 protocol = __builtin_bswap16(READ(skb, protocol));
    bool ipv4 = protocol == ETH_P_IP;
    u8 mac[6], pair[2], ttl, next; /* pair: TTL and protocol of IPv4, next header and hop limit of IPv6 */

    if (!cell || foreign(dev) || (!ipv4 && protocol != ETH_P_IPV6))
        return 0;
    add(&cell->received, 1);
    if (bpf_probe_read_kernel(mac, sizeof(mac), READ(skb, head) + READ(skb, mac_header) + 6) ||
        bpf_probe_read_kernel(pair, sizeof(pair), READ(skb, data) + (ipv4 ? 8 : 6))) {
        add(&cell->read_failed, 1);
        return 0;
    }
    ttl = ipv4 ? pair[0] : pair[1];
    next = ipv4 ? pair[1] : pair[0];
    /* Errors come from routers along the way; neighbours and multicast groups (IGMP, MLD) speak on the link alone. */
    if (ipv4 ? next == IPPROTO_ICMP || next == IPPROTO_IGMP : next == IPPROTO_ICMPV6 || next == IPPROTO_HOPOPTS)
        return 0;
    touch(cell->ttl, &cell->ttl_full, link_key(READ(dev, ifindex), mac) | ttl, 0);
    return 0;
}

int HOOK(tcp_probe, path_routed, struct sock *sk)
{
    struct path_cell *cell = own_cell(MAP(path_cells));
    struct dst_entry *dst = READ(sk, sk_dst_cache);
    struct tcp_sock *tp = TCP_SOCK(sk);
    struct net_device *dev;
    int ifindex;
    u64 hash;

    if (!cell || !dst || !tp)
        return 0;
    dev = PROBE(dst, dev);
    ifindex = PROBE(dev, ifindex);
    if (ifindex <= 1 || (scope_netns && READ(READ(sk, __sk_common.skc_net.net), ns.inum) != scope_netns))
        return 0;
    add(&cell->segments, 1);
    hash = mix(FNV_OFFSET, ifindex);
    if (PROBE(dst, ops, family) == AF_INET) {
        struct rtable *rt = (struct rtable *)dst;

        /* An IPv4 route may have an IPv6 gateway (RFC 5549, kernel 5.2). */
        if (PROBE(rt, rt_gw_family) == AF_INET6) {
            struct in6_addr gw = PROBE(rt, rt_gw6);

            hash = mix(mix(mix(mix(hash, gw.in6_u.u6_addr32[0]), gw.in6_u.u6_addr32[1]), gw.in6_u.u6_addr32[2]),
                       gw.in6_u.u6_addr32[3]);
        } else {
            hash = mix(hash, PROBE(rt, rt_gw4));
        }
    } else {
        struct rt6_info *rt = (struct rt6_info *)dst;
        struct in6_addr gw = PROBE(rt, rt6i_gateway);

        hash = mix(mix(mix(mix(hash, gw.in6_u.u6_addr32[0]), gw.in6_u.u6_addr32[1]), gw.in6_u.u6_addr32[2]),
                   gw.in6_u.u6_addr32[3]);
    }
    touch(cell->routed, &cell->routed_full, hash, READ(tp, srtt_us) >> 3);
    return 0;
}

LICENSED;
