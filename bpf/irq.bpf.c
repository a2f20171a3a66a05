// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * V_irq: how long softirq handlers hold a CPU.
 *
 * Why these hooks: softirq_entry and softirq_exit bracket one handler run with softirqs off, so a run starts and ends
 * on one CPU and does not nest; the start time needs one word per CPU and no map.
 */
#include "common.h"

#define LOWEST_BIT 8  /* 256 ns */
#define VECTORS    10 /* NR_SOFTIRQS since 2.6.30 */

struct irq_cell {
    u64 hist[HIST_BINS];
    u64 softirq_ns;
    u64 entered_ns;
    u64 entered_vector; /* + 1, 0 = none running */
    u64 unpaired;
    u64 runs[VECTORS];
    struct first_over first_over;
} CELL_ALIGNED;

CELLS(irq_cells, struct irq_cell);

int HOOK(softirq_entry, irq_begun, unsigned int vector)
{
    struct irq_cell *cell = own_cell(MAP(irq_cells));

    if (!cell)
        return 0;
    cell->entered_vector = vector + 1ULL;
    cell->entered_ns = bpf_ktime_get_ns();
    return 0;
}

int HOOK(softirq_exit, irq_ended, unsigned int vector)
{
    struct irq_cell *cell = own_cell(MAP(irq_cells));
    u64 slot = vector, ns;
    u32 bin;

    if (!cell)
        return 0;
    if (cell->entered_vector != slot + 1) { /* attached in between */
        add(&cell->unpaired, 1);
        return 0;
    }
    /* Bounded after that comparison, not before: the verifier of 6.12 forgets a bound when slot + 1 is compared. */
    barrier_var(slot);
    if (slot >= VECTORS) {
        add(&cell->unpaired, 1);
        return 0;
    }
    ns = bpf_ktime_get_ns() - cell->entered_ns;
    cell->entered_vector = 0;
    bin = hist_slot(ns, LOWEST_BIT);
    add(&cell->hist[WITHIN(bin, HIST_BINS)], 1);
    add(&cell->softirq_ns, ns);
    add(&cell->runs[slot], 1);
    mark_over(&cell->first_over, bin);
    return 0;
}

LICENSED;
