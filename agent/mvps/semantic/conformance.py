# SPDX-License-Identifier: Apache-2.0
"""A4: which of the conditions of L-AI-A4 a configuration meets, and what that covers (001 sec. 25.3, 25.4).

Vantages that share an encoder share its errors, and are not independent given the state of the replicas. One of these
has to hold, and the lemma claims the same for each; what follows differs:

a. Every vantage has an encoder of its own, from three training pipelines at least. The axes of different vantages are
   then independent. Within a vantage all answers must go through one encoder: W_2 between clouds of different
   encoders is not defined, so that "vantage" cannot be a replica here, as sec. 4.1 has it.
b. One encoder, and a baseline estimated with that same encoder. The false alarms of D^2 are then those of the baseline,
   and an alarm means "moved relative to this encoder". Vantages are still not independent.
c. Rephrasings that the encoder has no part in. That is about C_4 and CBF only, and leaves the other axes as they are.

None of them: D^2 can be computed, and nothing is promised about its false alarms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

LEAST_PIPELINES = 3


class Model(NamedTuple):
    """A model that takes part: its name, with a digest or revision where there is one, and its training pipeline."""

    name: str
    pipeline: str


class Configuration(NamedTuple):
    """encoders: vantage -> encoder. baselines: vantage -> name of the encoder its baseline was estimated with.

    rephrasers: models that made the rephrasings, none where templates or people did. c4: whether C_4 is measured.
    """

    encoders: Mapping[str, Model]
    baselines: Mapping[str, str]
    rephrasers: tuple[Model, ...]
    c4: bool


class Condition(NamedTuple):
    """One condition: whether it holds, why or why not, and what it covers if it does."""

    name: str
    holds: bool
    reason: str
    covers: str


class Conformance(NamedTuple):
    """All three conditions, a to c."""

    conditions: tuple[Condition, ...]

    @property
    def holds(self) -> tuple[str, ...]:
        """Names of the conditions that hold, empty when the configuration is not A4 conformant."""
        return tuple(condition.name for condition in self.conditions if condition.holds)

    @property
    def verdict(self) -> str:
        """One line for a reader."""
        if not self.holds:
            return "not A4 conformant: D^2 and C_4 are computed, and nothing bounds their false alarms in theory"
        held = (condition for condition in self.conditions if condition.holds)
        return "A4 conformant by " + "; ".join(f"{condition.name} ({condition.covers})" for condition in held)


def conformance(configuration: Configuration) -> Conformance:
    """Check a configuration. ValueError without any vantage."""
    encoders = configuration.encoders
    if not encoders:
        raise ValueError("a configuration needs at least one vantage with an encoder")
    return Conformance((_own_encoders(encoders), _calibrated(encoders, configuration.baselines), _apart(configuration)))


def _own_encoders(encoders: Mapping[str, Model]) -> Condition:
    names = {encoder.name for encoder in encoders.values()}
    pipelines = {encoder.pipeline for encoder in encoders.values()}
    if len(names) < len(encoders):
        reason = f"{len(encoders)} vantages share {len(names)} encoders"
    elif len(pipelines) < LEAST_PIPELINES:
        reason = f"the encoders come from {len(pipelines)} training pipelines, fewer than {LEAST_PIPELINES}"
    else:
        reason = f"{len(encoders)} encoders from {len(pipelines)} training pipelines"
    holds = len(names) == len(encoders) and len(pipelines) >= LEAST_PIPELINES
    return Condition("L-AI-A4.a", holds, reason, "all axes, between vantages")


def _calibrated(encoders: Mapping[str, Model], baselines: Mapping[str, str]) -> Condition:
    without = sorted(vantage for vantage in encoders if vantage not in baselines)
    other = sorted(v for v, encoder in encoders.items() if v in baselines and baselines[v] != encoder.name)
    if without:
        reason = f"no baseline yet: {', '.join(without)}"
    elif other:
        reason = f"baseline of another encoder: {', '.join(other)}"
    else:
        reason = "every baseline was estimated with the encoder in use"
    return Condition("L-AI-A4.b", not (without or other), reason, "false alarms of D^2, relative to the encoder")


def _apart(configuration: Configuration) -> Condition:
    covers = "C_4 and CBF only"
    if not configuration.c4:
        return Condition("L-AI-A4.c", False, "C_4 is not measured", covers)
    used = configuration.encoders.values()
    names, pipelines = {encoder.name for encoder in used}, {encoder.pipeline for encoder in used}
    # A model of the encoder's pipeline has learnt the encoder's errors, whatever it is called.
    shared = sorted(m.name for m in configuration.rephrasers if m.name in names or m.pipeline in pipelines)
    if shared:
        return Condition("L-AI-A4.c", False, f"the rephraser is the encoder or of its pipeline: {shared[0]}", covers)
    by = ", ".join(model.name for model in configuration.rephrasers) or "templates or people"
    return Condition("L-AI-A4.c", True, f"rephrased by {by}", covers)
