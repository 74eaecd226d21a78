"""Many series at once: M1 yearly of the Monash archive, in the archive's own format, .tsf."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from statestream_export.datasets.files import File, Published, Source, find
from statestream_export.datasets.places import Package
from statestream_export.errors import DataError

_M1 = "12866731b810af595e4d4c74e87597a7846eb3b4667ef884a67a7e9126bf5412"
M1_YEARLY: Final = Published(
    "M1 yearly",
    "m1-yearly",
    "https://raw.githubusercontent.com/aeon-toolkit/aeon/17b493cb55b5d7fcce72fce64f052fb39933e886/aeon/datasets/data/"
    "m1_yearly_dataset/",
    {"m1_yearly_dataset.tsf": File(f"sha256:{_M1}", f"sha256:{_M1}")},
    (Package("PyPI", "aeon", "datasets/data/m1_yearly_dataset"),),
)
"""181 series of the M-competition of 1982 (Makridakis and others), as the Monash archive has them."""


@dataclass(frozen=True, slots=True)
class Several:
    """Series that differ in length.

    Attributes:
        names: What they are called.
        values: Of each, float64 [T].
        horizon: How many steps of the end of each are the test's.
        source: What they are, for metrics.
    """

    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    horizon: int
    source: str

    def cut(self, steps: int) -> Several:
        """The same without the last steps of each: without the test's, its end is what choices are made on."""
        return Several(
            self.names, tuple(series[: len(series) - steps] for series in self.values), self.horizon, self.source
        )

    @property
    def histories(self) -> list[np.ndarray]:
        """What comes before the horizon, of each [T - horizon]."""
        return [series[: -self.horizon] for series in self.values]

    @property
    def truths(self) -> np.ndarray:
        """What the horizon brings, [N, horizon]."""
        return np.stack([series[-self.horizon :] for series in self.values])


def m1_yearly(source: Source) -> Several:
    """M1 yearly: 181 series of 15 to 58 years, the last 6 of each for the test.

    Raises:
        DataError: The file is neither given nor to be had, or is none of the format; nothing that ships can stand for
            it.
    """
    found = find(M1_YEARLY, source)
    if found is None:
        raise DataError(
            "M1 yearly is needed and nothing built in stands for it; `statestream data` says how to get it, for example"
            f" {M1_YEARLY.packages[0].command}"
        )
    [path] = found.paths.values()
    return read_tsf(path, found.label)


def read_tsf(path: Path, source: str) -> Several:
    """The series of a .tsf file: lines of its head begin with # or @, each other line is a series, its values last.

    Raises:
        DataError: It names no horizon, or a series is too short for it or holds what is no number; names the line.
    """
    names, values, horizon = list[str](), list[np.ndarray](), 0
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if line.startswith("@horizon"):
            horizon = int(line.split()[1])
        if not line.strip() or line[0] in "#@":
            continue
        name, *_, numbers = line.split(":")
        try:
            series = np.array([float(value) for value in numbers.split(",")])
        except ValueError as error:
            raise DataError(f"line {number} of {path}: {error}; expected numbers with commas between them") from None
        if not 1 <= horizon <= len(series) - 2:
            raise DataError(
                f"line {number} of {path} has {len(series)} values and the horizon is {horizon}; expected"
                " '@horizon' above, 1 or more, and 2 values more than it says"
            )
        names.append(name)
        values.append(series)
    if not names:
        raise DataError(f"{path} has no series; expected lines name:…:value,value,…")
    return Several(tuple(names), tuple(values), horizon, source)
