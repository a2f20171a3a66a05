// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * V_mm: how long tasks stall for memory.
 *
 * Why these hooks: mm_vmscan_{direct,memcg}_reclaim_{begin,end} bracket exactly the time a task spends freeing pages
 * instead of running (try_to_free_pages, try_to_free_mem_cgroup_pages), whatever caller needed the memory. They nest
 * in nothing: a reclaiming task carries PF_MEMALLOC and does not reclaim again. mm_compaction_{begin,end} bracket the
 * other wait for memory; kcompactd's own runs stall nobody and are left out. kswapd wakes and OOM victims are rare
 * and only counted.
 */
#include "common.h"

#define LOWEST_BIT 10 /* 1 us: a shorter reclaim is a list walk that found its page at once */
#define PF_KTHREAD 0x00200000

/* Tasks inside reclaim at once. A task that finds no slot is counted in start_lost and not timed. */
#define STARTS       1024
#define START_PROBES 4

struct mm_cell {
    u64 hist[HIST_BINS];
    u64 stall_ns;
    u64 direct;
    u64 memcg;
    u64 compact;
    u64 kswapd_wakes;
    u64 oom_victims;
    u64 reclaimed_pages;
    u64 start_lost;
    u64 objects_full;
    struct first_over first_over;
    struct object_slot objects[OBJECT_SLOTS];
} CELL_ALIGNED;

CELLS(mm_cells, struct mm_cell);

struct start {
    u64 task; /* tid + 1, 0 = free */
    u64 ns;
};

struct starts {
    struct start slot[STARTS];
};

ARRAY_MAP(mm_starts, 0, struct starts);

static __always_inline bool out_of_scope(void)
{
    struct task_struct *task = CURRENT_TASK();

    return scope_cgroup && !in_scope(READ(READ(task, cgroups), dfl_cgrp));
}

static __always_inline int begin(void)
{
    u32 tid = (u32)bpf_get_current_pid_tgid(), zero = 0, i;
    struct starts *starts = LOOKUP(mm_starts, &zero);
    struct mm_cell *cell;

    if (!starts || out_of_scope())
        return 0;
#pragma unroll
    for (i = 0; i < START_PROBES; i++) {
        struct start *s = &starts->slot[(tid + i) & (STARTS - 1)];

        /* A slot still holding our tid is a begin whose end never came (a hook was missed): reuse it. */
        if (s->task == tid + 1ULL || __sync_val_compare_and_swap(&s->task, 0, tid + 1ULL) == 0) {
            s->ns = bpf_ktime_get_ns();
            return 0;
        }
    }
    cell = own_cell(MAP(mm_cells));
    if (cell)
        add(&cell->start_lost, 1);
    return 0;
}

static __always_inline struct mm_cell *end(void)
{
    u32 tid = (u32)bpf_get_current_pid_tgid(), zero = 0, i, bin;
    struct starts *starts = LOOKUP(mm_starts, &zero);
    struct mm_cell *cell = own_cell(MAP(mm_cells));
    u64 ns;

    if (!starts || !cell || out_of_scope())
        return 0;
#pragma unroll
    for (i = 0; i < START_PROBES; i++) {
        struct start *s = &starts->slot[(tid + i) & (STARTS - 1)];

        if (s->task != tid + 1ULL)
            continue;
        ns = bpf_ktime_get_ns() - s->ns;
        __sync_lock_test_and_set(&s->task, 0);
        bin = hist_slot(ns, LOWEST_BIT);
        add(&cell->hist[WITHIN(bin, HIST_BINS)], 1);
        add(&cell->stall_ns, ns);
        touch(cell->objects, &cell->objects_full, bpf_get_current_cgroup_id(), ns);
        mark_over(&cell->first_over, bin);
        return cell;
    }
    return 0; /* attached between begin and end, or counted in start_lost */
}

int HOOK(mm_vmscan_direct_reclaim_begin, mm_direct_begin)
{
    return begin();
}

int HOOK(mm_vmscan_direct_reclaim_end, mm_direct_end, unsigned long reclaimed)
{
    struct mm_cell *cell = end();

    if (cell) {
        add(&cell->direct, 1);
        add(&cell->reclaimed_pages, reclaimed);
    }
    return 0;
}

int HOOK(mm_vmscan_memcg_reclaim_begin, mm_memcg_begin)
{
    return begin();
}

int HOOK(mm_vmscan_memcg_reclaim_end, mm_memcg_end, unsigned long reclaimed)
{
    struct mm_cell *cell = end();

    if (cell) {
        add(&cell->memcg, 1);
        add(&cell->reclaimed_pages, reclaimed);
    }
    return 0;
}

static __always_inline bool is_kthread(void)
{
    return READ(CURRENT_TASK(), flags) & PF_KTHREAD;
}

int HOOK(mm_compaction_begin, mm_compaction_begin)
{
    return is_kthread() ? 0 : begin();
}

int HOOK(mm_compaction_end, mm_compaction_end)
{
    struct mm_cell *cell = is_kthread() ? 0 : end();

    if (cell)
        add(&cell->compact, 1);
    return 0;
}

int HOOK(mm_vmscan_kswapd_wake, mm_kswapd_wake)
{
    struct mm_cell *cell = own_cell(MAP(mm_cells));

    if (cell)
        add(&cell->kswapd_wakes, 1);
    return 0;
}

int HOOK(mark_victim, mm_oom_victim)
{
    struct mm_cell *cell = own_cell(MAP(mm_cells));

    if (cell)
        add(&cell->oom_victims, 1);
    return 0;
}

LICENSED;
