"""Which values an input or a state takes, and values drawn from them: entries of the example, never noise beyond it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from statestream.contract.signature import ValueRange
from statestream_export.errors import ExportError

Bounds = tuple[float, float]
"""The lowest and the highest value: whole numbers where both are int, else any between."""
Ranges = Bounds | Sequence[Bounds | None]
"""Bounds for all values of an input, or for every place along its last axis; None where the example tells them."""

_MOST_COLUMNS = 1024
"""Of more columns one range is told for all."""
_AROUND = 0.1
"""A column in which one fractional value was seen is taken to have this share around it."""


@dataclass(frozen=True, slots=True)
class Range:
    """The values of one column: from lowest to highest, whole numbers only or not."""

    lowest: float
    highest: float
    whole: bool


@dataclass(frozen=True, slots=True)
class Domain:
    """The values of one tensor.

    Attributes:
        columns: One range, or one for every place along the last axis of a step.
        given: Whether the caller gave them: then values are drawn from all of a range, else from the example.
        blank: Whether the example is all zeros, and so says nothing.
    """

    columns: tuple[Range, ...]
    given: bool = False
    blank: bool = False

    def message(self, *, wide: bool, counts: bool = False) -> list[ValueRange]:
        """What a signature tells of it; nothing where normal noise was taken, too."""
        if self.blank and wide and not self.given:
            return []
        columns = [around(column) for column in self.columns] if wide else list(self.columns)
        alike = len({column.whole for column in columns}) == 1
        if len(set(columns)) == 1:
            columns = columns[:1]
        elif len(columns) > _MOST_COLUMNS or (alike and len(columns) > 64):
            bounds = min(each.lowest for each in columns), max(each.highest for each in columns)
            columns = [Range(*bounds, whole=all(each.whole for each in columns))]
        return [
            ValueRange(lowest=each.lowest, highest=each.highest, whole=each.whole, counts_steps=counts)
            for each in columns
        ]


def around(column: Range) -> Range:
    """The range of a column in which one fractional value was seen, with what is tried around it."""
    if column.whole or column.lowest != column.highest:
        return column
    ends = sorted(column.lowest * share for share in (1 - _AROUND, 1 + _AROUND))
    return Range(ends[0], ends[1], whole=False)


def seen(rows: Tensor) -> Domain:
    """The domain of values [rows, *step]: what is in them."""
    flat = _columns(rows)
    missing = flat.isnan()  # Of a column that is sometimes missing, the rest tells.
    low, high = flat.masked_fill(missing, math.inf).amin(0), flat.masked_fill(missing, -math.inf).amax(0)
    low, high = low.masked_fill(missing.all(0), 0.0), high.masked_fill(missing.all(0), 0.0)
    whole = ((flat == flat.floor()) | flat.isinf() | missing).all(0)
    columns = tuple(
        Range(float(least), float(most), bool(every))
        for least, most, every in zip(low.tolist(), high.tolist(), whole.tolist(), strict=True)
    )
    return Domain(columns, blank=rows.is_floating_point() and not bool(rows.any()))


def told(name: str, rows: Tensor, ranges: Ranges) -> Domain:
    """The domain of values [rows, *step] where the caller gave ranges.

    Raises:
        ExportError: They are no ranges of this tensor, or the example is not in them.
    """
    found = seen(rows).columns
    wanted = f"expected (lowest, highest), or one such pair or None for each of {len(found)} places along the last axis"
    if isinstance(ranges, str | Mapping) or not isinstance(ranges, Sequence) or not ranges:
        raise ExportError(f"ranges of {name!r} are {ranges!r}; {wanted}")
    pairs: list[Bounds | None] = (
        [ranges] * len(found) if _is_pair(ranges) else list(ranges)  # type: ignore[list-item, arg-type]
    )
    if len(pairs) != len(found) or not all(pair is None or _is_pair(pair) for pair in pairs):
        raise ExportError(f"ranges of {name!r} are {ranges!r}; {wanted}")
    columns = []
    for place, (pair, column) in enumerate(zip(pairs, found, strict=True)):
        if pair is None:
            columns.append(column)
            continue
        made = Range(float(pair[0]), float(pair[1]), all(isinstance(bound, int) for bound in pair))
        where = f"{name!r}, column {place}" if len(found) > 1 else repr(name)
        if not made.lowest <= made.highest:
            raise ExportError(f"the range of {where} is {pair}; expected the lowest value first")
        if not (made.lowest <= column.lowest and column.highest <= made.highest):
            raise ExportError(
                f"the example of {where} goes from {column.lowest:g} to {column.highest:g}, its range is {pair}; give a"
                " range that holds the example"
            )
        if made.whole and not column.whole:
            raise ExportError(
                f"the range of {where} is {pair}, two int: whole numbers; the example has fractions. Write"
                f" ({made.lowest}, {made.highest})"
            )
        columns.append(made)
    return Domain(tuple(columns), given=True)


def draw(rows: Tensor, domain: Domain, places: Places, *, wide: bool) -> Tensor:
    """[count, *step] values of a domain, from entries [rows, *step].

    Entries are taken as they are or, where they are no whole numbers, between two of them, all columns alike, so that
    what holds of two entries and everything between them holds of what is drawn.

    Args:
        rows: The entries.
        domain: Their domain.
        places: Which entries.
        wide: Whether to go beyond an example that says little: normal noise for one that is all zeros, a tenth around
            the only fractional value of a column.
    """
    first = rows[places.one]
    if domain.given:
        return _uniform(first, domain.columns, places.generator)
    if not first.is_floating_point():
        return first
    if domain.blank:
        return torch.randn(first.shape, generator=places.generator).to(first.dtype) if wide else first
    second, share = rows[places.other], places.share.reshape(-1, *[1] * (rows.dim() - 1)).to(torch.float64)
    mixed = (first.double() * (1 - share) + second.double() * share).to(first.dtype)
    fractional = torch.tensor([not column.whole for column in domain.columns])
    usable = fractional.reshape(-1) & torch.isfinite(first) & torch.isfinite(second)
    drawn = torch.where(usable, mixed, first)
    single = [not column.whole and column.lowest == column.highest for column in domain.columns]
    if wide and any(single):
        noise = 1 + _AROUND * (2 * torch.rand(first.shape, generator=places.generator) - 1)
        drawn = torch.where(torch.tensor(single), first * noise.to(first.dtype), drawn)
    return drawn


@dataclass(frozen=True, slots=True)
class Places:
    """Which entries are drawn: entry `one`, with a share of entry `other`; half of them as they are. All [count]."""

    one: Tensor
    other: Tensor
    share: Tensor
    generator: torch.Generator

    @classmethod
    def among(cls, entries: int, count: int, generator: torch.Generator) -> Places:
        """`count` of so many entries, with replacement."""
        one, other = (torch.randint(entries, (count,), generator=generator) for _ in range(2))
        share = torch.rand(count, generator=generator)
        share = torch.where(torch.rand(count, generator=generator) < 0.5, torch.zeros(()), share)
        return cls(one, other, share, generator)


def _uniform(like: Tensor, columns: Sequence[Range], generator: torch.Generator) -> Tensor:
    low, high = (
        torch.tensor([_finite(getattr(column, end), column) for column in columns], dtype=torch.float64)
        for end in ("lowest", "highest")
    )
    whole = torch.tensor([column.whole for column in columns])
    part = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    between = low * (1 - part) + high * part
    counted = torch.minimum(torch.floor(low + part * (high - low + 1)), high)
    return torch.where(whole, counted, between).to(like.dtype)


def _finite(bound: float, column: Range) -> float:
    if math.isfinite(bound):
        return bound
    other = column.highest if bound == column.lowest else column.lowest
    return (other if math.isfinite(other) else 0.0) + math.copysign(1.0, bound)


def _columns(rows: Tensor) -> Tensor:
    """[entries, columns] in float64; one column where a step is a single number."""
    return rows.reshape(-1, rows.shape[-1] if rows.dim() > 1 else 1).to(torch.float64)


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in value)
    )
