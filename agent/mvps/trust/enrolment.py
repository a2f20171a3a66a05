# SPDX-License-Identifier: Apache-2.0
"""Enrolment requests: how a host asks the operator to be admitted. Public keys only, signed by the host itself.

A request is a signed note (:mod:`mvps.trust.note`) whose signature name is the vantage id and whose text is (ours)::

    mvps-enrolment-v1
    vantage host-a
    hostname node17.example
    created 2026-11-21T12:00:00Z
    cell r1
    roles host
    prefixes 10.0.0.5/32
    key mvps-public-v1:host:...

with ``-`` for none. The signature shows that the sender holds the key and nobody changed the rest. It does not show
who the sender is: the operator compares fingerprints with somebody at the host before approving.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NoReturn

from mvps.trust.keys import KeySourceError, Kind, SecretKey, parse_public
from mvps.trust.limits import MAX_ENROLMENT_BYTES, MAX_NAME, MAX_PREFIXES, MAX_ROLES
from mvps.trust.manifest import ManifestError, Vantage, check_vantage, parse_network, parse_utc, utc
from mvps.trust.note import ED25519, Note, NoteError, NoteKey, parse_note, sign_note, verified

FIRST_LINE: Final = "mvps-enrolment-v1"
_NAMES: Final = ("vantage", "hostname", "created", "cell", "roles", "prefixes", "key")
_NONE: Final = "-"


class EnrolmentError(Exception):
    """A request does not count. The message says why and what to do."""


@dataclass(frozen=True)
class Enrolment:
    """What a host asks for. ``created_s`` in POSIX seconds."""

    vantage: Vantage
    hostname: str
    created_s: int

    @cached_property
    def text(self) -> str:
        """The text that the host signs."""
        vantage = self.vantage
        values = (
            vantage.vantage_id,
            self.hostname or _NONE,
            utc(self.created_s),
            vantage.cell or _NONE,
            ",".join(vantage.roles) or _NONE,
            ",".join(map(str, vantage.prefixes)) or _NONE,
            vantage.key.text,
        )
        return "".join(f"{name} {value}\n" for name, value in zip(_NAMES, values, strict=True))


def sign_enrolment(enrolment: Enrolment, host: SecretKey) -> bytes:
    """The request as a signed note. EnrolmentError if ``host`` is not the key it names, or a field is not allowed."""
    if enrolment.vantage.key != host.public:
        _fail("a host signs its own request, with the key it asks to be admitted with")
    text = f"{FIRST_LINE}\n{enrolment.text}"
    try:
        check_vantage(enrolment.vantage)
        signature = sign_note(text, enrolment.vantage.vantage_id, host.sign, host.public.ed25519)
    except (ManifestError, NoteError) as error:
        _fail(str(error))
    request = Note(text, (signature,)).render()
    open_enrolment(request)
    return request


def open_enrolment(data: bytes) -> Enrolment:
    """The request in a signed note, if it is signed by the key it names. EnrolmentError for everything else."""
    if len(data) > MAX_ENROLMENT_BYTES:
        _fail(f"{len(data)} bytes are no enrolment request, which has at most {MAX_ENROLMENT_BYTES}")
    try:
        note = parse_note(data)
        enrolment = _parse(note.text)
        vantage = enrolment.vantage
        if not verified(note, [NoteKey(vantage.vantage_id, ED25519, vantage.key.ed25519)]):
            _fail(f"the request of {vantage.vantage_id} is not signed by its own key: ask for it again")
    except (NoteError, KeySourceError, ManifestError, ValueError) as error:
        _fail(f"this is no enrolment request that counts: {error}")
    return enrolment


def _parse(text: str) -> Enrolment:
    lines = text.removesuffix("\n").split("\n")
    if lines[0] != FIRST_LINE or len(lines) != len(_NAMES) + 1:
        _fail(f"this is no enrolment request: it begins with {FIRST_LINE} and has {len(_NAMES) + 1} lines")
    values: dict[str, str] = {}
    for name, line in zip(_NAMES, lines[1:], strict=True):
        found, _, value = line.partition(" ")
        if found != name:
            _fail(f"{line[:60]!r} stands where `{name}` is needed")
        values[name] = "" if value == _NONE else value
    if len(values["hostname"].encode()) > MAX_NAME or not values["hostname"].isprintable():
        _fail("the host name is too long or not printable")
    roles = tuple(values["roles"].split(",", MAX_ROLES)) if values["roles"] else ()
    prefixes = values["prefixes"].split(",", MAX_PREFIXES) if values["prefixes"] else []
    if len(prefixes) > MAX_PREFIXES:
        _fail(f"more than {MAX_PREFIXES} source prefixes")
    vantage = Vantage(
        values["vantage"],
        parse_public(values["key"], Kind.HOST),
        values["cell"],
        roles,
        tuple(parse_network(prefix) for prefix in prefixes),
    )
    check_vantage(vantage)
    enrolment = Enrolment(vantage, values["hostname"], parse_utc(values["created"]))
    if f"{FIRST_LINE}\n{enrolment.text}" != text:
        _fail("there is one way to write a request, and this is another: make it with mvps enroll request")
    return enrolment


def _fail(message: str) -> NoReturn:
    raise EnrolmentError(message)
