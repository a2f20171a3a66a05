# SPDX-License-Identifier: Apache-2.0
"""The certificate of coupling: what the AI surface does after network events, against placebo times.

R_cross is estimated in BAU, and a coupling that acts only in events does not show there. So (ours) with the times of
events of one surface, known from their injection or from routes and never from D^2, and a series y of the other:

    response g(t) = mean of y over [t, t + after) - mean of y over [t - before, t)
    effect        = mean of g over the events

is held against the effect of the *same train of times*, shifted as a whole in a circle: placebo times with the same
number and the same gaps on a series with the same memory. A shift that brings more than half of the placebo events
within ``after`` ticks of a real one is no placebo and is left out; what others meet of real effects by chance widens
their law, on the side of fewer certificates. p-value: share of placebos at least as extreme, the effect itself among
them. Interval: the effect less the quantiles of the placebos about their mean.

Inject at irregular times: a regular train meets itself again after each period.

The curve is the mean of y around the events less the level before, for lags -before .. after - 1, with its own band.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.observation import FloatArray

SIDES = ("fall", "rise", "both")
LEAST_EVENTS = 5
_MEETING = 0.5


class Response(NamedTuple):
    """effect: mean change of y after an event, in units of y; low, high: its 95 % interval. p_value: against placebos.

    events: how many counted; left_out: those too near an end of the series. placebos: shifts behind the p-value, whose
    least is 1 / (placebos + 1). lags, curve, band_low, band_high: (before + after,) ticks, the mean course and where
    95 % of the placebo courses lie.
    """

    effect: float
    low: float
    high: float
    p_value: float
    events: int
    left_out: int
    placebos: int
    lags: NDArray[np.intp]
    curve: FloatArray
    band_low: FloatArray
    band_high: FloatArray


def event_response(
    y: FloatArray, events: NDArray[np.intp], before: int, after: int, side: str = "both", level: float = 0.05
) -> Response:
    """Response of y (n,), evenly spaced and without gaps, to ``events``, indices of its ticks.

    before, after: ticks averaged on either side. side: which change counts as extreme, "fall", "rise" or "both".
    level: significance that has to be attainable. ValueError without enough events or placebos for that.
    """
    n = len(y)
    if side not in SIDES:
        raise ValueError(f"unknown side {side!r}: choose one of {', '.join(SIDES)}")
    if before < 1 or after < 1 or before + after > n // 4:
        raise ValueError(f"{before} ticks before and {after} after do not fit into {n} ticks: take at most a quarter")
    if not np.isfinite(y).all():
        raise ValueError("the series has gaps: pass the longest run of complete ticks")
    times = np.unique(np.asarray(events, dtype=np.intp))
    if len(times) and not 0 <= times[0] <= times[-1] < n:
        raise ValueError(f"event times must be indices of the {n} ticks of the series")
    inside = times[(times >= before) & (times + after <= n)]
    if len(inside) < LEAST_EVENTS:
        raise ValueError(f"a response needs {LEAST_EVENTS} events with their windows inside, got {len(inside)}")
    train = np.zeros(n)
    train[inside] = 1.0
    shifts = placebo_shifts(train, after)
    least = 1.0 / (len(shifts) + 1)
    if least > level:
        raise ValueError(
            f"{len(shifts)} placebo shifts cannot show significance at {level:g}: the events fill the series, or are "
            "too regular. Record longer, or inject at random times"
        )
    # course[s, l]: mean of y at lag l after the train shifted by s, less that of the lags before.
    spectrum = np.fft.rfft(train).conj()
    lags = np.arange(-before, after)
    mean_at = np.fft.irfft(np.fft.rfft(y) * spectrum, n) / len(inside)
    course = mean_at[(shifts[:, None] + lags) % n]
    actual = mean_at[lags % n]
    course = course - course[:, :before].mean(axis=1, keepdims=True)
    actual = actual - actual[:before].mean()
    effect = float(actual[before:].mean())
    placebo = course[:, before:].mean(axis=1)
    centre = float(placebo.mean())
    signed = {"fall": centre - placebo, "rise": placebo - centre, "both": np.abs(placebo - centre)}[side]
    own = {"fall": centre - effect, "rise": effect - centre, "both": abs(effect - centre)}[side]
    # On a flat series all is rounding, and nothing is extreme.
    extreme = int((signed >= own - 1e-12 * float(np.abs(y).max())).sum())
    below, above = np.quantile(placebo - centre, (0.025, 0.975))
    band = np.quantile(course, (0.025, 0.975), axis=0)
    return Response(
        effect,
        effect - float(above),
        effect - float(below),
        (extreme + 1.0) / (len(shifts) + 1.0),
        len(inside),
        len(times) - len(inside),
        len(shifts),
        lags,
        actual,
        band[0],
        band[1],
    )


def placebo_shifts(train: FloatArray, after: int) -> NDArray[np.intp]:
    """Shifts that bring at most half of the events of a train (n,) of 0 and 1 within ``after`` ticks of one of it."""
    n = len(train)
    times = np.flatnonzero(train)
    near = np.zeros(n)
    for offset in range(-after + 1, after):
        near[(times + offset) % n] = 1.0
    meeting = np.fft.irfft(np.fft.rfft(near) * np.fft.rfft(train).conj(), n)
    return np.flatnonzero(np.round(meeting) <= math.floor(_MEETING * len(times)))
