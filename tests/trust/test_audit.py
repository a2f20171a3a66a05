# SPDX-License-Identifier: Apache-2.0
"""Every way we could think of to change the files of a real log, and what the audit calls it."""

import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.trust.audit_samples import START, Site, usual

from mvps.trust.audit import Audit, Trusted, audit, prove
from mvps.trust.checkpoint import Checkpoint, CheckpointError, parse_checkpoint
from mvps.trust.evidence_log import EvidenceError, EvidenceLog, LogFiles, LogState
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.note import ED25519, Note, NoteKey, parse_note, sign_note


def trusted(site: Site) -> Trusted:
    return Trusted({site.manifest.digest: site.manifest})


def look(site: Site, **more: object) -> Audit:
    return audit(LogFiles(site.folder), trusted(site), **more)  # type: ignore[arg-type]


def kinds(result: Audit) -> set[str]:
    return {finding.kind for finding in result.findings}


def segments(site: Site) -> list[Path]:
    return sorted(site.folder.glob("leaves-*"))


def notes(site: Site) -> list[Note]:
    return list(map(parse_note, LogFiles(site.folder).checkpoints()))


def rewrite(site: Site, kept: list[Note]) -> None:
    (site.folder / "checkpoints").write_bytes(b"".join(note.render() + b"\n" for note in kept))


def test_an_untouched_log_holds(tmp_path: Path) -> None:
    site = usual(tmp_path)
    result = look(site)
    assert result.holds, result.findings
    assert (result.first, result.leaves, result.checkpoints) == (0, 12, 3)
    assert (result.size, result.cosigned_size) == (12, 12)
    assert result.newest is not None
    assert set(result.newest.cosigned) == {"w0.example", "w1.example", "w2.example"}
    assert result.remarks == []
    assert len(segments(site)) > 2


def test_it_reads_only(tmp_path: Path) -> None:
    site = usual(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    look(site, snapshots=[("host-a", 1)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_keys_instead_of_manifests(tmp_path: Path) -> None:
    site = usual(tmp_path)
    key = NoteKey("site-1", ED25519, site.broker.public.ed25519)
    result = audit(LogFiles(tmp_path), Trusted(logs=[key], witnesses=[site.witness_key(2)], quorum=1))
    assert result.holds, result.findings
    assert result.newest is not None
    assert set(result.newest.cosigned) == {"w2.example"}
    result = audit(LogFiles(tmp_path), Trusted(logs=[replace_name(key)]))
    assert kinds(result) == {"checkpoint"}


def replace_name(key: NoteKey) -> NoteKey:
    return key._replace(name="site-2")


# ---- leaves


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    site = usual(tmp_path_factory.mktemp("log"))
    path = data.draw(st.sampled_from(sorted(one for one in site.folder.iterdir() if one.stat().st_size)))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    # A witness's signature under another name is one of an unknown key, and ignored as it has to be.
    assume(b".example" not in content[content.rfind(b"\n", 0, at) + 1 : content.find(b"\n", at) + 1])
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    result = look(site)
    assert not result.holds
    assert any(path.name in finding.where for finding in result.findings), result.findings


def test_a_changed_leaf_is_named(tmp_path: Path) -> None:
    site = usual(tmp_path)
    path = segments(site)[1]
    content = bytearray(path.read_bytes())
    content[content.index(b"body of")] ^= 0x20
    path.write_bytes(content)
    (finding,) = look(site).findings
    assert (finding.kind, finding.where) == ("leaf", str(path))
    first = int(path.name.removeprefix("leaves-"))
    assert finding.text.startswith(f"leaf {first} at offset 0 (host-")


def test_a_leaf_changed_together_with_its_node_is_found_by_the_root(tmp_path: Path) -> None:
    site = usual(tmp_path)
    (tmp_path / "nodes").unlink()
    for path in segments(site):
        path.unlink()
    forged = EvidenceLog(tmp_path / "forged", segment_bytes=700)
    forged.close()
    other = usual(tmp_path / "other")  # other keys, so other leaves; its nodes and leaves agree
    for path in [*segments(other), tmp_path / "other/nodes"]:
        shutil.copy(path, tmp_path / path.name)
    result = look(site)
    assert {"consistency", "root"} <= kinds(result)


def test_a_cut_segment(tmp_path: Path) -> None:
    site = usual(tmp_path)
    last = segments(site)[-1]
    os.truncate(last, last.stat().st_size - 1)
    result = look(site)
    assert kinds(result) == {"leaf", "missing"}
    assert any("cut off" in finding.text for finding in result.findings)
    assert any(re.search(r"leaves end at 11, a checkpoint covers 12", f.text) for f in result.findings)


def test_a_missing_segment(tmp_path: Path) -> None:
    site = usual(tmp_path)
    gone = segments(site)[1]
    gone.unlink()
    result = look(site)
    assert kinds(result) == {"missing"}
    assert "a segment or leaves are missing" in result.findings[0].text


def test_a_dropped_leaf(tmp_path: Path) -> None:
    site = usual(tmp_path)
    path = segments(site)[1]
    ((_, _), (second, _), *_) = list(LogFiles(tmp_path).leaves(path))
    path.write_bytes(path.read_bytes()[second:])
    result = look(site)
    assert kinds(result) == {"leaf", "missing"}
    assert result.findings[0].where == str(path)


def test_reordered_leaves(tmp_path: Path) -> None:
    site = usual(tmp_path)
    path = segments(site)[0]
    leaves = [b"".join(sealed) for _, sealed in LogFiles(tmp_path).leaves(path)]
    path.write_bytes(b"".join([leaves[1], leaves[0], *leaves[2:]]))
    (finding,) = look(site).findings
    assert finding.kind == "leaf"
    assert "leaf 0" in finding.text
    assert "and 1 after it" in finding.text


def test_an_inserted_leaf(tmp_path: Path) -> None:
    site = usual(tmp_path)
    path = segments(site)[-1]
    leaves = [b"".join(sealed) for _, sealed in LogFiles(tmp_path).leaves(path)]
    path.write_bytes(leaves[0] + b"".join(leaves))
    assert "leaf" in kinds(look(site))


def test_leaves_that_were_set_back(tmp_path: Path) -> None:
    site = usual(tmp_path)
    for path in segments(site)[2:]:
        path.unlink()
    result = look(site)
    assert kinds(result) == {"missing"}
    assert re.search(r"leaves end at \d+, a checkpoint covers 12", result.findings[0].text)


def test_pruned_leaves_are_no_finding(tmp_path: Path) -> None:
    site = usual(tmp_path)
    segments(site)[0].unlink()
    result = look(site)
    assert result.holds, result.findings
    assert result.first == int(segments(site)[0].name.removeprefix("leaves-"))
    assert "were pruned" in result.remarks[0]
    for path in segments(site):
        path.unlink()
    assert look(site).holds


def pruned(folder: Path, first: int) -> Site:
    """The usual log, of which the broker itself let the leaves before ``first`` go."""
    site = usual(folder)
    newest = int(segments(site)[-1].name.removeprefix("leaves-"))
    state = LogState(12, site.log.head.root, newest, segments(site)[-1].stat().st_size)
    site.log = EvidenceLog(folder, state, segment_bytes=700)
    site.log.prune(site.log.prunable(first))
    assert 0 < site.log.first <= first
    return site


def test_a_log_that_was_pruned_holds_with_all_its_checkpoints(tmp_path: Path) -> None:
    site = pruned(tmp_path, 6)
    first = site.log.first
    result = look(site, snapshots=[("host-b", 4)])
    assert result.holds, result.findings
    assert (result.first, result.leaves, result.checkpoints) == (first, 12 - first, 3)
    assert [remark.split(" ")[0] for remark in result.remarks] == ["the", "of"]
    # It grows on, and what an auditor kept from before is still a beginning of it.
    kept = notes(site)[:2]
    site.grow("host-a", "host-b")
    site.checkpoint(START + 40, 0, 1)
    site.log.close()
    result = look(site, kept=kept)
    assert result.holds, result.findings
    assert (result.size, result.cosigned_size) == (14, 14)
    (found,) = look(site, snapshots=[("host-a", 5)]).wanted
    assert result.newest is not None
    prove(LogFiles(site.folder), found, result.newest)


def test_every_hash_that_was_kept_counts(tmp_path: Path) -> None:
    site = pruned(tmp_path, 8)
    site.log.close()
    path = tmp_path / "nodes-kept"
    good = path.read_bytes()
    for at in range(16 + 8, len(good), 40):
        path.write_bytes(good[:at] + bytes(32) + good[at + 32 :])
        assert kinds(look(site)) & {"nodes", "root", "consistency"}, at
    # One that is gone, and a file cut short.
    path.write_bytes(struct.pack(">QQ", site.log.first, (len(good) - 16) // 40 - 1) + good[16 + 40 :])
    assert "nodes" in kinds(look(site))
    path.write_bytes(good[:-1])
    with pytest.raises(EvidenceError, match="damaged"):
        look(site)


# ---- nodes


def test_every_inner_node_counts_also_those_of_pruned_leaves(tmp_path: Path) -> None:
    site = usual(tmp_path)
    for path in segments(site)[:-1]:
        path.unlink()
    good = (tmp_path / "nodes").read_bytes()
    for place in range(0, len(good), 32):
        (tmp_path / "nodes").write_bytes(good[:place] + bytes(32) + good[place + 32 :])
        assert {"nodes", "root"} & kinds(look(site)), place // 32


@pytest.mark.parametrize("change", ["cut", "empty", "gone"])
def test_nodes_that_are_missing(tmp_path: Path, change: str) -> None:
    site = usual(tmp_path)
    path = tmp_path / "nodes"
    if change == "gone":
        path.unlink()
    else:
        os.truncate(path, 0 if change == "empty" else path.stat().st_size - 32)
    result = look(site)
    assert kinds(result) == {"nodes"}
    assert {finding.where for finding in result.findings} == {str(path)}


# ---- checkpoints


def test_cut_checkpoints(tmp_path: Path) -> None:
    site = usual(tmp_path)
    path = tmp_path / "checkpoints"
    os.truncate(path, path.stat().st_size - 1)
    result = look(site)
    assert kinds(result) == {"checkpoint"}
    assert "no complete note" in result.findings[0].text


def test_checkpoints_that_were_set_back_need_one_from_elsewhere(tmp_path: Path) -> None:
    site = usual(tmp_path)
    kept = notes(site)
    rewrite(site, kept[:2])
    result = look(site)
    assert result.holds
    assert "8 leaves are newer than the newest checkpoint" in result.remarks[0]
    # The whole folder set back: nothing in it shows that.
    for path in segments(site)[2:]:
        path.unlink()
    result = look(site)
    assert result.holds
    result = look(site, kept=[kept[-1]])
    assert {"nodes", "missing"} & kinds(result)
    assert any("a checkpoint covers 12" in finding.text for finding in result.findings)


def test_a_kept_checkpoint_that_is_in_the_log(tmp_path: Path) -> None:
    site = usual(tmp_path)
    assert look(site, kept=notes(site)[:1]).holds
    stranger = Site(tmp_path / "stranger")
    stranger.grow("host-a")
    (finding,) = look(site, kept=[stranger.note(START, ())]).findings
    assert finding.kind == "kept"
    stranger.log.close()


def test_reordered_checkpoints(tmp_path: Path) -> None:
    site = usual(tmp_path)
    first, cosigned, *rest = notes(site)
    rewrite(site, [*rest, first, cosigned])
    result = look(site)
    assert kinds(result) == {"order"}
    assert "over 4 leaves stands after one over 12" in result.findings[0].text


def test_a_dropped_checkpoint_is_covered_by_the_next(tmp_path: Path) -> None:
    site = usual(tmp_path)
    rewrite(site, notes(site)[2:])
    assert look(site).holds


def test_a_fork_that_the_broker_signed(tmp_path: Path) -> None:
    site = usual(tmp_path)
    other = Site(tmp_path / "other", site.operator, site.broker, site.witnesses)
    other.manifest = site.manifest
    other.grow("host-a", "host-b", "host-c", "host-a", "host-b", "host-c", "host-a")
    with (tmp_path / "checkpoints").open("ab") as file:
        file.write(other.note(START + 20, ()).render() + b"\n")
    other.log.close()
    result = look(site)
    assert "fork" in kinds(result)
    assert any("two histories" in finding.text for finding in result.findings)
    # The fork at a size that the log never signed.
    rewrite(site, [*notes(site)[:-1], site.note(START + 40, (), other.log.head._replace(size=9))])
    assert "consistency" in kinds(look(site))


def test_checkpoints_of_somebody_else(tmp_path: Path) -> None:
    site = usual(tmp_path)
    stranger = SecretKey(os.urandom(32), Kind.BROKER)
    text = notes(site)[-1].text
    forged = Note(text, (sign_note(text, "site-1", stranger.sign, stranger.public.ed25519),))
    rewrite(site, [forged])
    result = look(site)
    assert kinds(result) == {"checkpoint"}
    assert "is not signed by the log site-1" in result.findings[0].text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("mvps-d2 2.0 3.0", "mvps-d2 0.0 3.0"), "does not hold"),
        (lambda text: text.replace("\n12\n", "\n13\n"), "does not hold"),
        (lambda text: text.replace("site-1", "site-2"), "is of the log site-2, its manifest of the broker site-1"),
        (lambda text: re.sub("mvps-manifest .*", "mvps-manifest none", text), "names the manifest none, which is not"),
        (lambda text: re.sub("mvps-d2.*\n", "", text), "not those of an MVPS broker"),
    ],
)
def test_changed_checkpoints(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    site = usual(tmp_path)
    *before, last = notes(site)
    assert change(last.text) != last.text
    rewrite(site, [*before, last._replace(text=change(last.text))])
    result = look(site)
    assert kinds(result) == {"checkpoint"}
    assert said in result.findings[0].text


def test_manifests_decide_who_signs(tmp_path: Path) -> None:
    site = usual(tmp_path)
    later = replace(site.manifest, epoch_id=2, previous=site.manifest.digest, from_s=START + 100, retire_s=START + 100)
    result = audit(LogFiles(tmp_path), Trusted({later.digest: later}))
    assert kinds(result) == {"checkpoint"}
    assert site.manifest.digest.hex() in result.findings[0].text
    early = Checkpoint("site-1", *site.log.head, parse_checkpoint(notes(site)[0].text).extensions)
    text = early.text.replace(notes(site)[0].text.split("\n")[4], "mvps-manifest " + _base64(later.digest))
    forged = Note(text, (sign_note(text, "site-1", site.broker.sign, site.broker.public.ed25519),))
    with pytest.raises(CheckpointError, match="is older than the epoch 2"):
        Trusted({later.digest: later}).judge(forged)


def test_a_broker_that_holds_on_to_an_old_manifest_is_remarked(tmp_path: Path) -> None:
    site = usual(tmp_path)
    later = replace(
        site.manifest, epoch_id=2, previous=site.manifest.digest, from_s=START + 15, retire_s=START + 15, quorum=3
    )
    result = audit(LogFiles(tmp_path), Trusted({m.digest: m for m in (site.manifest, later)}))
    assert result.holds
    assert result.remarks == [
        "2 checkpoints, over 7 to 12 leaves, name a manifest whose successor was in force already"
    ]


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


# ---- cosignatures


def test_too_few_cosignatures(tmp_path: Path) -> None:
    site = usual(tmp_path)
    rewrite(site, [note._replace(signatures=note.signatures[:2]) for note in notes(site)])
    result = look(site)
    assert kinds(result) == {"quorum"}
    assert "cosigned by 2 of the witnesses" in result.findings[0].text
    assert audit(LogFiles(tmp_path), replace(trusted(site), quorum=1)).holds


def test_cosignatures_that_arrive_one_by_one_count_together(tmp_path: Path) -> None:
    site = usual(tmp_path)
    last = notes(site)[-1]
    rewrite(site, [Note(last.text, (last.signatures[0], each)) for each in last.signatures[1:]])
    result = look(site)
    assert result.holds
    assert result.newest is not None
    assert len(result.newest.cosigned) == 3


def test_a_newest_checkpoint_that_waits_for_its_witnesses_is_a_remark(tmp_path: Path) -> None:
    site = usual(tmp_path)
    *before, last = notes(site)
    rewrite(site, [*before[:-1], last._replace(signatures=last.signatures[:1])])
    result = look(site)
    assert result.holds
    assert (result.size, result.cosigned_size) == (12, 7)
    assert result.remarks == ["the witnesses' quorum has cosigned 7 of 12 leaves so far"]


def test_a_forged_cosignature_spoils_its_checkpoint(tmp_path: Path) -> None:
    site = usual(tmp_path)
    *before, last = notes(site)
    blob = last.signatures[1].blob
    forged = last.signatures[1]._replace(blob=blob[:-1] + bytes([blob[-1] ^ 1]))
    rewrite(site, [*before, Note(last.text, (last.signatures[0], forged))])
    assert kinds(look(site)) == {"checkpoint"}


# ---- snapshots


def test_snapshots_are_found_and_proved(tmp_path: Path) -> None:
    site = usual(tmp_path)
    result = look(site, snapshots=[("host-b", 3), ("host-z", 1)])
    (found,) = result.wanted
    assert (found.header.vantage_id, found.header.counter) == ("host-b", 3)
    assert result.newest is not None
    proof = prove(LogFiles(tmp_path), found, result.newest)
    assert proof.verified_head().size == 12
    assert b"body of host-b" in proof.leaf
    first = trusted(site).judge(notes(site)[1])
    with pytest.raises(CheckpointError, match="is newer than the checkpoint over 4"):
        prove(LogFiles(tmp_path), found, first)


def test_a_folder_without_anything_vouched_for(tmp_path: Path) -> None:
    site = usual(tmp_path)
    (tmp_path / "checkpoints").write_bytes(b"")
    result = look(site)
    assert kinds(result) == {"checkpoint"}
    assert "nobody vouches" in result.findings[0].text
    (tmp_path / "checkpoints").unlink()
    assert "cannot read" in look(site).findings[0].text
    with pytest.raises(EvidenceError, match="is no evidence log"):
        LogFiles(tmp_path / "other" if (tmp_path / "other").mkdir() is None else tmp_path)
