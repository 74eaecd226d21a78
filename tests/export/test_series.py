"""M1 yearly: the file that a package ships, files of the format, and what is refused."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from statestream_export.datasets import series
from statestream_export.datasets.files import Source
from statestream_export.errors import DataError
from tests.export.sets import tsf
from tests.support import others


def source(folder: Path | None = None) -> Source:
    return Source(folder, folder is None, False, Console(file=io.StringIO()))


def test_the_package_ships_the_series_as_they_were_published() -> None:
    others.required("aeon", "datasets/data/m1_yearly_dataset/m1_yearly_dataset.tsf")
    found = series.m1_yearly(source())
    assert (found.source, len(found.values), found.horizon) == ("M1 yearly", 181, 6)
    assert {len(values) for values in found.values} >= {15, 58}
    assert found.values[0][:3].tolist() == [3600, 7700, 12300]


def test_a_file_is_read_by_its_own_head(tmp_path: Path) -> None:
    (tmp_path / "m1_yearly_dataset.tsf").write_text(tsf([[1, 2, 3.5, 4], [5, 6, 7]], horizon=1))
    found = series.m1_yearly(source(tmp_path))
    assert found.names == ("T1", "T2")
    assert found.source == "M1 yearly, other files than the published ones"
    assert [past.tolist() for past in found.histories] == [[1, 2, 3.5], [5, 6]]
    assert found.truths.tolist() == [[4], [7]]
    cut = found.cut(1)
    assert [past.tolist() for past in cut.histories] == [[1, 2], [5]]
    assert cut.truths.tolist() == [[3.5], [6]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@horizon 2\n@data\nT1:1,2,3\n", "line 3 of .* has 3 values and the horizon is 2"),
        ("@data\nT1:1,2,3\n", "line 2 of .* the horizon is 0; expected '@horizon' above"),
        ("@horizon 1\nT1:1,?,3\n", r"line 2 of .*: could not convert string to float: '\?'; expected numbers"),
        ("@horizon 1\n", "has no series"),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m1_yearly_dataset.tsf").write_text(text)
    with pytest.raises(DataError, match=said):
        series.m1_yearly(source(tmp_path))


def test_without_the_file_it_is_said_how_to_get_it() -> None:
    with pytest.raises(DataError, match=re.escape("pip install --no-deps aeon")):
        series.m1_yearly(Source(None, False, False, Console(file=io.StringIO())))
