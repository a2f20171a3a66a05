# SPDX-License-Identifier: Apache-2.0
"""The coherence axes C_1, C_2, C_3, the own distance and the Hamiltonian.

Every axis is 1 when the vantages agree and falls towards 0 (001 sec. 2.1). Array functions broadcast over
leading axes, so that the same code serves one tick and a whole calibration window. Notation: N
distributions, A labels, p[v, a].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.observation import FloatArray

TINY = 1e-300
HALF_LN2 = 1.0 / (2.0 * math.log(2.0))

BoolArray = NDArray[np.bool_]


def entropy(p: FloatArray) -> FloatArray:
    """Shannon entropy in bits over the last axis; 0 log 0 = 0."""
    h: FloatArray = -np.add.reduce(p * np.log2(np.maximum(p, TINY)), axis=-1)
    return h


def jsd(p: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Jensen-Shannon divergence in bits of N distributions (Lin 1991): H(sum w_v p_v) - sum w_v H(p_v).

    p: (..., N, A); weights: (..., N) summing to 1, equal by default. Result: (...), >= 0.
    """
    if weights is None:
        weights = np.full(p.shape[-2], 1.0 / p.shape[-2])
    mixture = (weights[..., None] * p).sum(axis=-2)
    divergence: FloatArray = np.maximum(entropy(mixture) - (weights * entropy(p)).sum(axis=-1), 0.0)
    return divergence


def spread(events: FloatArray, pseudo: float) -> FloatArray:
    """n / (n + pseudo)^2: variance of a shrunk proportion over p(1 - p); 0 for an exact law (n = inf)."""
    finite = np.where(np.isfinite(events), events, 0.0)
    s: FloatArray = finite / np.maximum(finite + pseudo, TINY) ** 2
    return s


def jsd_bias(p: FloatArray, events: FloatArray, pseudo: float, weights: FloatArray | None = None) -> FloatArray:
    """Expected excess of the plug-in JSD over the true one, in bits, from counting noise (ours).

    Second-order expansion of the entropies (Miller 1955) for shrunk proportions: each p_v adds
    w_v sum_a Var(p_va)/p_va, the mixture q takes back sum_a Var(q_a)/q_a, all over 2 ln 2. The expansion
    overstates labels expected less than once, so those count by their expectation min(1, n p_a).

    p: (..., N, A); events: (..., N), inf for a law that was not counted. Result: (...).
    """
    if weights is None:
        weights = np.full(p.shape[-2], 1.0 / p.shape[-2])
    s = spread(events, pseudo)[..., None]
    w = weights[..., None]
    n = np.where(np.isfinite(events), events, 0.0)[..., None]
    noise = s * (1.0 - p) * np.minimum(1.0, n * p)
    mixture = np.maximum((w * p).sum(axis=-2), TINY)
    own = (w * noise).sum(axis=(-2, -1))
    shared = ((w * w * p * noise).sum(axis=-2) / mixture).sum(axis=-1)
    bias: FloatArray = HALF_LN2 * (own - shared)
    return np.maximum(bias, 0.0)


def with_reference(
    p: FloatArray, events: FloatArray, reference: FloatArray, present: BoolArray | None
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Append the BAU reference as one more, exactly known distribution.

    Returns distributions (..., N + 1, A), events (..., N + 1), equal weights over those present (..., N + 1)
    and their number (...).
    """
    lead = p.shape[:-2]
    law = np.broadcast_to(reference, (*lead, 1, p.shape[-1]))
    everything = np.concatenate((p, law), axis=-2)
    counts = np.concatenate((events, np.full((*lead, 1), np.inf)), axis=-1)
    if present is None:
        mask = np.ones(everything.shape[:-1], dtype=bool)
    else:
        mask = np.concatenate((present, np.ones((*lead, 1), dtype=bool)), axis=-1)
    number = mask.sum(axis=-1).astype(np.float64)
    return everything, counts, mask / number[..., None], number


def c2(
    p: FloatArray, events: FloatArray, reference: FloatArray, pseudo: float, present: BoolArray | None = None
) -> FloatArray:
    """C_2 = 1 - (JSD({p_v} and the BAU reference) - count bias) / log2(min(N + 1, A)), clipped to [0, 1].

    001 sec. 2.1 with two additions (ours): the reference, without which a common shift looks coherent, and
    the bias, without which a busier host looks more coherent.

    p: (..., N, A); events: (..., N); reference: (A,); present: (..., N), which vantages reported.
    Result: (...), NaN where no vantage is present.
    """
    everything, counts, weights, number = with_reference(p, events, reference, present)
    norm = np.log2(np.minimum(np.maximum(number, 2.0), p.shape[-1]))
    excess = jsd(everything, weights) - jsd_bias(everything, counts, pseudo, weights)
    value: FloatArray = np.minimum(np.maximum(1.0 - excess / norm, 0.0), 1.0)
    return value if present is None else np.where(number > 1.0, value, np.nan)


def c2_noise(
    p: FloatArray,
    events: FloatArray,
    law: FloatArray,
    reference: FloatArray,
    pseudo: float,
    present: BoolArray | None = None,
) -> FloatArray:
    """Variance that counting noise alone gives C_2 (ours).

    Three terms. Under BAU the excess JSD is a chi-square-like sum with the count bias b for mean: 2 b^2 / d, d one
    degree of freedom per free label of each counted distribution. Off BAU the first order of the delta method
    rules: each event moves 1 / (n + pseudo) of its vantage's mass at a price of w log2(p / mixture), and event
    numbers are Poisson, so that k stray events weigh like sqrt(k). The third keeps a vantage with few events from
    looking exact: one event's mass at half a bit.

    law: (..., N, A), the BAU laws that p was shrunk to; the rest as in :func:`c2`.
    """
    everything, counts, weights, number = with_reference(p, events, reference, present)
    norm = np.log2(np.minimum(np.maximum(number, 2.0), p.shape[-1]))
    bias = jsd_bias(everything, counts, pseudo, weights)
    free = ((everything > 0.0).sum(axis=-1) - 1).clip(0) * (weights > 0.0) * np.isfinite(counts)
    null = 2.0 * bias**2 / np.maximum(free.sum(axis=-1), 1.0)
    mixture = (weights[..., None] * everything).sum(axis=-2, keepdims=True)
    price = weights[..., :-1, None] * (np.log2(np.maximum(p, TINY)) - np.log2(np.maximum(mixture, TINY)))
    size = events[..., None] + pseudo
    drawn = np.maximum(p - pseudo * law / size, 0.0) / size
    stray = (drawn * price * price).sum(axis=(-2, -1))
    single = 0.5 * weights[..., :-1] * np.minimum(events, 1.0) / (events + pseudo)
    noise: FloatArray = (null + stray + (single * single).sum(axis=-1)) / norm**2
    return noise


def c2_plain(p: FloatArray) -> float | None:
    """C_2 as the seeds state it: 1 - JSD({p_v}) / log2(min(N, A)); None below two vantages (001 sec. 2.1)."""
    number, labels = p.shape
    if number < 2:
        return None
    return min(max(1.0 - float(jsd(p)) / math.log2(min(number, labels)), 0.0), 1.0)


def own_distance(p: FloatArray, events: FloatArray, law: FloatArray, pseudo: float) -> FloatArray:
    """Bias-corrected JSD in bits of each vantage to its own BAU law (ours), shape (..., N).

    Not clipped at 0: the sign of a small excess is needed for an honest standardisation.
    p, law: (..., N, A); events: (..., N).
    """
    pair = np.stack((p, np.broadcast_to(law, p.shape)), axis=-2)
    counts = np.stack((events, np.full_like(events, np.inf)), axis=-1)
    difference: FloatArray = jsd(pair) - jsd_bias(pair, counts, pseudo)
    return difference


def own_noise(p: FloatArray, events: FloatArray, law: FloatArray, pseudo: float) -> FloatArray:
    """Variance in bits^2 that counting alone gives the own distance, shape (..., N) (ours).

    Null variance 2 b^2 / d of the bias b, plus the square of what one event of a label never seen does:
    1 / (n + pseudo) of the mass moves, which costs half a bit each. Same arguments as :func:`own_distance`.
    """
    pair = np.stack((p, np.broadcast_to(law, p.shape)), axis=-2)
    counts = np.stack((events, np.full_like(events, np.inf)), axis=-1)
    free = np.maximum((p > 0.0).sum(axis=-1) - 1, 1)
    noise: FloatArray = 2.0 * jsd_bias(pair, counts, pseudo) ** 2 / free + 0.25 / (events + pseudo) ** 2
    return noise


def binomial_noise(rate: float, trials: float) -> float:
    """Variance of a rate over ``trials``, with half a success and half a failure added (Jeffreys).

    Never 0 for finite trials: a rate that was always 1 so far still has counting noise.
    """
    if trials <= 0.0:
        return 0.0
    smoothed = (rate * trials + 0.5) / (trials + 1.0)
    return smoothed * (1.0 - smoothed) / trials


def conditional_entropy(flows: Iterable[Mapping[int, float]]) -> tuple[float, float] | None:
    """(H(fingerprint | flow) in bits averaged over flows by events, events); None without any event.

    Conditional (ours), because healthy even multipath has a high unconditional entropy. Each flow's entropy
    carries the Miller-Madow count correction.
    """
    total = weighted = 0.0
    for fingerprints in flows:
        counts = [count for count in fingerprints.values() if count > 0.0]
        events = sum(counts)
        if events <= 0.0:
            continue
        total += events
        if len(counts) > 1:
            plug_in = -sum(count / events * math.log2(count / events) for count in counts)
            weighted += events * min(plug_in + (len(counts) - 1) * HALF_LN2 / events, math.log2(len(counts)))
    return (weighted / total, total) if total > 0.0 else None


def c1(checked: float, violated: float, fingerprint_entropy: tuple[float, float] | None, known: int) -> float | None:
    """C_1 = (1 - violated/checked) * (1 - H(fingerprint | flow) / log2 M) (001 sec. 1; conditional form ours).

    checked, violated: causal and witness checks of all vantages in this tick. fingerprint_entropy: from
    :func:`conditional_entropy`. known: M, distinct fingerprints known. A factor without data is 1; without
    any data the axis is absent (None).
    """
    if checked <= 0.0 and fingerprint_entropy is None:
        return None
    lawful = 1.0 - violated / checked if checked > 0.0 else 1.0
    return lawful * _steadiness(fingerprint_entropy, known)


def check_noise(checked: FloatArray, violated: FloatArray, at: FloatArray) -> FloatArray:
    """Variance that ``at`` checks in a tick give the lawful share of C_1, same shape as ``at`` (ours).

    checked, violated: of BAU ticks, (T,). Their pooled rate counts, not the tick's own few checks: what held a
    thousand times does not fail by chance, so its first failure is no noise.
    """
    trials = float(checked.sum())
    rate = (float(violated.sum()) + 0.5) / (trials + 1.0)
    noise: FloatArray = np.where(at > 0.0, rate * (1.0 - rate) / np.maximum(at, 1.0), 0.0)
    return noise


def fingerprint_noise(fingerprint_entropy: tuple[float, float] | None, known: int) -> float:
    """Variance that counting alone gives the fingerprint factor of C_1, arguments as of :func:`c1` (ours)."""
    if fingerprint_entropy is None:
        return 0.0
    return binomial_noise(_steadiness(fingerprint_entropy, known), fingerprint_entropy[1])


def _steadiness(fingerprint_entropy: tuple[float, float] | None, known: int) -> float:
    if fingerprint_entropy is None:
        return 1.0
    return 1.0 - min(fingerprint_entropy[0] / math.log2(max(known, 2)), 1.0)


def jaccard(a: AbstractSet[int], b: AbstractSet[int]) -> float:
    """|a and b| / |a or b|; two empty sets agree: 1."""
    both = len(a & b)
    either = len(a) + len(b) - both
    return both / either if either else 1.0


def c3(touched: Sequence[AbstractSet[int]], bau: Sequence[AbstractSet[int]]) -> float | None:
    """C_3 = mean of J(E_v, E_w) over pairs and of J(E_v, BAU set of v) over vantages (001 sec. 1, BAU ours).

    touched, bau: aligned, one set per vantage that can emit objects. None below two emitters. The BAU terms
    keep a fault that fills an empty set from raising the axis.
    """
    number = len(touched)
    if number < 2:
        return None
    total = sum(jaccard(touched[v], bau[v]) for v in range(number))
    for v in range(number):
        for w in range(v):
            total += jaccard(touched[v], touched[w])
    return total / (number + number * (number - 1) / 2)


def hamiltonian(axes: Iterable[float | None], epsilon: float = 1e-6) -> float:
    """H = -sum_k log max(C_k, epsilon) over the axes that are present (001 sec. 2.1; epsilon ours), nats."""
    return -sum(math.log(max(value, epsilon)) for value in axes if value is not None) + 0.0
