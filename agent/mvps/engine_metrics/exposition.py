# SPDX-License-Identifier: Apache-2.0
"""Samples of one model in a page of Prometheus's text format.

Only what is asked for is read, so that a page may hold anything else. A model's samples are those that name it, and
those that name no model: an engine that serves one model need not say which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

# A vLLM server with many histograms exports some 100 KiB.
MAX_BYTES: Final = 4 << 20
_LINE: Final = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL: Final = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of a page. labels: values as they are written, escapes included."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(text: str, names: Collection[str], model: str) -> list[Sample]:
    """The samples of these names, in order, but for those of other models. ValueError: a value is none."""
    found: list[Sample] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match[1] not in names:
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        if labels.get("model_name", model) == model:
            found.append(Sample(match[1], labels, float(match[3])))
    return found
