# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.interop.codec import (
    CANDIDATES,
    COHE_PORT,
    MAX_DATAGRAM,
    MBND_PORT,
    NO_TAG,
    Bundle,
    BundleHeader,
    Coherence,
    Coverage,
    Envelope,
    InteropError,
    TickScalars,
    bundle_header_of,
    coherence_of,
    coverages_that_hold,
    decode,
    float32,
    scalars_of,
    tag_holds,
    tag_of,
    with_tag,
)

# Published with the captures so that they can be made again; it protects nothing.
DEMO_KEY = b"MVPS-shared-secret-deterministic-2026"

OPERATOR = b"OP-CATELLIX-PROD"  # and its epoch id: the examples of the SNAP receipt
EPOCH = 494450
RECORDS = tuple(bytes([0xA0 + i]) * 32 for i in range(4))
REST = bytes(range(200))
BUNDLE = Bundle(BundleHeader(7, 2**33 + 5, EPOCH, 4, 1, 3.25), RECORDS, Envelope(EPOCH, OPERATOR, bytes(32), REST))
MESSAGE = with_tag(Coherence(17, -120, 0.5, 0.25, 1.0, bytes(range(32))), DEMO_KEY, CANDIDATES["all before the tag"])

octets32, unsigned32, unsigned64 = (
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
axis = st.floats(0, 1, width=32)
coherences = st.builds(
    Coherence,
    unsigned32,
    st.integers(-(2**31), 2**31 - 1),
    axis,
    axis,
    axis,
    octets32,
    st.binary(min_size=12, max_size=12),
)


@st.composite
def bundles(draw: st.DrawFn) -> Bundle:
    records = draw(st.lists(octets32, max_size=6))
    epoch = draw(unsigned64)
    d2 = draw(st.floats(0, allow_infinity=False))
    header = BundleHeader(draw(unsigned32), draw(unsigned64), epoch, len(records), draw(st.integers(0, 2**16 - 1)), d2)
    operator = draw(st.binary(min_size=16, max_size=16).map(lambda raw: bytes(octet & 0x7F for octet in raw)))
    return Bundle(header, tuple(records), Envelope(epoch, operator, draw(octets32), draw(st.binary(max_size=80))))


def refused(port: int, data: bytes) -> str:
    with pytest.raises(InteropError) as caught:
        decode(port, data)
    return str(caught.value)


def settled(port: int, data: bytes) -> None:
    """Every input has one of three fates: refused, nothing of ours, or read and written again octet for octet."""
    try:
        message = decode(port, data)
    except InteropError:
        return
    assert message is None or message.encode() == data


class TestBundle:
    def test_layout_is_that_of_the_receipt(self) -> None:
        data = BUNDLE.encode()
        at = 36 + 32 * 4
        assert data[0:4] == (0x4D424E44).to_bytes(4, "big") == b"MBND"
        assert data[4:8] == (7).to_bytes(4, "big")
        assert data[8:16] == (2**33 + 5).to_bytes(8, "big")
        assert data[16:24] == EPOCH.to_bytes(8, "big")
        assert data[24:28] == b"\x00\x04\x00\x01"
        assert data[28:36] == struct.pack(">d", 3.25)
        assert data[36:at] == b"".join(RECORDS)
        assert data[at : at + 4] == (0x4357544C).to_bytes(4, "big") == b"CWTL"
        assert data[at + 4 : at + 12] == EPOCH.to_bytes(8, "big")
        assert data[at + 12 : at + 28] == OPERATOR
        assert data[at + 28 : at + 60] == bytes(32)
        assert data[at + 60 :] == REST
        assert decode(MBND_PORT, data) == BUNDLE

    @settings(deadline=None)
    @given(bundles())
    def test_round_trip(self, bundle: Bundle) -> None:
        assert decode(MBND_PORT, bundle.encode()) == bundle

    def test_truncated_at_every_length(self) -> None:
        data = BUNDLE.encode()
        for size in range(len(data) - len(REST)):
            assert "octets are too few" in refused(MBND_PORT, data[:size])
        for size in range(len(data) - len(REST), len(data)):  # how long the rest is meant to be, nobody knows
            assert decode(MBND_PORT, data[:size]).encode() == data[:size]  # type: ignore[union-attr]

    def test_the_other_reading_of_the_offsets_is_recognised_and_refused(self) -> None:
        head = BUNDLE.encode()[: 36 + 32 * 4]
        by_offsets = head + b"CWTL" + EPOCH.to_bytes(4, "big") + OPERATOR + bytes(32) + REST
        assert "follows the receipt's offsets" in refused(MBND_PORT, by_offsets)
        contradiction = head + b"CWTL" + (EPOCH + 1).to_bytes(8, "big") + OPERATOR + bytes(32)
        assert f"epoch {EPOCH} in MBND and {EPOCH + 1} in CWTL" in refused(MBND_PORT, contradiction)

    def test_an_epoch_of_zero_is_no_sign_of_the_other_reading(self) -> None:
        bundle = replace(
            BUNDLE, header=replace(BUNDLE.header, epoch_id=0), envelope=replace(BUNDLE.envelope, epoch_id=0)
        )
        assert decode(MBND_PORT, bundle.encode()) == bundle

    def test_a_count_of_vantages_allocates_nothing_before_it_is_checked(self) -> None:
        header = replace(BUNDLE.header, vantages=2**16 - 1).encode()
        assert "2097216 are needed" in refused(MBND_PORT, header + bytes(1000))

    def test_nothing_larger_than_a_datagram(self) -> None:
        room = MAX_DATAGRAM - len(BUNDLE.encode()) + len(REST)
        largest = replace(BUNDLE, envelope=replace(BUNDLE.envelope, rest=bytes(room)))
        assert decode(MBND_PORT, largest.encode()) == largest
        assert "fit no UDP datagram" in refused(MBND_PORT, largest.encode() + b"\0")
        assert "fit no UDP datagram" in refused(MBND_PORT, bytes(MAX_DATAGRAM + 1))  # before it looks at any
        with pytest.raises(InteropError, match="fit no UDP datagram"):
            replace(BUNDLE, envelope=replace(BUNDLE.envelope, rest=bytes(room + 1)))

    @pytest.mark.parametrize(
        ("offset", "content", "message"),
        [
            (0, b"mbnd", "begin with b'mbnd'"),
            (28, struct.pack(">d", math.nan), "no squared distance"),
            (28, struct.pack(">d", math.inf), "no squared distance"),
            (28, struct.pack(">d", -1.0), "no squared distance"),
            (164, b"CWTX", "must begin stands b'CWTX'"),
            (176, b"\xff", "is not ASCII"),
        ],
    )
    def test_refusals(self, offset: int, content: bytes, message: str) -> None:
        data = BUNDLE.encode()
        assert message in refused(MBND_PORT, data[:offset] + content + data[offset + len(content) :])

    @pytest.mark.parametrize(
        "change", [{"tick": 2**64}, {"tick": -1}, {"bundle_id": 2**32}, {"vantages": 2**16}, {"adversaries": -1}]
    )
    def test_values_without_room_are_not_encoded(self, change: dict[str, int]) -> None:
        with pytest.raises(InteropError, match="does not fit"):
            replace(BUNDLE.header, **change)  # type: ignore[arg-type]

    def test_parts_that_do_not_belong_together(self) -> None:
        with pytest.raises(InteropError, match="3 records for 4 vantages"):
            replace(BUNDLE, records=RECORDS[:3])
        with pytest.raises(InteropError, match="vantage record of 31 octets"):
            replace(BUNDLE, records=(*RECORDS[:3], bytes(31)))
        with pytest.raises(InteropError, match="operator id of 3 octets"):
            replace(BUNDLE.envelope, operator_id=b"abc")

    def test_what_the_layout_allows_and_the_hypotheses_do_not_is_a_doubt(self) -> None:
        assert BUNDLE.header.doubts == ()
        assert replace(BUNDLE.header, adversaries=2).doubts == ("f = 2 is not below half of 4 vantages",)
        assert len(replace(BUNDLE.header, vantages=1).doubts) == 2


class TestCoherence:
    def test_layout_is_that_of_the_receipt(self) -> None:
        data = MESSAGE.encode()
        assert len(data) == 68
        assert data[0:32] == bytes(range(32))
        assert data[32:36] == (0x434F4845).to_bytes(4, "big") == b"COHE"
        assert data[36:40] == (17).to_bytes(4, "big")
        assert data[40:44] == (-120).to_bytes(4, "big", signed=True)
        assert data[44:56] == struct.pack(">f", 0.5) + struct.pack(">f", 0.25) + struct.pack(">f", 1.0)
        assert data[56:68] == MESSAGE.tag
        assert decode(COHE_PORT, data) == MESSAGE

    @settings(deadline=None)
    @given(coherences)
    def test_round_trip(self, message: Coherence) -> None:
        assert decode(COHE_PORT, message.encode()) == message

    def test_every_other_length_is_refused(self) -> None:
        data = MESSAGE.encode()
        for size in range(36, 68):
            assert "68 are needed" in refused(COHE_PORT, data[:size])
        assert "68 are needed" in refused(COHE_PORT, data + b"\0")

    def test_ordinary_bfd_is_nothing_of_ours(self) -> None:
        # FreeRADIUS' published vector of a BFD control packet.
        packet = bytes.fromhex("20c00318deadbeef211268090000001f0000007f000000ff")
        assert decode(COHE_PORT, packet) is None
        with pytest.raises(InteropError, match="24 octets"):
            Coherence.decode(packet)
        with pytest.raises(InteropError, match="not COHE"):
            Coherence.decode(bytes(68))

    def test_little_endian_senders_are_told_so(self) -> None:
        data = MESSAGE.encode()
        assert "in little-endian order" in refused(COHE_PORT, data[:32] + b"EHOC" + data[36:])
        axes = data[:44] + struct.pack("<fff", 0.9037, 0.25, 0.98) + data[56:]
        assert "little-endian order only" in refused(COHE_PORT, axes)

    def test_values_that_are_in_range_in_both_orders_are_doubted(self) -> None:
        # 1.0 in little-endian order is 4.6e-41 in the other: in range, and no coherence that ever occurs.
        data = MESSAGE.encode()
        message = decode(COHE_PORT, data[:44] + struct.pack("<fff", 1.0, 0.5, 0.75) + data[56:])
        assert isinstance(message, Coherence)
        assert message.doubts == ("in little-endian order c1 to c3 would be 1, 0.5, 0.75",)
        assert MESSAGE.doubts == ()
        assert replace(MESSAGE, c1=2**-52, c2=0.0).doubts == ()
        assert replace(MESSAGE, c1=0.0, c2=0.0, c3=0.0).doubts == ()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 1.5])
    def test_coherences_outside_the_cube_are_refused(self, value: float) -> None:
        data = MESSAGE.encode()
        for offset in (44, 48, 52):
            assert "is no coherence" in refused(
                COHE_PORT, data[:offset] + struct.pack(">f", value) + data[offset + 4 :]
            )

    def test_values_without_room_are_not_encoded(self) -> None:
        for change in ({"tick": 2**32}, {"phase_residual_ns": 2**31}, {"phase_residual_ns": -(2**31) - 1}):
            with pytest.raises(InteropError, match="not fit"):
                replace(MESSAGE, **change)  # type: ignore[arg-type]
        with pytest.raises(InteropError, match="round it with float32"):
            replace(MESSAGE, c2=0.1)
        with pytest.raises(InteropError, match="too large for a float32"):
            float32(1e300)


class TestTag:
    def test_it_is_the_leftmost_part_of_the_published_hmac(self) -> None:
        # RFC 4231 test case 5: HMAC-SHA-256 of 20 octets, cut to 128 bits. The data stands where the BFD header does.
        message = replace(MESSAGE, bfd=b"Test With Truncation".ljust(32, b"\0"))
        published = bytes.fromhex("a3b6167473100ee06e0c796c2955552b")
        assert tag_of(message, b"\x0c" * 20, Coverage(0, 20)) == published[:12]

    @pytest.mark.parametrize("name", CANDIDATES)
    def test_it_is_another_library_s_hmac_over_the_covered_octets(self, name: str) -> None:
        start, stop = CANDIDATES[name]
        oracle = HMAC(DEMO_KEY, hashes.SHA256())
        oracle.update((MESSAGE.encode()[:56] + bytes(12))[start:stop])
        assert tag_of(MESSAGE, DEMO_KEY, CANDIDATES[name]) == oracle.finalize()[:12]

    def test_every_covered_octet_counts_and_no_other(self) -> None:
        covered = CANDIDATES["coherence block"]
        data = with_tag(replace(MESSAGE, c3=0.75), DEMO_KEY, covered).encode()
        for offset in (*range(32), *range(36, 68)):  # without the magic it is no message
            changed = decode(COHE_PORT, data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
            assert isinstance(changed, Coherence)
            assert tag_holds(changed, DEMO_KEY, covered) == (offset < 32), offset

    def test_the_coverage_of_a_sender_can_be_found_out(self) -> None:
        for name, covered in CANDIDATES.items():
            sealed = with_tag(replace(MESSAGE, tag=NO_TAG), DEMO_KEY, covered)
            assert coverages_that_hold(sealed, DEMO_KEY) == (name,)
            assert coverages_that_hold(sealed, b"another key") == ()

    def test_ranges_and_keys_that_prove_nothing(self) -> None:
        for covered in (Coverage(0, 0), Coverage(5, 4), Coverage(-1, 5), Coverage(0, 69), Coverage(56, 68)):
            with pytest.raises(InteropError, match="no range"):
                tag_of(MESSAGE, DEMO_KEY, covered)
        with pytest.raises(InteropError, match="key is empty"):
            tag_of(MESSAGE, b"", Coverage(0, 56))


class TestAnyBytes:
    @settings(max_examples=500, deadline=None)
    @given(st.sampled_from([MBND_PORT, COHE_PORT, 53]), st.binary(max_size=300))
    def test_random(self, port: int, data: bytes) -> None:
        settled(port, data)

    @settings(max_examples=500, deadline=None)
    @given(st.binary(min_size=68, max_size=68))
    def test_random_behind_the_magic(self, data: bytes) -> None:
        settled(COHE_PORT, data[:32] + b"COHE" + data[36:])

    @settings(max_examples=500, deadline=None)
    @given(st.binary(max_size=300), st.integers(0, 4))
    def test_random_behind_both_magics(self, data: bytes, vantages: int) -> None:
        head = b"MBND" + data[:20].ljust(20, b"\0") + vantages.to_bytes(2, "big")
        settled(MBND_PORT, (head + data[20:]).ljust(36 + 32 * vantages, b"\0") + b"CWTL" + head[16:24] + data)

    @settings(max_examples=500, deadline=None)
    @given(bundles() | coherences, st.data())
    def test_mutated(self, message: Bundle | Coherence, draw: st.DataObject) -> None:
        data = bytearray(message.encode())
        for _ in range(draw.draw(st.integers(1, 4))):
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        settled(MBND_PORT if isinstance(message, Bundle) else COHE_PORT, bytes(data))

    @settings(deadline=None)
    @given(bundles() | coherences, st.data())
    def test_truncated(self, message: Bundle | Coherence, draw: st.DataObject) -> None:
        data = message.encode()
        settled(MBND_PORT if isinstance(message, Bundle) else COHE_PORT, data[: draw.draw(st.integers(0, len(data)))])


class TestOurValues:
    @given(
        st.integers(0, 2**64 - 1),
        st.integers(-(2**31), 2**31 - 1),
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
        st.integers(-(2**31) + 1, 2**31 - 1),
    )
    def test_there_and_back_loses_what_is_said_and_nothing_else(
        self, tick: int, residual: int, axes: tuple[float, float, float], drift: int
    ) -> None:
        scalars = TickScalars(tick, residual, *axes)
        message, lost = coherence_of(scalars)
        near = min(max(tick + drift, 0), 2**64 - 1)
        back = scalars_of(message, near)
        assert (back.tick, back.phase_residual_ns) == (tick, residual)
        for name, sent, received in zip(("c1", "c2", "c3"), scalars[2:], back[2:], strict=True):
            assert abs(received - sent) <= 2**-25
            assert (received != sent) == any(text.startswith(f"{name}: rounded by") for text in lost)
        assert (tick >= 2**32) == any(text.startswith("tick") for text in lost)

    def test_losses_are_named(self) -> None:
        _, lost = coherence_of(TickScalars(8976100221, 7_300_000, 1.0, 0.8035, 0.5))
        assert lost == ("tick: its upper 32 bits, 2", "c2: rounded by -3.3e-09")

    def test_what_cohe_cannot_say_is_refused_and_not_made_up(self) -> None:
        good = TickScalars(1, 0, 1.0, 1.0, 1.0)
        with pytest.raises(InteropError, match="c3 is absent in tick 1"):
            coherence_of(good._replace(c3=None))
        with pytest.raises(InteropError, match="c1 nan is no coherence"):
            coherence_of(good._replace(c1=math.nan))
        with pytest.raises(InteropError, match=r"does not fit 32 bits \(2\.147 s\)"):
            coherence_of(good._replace(phase_residual_ns=3 * 10**9))

    def test_a_tick_is_the_nearest_one_that_exists(self) -> None:
        message, _ = coherence_of(TickScalars(2**32 - 1, 0, 1.0, 1.0, 1.0))
        assert scalars_of(message, 0).tick == 2**32 - 1
        assert scalars_of(message, 2**33).tick == 2**33 - 1
        for drift in (-(2**31) + 1, 2**31):
            assert scalars_of(message, 2**33 - 1 + drift).tick == 2**33 - 1
        assert scalars_of(replace(message, tick=0), 2**64 - 1).tick == 2**64 - 2**32

    def test_a_message_of_ours_is_no_bfd_session(self) -> None:
        message, _ = coherence_of(TickScalars(1, 0, 1.0, 1.0, 1.0))
        assert message.encode()[0] >> 5 == 0  # version: RFC 5880 section 6.8.6 discards all but 1
        assert message.tag == NO_TAG

    def test_a_fleet_tick_is_an_mbnd_header(self) -> None:
        header = bundle_header_of(2**33 + 9, 11.5, 5, 2, epoch_id=3)
        assert header == BundleHeader(9, 2**33 + 9, 3, 5, 2, 11.5)
        assert BundleHeader.decode(header.encode()) == header
        assert bundle_header_of(1, 0.0, 2, 0, epoch_id=0, bundle_id=77).bundle_id == 77
        for vantages, liars in ((1, 0), (4, 2)):
            with pytest.raises(InteropError, match="no bundle to send"):
                bundle_header_of(1, 0.0, vantages, liars, epoch_id=0)
