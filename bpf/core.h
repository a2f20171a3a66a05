/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a signal's source is spelled for clang and libbpf (CO-RE); bcc.h spells the same words for bcc.
 *
 *  HOOK     a program at a tracepoint, with the tracepoint's arguments
 *  MAP      a map's address; LOOKUP finds a value in it
 *  READ     a field behind a pointer that a hook was given or a READ gave: the verifier knows its type, so it is a load
 *  PROBE    a field behind a pointer whose type the verifier does not know; a chain of fields is followed
 *  WITHIN   an index brought below a size, which is a power of two
 *  ARRAY_MAP, CELLS, CONSTANT, LICENSED   declarations
 *
 * Globals are constants only, and nothing else of libbpf's or bcc's own languages is used in sources that both take.
 */
#ifndef MVPS_CORE_H
#define MVPS_CORE_H

#include "kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#define HOOK(event, name, args...) SEC("tp_btf/" #event) BPF_PROG(name, ##args)

#define MAP(name)         (&name)
#define LOOKUP(name, key) bpf_map_lookup_elem(MAP(name), key)

#define READ(pointer, field)      ((pointer)->field)
#define PROBE(pointer, fields...) BPF_CORE_READ(pointer, fields)
#define ANCESTOR(cgroup, level)   ((void *)(cgroup) + bpf_core_field_offset(struct cgroup, ancestors) + (level)*8)
#define CURRENT_TASK()            ((struct task_struct *)bpf_get_current_task_btf())
#define WITHIN(index, size)       ((index) & ((size)-1))
#define TCP_SOCK(sk)              bpf_skc_to_tcp_sock(sk)

/* An array with this many values; the loader raises it for cells to the number of possible CPUs. */
#define ARRAY_MAP(name, flags, value_type)                                                                             \
    struct {                                                                                                           \
        __uint(type, BPF_MAP_TYPE_ARRAY);                                                                              \
        __uint(map_flags, flags);                                                                                      \
        __uint(max_entries, 1);                                                                                        \
        __type(key, u32);                                                                                              \
        __type(value, value_type);                                                                                     \
    } name SEC(".maps")

/* Fixed before load, so that the verifier drops the dead branch. */
#define CONSTANT(type, name) const volatile type name = 0

#define LICENSED char LICENSE[] SEC("license") = "Dual BSD/GPL"

#endif
