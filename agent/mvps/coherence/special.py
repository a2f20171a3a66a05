# SPDX-License-Identifier: Apache-2.0
"""The few special functions the algebra needs, without scipy (the agent must stay small).

Everything that can underflow is offered as a logarithm: a tick at D^2 = 5000 still has a p-value.
Methods: incomplete gamma by series / Lentz continued fraction, incomplete beta by Lentz continued
fraction (Press et al., Numerical Recipes, ch. 6), non-central chi-square as a Poisson mixture,
quantiles by safeguarded bisection on the logarithm of the tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_EPS = 1e-16
_TINY = 1e-300
_MAX_TERMS = 100_000


def _log_gamma_upper(a: float, x: float) -> float:
    """log Q(a, x), the regularised upper incomplete gamma function."""
    if x <= 0.0:
        return 0.0
    front = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1.0:
        lower = math.exp(front) * _gamma_series(a, x)
        return math.log1p(-lower) if lower < 1.0 else -math.inf
    b = x + 1.0 - a
    c = 1.0 / _TINY
    d = 1.0 / b
    h = d
    for i in range(1, _MAX_TERMS):
        step = -i * (i - a)
        b += 2.0
        d = step * d + b
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = b + step / c
        c = c if abs(c) > _TINY else _TINY
        h *= d * c
        if abs(d * c - 1.0) < _EPS * 4:
            break
    return front + math.log(h)


def _gamma_series(a: float, x: float) -> float:
    """P(a, x) / (x^a e^-x / Gamma(a)), for x < a + 1."""
    term = total = 1.0 / a
    for i in range(1, _MAX_TERMS):
        term *= x / (a + i)
        total += term
        if term < total * _EPS:
            break
    return total


def _gamma_lower(a: float, x: float) -> float:
    """P(a, x), the regularised lower incomplete gamma function."""
    if x <= 0.0:
        return 0.0
    if x < a + 1.0:
        return math.exp(a * math.log(x) - x - math.lgamma(a)) * _gamma_series(a, x)
    return -math.expm1(_log_gamma_upper(a, x))


def chi2_logsf(x: float, dof: float) -> float:
    """log P(X > x) for X central chi-square with ``dof`` degrees of freedom."""
    return _log_gamma_upper(dof / 2.0, x / 2.0)


def chi2_sf(x: float, dof: float) -> float:
    """P(X > x) for X central chi-square with ``dof`` degrees of freedom."""
    return math.exp(chi2_logsf(x, dof))


def chi2_cdf(x: float, dof: float) -> float:
    """P(X <= x) for X central chi-square with ``dof`` degrees of freedom."""
    return _gamma_lower(dof / 2.0, x / 2.0)


def chi2_logpdf(x: float, dof: float) -> float:
    """log density of the central chi-square; -inf for x < 0 and, unless dof <= 2, at 0."""
    if x < 0.0 or (x == 0.0 and dof > 2.0):
        return -math.inf
    if x == 0.0:
        return math.inf if dof < 2.0 else -math.log(2.0)
    half = dof / 2.0
    return (half - 1.0) * math.log(x) - x / 2.0 - half * math.log(2.0) - math.lgamma(half)


def chi2_pdf(x: float, dof: float) -> float:
    """Density of the central chi-square with ``dof`` degrees of freedom."""
    return math.exp(chi2_logpdf(x, dof))


def _solve_increasing(f: Callable[[float], float], target: float, guess: float) -> float:
    """x > 0 with f(x) = target, for f increasing: bracket by doubling, then bisect to the last bit."""
    low, high = 0.0, max(guess, 1e-3)
    while f(high) < target:
        low, high = high, high * 2.0
        if high > 1e300:
            return math.inf
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if f(middle) < target:
            low = middle
        else:
            high = middle
    return high


def chi2_ppf(level: float, dof: float) -> float:
    """x with P(X <= x) = level; ValueError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"a quantile needs 0 < level < 1, not {level}")
    if level < 0.5:
        return _solve_increasing(lambda x: chi2_cdf(x, dof), level, dof)
    return chi2_log_isf(math.log1p(-level), dof)


def chi2_log_isf(log_p: float, dof: float) -> float:
    """x with log P(X > x) = log_p, for log_p <= 0."""
    if log_p >= 0.0:
        return 0.0
    return _solve_increasing(lambda x: -chi2_logsf(x, dof), -log_p, dof)


def log_0f1(b: float, z: float) -> float:
    """log of the confluent hypergeometric limit function 0F1(; b; z), for b > 0, z >= 0.

    exp(-lambda/2) 0F1(; dof/2; lambda x / 4) is the likelihood ratio of non-central to central chi-square,
    which is all that the posterior over phases needs.
    """
    y = 2.0 * math.sqrt(z)
    order = b - 1.0
    if y > 60.0 + order * order:
        # 0F1(;b;z) = Gamma(b) z^(-(b-1)/2) I_{b-1}(2 sqrt z), with the large-argument form of I.
        mu = 4.0 * order * order
        term = total = 1.0
        for k in range(1, 12):
            term *= -(mu - (2 * k - 1) ** 2) / (k * 8.0 * y)
            total += term
        return math.lgamma(b) - order * math.log(y / 2.0) + y - 0.5 * math.log(2.0 * math.pi * y) + math.log(total)
    term = total = 1.0
    k = 0
    while term > total * _EPS:
        term *= z / ((k + 1) * (b + k))
        total += term
        k += 1
    return math.log(total)


def ncx2_logpdf(x: float, dof: float, noncentrality: float) -> float:
    """log density of the non-central chi-square."""
    return chi2_logpdf(x, dof) - noncentrality / 2.0 + log_0f1(dof / 2.0, noncentrality * x / 4.0)


def ncx2_pdf(x: float, dof: float, noncentrality: float) -> float:
    """Density of the non-central chi-square."""
    return math.exp(ncx2_logpdf(x, dof, noncentrality))


def ncx2_cdf(x: float, dof: float, noncentrality: float) -> float:
    """P(X <= x) for the non-central chi-square: central ones mixed by Poisson(noncentrality / 2)."""
    if x <= 0.0:
        return 0.0
    half = noncentrality / 2.0
    if half == 0.0:
        return chi2_cdf(x, dof)
    total = 0.0
    mode = int(half)
    # Outward from the Poisson mode, so that the first terms are the largest and none underflows early.
    for indices in (range(mode, -1, -1), range(mode + 1, mode + _MAX_TERMS)):
        for j in indices:
            weight = math.exp(j * math.log(half) - half - math.lgamma(j + 1.0))
            total += weight * chi2_cdf(x, dof + 2 * j)
            if weight < _EPS:
                break
    return min(total, 1.0)


def _beta_lower(a: float, b: float, x: float) -> float:
    """I_x(a, b), the regularised incomplete beta function."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta_lower(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    h = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for step in (even, odd):
            d = 1.0 + step * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + step / c
            c = c if abs(c) > _TINY else _TINY
            change = d * c
            h *= change
        if abs(change - 1.0) < _EPS * 4:
            break
    return front * h / a


def f_cdf(x: float, dof1: float, dof2: float) -> float:
    """P(X <= x) for the F distribution."""
    if x <= 0.0:
        return 0.0
    return _beta_lower(dof1 / 2.0, dof2 / 2.0, dof1 * x / (dof1 * x + dof2))


def f_logsf(x: float, dof1: float, dof2: float) -> float:
    """log P(X > x) for the F distribution; -inf once the tail underflows."""
    if x <= 0.0:
        return 0.0
    tail = _beta_lower(dof2 / 2.0, dof1 / 2.0, dof2 / (dof1 * x + dof2))
    return math.log(tail) if tail > 0.0 else -math.inf


def f_ppf(level: float, dof1: float, dof2: float) -> float:
    """x with P(X <= x) = level; ValueError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"a quantile needs 0 < level < 1, not {level}")
    if level < 0.5:
        return _solve_increasing(lambda x: f_cdf(x, dof1, dof2), level, 1.0)
    return _solve_increasing(lambda x: -f_logsf(x, dof1, dof2), -math.log1p(-level), 1.0)


def _hotelling_scale(dof: int, ticks: int) -> float:
    """T^2 / F: a new tick against mean and covariance estimated from ``ticks`` independent ones."""
    if ticks <= dof:
        raise ValueError(f"Hotelling limits need more ticks than axes, got {ticks} for {dof}")
    return dof * (ticks + 1.0) * (ticks - 1.0) / (ticks * (ticks - dof))


def hotelling_limit(level: float, dof: int, ticks: int) -> float:
    """D^2 that a new i.i.d. Gaussian tick exceeds with probability 1 - level.

    The baseline's mean and covariance (divisor ticks - 1) come from ``ticks`` independent ticks (Hotelling
    1931; the limit for a future observation, e.g. Tracy, Young & Mason 1992).
    """
    return _hotelling_scale(dof, ticks) * f_ppf(level, dof, ticks - dof)


def hotelling_logsf(d2: float, dof: int, ticks: int) -> float:
    """log probability that a new i.i.d. Gaussian tick lies farther out than ``d2``."""
    return f_logsf(d2 / _hotelling_scale(dof, ticks), dof, ticks - dof)
