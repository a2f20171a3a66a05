// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A program that does nothing, on every hook that `bench/run probes` compares on: what it costs is the price of being
 * measured there, and is subtracted from everybody.
 */
#include "kernel_types.h"
#include <bpf/bpf_helpers.h>

#define EMPTY(hook, name)                                                                                              \
    SEC("tp_btf/" hook) int name(void *ctx)                                                                            \
    {                                                                                                                  \
        return 0;                                                                                                      \
    }

EMPTY("block_rq_issue", no_blk_issue)
EMPTY("block_rq_complete", no_blk_done)
EMPTY("mm_vmscan_memcg_reclaim_begin", no_memcg_begin)
EMPTY("mm_vmscan_memcg_reclaim_end", no_memcg_end)
EMPTY("mm_vmscan_direct_reclaim_begin", no_direct_begin)
EMPTY("mm_vmscan_direct_reclaim_end", no_direct_end)
EMPTY("mm_compaction_begin", no_compact_begin)
EMPTY("mm_compaction_end", no_compact_end)
EMPTY("tcp_probe", no_segment)
EMPTY("tcp_retransmit_skb", no_retransmit)
EMPTY("kfree_skb", no_drop)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
