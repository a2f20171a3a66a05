/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel types our programs read, cut down to the fields they touch.
 *
 * CO-RE relocates every access by name against the running kernel's BTF (preserve_access_index), so order and
 * completeness do not matter here; names and member types do. This replaces a generated vmlinux.h of 130,000 lines.
 * Layouts checked on 6.1, 6.12 and 6.18.
 */
#ifndef MVPS_KERNEL_TYPES_H
#define MVPS_KERNEL_TYPES_H

/* No host header: the objects must not depend on the machine they were built on. */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;

/* From the kernel's uapi (stable numbers). */
enum {
    BPF_MAP_TYPE_ARRAY = 2,
    BPF_F_MMAPABLE = 1 << 10,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
    u64 id;
};

struct cgroup {
    int level;
    struct kernfs_node *kn;
    struct cgroup *ancestors[]; /* since 6.0, commit 7f203bc89eb6 ("cgroup: Replace cgroup->ancestor_ids[]...") */
};

struct css_set {
    struct cgroup *dfl_cgrp;
};

struct sched_info {
    unsigned long long last_queued;
};

struct rq {
    u64 clock;
};

struct cfs_rq {
    struct rq *rq;
};

struct sched_entity {
    struct cfs_rq *cfs_rq;
};

struct task_struct {
    unsigned int flags;
    struct sched_entity se;
    int pid;
    struct css_set *cgroups;
    struct sched_info sched_info;
};

struct cgroup_subsys_state {
    struct cgroup *cgroup;
};

struct blkcg {
    struct cgroup_subsys_state css;
};

struct blkcg_gq {
    struct blkcg *blkcg;
};

struct bio {
    struct blkcg_gq *bi_blkg;
};

struct request {
    unsigned int cmd_flags;
    unsigned int __data_len;
    struct bio *bio;
    u64 start_time_ns;
};

struct ns_common {
    unsigned int inum;
};

struct net {
    struct ns_common ns;
};

typedef struct {
    struct net *net;
} possible_net_t;

struct net_device {
    int ifindex;
    possible_net_t nd_net;
};

struct dst_ops {
    unsigned short family;
};

struct dst_entry {
    struct net_device *dev;
    struct dst_ops *ops;
};

struct in6_addr {
    union {
        u32 u6_addr32[4];
    } in6_u;
};

struct rtable {
    struct dst_entry dst;
    u8 rt_gw_family;
    union {
        u32 rt_gw4;
        struct in6_addr rt_gw6;
    };
};

struct rt6_info {
    struct dst_entry dst;
    struct in6_addr rt6i_gateway;
};

struct sock_cgroup_data {
    struct cgroup *cgroup;
};

struct sock_common {
    unsigned short skc_family;
    possible_net_t skc_net;
};

struct sock {
    struct sock_common __sk_common;
    struct dst_entry *sk_dst_cache;
    int sk_wmem_queued;
    struct sock_cgroup_data sk_cgrp_data;
};

struct minmax_sample {
    u32 t;
    u32 v;
};

struct minmax {
    struct minmax_sample s[3];
};

struct tcp_sock {
    u32 srtt_us;
    struct minmax rtt_min;
};

struct sk_buff {
    struct net_device *dev;
    unsigned int len;
    u16 protocol;
    u16 mac_header;
    u16 network_header;
    unsigned char *head;
    unsigned char *data;
};

#pragma clang attribute pop

#endif
