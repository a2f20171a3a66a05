# SPDX-License-Identifier: Apache-2.0
from mvps.trust.reasons import RejectReason
from mvps.v1 import stream_pb2


def test_numbers_and_names_are_those_of_the_protocol() -> None:
    ours = {f"REJECT_REASON_{reason.name}": int(reason) for reason in RejectReason}
    assert ours | {"REJECT_REASON_UNSPECIFIED": 0} == dict(stream_pb2.RejectReason.items())


def test_only_reasons_behind_a_seal_are_vouched() -> None:
    assert not RejectReason.BAD_SEAL.vouched
    assert RejectReason.REPLAYED.vouched
