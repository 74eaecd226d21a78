"""What a batch will cost: measured seconds by size, and how large a batch fits a time. No clock is read here."""

from __future__ import annotations

_WEIGHT = 0.25
"""How much the newest measurement counts."""
_CHANGE = 0.05
"""Limits are worked out again when an estimate changed by more than this part of it."""
_FIRST_ROWS = 64
"""The limit while nothing was measured."""


class Costs:
    """Seconds that runs of one model take, by the power of two nearest below their size (rows × steps).

    An unmeasured size is taken to cost in proportion to the nearest smaller measured one, which
    overestimates (a batch has a fixed part), so batches grow in a few runs and never overshoot much.
    """

    def __init__(self, target: float) -> None:
        """Batches are to take `target` seconds."""
        self.target = target
        self._seconds: dict[int, float] = {}
        self._limits: dict[tuple[int, int], int] = {}

    def observe(self, size: int, seconds: float) -> None:
        """Notes that a batch of `size` row-steps took so long; one of none counts as one."""
        size = max(size, 1)
        bucket = size.bit_length() - 1
        scaled = seconds * (1 << bucket) / size
        known = self._seconds.get(bucket)
        self._seconds[bucket] = scaled if known is None else known + _WEIGHT * (scaled - known)
        if known is None or abs(self._seconds[bucket] - known) > _CHANGE * known:
            self._limits.clear()

    def predict(self, size: int) -> float:
        """Seconds that a batch of `size` row-steps will take; 0 while nothing was measured."""
        if not self._seconds:
            return 0.0
        size = max(size, 1)
        bucket = size.bit_length() - 1
        if bucket not in self._seconds:
            bucket = max((b for b in self._seconds if b < bucket), default=min(self._seconds))
        return self._seconds[bucket] * size / (1 << bucket)

    def rows(self, steps: int, *, most: int) -> int:
        """How many rows of `steps` steps fit the target, 1 to `most`."""
        if not self._seconds:
            return min(_FIRST_ROWS, most)
        limit = self._limits.get((steps, most))
        if limit is None:
            limit = self._limits[steps, most] = self._fitting(steps, most)
        return limit

    def _fitting(self, steps: int, most: int) -> int:
        best = 1
        while 2 * best <= most and self.predict(2 * best * steps) <= self.target:
            best *= 2
        # Between two powers of two the cost is linear: take what still fits.
        fits = int(best * self.target / max(self.predict(best * steps), 1e-9))
        return max(1, min(max(best, min(fits, 2 * best)), most))
