/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a signal's source is spelled for bcc: compiled on the host against the headers of the running kernel, where the
 * kernel carries no BTF. The words are explained in core.h; what differs:
 *
 *  - A hook is a raw tracepoint, so arguments are plain words, and every field is read by bpf_probe_read_kernel, which
 *    cannot fail on a live object and gives zeros on a dead one.
 *  - Maps are made by the loader (probes/bcc.py), as the object that libbpf would load declares them; MAP_FD_<name> is
 *    the descriptor. Constants are macros.
 *  - bcc rewrites only its main text, and makes programs only of functions there. The loader writes that text: this
 *    source included, and for each program `name` a function that calls `name_run`. So no program may be called as the
 *    kernel calls a function of its own.
 */
#ifndef MVPS_BCC_H
#define MVPS_BCC_H

/* Parsing headers is most of the time it takes: what only one signal reads, its source includes. */
#include <linux/cgroup-defs.h>
#include <linux/kernfs.h>
#include <linux/sched.h>

/* A tracepoint's argument comes as a 64-bit word, whatever its type. */
#pragma clang diagnostic ignored "-Wint-conversion"
/* Kernel headers have some of our constants as enumerators or macros, with the same values. */
#pragma clang diagnostic ignored "-Wmacro-redefined"

#define HOOK_COUNT_(ctx, _1, _2, _3, count, ...) count
#define HOOK_COUNT(args...)                      HOOK_COUNT_(0, ##args, 3, 2, 1, 0)
#define HOOK_ARGS_0                              ctx
#define HOOK_ARGS_1                              ctx, (void *)ctx[0]
#define HOOK_ARGS_2                              HOOK_ARGS_1, (void *)ctx[1]
#define HOOK_ARGS_3                              HOOK_ARGS_2, (void *)ctx[2]
#define HOOK_JOIN_(prefix, count)                prefix##count
#define HOOK_JOIN(prefix, count)                 HOOK_JOIN_(prefix, count)

#define HOOK(event, name, args...)                                                                                     \
    static __always_inline name##_body(u64 *ctx, ##args);                                                              \
    static __always_inline int name##_run(u64 *ctx)                                                                    \
    {                                                                                                                  \
        return name##_body(HOOK_JOIN(HOOK_ARGS_, HOOK_COUNT(args)));                                                   \
    }                                                                                                                  \
    static __always_inline int name##_body(u64 *ctx, ##args)

#define MAP(name)         ((void *)bpf_pseudo_fd(1, MAP_FD_##name))
#define LOOKUP(name, key) bpf_map_lookup_elem(MAP(name), key)

#define READ(pointer, field)                                                                                           \
    ({                                                                                                                 \
        typeof((pointer)->field) read_value;                                                                           \
        bpf_probe_read_kernel(&read_value, sizeof(read_value), &(pointer)->field);                                     \
        read_value;                                                                                                    \
    })
#define PROBE_1(pointer, a)       READ(pointer, a)
#define PROBE_2(pointer, a, b)    READ(READ(pointer, a), b)
#define PROBE(pointer, fields...) HOOK_JOIN(PROBE_, HOOK_COUNT(fields))(pointer, fields)
#define ANCESTOR(cgroup, level)   (&(cgroup)->ancestors[level])
#define CURRENT_TASK()            ((struct task_struct *)bpf_get_current_task())
#define TCP_SOCK(sk)              ((struct tcp_sock *)(sk)) /* tcp_probe is in tcp_rcv_established: always a full one */
#define barrier_var(var)          asm volatile("" : "+r"(var))

/* bcc's processor has no 32-bit jumps: a bound that was compared before is one of a copy, and LLVM drops a mask that it
 * knows to be without effect. The verifier of 6.1 then knows no bound at all. */
#define WITHIN(index, size)                                                                                            \
    ({                                                                                                                 \
        u64 within = (index);                                                                                          \
        barrier_var(within);                                                                                           \
        within &((size)-1);                                                                                            \
    })

#define ARRAY_MAP(name, flags, value_type) struct name##_outside
#define LICENSED                           struct licensed_by_bcc

/* -D<name>=<value> sets one; 0 is the whole host. */
#define CONSTANT(type, name) struct name##_outside
#ifndef scope_cgroup
#define scope_cgroup 0ULL
#endif
#ifndef scope_level
#define scope_level 0U
#endif
#ifndef scope_netns
#define scope_netns 0U
#endif

#endif
