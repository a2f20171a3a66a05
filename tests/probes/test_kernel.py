# SPDX-License-Identifier: Apache-2.0
import pytest

from mvps.probes.kernel import too_old


@pytest.mark.parametrize("release", ["6.1.0-9-amd64", "6.18.44-x", "7.0", "10.2", "odd", ""])
def test_the_floor_and_above_are_taken(release: str) -> None:
    assert too_old(release) == ""


@pytest.mark.parametrize("release", ["5.15.0-100-generic", "6.0.19", "4.19.0"])
def test_below_it_the_kernel_is_refused_with_advice(release: str) -> None:
    assert f"kernel {release} is older than 6.1" in too_old(release)
    assert "boot 6.1 or newer" in too_old(release)
