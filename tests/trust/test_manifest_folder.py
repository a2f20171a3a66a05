# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mvps.trust.keys import Kind, SecretKey
from mvps.trust.limits import MAX_MANIFESTS
from mvps.trust.manifest import sign_manifest, succeed
from mvps.trust.manifest_folder import FolderError, ManifestFolder
from mvps.trust.solo import Site, make_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, ["host-1"])


def folder(site: Site) -> ManifestFolder:
    return ManifestFolder(site.manifests, site.operator_key.public)


def test_what_is_dropped_there_is_found_once(site: Site) -> None:
    here = folder(site)
    assert [opened.manifest for opened in here.scan()] == [site.manifest]
    assert here.scan() == []
    second = succeed(site.manifest, site.manifest.from_s + 60)
    (site.manifests / "next.manifest").write_bytes(sign_manifest(second, site.operator_key))
    (opened,) = here.scan()
    assert opened.manifest == second
    assert opened.signed == (site.manifests / "next.manifest").read_bytes()
    assert here.refused == {}


def test_a_changed_file_is_read_again(site: Site) -> None:
    here = folder(site)
    here.scan()
    (path,) = site.manifests.glob("*.manifest")
    path.write_bytes(path.read_bytes().replace(b"operator solo", b"operator sole"))
    assert here.scan() == []
    assert "line" not in here.refused[path.name]  # the signature fails before anything is parsed
    path.unlink()
    assert (here.scan(), here.refused) == ([], {})


def test_another_operators_manifest_is_refused_and_named(site: Site) -> None:
    stranger = SecretKey(os.urandom(32), Kind.OPERATOR)
    (site.manifests / "forged.manifest").write_bytes(sign_manifest(site.manifest, stranger))
    here = folder(site)
    assert len(here.scan()) == 1
    assert "not signed by the configured operator" in here.refused["forged.manifest"]


def test_things_that_are_no_files_do_not_hang_or_count(site: Site) -> None:
    os.mkfifo(site.manifests / "pipe.manifest")
    (site.manifests / "folder.manifest").mkdir()
    (site.manifests / "gone.manifest").symlink_to("nowhere")
    (site.manifests / "README").write_text("not looked at")
    here = folder(site)
    assert len(here.scan()) == 1
    assert set(here.refused) == {"pipe.manifest", "folder.manifest", "gone.manifest"}


def test_a_missing_directory_says_what_belongs_there(tmp_path: Path, site: Site) -> None:
    with pytest.raises(FolderError, match=r"signed \*.manifest files"):
        ManifestFolder(tmp_path / "none", site.operator_key.public).scan()


def test_only_the_newest_are_kept(site: Site) -> None:
    here = folder(site)
    for epoch in range(2, MAX_MANIFESTS + 4):
        manifest = replace(site.manifest, epoch_id=epoch)
        here.keep(manifest, sign_manifest(manifest, site.operator_key))
    names = sorted(path.name for path in site.manifests.iterdir())
    assert names == [f"{epoch:020d}.manifest" for epoch in range(4, MAX_MANIFESTS + 4)]
