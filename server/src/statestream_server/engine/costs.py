"""What a batch will cost: measured seconds by size, and how large a batch fits a time. No clock is read here."""

from __future__ import annotations

import math
from typing import Final

BATCH_SECONDS: Final = 2e-3
"""What a batch is to take at most: newcomers wait that long before they join."""
BATCH_BYTES: Final = 32 << 20
"""Outputs of one run, about, as they exist once more while it runs; one step of one row may have more."""
_WEIGHT = 0.25
"""How much the newest measurement counts."""
_RUNS = 16
"""Limits are worked out again after so many runs, and when a size was measured for the first time."""
_FIRST_ROWS = 64
"""The limit while nothing was measured."""


class Costs:
    """Seconds that runs of one model take, by their rows and by the steps of each.

    A step after another costs more than a row beside another, so that the two are told apart. An unmeasured size is
    taken to cost in proportion to the nearest smaller measured one, which overestimates (a batch has a fixed part),
    so batches grow in a few runs and never overshoot much; lengths likewise.
    """

    def __init__(self, target: float, step_bytes: int = 0) -> None:
        """Batches are to take `target` seconds; their outputs have `step_bytes` a step and are to have not too many."""
        self.target = target
        self._step_bytes = step_bytes
        self._curves: dict[int, dict[int, float]] = {}
        """By steps, then by the power of two nearest below the rows."""
        self._limits: dict[tuple[int, int], int] = {}
        self._longest: dict[int, int] = {}
        self._runs = 0

    def observe(self, rows: int, steps: int, seconds: float) -> bool:
        """Notes that a batch took so long; one without rows counts as one. Whether limits may be others from now on."""
        curve = self._curves.get(steps)
        if curve is None:
            curve = self._curves[steps] = {}
        rows = rows or 1
        bucket = rows.bit_length() - 1
        scaled, known = seconds * (1 << bucket) / rows, curve.get(bucket)
        curve[bucket] = scaled if known is None else known + _WEIGHT * (scaled - known)
        self._runs += 1
        if known is not None and self._runs < _RUNS:
            return False
        self._runs = 0
        self._limits.clear()
        self._longest.clear()
        return True

    def predict(self, rows: int, steps: int = 1) -> float:
        """Seconds that a batch will take; infinite while nothing was measured, so that the first holds nobody up."""
        if not self._curves:
            return math.inf
        known, rows = steps, rows or 1
        if known not in self._curves:
            known = max((length for length in self._curves if length < steps), default=min(self._curves))
        curve, bucket = self._curves[known], rows.bit_length() - 1
        if bucket not in curve:
            bucket = max((one for one in curve if one < bucket), default=min(curve))
        return curve[bucket] * rows / (1 << bucket) * steps / known

    def at_least(self, rows: int) -> float:
        """Seconds that a batch of one step takes, going by what smaller ones took; 0 while none was measured."""
        return max((seconds for b, seconds in self._curves.get(1, {}).items() if 1 << b <= max(rows, 1)), default=0.0)

    def rows(self, steps: int, *, most: int) -> int:
        """How many rows of `steps` steps fit the target, 1 to `most`."""
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
        most = min(most, max(1, BATCH_BYTES // max(1, steps * self._step_bytes)))
        if not self._curves:
            return min(_FIRST_ROWS, most)
        best = 1
        while 2 * best <= most and self.predict(2 * best, steps) <= self.target:
            best *= 2
        # Between two powers of two the cost is linear: take what still fits.
        fits = int(best * self.target / max(self.predict(best, steps), 1e-9))
        return max(1, min(max(best, min(fits, 2 * best)), most))
