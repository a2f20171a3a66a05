# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: at the end of every bundle period the broker signs its log's head, and asks the witnesses to cosign it.

A checkpoint is on disk before anyone sees it. Witnesses are asked in rounds, all of them about the same checkpoint and
at the same time; one that does not answer is left out of the following rounds for a while that doubles, up to a
minute, and delays neither the next checkpoint nor the others. A checkpoint that no round was about is covered by the
next one that was: witnesses only sign trees that contain it. When the quorum has cosigned, the note is kept again with
the cosignatures, and once more if all have.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import aiohttp

from mvps.trust.checkpoint import Binding, Checkpoint, CheckpointError, Distances, parse_checkpoint, worst_case
from mvps.trust.evidence_log import EvidenceError, EvidenceLog
from mvps.trust.keys import SecretKey
from mvps.trust.note import Note, NoteError, NoteKey, NoteSignature, parse_signatures, sign_note, verified
from mvps.trust.witness import Request, size_in_conflict

_MAX_ANSWER: Final = 16 * 1024  # bytes
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


class Signing(NamedTuple):
    """Under what a checkpoint is signed: what the epoch in force says.

    origin: names the log, and the key in its signature lines. manifest: SHA-256 of the manifest's text, or None.
    faults: vantages that may lie. quorum: witnesses, of those named, that must cosign.
    """

    origin: str
    key: SecretKey
    manifest: bytes | None = None
    faults: int = 0
    quorum: int = 0
    witnesses: tuple[NoteKey, ...] = ()


class EvidenceStatus(NamedTuple):
    """What is shown. Times are ns since the Unix epoch; 0 for never.

    checkpoint_size, checkpoint_ns (end of its period), cosignatures: of the newest checkpoint. cosigned_size: leaves of
    the newest one that reached the quorum since the start. witness_errors: by name, those in trouble only. error: ""
    or why no checkpoint could be kept.
    """

    size: int
    checkpoint_size: int
    checkpoint_ns: int
    cosignatures: int
    quorum: int
    cosigned_size: int
    witness_errors: dict[str, str]
    error: str


@dataclass(slots=True)
class _Witness:
    key: NoteKey
    known: int = 0  # leaves it has cosigned, as far as we know
    cosigned: str = ""  # text of the last checkpoint it cosigned for us
    error: str = ""
    pause_s: float = 0.0
    not_before: float = 0.0  # monotonic


@dataclass(slots=True)
class _Round:
    """One checkpoint and the cosignatures it has."""

    note: Note
    quorum: int
    cosignatures: dict[NoteKey, NoteSignature] = field(default_factory=dict)

    def cosigned_note(self) -> Note:
        return Note(self.note.text, (*self.note.signatures, *self.cosignatures.values()))


class Evidence:
    """Signs the checkpoints of one log while :meth:`run` runs.

    log: appended to by the store. signing: what is in force at a time in ns, or None while nothing is.
    urls: witness name -> submission prefix. period_s: bundle period in whole seconds. timeout_s: for one witness.
    """

    def __init__(
        self,
        log: EvidenceLog,
        signing: Callable[[int], Signing | None],
        *,
        urls: Mapping[str, str],
        period_s: int = 10,
        timeout_s: float = 5.0,
    ) -> None:
        self._log = log
        self._signing = signing
        self._urls = dict(urls)
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._d2: dict[str, float] = {}
        self._fleet: Distances | None = None
        self._witnesses: dict[NoteKey, _Witness] = {}
        self._quorum = 0
        self._cosigned_size = 0
        self._round: _Round | None = None
        self._file = asyncio.Lock()
        self._fresh = asyncio.Event()
        self._error = ""

    def observe(self, vantage_id: str, d2: float) -> None:
        """A vantage reported D^2 in an accepted live snapshot of the current period."""
        if d2 > self._d2.get(vantage_id, -1.0):
            self._d2[vantage_id] = d2

    def observe_fleet(self, minimax: float, largest: float) -> None:
        """The fleet was decided in the current period: the largest D^2_minimax and D^2_max of a tick's decisions."""
        before = self._fleet or Distances(0.0, 0.0)
        self._fleet = Distances(max(minimax, before.minimax), max(largest, before.largest), of_fleet=True)

    async def run(self) -> None:
        """Sign and have cosigned, until cancelled; then sign once more what is there."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._periods())
                    both.create_task(self._rounds(session))
            finally:
                await self.close_bundle(int(time.time()))

    async def _periods(self) -> None:
        self._take_over(self._signing(time.time_ns()))
        while True:
            now = time.time()
            end = (int(now) // self._period_s + 1) * self._period_s
            await asyncio.sleep(end - now)
            await self.close_bundle(end)

    async def close_bundle(self, period_end_s: int) -> None:
        """End a bundle period: sign a checkpoint if the log grew."""
        d2, self._d2 = self._d2, {}
        fleet, self._fleet = self._fleet, None
        signing = self._signing(period_end_s * 10**9)
        self._take_over(signing)
        head = self._log.head
        if signing is None or head.size <= self._log.checkpoints.newest_head().size:
            return
        binding = Binding(period_end_s, signing.manifest, fleet or worst_case(d2.values(), signing.faults))
        text = Checkpoint(signing.origin, head.size, head.root, binding.lines).text
        signature = sign_note(text, signing.origin, signing.key.sign, signing.key.public.ed25519)
        note = Note(text, (signature,))
        if await self._keep(note):
            self._fresh.set()
        else:
            for vantage_id, value in d2.items():  # they belong to the checkpoint that is tried next
                self.observe(vantage_id, value)
            if fleet is not None:
                self.observe_fleet(fleet.minimax, fleet.largest)

    def status(self) -> EvidenceStatus:
        """What is shown."""
        newest = self._log.checkpoints.newest
        errors = {witness.key.name: witness.error for witness in self._witnesses.values() if witness.error}
        cosigned = signed_s = 0
        if newest is not None:
            with contextlib.suppress(NoteError, CheckpointError):
                cosigned = len(verified(newest, self._witnesses))
                signed_s = parse_checkpoint(newest.text).binding.period_end_s
        return EvidenceStatus(
            self._log.head.size,
            self._log.checkpoints.newest_head().size,
            signed_s * 10**9,
            cosigned,
            self._quorum,
            self._cosigned_size,
            errors,
            self._error,
        )

    # ---- witnesses

    def _take_over(self, signing: Signing | None) -> None:
        """Ask those witnesses from now on that the epoch in force names."""
        if signing is None:
            return
        self._quorum = signing.quorum
        if tuple(self._witnesses) == signing.witnesses:
            return
        self._witnesses = {key: self._witnesses.get(key) or _Witness(key) for key in signing.witnesses}
        for witness in self._witnesses.values():
            if witness.key.name not in self._urls:
                witness.error = f"the manifest names it, and no URL is configured: add {witness.key.name} to witnesses"
        self._fresh.set()

    async def _rounds(self, session: aiohttp.ClientSession) -> None:
        while True:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with what it waits for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_try_s()):
                    await self._fresh.wait()
            self._fresh.clear()
            note = self._log.checkpoints.newest
            if note is None:
                continue
            if self._round is None or self._round.note.text != note.text:
                self._round = self._begin(note)
            current = self._round
            now = time.monotonic()
            due = [w for w in self._behind(note.text) if w.not_before <= now]
            await asyncio.gather(*(self._ask(session, witness, current) for witness in due))

    def _begin(self, note: Note) -> _Round:
        """A round about the newest checkpoint; after a restart it may have cosignatures already."""
        origin = parse_checkpoint(note.text).origin
        begun = _Round(Note(note.text, tuple(s for s in note.signatures if s.name == origin)), self._quorum)
        for key, witness in self._witnesses.items():
            with contextlib.suppress(NoteError):
                for signature in note.signatures:
                    if verified(Note(note.text, (signature,)), [key]):
                        begun.cosignatures[key] = signature
                        witness.cosigned = note.text
        return begun

    def _behind(self, text: str) -> list[_Witness]:
        return [w for w in self._witnesses.values() if w.cosigned != text and w.key.name in self._urls]

    def _next_try_s(self) -> float | None:
        """Until the next witness may be asked again; None when all have cosigned the newest checkpoint."""
        newest = self._log.checkpoints.newest
        behind = self._behind(newest.text) if newest is not None else []
        return max(min(w.not_before for w in behind) - time.monotonic(), 0.0) if behind else None

    async def _ask(self, session: aiohttp.ClientSession, witness: _Witness, current: _Round) -> None:
        try:
            cosignature = await self._submit(session, witness, current.note)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            witness.error = f"does not answer: {error or type(error).__name__}"
        except _RefusedError as error:
            witness.error = str(error)
        except EvidenceError as error:
            witness.error = f"cannot be given a proof: {error}"
        else:
            witness.error, witness.pause_s, witness.not_before = "", 0.0, 0.0
            witness.cosigned = current.note.text
            await self._count(witness.key, cosignature, current)
            return
        witness.pause_s = min(max(witness.pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        witness.not_before = time.monotonic() + witness.pause_s

    async def _submit(self, session: aiohttp.ClientSession, witness: _Witness, note: Note) -> NoteSignature:
        """The witness's cosignature."""
        size = parse_checkpoint(note.text).size
        url = self._urls[witness.key.name].rstrip("/") + "/add-checkpoint"
        for _ in range(2):  # once more if it has cosigned another size than we knew
            if witness.known > size:
                raise _RefusedError(
                    f"has cosigned {witness.known} leaves of this log, whose newest checkpoint covers {size}: the log "
                    "was set back, or another one uses its origin and key"
                )
            proof = await asyncio.to_thread(self._log.consistency, witness.known, size)
            body = Request(witness.known, tuple(proof), note).render()
            async with session.post(url, data=body, allow_redirects=False) as response:
                answer = await _read(response)
                status = response.status
            if status == 200:
                witness.known = size
                return _cosignature(answer, note.text, witness.key)
            known = size_in_conflict(answer) if status == 409 else None
            if known is None or known == witness.known:
                said = answer[:200].decode("ascii", "replace").strip()
                if status in (409, 422):
                    said = f"it has cosigned another history of this log ({said})"
                raise _RefusedError(f"refuses the checkpoint over {size} leaves with {status}: {said}")
            witness.known = known
        raise _RefusedError("changes the size it has cosigned at every request")

    async def _count(self, key: NoteKey, cosignature: NoteSignature, current: _Round) -> None:
        current.cosignatures[key] = cosignature
        count = len(current.cosignatures)
        enough = max(current.quorum, 1)
        if count == enough or (count > enough and count == len(self._witnesses)):
            await self._keep(current.cosigned_note())
        if count >= enough:
            self._cosigned_size = max(self._cosigned_size, parse_checkpoint(current.note.text).size)

    async def _keep(self, note: Note) -> bool:
        async with self._file:
            try:
                await asyncio.to_thread(self._log.checkpoints.append, note)
            except EvidenceError as error:
                self._error = str(error)
                return False
        self._error = ""
        return True


class _RefusedError(Exception):
    """A witness answered, and not with a cosignature."""


def _cosignature(answer: bytes, text: str, key: NoteKey) -> NoteSignature:
    try:
        signatures = parse_signatures(answer.decode())
        if verified(Note(text, signatures), [key]):
            return next(s for s in signatures if (s.name, s.key_id) == (key.name, key.key_id))
    except (NoteError, UnicodeDecodeError) as error:
        raise _RefusedError(f"answers with something else than its cosignature: {error}") from None
    raise _RefusedError(f"answers with a cosignature of another key than the manifest's {key.text}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to a limit."""
    answer = b""
    async for part in response.content.iter_any():
        answer += part
        if len(answer) > _MAX_ANSWER:
            raise _RefusedError(f"answers with more than {_MAX_ANSWER} bytes")
    return answer
