# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mvps.engine_metrics.exposition import samples

PAGE = """\
# HELP a:b Something.
# TYPE a:b gauge
a:b{engine="0",model_name="m"} 1.5
a:b{model_name="other",engine="0"} 7
a:b{le="1.0",text="a \\"quoted\\", model_name=\\"other\\" word",model_name="m"} 2 1700000000000
a:b 3
a:b_created{model_name="m"} 1.7e+09
c 4
"""


def test_samples_are_those_of_the_names_and_of_the_model_or_of_none() -> None:
    found = samples(PAGE, {"a:b"}, "m")
    assert [one.value for one in found] == [1.5, 2.0, 3.0]
    assert found[0].labels == {"engine": "0", "model_name": "m"}
    assert found[1].labels["le"] == "1.0"
    assert {one.name for one in found} == {"a:b"}


def test_a_value_that_is_none_is_an_error_and_only_where_it_was_asked_for() -> None:
    page = "a:b many\nc 1\n"
    assert [one.value for one in samples(page, {"c"}, "m")] == [1.0]
    with pytest.raises(ValueError, match="many"):
        samples(page, {"a:b"}, "m")
