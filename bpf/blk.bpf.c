// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * V_blk: how long block requests take, from the request's birth to its completion.
 *
 * Why these hooks: block_rq_complete sees every request once its bytes are done, and the request itself carries its
 * start time (start_time_ns), so one hook and no map replace the usual issue/complete pair with a hash between them.
 * It runs in whatever context the interrupt hit: the owner is taken from the bio's blkcg, never from the current task.
 * block_rq_issue and block_rq_requeue are only counted: issued + unissued = completed + requeued + in flight is our
 * check.
 *
 * A sequence of flushes (block/blk-flush.c) ends with a completion without octets of the request it was made for: an
 * fsync, or a journal's commit block whose data was done before. diskstats counts it too, and it was never issued.
 */
#ifdef MVPS_BCC
#include <linux/blk-mq.h>
#endif
#include "common.h"

#define LOWEST_BIT 10 /* 1 us: below any real device */

struct blk_cell {
    u64 hist[HIST_BINS];
    u64 latency_ns;
    u64 issued;
    u64 completed;
    u64 requeued;
    u64 unissued;
    u64 partial;
    u64 errors;
    u64 untimed;
    u64 bytes;
    u64 objects_full;
    struct first_over first_over;
    struct object_slot objects[OBJECT_SLOTS];
} CELL_ALIGNED;

CELLS(blk_cells, struct blk_cell);

/* Under bcc owners are unknown: struct blkcg_gq is in no header that a distribution ships. */
static __always_inline struct cgroup *owner(struct request *rq)
{
#ifdef MVPS_BCC
    return 0;
#else
    struct bio *bio = rq->bio;
    struct blkcg_gq *blkg;

    if (!bio || !bpf_core_field_exists(bio->bi_blkg)) /* no CONFIG_BLK_CGROUP: the device is all we know */
        return 0;
    blkg = bio->bi_blkg;
    if (!blkg)
        return 0;
    return blkg->blkcg->css.cgroup;
#endif
}

int HOOK(block_rq_complete, blk_complete, struct request *rq, int error, unsigned int nr_bytes)
{
    struct blk_cell *cell = own_cell(MAP(blk_cells));
    struct cgroup *cgroup = owner(rq);
    u64 start = READ(rq, start_time_ns), ns;
    u32 bin;

    if (!cell || !in_scope(cgroup))
        return 0;
    if (nr_bytes < READ(rq, __data_len)) { /* the rest completes later and is the event then */
        add(&cell->partial, 1);
        return 0;
    }
    if (!nr_bytes && READ(rq, bio)) /* the end of a sequence; a flush request itself has no bio, and is issued */
        add(&cell->unissued, 1);
    add(&cell->completed, 1);
    add(&cell->bytes, nr_bytes);
    if (error)
        add(&cell->errors, 1);
    if (!start) { /* the queue keeps no time stamps (iostats = 0) */
        add(&cell->untimed, 1);
        return 0;
    }
    ns = bpf_ktime_get_ns() - start;
    if ((s64)ns < 0) /* start stamps are cached per plug and may be taken a little later than read */
        ns = 0;
    bin = hist_slot(ns, LOWEST_BIT);
    add(&cell->hist[WITHIN(bin, HIST_BINS)], 1);
    add(&cell->latency_ns, ns);
    touch(cell->objects, &cell->objects_full, cgroup ? READ(READ(cgroup, kn), id) : 0, 0);
    mark_over(&cell->first_over, bin);
    return 0;
}

int HOOK(block_rq_issue, blk_issue, struct request *rq)
{
    struct blk_cell *cell = own_cell(MAP(blk_cells));

    if (!cell || (scope_cgroup && !in_scope(owner(rq))))
        return 0;
    add(&cell->issued, 1);
    return 0;
}

int HOOK(block_rq_requeue, blk_requeue, struct request *rq)
{
    struct blk_cell *cell = own_cell(MAP(blk_cells));

    if (!cell || (scope_cgroup && !in_scope(owner(rq))))
        return 0;
    add(&cell->requeued, 1);
    return 0;
}

LICENSED;
