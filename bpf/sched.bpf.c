// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * V_sched: how long runnable tasks wait for a CPU.
 *
 * Why this hook: at sched_switch the scheduler has just stamped its run queue's clock and the incoming task still
 * carries the time it was queued (sched_info.last_queued is cleared a few instructions later, in sched_info_arrive),
 * so clock - last_queued is exactly the delay the kernel itself is about to add to /proc/PID/schedstat. No wakeup
 * hook, no map from task to time, no clock read: the usual wakeup/switch pair needs all three.
 */
#include "common.h"

#define LOWEST_BIT 10 /* 1 us */

struct sched_cell {
    u64 hist[HIST_BINS];
    u64 delay_ns;
    u64 switches;
    u64 objects_full;
    struct first_over first_over;
    struct object_slot objects[OBJECT_SLOTS];
} CELL_ALIGNED;

CELLS(sched_cells, struct sched_cell);

int HOOK(sched_switch, sched_run, bool preempt, struct task_struct *prev, struct task_struct *next)
{
    u64 queued = next->sched_info.last_queued, ns;
    struct cgroup *cgroup;
    struct sched_cell *cell;
    u32 bin;

    if (!next->pid || !queued) /* the idle task waits for nobody */
        return 0;
    cell = own_cell(MAP(sched_cells));
    cgroup = next->cgroups->dfl_cgrp;
    if (!cell || !in_scope(cgroup))
        return 0;
    /* Every task, fair or not, points to its group's queue on this CPU and through it to the run queue. The per-CPU
     * symbol `runqueues` would be shorter, but resolves only on kernels built with CONFIG_KALLSYMS_ALL. */
    ns = next->se.cfs_rq->rq->clock - queued;
    if ((s64)ns < 0) /* clocks of two CPUs may disagree by some ns after a migration */
        ns = 0;
    bin = hist_slot(ns, LOWEST_BIT);
    add(&cell->hist[WITHIN(bin, HIST_BINS)], 1);
    add(&cell->delay_ns, ns);
    add(&cell->switches, 1);
    touch(cell->objects, &cell->objects_full, cgroup->kn->id, 0);
    mark_over(&cell->first_over, bin);
    return 0;
}

LICENSED;
