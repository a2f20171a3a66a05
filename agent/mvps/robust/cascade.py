# SPDX-License-Identifier: Apache-2.0
"""tau_C: how long a rogue announcement takes to reach a share of the vantages (001 sec. 15).

An AS hears it from a neighbour at rate beta(u, v) = 1 / max(rtt, 30 s) and passes it on; it drops it at rate gamma(v).
An AS that validates origins (ROV) never takes it. Three answers, from coarse to exact within this model:

    closed form    tau_C(p) = ln(p / eps_0) / lambda,  eps_0 = 1/N                       (001 sec. 15.2)
    saturated      tau_C(p) = ln(p (1 - eps_0) / (eps_0 (1 - p))) / lambda               (logistic growth, ours)
    discrete event the time itself, by simulation

lambda is the largest real part of an eigenvalue of A^beta - diag(gamma): for gamma = 0 the Perron root, found by power
iteration on each strongly connected component. Without a cycle of sessions it is 0 and the first two are infinite,
although the announcement arrives: growth from the state in which nobody has it says nothing about a single source. On
real graphs lambda belongs to the densest core and not to the way from the origin to the vantages, so that the closed
form errs both ways; the simulation stands beside it to show by how much.

The simulation needs no event queue. With X an edge's delay and R_u the time that u keeps the announcement, v has it at
the length of the shortest path over the edges with X <= R_u (first-passage percolation): one Dijkstra per run.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, diags, identity
from scipy.sparse.csgraph import breadth_first_order, connected_components, dijkstra

from mvps.coherence.axes import BoolArray
from mvps.coherence.observation import FloatArray
from mvps.coherence.tail import IndexArray

CONVERGENCE_FLOOR_S = 30.0  # BGP's MinRouteAdvertisementInterval for eBGP (RFC 4271 sec. 10)
HYSTERESIS_TICKS = 3
Delay = Literal["exponential", "uniform", "fixed"]


def rate_matrix(
    sessions: csr_matrix, rtt_s: FloatArray | None = None, floor_s: float = CONVERGENCE_FLOOR_S
) -> csr_matrix:
    """A^beta: rates per second of the directed sessions (n, n). rtt_s: of each stored session, in its order."""
    if not floor_s > 0.0:
        raise ValueError(f"the convergence floor must be positive, not {floor_s} s")
    delay = np.full(sessions.nnz, floor_s) if rtt_s is None else np.maximum(rtt_s, floor_s)
    return csr_matrix((1.0 / delay, sessions.indices, sessions.indptr), shape=sessions.shape)


def without(beta: csr_matrix, immune: BoolArray) -> csr_matrix:
    """Rates when the ``immune`` (n,) neither take nor pass on the announcement: ROV."""
    return within(beta, ~immune)


def within(beta: csr_matrix, inside: BoolArray) -> csr_matrix:
    """Rates of the sessions between ASes ``inside`` (n,); the others keep their place and have none."""
    keep = diags(inside.astype(np.float64))
    kept = csr_matrix(keep @ beta @ keep)
    kept.eliminate_zeros()
    return kept


def relevant(beta: csr_matrix, origin: int, targets: IndexArray) -> BoolArray:
    """ASes on some walk from the origin to a target (n,), as 001 sec. 15.2 restricts A^beta."""
    forward = np.zeros(beta.shape[0], dtype=bool)
    forward[breadth_first_order(beta, origin, return_predecessors=False)] = True
    # One node more that every target leads to, so that one search back from it finds who leads to any.
    size = beta.shape[0]
    rows, columns = beta.nonzero()
    to_sink = csr_matrix(
        (
            np.ones(len(rows) + len(targets)),
            (np.concatenate((columns, np.full(len(targets), size))), np.concatenate((rows, targets))),
        ),
        shape=(size + 1, size + 1),
    )
    backward = np.zeros(size + 1, dtype=bool)
    backward[breadth_first_order(to_sink, size, return_predecessors=False)] = True
    return forward & backward[:size]


class Growth(NamedTuple):
    """rate: lambda per second, 0 without a cycle. residual: |A x - lambda x| / |x| of the vector found.

    iterations: power steps; component: ASes in the strongly connected component that it belongs to.
    """

    rate: float
    residual: float
    iterations: int
    component: int


def growth(
    beta: csr_matrix, gamma: FloatArray | None = None, tolerance: float = 1e-8, max_iterations: int = 20_000
) -> Growth:
    """Largest real part of an eigenvalue of beta - diag(gamma) (n, n), by power iteration.

    tolerance: relative residual to stop at.
    """
    size = beta.shape[0]
    recovery = np.zeros(size) if gamma is None else gamma
    number, member = connected_components(beta, directed=True, connection="strong")
    sizes = np.bincount(member, minlength=number)
    # An AS that is on no cycle is its own component and its own eigenvalue.
    alone = np.flatnonzero(sizes[member] == 1)
    best = Growth(-math.inf, 0.0, 0, 1)
    if len(alone):
        best = Growth(float((beta.diagonal()[alone] - recovery[alone]).max()), 0.0, 0, 1)
    for component in np.flatnonzero(sizes > 1):
        inside = np.flatnonzero(member == component)
        block = beta[inside][:, inside]
        # No eigenvalue exceeds the largest row sum: who cannot win is not computed.
        if float((block.sum(axis=1).A1 - recovery[inside]).max()) <= best.rate:
            continue
        found = _power(block, recovery[inside], tolerance, max_iterations)
        best = max(best, found, key=lambda one: one.rate)
    return best


def _power(block: csr_matrix, recovery: FloatArray, tolerance: float, max_iterations: int) -> Growth:
    # The shift makes the matrix non-negative, and breaks the tie of +lambda and -lambda in bipartite graphs.
    strongest = float(block.sum(axis=1).max())
    shift = float(recovery.max()) + 0.05 * strongest
    matrix = csr_matrix(block - diags(recovery) + shift * identity(block.shape[0]))
    x = np.full(block.shape[0], 1.0 / math.sqrt(block.shape[0]))
    rate = residual = math.inf
    for iteration in range(1, max_iterations + 1):
        y = matrix @ x
        rate = float(x @ y)
        residual = float(np.linalg.norm(y - rate * x))
        if residual <= tolerance * rate or iteration == max_iterations:
            break
        x = y / np.linalg.norm(y)
    return Growth(rate - shift, residual, iteration, block.shape[0])


# ---- closed forms


def tau_closed(rate: float, share: float, start: float) -> float:
    """tau_C in seconds as 001 sec. 15.2 states it: ln(share / start) / rate, 0 below start, inf without growth."""
    _check_shares(share, start)
    if share <= start:
        return 0.0
    return math.log(share / start) / rate if rate > 0.0 else math.inf


def tau_saturated(rate: float, share: float, start: float) -> float:
    """tau_C in seconds of logistic growth, which slows down as fewer are left to reach; inf for all of them."""
    _check_shares(share, start)
    if share <= start:
        return 0.0
    if rate <= 0.0 or share == 1.0:
        return math.inf
    return math.log(share * (1.0 - start) / (start * (1.0 - share))) / rate


def _check_shares(share: float, start: float) -> None:
    if not (0.0 < share <= 1.0 and 0.0 < start < 1.0):
        raise ValueError(f"shares lie in (0, 1]: got {share} from {start}")


def longest_tick(tau_s: float, ticks: int = HYSTERESIS_TICKS) -> float:
    """The longest period in seconds at which ``ticks`` ticks fit into tau_C: Delta_t <= tau_C / K.

    The source calls it a minimum rate; it is a maximum period. With the delivery of the last report included, the
    time to detect is up to K Delta_t + RTT: leave room.
    """
    return tau_s / ticks


# ---- discrete events


def arrival_times(
    beta: csr_matrix,
    origin: int,
    rng: np.random.Generator,
    gamma: FloatArray | None = None,
    delay: Delay = "exponential",
) -> FloatArray:
    """Seconds after which each AS (n,) has the announcement, inf where it never arrives; one random run.

    delay: of a session with rate b: exponential with mean 1/b, as SIR has it; uniform on (0, 1/b), as a timer that
    runs anyway gives it; or 1/b.
    """
    mean = 1.0 / beta.data
    if delay == "exponential":
        drawn = mean * rng.exponential(size=len(mean))
    elif delay == "uniform":
        drawn = mean * rng.random(len(mean))
    else:
        drawn = mean
    drawn = np.maximum(drawn, 1e-12)  # a stored 0 would be no edge
    if gamma is not None:
        with np.errstate(divide="ignore"):
            kept_s = rng.exponential(size=beta.shape[0]) / gamma
        sender = np.repeat(np.arange(beta.shape[0]), np.diff(beta.indptr))
        drawn = np.where(drawn <= kept_s[sender], drawn, np.inf)
    lengths = csr_matrix((drawn, beta.indices, beta.indptr), shape=beta.shape)  # shares its indices with beta
    arrival: FloatArray = dijkstra(lengths, indices=origin)
    return arrival


def time_to_share(arrival: FloatArray, targets: IndexArray, share: float) -> float:
    """Seconds until ``share`` of the targets have the announcement, inf if never."""
    needed = math.ceil(share * len(targets) - 1e-9)
    if not 1 <= needed <= len(targets):
        raise ValueError(f"a share of {share} of {len(targets)} targets is nobody")
    return float(np.sort(arrival[targets])[needed - 1])


def simulated_tau(
    beta: csr_matrix,
    origin: int,
    targets: IndexArray,
    share: float,
    runs: int,
    seed: int = 0,
    gamma: FloatArray | None = None,
    delay: Delay = "exponential",
) -> FloatArray:
    """tau_C of ``runs`` random runs (runs,), in seconds; inf for those that never get there."""
    rng = np.random.default_rng(seed)
    return np.array(
        [time_to_share(arrival_times(beta, origin, rng, gamma, delay), targets, share) for _ in range(runs)]
    )
