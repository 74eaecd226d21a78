"""Tables: German credit and Adult census from UCI, and those that stand for them without a network.

penguins.csv has the measurements of 344 penguins near Palmer Station, Antarctica, by K. Gorman and the Palmer
Station LTER (doi:10.1371/journal.pone.0090081), public domain (CC0).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np

from statestream_export.datasets.files import Published, Source, find
from statestream_export.errors import DataError

GERMAN: Final = Published(
    "German credit, numeric",
    "german-credit",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/",
    {"german.data-numeric": "sha256:2752b044394958ab6dd193a0b56ca0f0b3a2d8bc7cb8c008e35a5e84bbec02f8"},
)
ADULT: Final = Published(
    "Adult census",
    "adult",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/",
    {
        "adult.data": "sha256:5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "adult.test": "sha256:a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    },
)
MISSING: Final = "?"
"""The first of every vocabulary: a category that is missing, or was never seen."""
_ADULT_COLUMNS = (
    "age workclass fnlwgt education education-num marital-status occupation relationship race sex capital-gain"
    " capital-loss hours-per-week native-country"
).split()
_ADULT_NUMBERS = "age fnlwgt education-num capital-gain capital-loss hours-per-week".split()
_PENGUIN_NUMBERS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Rows of numbers float64 [N, columns] and their classes int64 [N], the last `held_out` for the test."""

    columns: tuple[str, ...]
    values: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    held_out: int
    source: str


@dataclass(frozen=True, slots=True)
class Mixed:
    """Rows of numbers and categories, the last `held_out` for the test.

    Attributes:
        columns: The names of the numbers.
        values: float32 [N, columns], NaN where missing.
        vocabularies: By name of a category's column: its values in what trains, "?" first.
        codes: int64 [N, categories]; 0 where missing or never seen in what trains.
        labels: int64 [N].
        classes: What the labels stand for.
        held_out: How many rows of the end are the test's.
        source: What the table is, for metrics.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    vocabularies: dict[str, tuple[str, ...]]
    codes: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    held_out: int
    source: str


def credit(source: Source) -> Numbers:
    """German credit, a tenth held out; where it is not to be had, scikit-learn's breast cancer, 100 held out.

    The order is drawn once and for all, so that figures can be compared.

    Raises:
        DataError: The file that was given is not German credit's.
    """
    found = find(GERMAN, source)
    if found is not None:
        [path] = found.paths.values()
        rows = _german(path)
        order = np.random.default_rng(0).permutation(len(rows))
        values, labels = rows[order, :-1], rows[order, -1].astype(np.int64) - 1
        names = tuple(f"a{number}" for number in range(1, 25))
        return Numbers(names, values, labels, ("good", "bad"), max(1, len(rows) // 10), found.label)
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(table.target))
    name = "scikit-learn breast cancer"
    source.console.print(f"data: {name}, in the place of German credit (--data FOLDER for the real one)")
    columns = tuple(str(column) for column in table.feature_names)
    classes = tuple(str(label) for label in table.target_names)
    return Numbers(columns, table.data[order], table.target[order].astype(np.int64), classes, 100, name)


def income(source: Source) -> Mixed:
    """Adult census in its own split; where it is not to be had, penguins, a quarter held out.

    Raises:
        DataError: The files that were given are not Adult's.
    """
    found = find(ADULT, source)
    if found is not None:
        train, test = _adult(found.paths["adult.data"]), _adult(found.paths["adult.test"])
        return _mixed(_ADULT_COLUMNS, _ADULT_NUMBERS, [*train, *test], ("<=50K", ">50K"), len(test), found.label)
    name = "Palmer penguins"
    source.console.print(f"data: {name}, in the place of Adult census (--data FOLDER for the real one)")
    text = resources.files(__package__).joinpath("penguins.csv").read_text("utf-8")
    rows = [
        [*(MISSING if row[key] == "NA" else row[key] for key in ["island", "sex", *_PENGUIN_NUMBERS]), row["species"]]
        for row in csv.DictReader(text.splitlines())
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    rows = [rows[at] for at in order]
    classes = ("Adelie", "Chinstrap", "Gentoo")
    return _mixed(["island", "sex", *_PENGUIN_NUMBERS], _PENGUIN_NUMBERS, rows, classes, len(rows) // 4, name)


def _german(path: Path) -> np.ndarray:
    rows = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        try:
            row = [float(field) for field in fields]
        except ValueError:
            row = []
        if len(row) != 25 or row[-1] not in (1, 2):
            raise DataError(
                f"line {number} of {path} has {len(fields)} fields; expected 24 numbers and 1 (good) or 2 (bad). The"
                " file is truncated or another one; fetch it again"
            )
        rows.append(row)
    if len(rows) < 10:
        raise DataError(f"{path} has {len(rows)} rows; expected the 1,000 of German credit, ten at least")
    return np.array(rows)


def _adult(path: Path) -> list[list[str]]:
    """Rows of the columns' texts and the class."""
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if line.startswith("|"):  # the first line of adult.test says how it was drawn
            continue
        fields = [field.strip() for field in line.split(",")]
        label = fields[-1].rstrip(".")
        if len(fields) != len(_ADULT_COLUMNS) + 1 or label not in ("<=50K", ">50K"):
            raise DataError(
                f"line {number} of {path} has {len(fields)} fields and ends in {fields[-1]!r}; expected 15 fields and"
                " <=50K or >50K at the end. The file is truncated or another one; fetch it again"
            )
        rows.append([*fields[:-1], label])
    if not rows:
        raise DataError(f"{path} has no rows; fetch it again")
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text ({error}); fetch it again") from error


def _mixed(
    columns: Sequence[str],
    numbers: Sequence[str],
    rows: list[list[str]],
    classes: tuple[str, ...],
    held_out: int,
    source: str,
) -> Mixed:
    categories = [name for name in columns if name not in numbers]
    at = {name: number for number, name in enumerate(columns)}
    try:
        values = [[np.nan if row[at[name]] == MISSING else float(row[at[name]]) for name in numbers] for row in rows]
    except ValueError as error:
        raise DataError(f"{source}: a column of numbers ({', '.join(numbers)}) has text in it: {error}") from error
    train = rows[:-held_out]
    vocabularies = {name: (MISSING, *sorted({row[at[name]] for row in train} - {MISSING})) for name in categories}
    places = {name: {value: place for place, value in enumerate(words)} for name, words in vocabularies.items()}
    codes = [[places[name].get(row[at[name]], 0) for name in categories] for row in rows]
    labels = np.array([classes.index(row[-1]) for row in rows], np.int64)
    return Mixed(
        tuple(numbers),
        np.array(values, np.float32),
        vocabularies,
        np.array(codes, np.int64),
        labels,
        classes,
        held_out,
        source,
    )
