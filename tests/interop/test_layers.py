# SPDX-License-Identifier: Apache-2.0
"""Scapy's description of the layouts against the codec's, and captures written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

inet = pytest.importorskip("scapy.layers.inet", reason="needs the extra: pip install mvps[probe]")

from scapy.contrib.bfd import BFD  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402
from scapy.utils import rdpcap, wrpcap  # noqa: E402

from mvps.interop.codec import Bundle, BundleHeader, Coherence, Envelope, float32  # noqa: E402
from mvps.interop.layers import Cohe, Cwtl, Mbnd  # noqa: E402

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IP = inet.IP(src="203.0.113.10", dst="203.0.113.20")
FRAME = ETHER / IP
COHERENCE = Coherence(17, -120, 0.5, float32(0.1), 1.0, bytes(range(32)), bytes(range(12)))
RECORDS = tuple(bytes([0xA0 + i]) * 32 for i in range(4))
BUNDLE = Bundle(
    BundleHeader(7, 2**33 + 5, 494450, 4, 1, 3.25),
    RECORDS,
    Envelope(494450, b"OP-CATELLIX-PROD", bytes(range(32)), b"the rest"),
)
BFD_PACKET = bytes.fromhex("20c00318deadbeef211268090000001f0000007f000000ff")


def seen(payload: bytes, **ports: int) -> Any:
    """What scapy makes of a frame's octets."""
    return Ether(bytes(FRAME / inet.UDP(**({"sport": 49152} | ports)) / payload))


def test_cohe_is_dissected_field_by_field() -> None:
    packet = seen(COHERENCE.encode(), dport=3784)
    layer = packet[Cohe]
    assert (layer.bfd, layer.magic, layer.tick, layer.phase_residual_ns) == (bytes(range(32)), b"COHE", 17, -120)
    assert (layer.c1, layer.c2, layer.c3, layer.tag) == (0.5, float32(0.1), 1.0, bytes(range(12)))
    assert not layer.payload
    assert bytes(packet)[42:] == COHERENCE.encode()


def test_a_bundle_is_dissected_field_by_field() -> None:
    packet = seen(BUNDLE.encode(), dport=45878)
    head, envelope = packet[Mbnd], packet[Cwtl]
    assert (head.bundle_id, head.tick, head.epoch_id) == (7, 2**33 + 5, 494450)
    assert (head.vantages, head.adversaries, head.d2, tuple(head.records)) == (4, 1, 3.25, RECORDS)
    assert (envelope.epoch_id, envelope.operator_id) == (494450, b"OP-CATELLIX-PROD")
    assert (envelope.manifest_root, envelope.rest) == (bytes(range(32)), b"the rest")
    assert bytes(packet)[42:] == BUNDLE.encode()


def test_what_scapy_builds_the_codec_reads() -> None:
    built = FRAME / inet.UDP(sport=49152) / Cohe(tick=9, c1=0.5, phase_residual_ns=-1)
    assert built[inet.UDP].dport == 3784
    assert Coherence.decode(bytes(built)[42:]) == Coherence(9, -1, 0.5, 0.0, 0.0)
    records = list(RECORDS[:2])
    built = FRAME / inet.UDP(sport=49152) / Mbnd(tick=3, epoch_id=9, d2=1.5, records=records) / Cwtl(epoch_id=9)
    assert built[inet.UDP].dport == 45878
    expected = Bundle(BundleHeader(0, 3, 9, 2, 0, 1.5), RECORDS[:2], Envelope(9, bytes(16), bytes(32)))
    assert Bundle.decode(bytes(built)[42:]) == expected


@pytest.mark.parametrize("ports", [{"dport": 3784}, {"sport": 3784, "dport": 3784}, {"sport": 3784, "dport": 40000}])
def test_ordinary_bfd_stays_bfd(ports: dict[str, int]) -> None:
    layer = seen(BFD_PACKET, **ports)[inet.UDP].payload
    assert type(layer) is BFD
    assert layer.my_discriminator == 0xDEADBEEF


def test_a_cohe_message_from_the_bfd_port_is_one_too() -> None:
    assert Cohe in seen(COHERENCE.encode(), sport=3784, dport=3784)


@pytest.mark.parametrize("size", range(36, 68))
def test_cut_cohe_messages_stay_raw(size: int) -> None:
    assert type(seen(COHERENCE.encode()[:size], dport=3784)[inet.UDP].payload) is Raw


def test_cut_bundles_stay_raw() -> None:
    data = BUNDLE.encode()
    for size in range(1, len(data) - len(b"the rest")):
        assert type(seen(data[:size], dport=45878)[inet.UDP].payload) is Raw, size


def test_sizes_are_the_published_ones(tmp_path: Path) -> None:
    # 110-octet frames, and captures of 30 packets of 3804 octets: 24 of file header, 16 before each packet.
    frames = [FRAME / inet.UDP(sport=49152) / Cohe(tick=tick) for tick in range(30)]
    assert {len(bytes(frame)) for frame in frames} == {14 + 20 + 8 + 68} == {110}
    path = tmp_path / "thirty.pcap"
    wrpcap(str(path), frames)
    assert path.stat().st_size == 24 + 30 * (16 + 110) == 3804
    back = rdpcap(str(path))
    assert [packet[Cohe].tick for packet in back] == list(range(30))


def test_a_capture_of_both_kinds_shows_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "both.pcap"
    payloads = ((COHERENCE.encode(), 3784), (BUNDLE.encode(), 45878), (BFD_PACKET, 3784))
    wrpcap(str(path), [FRAME / inet.UDP(sport=49152, dport=port) / payload for payload, port in payloads])
    cohe, mbnd, bfd = (packet.show(dump=True) for packet in rdpcap(str(path)))
    assert "MVPS COHE" in cohe
    assert "phase_residual_ns= -120" in cohe
    assert "MVPS MBND" in mbnd
    assert "MVPS CWTL" in mbnd
    assert "OP-CATELLIX-PROD" in mbnd
    assert bytes(range(32)).hex() in mbnd
    assert "MVPS" not in bfd
    assert "my_discriminator" in bfd
