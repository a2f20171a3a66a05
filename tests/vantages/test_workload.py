# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvps.vantages.workload import Workloads, hierarchies, workload_key, workload_name

CONTAINER = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/worker/1", "nginx.service"),
        (f"/system.slice/docker-{CONTAINER}.scope", CONTAINER),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER}.scope", CONTAINER),
        (f"/docker/{CONTAINER}", CONTAINER),
        ("/user.slice/user-0.slice/session-1.scope", "session-1.scope"),
        ("/", "/"),
        ("", "/"),
        ("/custom/group", "/custom/group"),
    ],
)
def test_names(path: str, name: str) -> None:
    assert workload_name(path) == name


def test_keys_are_stable_and_never_zero() -> None:
    assert workload_key("nginx.service") == workload_key("nginx.service") != workload_key("redis.service")
    assert all(workload_key(str(n)) for n in range(1000))


@pytest.mark.kernel
def test_one_workload_has_one_key_in_every_hierarchy() -> None:
    name = f"mvps-test-{os.getpid()}.slice"
    made = []
    try:
        for top in hierarchies():
            group = Path(top) / name
            try:
                group.mkdir()
            except OSError:  # a hierarchy that does not take new groups
                continue
            made.append(group)
        assert made, "no writable cgroup hierarchy"
        workloads = Workloads()
        keys = {workloads.key(group.stat().st_ino) for group in made}
        assert keys == {workload_key(name)}
        assert workloads.names(keys) == {workload_key(name): name}
    finally:
        for group in made:
            group.rmdir()


def test_an_id_that_is_gone_keeps_a_name_of_its_own() -> None:
    workloads = Workloads()
    key = workloads.key(2**60)
    assert workloads.names([key]) == {key: f"cgroup:{2**60}"}
