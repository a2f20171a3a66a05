# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""Scapy layers for MBND + CWTL and COHE: importing this module lets scapy read captures of them.

Needs the extra ``mvps[probe]``. The layouts and what is unknown of them are in :mod:`mvps.interop.codec`, which also
decides what is dissected: a payload that it refuses stays raw, and a payload of port 3784 without the COHE magic is
ordinary BFD, as scapy reads it. Unknown octets are fields of their own, shown in hex.
"""

from __future__ import annotations

from typing import Any, ClassVar

from scapy.config import conf
from scapy.contrib.bfd import BFD
from scapy.fields import (
    FieldLenField,
    FieldListField,
    IEEEDoubleField,
    IEEEFloatField,
    IntField,
    LongField,
    ShortField,
    SignedIntField,
    StrFixedLenField,
    XStrField,
    XStrFixedLenField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, bind_bottom_up, bind_layers, split_bottom_up

from mvps.interop import codec


class Mbnd(Packet):
    """The MBND header and its records; the payload is :class:`Cwtl`."""

    name = "MVPS MBND"
    fields_desc: ClassVar[list[Any]] = [
        StrFixedLenField("magic", codec.BundleHeader.MAGIC, 4),
        IntField("bundle_id", 0),
        LongField("tick", 0),
        LongField("epoch_id", 0),
        FieldLenField("vantages", None, count_of="records", fmt="H"),
        ShortField("adversaries", 0),
        IEEEDoubleField("d2", 0),
        FieldListField(
            "records",
            [],
            XStrFixedLenField("record", bytes(codec.RECORD_BYTES), codec.RECORD_BYTES),
            count_from=lambda packet: packet.vantages,
        ),
    ]

    @classmethod
    def dispatch_hook(cls, data: bytes | None = None, *_: Any, **__: Any) -> type[Packet]:
        """This class when it is being built or the codec can read ``data``, else raw."""
        return cls if data is None or _reads(codec.MBND_PORT, data) else conf.raw_layer


class Cwtl(Packet):
    """The CWTL envelope, by the reading of :mod:`mvps.interop.codec`."""

    name = "MVPS CWTL"
    fields_desc: ClassVar[list[Any]] = [
        StrFixedLenField("magic", codec.Envelope.MAGIC, 4),
        LongField("epoch_id", 0),
        StrFixedLenField("operator_id", bytes(16), 16),
        XStrFixedLenField("manifest_root", bytes(32), 32),
        XStrField("rest", b""),
    ]


class Cohe(Packet):
    """A COHE message."""

    name = "MVPS COHE"
    fields_desc: ClassVar[list[Any]] = [
        XStrFixedLenField("bfd", codec.NO_BFD, codec.BFD_BYTES),
        StrFixedLenField("magic", codec.Coherence.MAGIC, 4),
        IntField("tick", 0),
        SignedIntField("phase_residual_ns", 0),
        IEEEFloatField("c1", 0),
        IEEEFloatField("c2", 0),
        IEEEFloatField("c3", 0),
        XStrFixedLenField("tag", codec.NO_TAG, codec.TAG_BYTES),
    ]

    @classmethod
    def dispatch_hook(cls, data: bytes | None = None, *_: Any, **__: Any) -> type[Packet]:
        """This class when it is being built or the codec can read ``data``; BFD without the magic, else raw."""
        if data is None:
            return cls
        try:
            return BFD if codec.decode(codec.COHE_PORT, data) is None else cls
        except codec.InteropError:
            return conf.raw_layer


def _reads(port: int, data: bytes) -> bool:
    try:
        return codec.decode(port, data) is not None
    except codec.InteropError:
        return False


# Scapy takes the first binding that fits, and its BFD layer has made some for the same port when it was imported: by
# destination, by source, and by both. Destinations are ours now; the others go behind.
split_bottom_up(UDP, BFD, dport=codec.COHE_PORT)
split_bottom_up(UDP, BFD, sport=codec.COHE_PORT)
bind_layers(UDP, Cohe, dport=codec.COHE_PORT)
bind_bottom_up(UDP, BFD, sport=codec.COHE_PORT)
bind_layers(UDP, Mbnd, dport=codec.MBND_PORT)
bind_layers(Mbnd, Cwtl)
