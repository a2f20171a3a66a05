# SPDX-License-Identifier: Apache-2.0
"""Real faults on this host, bounded and undone: what `mvps run --provoke` and the detection benchmark use.

Nothing here is simulated. A fault is a process, a cgroup, a queueing discipline or a route that this package makes and
removes; network faults stay inside a namespace and the benchmark range 198.18.0.0/15 (RFC 2544).
"""
