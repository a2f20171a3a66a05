/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What kernel side and user side share: histogram layout, object tables, cells.
 *
 * On-kernel protocol
 *  - Every signal has one map `<signal>_cells`, ARRAY | MMAPABLE, with one cell per possible CPU (max_entries is set
 *    by the loader). Programs only ever add to the cell of the CPU they run on; user space maps the array, copies it
 *    once per tick and takes differences. Nothing is reset by user space and reading needs no system call.
 *  - All updates are atomic adds: task and interrupt context of one CPU interleave (plain ++ lost 40-53 of 127 M).
 *  - The value size is a multiple of 64 bytes, so that no two CPUs share a cache line.
 *  - User space derives its view of a cell from this object's BTF: a renamed field is an error, never a wrong number.
 *  - `control` carries the other direction: tick generation and, per signal, the severity bin from which an event
 *    counts as "over". The first such event of a generation leaves its time in the cell, because cumulative counters
 *    have no order and the order in which signals moved is what tells which one leads.
 */
#ifndef MVPS_COMMON_H
#define MVPS_COMMON_H

/* MVPS_BCC: compiled on the host by bcc, where the kernel has no BTF. */
#ifdef MVPS_BCC
#include "bcc.h"
#else
#include "core.h"
#endif

/* Four sub-bins per octave over 31.75 octaves: 1 us .. 1 h fits, relative bin width 19-25 %. */
#define HIST_BINS     128
#define HIST_SUB_BITS 2

/* Workloads that one CPU touched. Services on a host number tens, not thousands; what does not fit is counted. */
#define OBJECT_SLOTS  64
#define OBJECT_PROBES 4

struct object_slot {
    u64 key;
    u64 events;
    u64 amount;
};

struct first_over {
    u64 generation;
    u64 ns;
};

/* Written by user space through its mapping, one entry per signal object (each object has its own map). */
struct control {
    u64 generation;
    u64 over_bin;
    u64 reserved[6];
};

ARRAY_MAP(control, BPF_F_MMAPABLE, struct control);

/* A map of cells, one per possible CPU. */
#define CELLS(name, cell_type) ARRAY_MAP(name, BPF_F_MMAPABLE, cell_type)

#define CELL_ALIGNED __attribute__((aligned(64)))

/* Scope; 0 means the whole host. */
CONSTANT(u64, scope_cgroup);
CONSTANT(u32, scope_level); /* depth of scope_cgroup in its hierarchy, the root being 0 */
CONSTANT(u32, scope_netns);

static __always_inline void add(u64 *counter, u64 amount)
{
    __sync_fetch_and_add(counter, amount);
}

static __always_inline void *own_cell(void *map)
{
    u32 cpu = bpf_get_smp_processor_id();

    return bpf_map_lookup_elem(map, &cpu);
}

/* Whether a cgroup is the one in scope or below it. */
static __always_inline bool in_scope(struct cgroup *cgroup)
{
    struct cgroup *ancestor;

    if (!scope_cgroup)
        return 1;
    if (!cgroup || PROBE(cgroup, level) < (int)scope_level)
        return 0;
    /* A flexible array of pointers: out of the verifier's typed reads, so by offset. */
    if (bpf_probe_read_kernel(&ancestor, sizeof(ancestor), ANCESTOR(cgroup, scope_level)))
        return 0;
    return PROBE(ancestor, kn, id) == scope_cgroup;
}

/* Position of the highest set bit; clang 14 has no BPF lowering for __builtin_clzll. */
static __always_inline u32 log2_u64(u64 v)
{
    u32 r = 0;
    if (v >> 32) {
        v >>= 32;
        r += 32;
    }
    if (v >> 16) {
        v >>= 16;
        r += 16;
    }
    if (v >> 8) {
        v >>= 8;
        r += 8;
    }
    if (v >> 4) {
        v >>= 4;
        r += 4;
    }
    if (v >> 2) {
        v >>= 2;
        r += 2;
    }
    return r + (u32)(v >> 1);
}

/* Bin of severity v when bin 1 starts at 2^lowest_bit (>= HIST_SUB_BITS); bin 0 is everything below. */
static __always_inline u32 hist_slot(u64 v, u32 lowest_bit)
{
    u32 top, bin;

    if (v >> lowest_bit == 0)
        return 0;
    top = log2_u64(v);
    bin = 1 + ((top - lowest_bit) << HIST_SUB_BITS) + ((u32)(v >> (top - HIST_SUB_BITS)) & ((1 << HIST_SUB_BITS) - 1));
    return bin < HIST_BINS ? bin : HIST_BINS - 1;
}

/* Count an event against its object. Slots are claimed by compare-and-swap and freed by user space, which clears the
 * key of objects idle for long; an event that races with that is counted for the slot's next owner. */
static __always_inline void touch(struct object_slot *slots, u64 *full, u64 key, u64 amount)
{
    u32 start = (key * 0x9E3779B97F4A7C15ULL) >> 58;
    u32 i;

    if (!key)
        return;
#pragma unroll
    for (i = 0; i < OBJECT_PROBES; i++) {
        struct object_slot *slot = &slots[(start + i) & (OBJECT_SLOTS - 1)];
        u64 seen = slot->key;

        if (!seen)
            seen = __sync_val_compare_and_swap(&slot->key, 0, key) ?: key;
        if (seen == key) {
            add(&slot->events, 1);
            if (amount)
                add(&slot->amount, amount);
            return;
        }
    }
    add(full, 1);
}

/* Leave the time of this generation's first event at or over the threshold bin. */
static __always_inline void mark_over(struct first_over *first, u32 bin)
{
    u32 zero = 0;
    struct control *c = LOOKUP(control, &zero);

    if (c && bin >= c->over_bin && first->generation != c->generation) {
        first->generation = c->generation;
        first->ns = bpf_ktime_get_ns();
    }
}

#endif
