"""What a batch will cost: measured seconds by size, and how large a batch fits a time. No clock is read here."""

from __future__ import annotations

import math

_WEIGHT = 0.25
"""How much the newest measurement counts."""
_RUNS = 16
"""Limits are worked out again after so many runs, and when a size was measured for the first time."""
_FIRST_ROWS = 64
"""The limit while nothing was measured."""


class _Curve:
    """Seconds that runs of one length take, by the power of two nearest below their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> bool:
        """Notes a run; says whether it was the first of its size."""
        bucket = rows.bit_length() - 1
        scaled = seconds * (1 << bucket) / rows
        known = self._seconds.get(bucket)
        self._seconds[bucket] = scaled if known is None else known + _WEIGHT * (scaled - known)
        return known is None

    def at_least(self, rows: int) -> float:
        return max((seconds for bucket, seconds in self._seconds.items() if 1 << bucket <= rows), default=0.0)

    def predict(self, rows: int) -> float:
        bucket = rows.bit_length() - 1
        if bucket not in self._seconds:
            bucket = max((b for b in self._seconds if b < bucket), default=min(self._seconds))
        return self._seconds[bucket] * rows / (1 << bucket)


class Costs:
    """Seconds that runs of one model take, by their rows and by the steps of each.

    A step after another costs more than a row beside another, so that the two are told apart. An unmeasured size is
    taken to cost in proportion to the nearest smaller measured one, which overestimates (a batch has a fixed part),
    so batches grow in a few runs and never overshoot much; lengths likewise.
    """

    def __init__(self, target: float) -> None:
        """Batches are to take `target` seconds."""
        self.target = target
        self._curves: dict[int, _Curve] = {}
        self._limits: dict[tuple[int, int], int] = {}
        self._longest: dict[int, int] = {}
        self._runs = 0

    def observe(self, rows: int, steps: int, seconds: float) -> None:
        """Notes that a batch took so long; one without rows counts as one."""
        curve = self._curves.get(steps)
        if curve is None:
            curve = self._curves[steps] = _Curve()
        self._runs += 1
        if curve.observe(max(rows, 1), seconds) or self._runs >= _RUNS:
            self._runs = 0
            self._limits.clear()
            self._longest.clear()

    def predict(self, rows: int, steps: int = 1) -> float:
        """Seconds that a batch will take; infinite while nothing was measured, so that the first holds nobody up."""
        if not self._curves:
            return math.inf
        known = steps
        if known not in self._curves:
            known = max((length for length in self._curves if length < steps), default=min(self._curves))
        return self._curves[known].predict(max(rows, 1)) * steps / known

    def at_least(self, rows: int) -> float:
        """Seconds that a batch of one step takes, going by what smaller ones took; 0 while none was measured."""
        return self._curves[1].at_least(max(rows, 1)) if 1 in self._curves else 0.0

    def rows(self, steps: int, *, most: int) -> int:
        """How many rows of `steps` steps fit the target, 1 to `most`."""
        if not self._curves:
            return min(_FIRST_ROWS, most)
        limit = self._limits.get((steps, most))
        if limit is None:
            limit = self._limits[steps, most] = self._fitting(steps, most)
        return limit

    def longest(self, most: int) -> int:
        """How many steps of one row fit the target: a power of two, 1 to `most` (a power of two).

        A length fits, too, where half of it says so: a run that met a bad moment would rule its length out for good,
        as no other would correct it.
        """
        if not self._curves:
            return most
        found = self._longest.get(most)
        if found is None:
            found = most
            while found > 1 and min(self.predict(1, found), 2 * self.predict(1, found // 2)) > self.target:
                found //= 2
            self._longest[most] = found
        return found

    def _fitting(self, steps: int, most: int) -> int:
        best = 1
        while 2 * best <= most and self.predict(2 * best, steps) <= self.target:
            best *= 2
        # Between two powers of two the cost is linear: take what still fits.
        fits = int(best * self.target / max(self.predict(best, steps), 1e-9))
        return max(1, min(max(best, min(fits, 2 * best)), most))
