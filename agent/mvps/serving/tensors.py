# SPDX-License-Identifier: Apache-2.0
"""The k likeliest tokens of logits that may live on an accelerator: one transfer out, and one back where any moved.

The vocabulary stays where it is. ``likeliest`` brings ids, logits and, where asked for, the last token of each row in
one piece (double precision holds them all exactly); ``write`` scatters the changed logits. Arrays of numpy and tensors
of torch are taken, the latter by their methods alone, so that torch is not imported here.

The promise of the trust region is about what was *written*. numpy has no bfloat16 to round to, so that such logits are
refused: engines convert to float32 before their logits processors.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mvps.surplus.candidates import IndexArray, Logits, taken, top_k

TokenArray = npt.NDArray[np.integer]
_DTYPES: Final = {"torch.float16": np.float16, "torch.float32": np.float32, "torch.float64": np.float64}


class Likeliest(NamedTuple):
    """ids, logits: (n, k) of the likeliest tokens of each row, in no order. last: (n,) or None. place: the ids where
    the logits live."""

    ids: IndexArray
    logits: Logits
    last: TokenArray | None
    place: Any


def likeliest(logits: Any, k: int, last: Any = None) -> Likeliest:
    """The k likeliest tokens of logits (n, V). last: (n,) tokens beside the logits, to come along."""
    if isinstance(logits, np.ndarray):
        ids = top_k(logits, k)
        return Likeliest(ids, taken(logits, ids), None if last is None else np.asarray(last), ids)
    kind = _DTYPES.get(str(logits.dtype))
    if kind is None:
        raise ValueError(f"logits of {logits.dtype}: convert them to float32, as budgets hold for what is written")
    values, place = logits.detach().topk(k, dim=1, sorted=False)
    together = values.double().new_empty((logits.shape[0], 2 * k + 1))
    together[:, :k] = values
    together[:, k : 2 * k] = place
    if last is not None:
        together[:, 2 * k] = last
    plain = host(together)
    return Likeliest(
        plain[:, k : 2 * k].astype(np.intp),
        plain[:, :k].astype(kind),
        None if last is None else plain[:, 2 * k].astype(np.int64),
        place,
    )


def write(logits: Any, found: Likeliest) -> None:
    """Put the logits of the likeliest tokens back in their place."""
    if isinstance(logits, np.ndarray):
        np.put_along_axis(logits, found.place, found.logits, axis=1)
    else:
        logits.scatter_(1, found.place, logits.new_tensor(found.logits))


def host(values: Any) -> npt.NDArray[Any]:
    """An array of what may be a tensor on an accelerator."""
    array: npt.NDArray[Any] = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return array
