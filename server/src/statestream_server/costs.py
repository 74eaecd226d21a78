"""What a batch will cost: measured seconds by size, and how large a batch fits a time. No clock is read here."""

from __future__ import annotations

_WEIGHT = 0.25
"""How much the newest measurement counts."""


class Costs:
    """Seconds that runs of one model take, by the power of two nearest below their size (rows × steps).

    An unmeasured size is taken to cost in proportion to the nearest smaller measured one, which
    overestimates (a batch has a fixed part), so batches grow in a few runs and never overshoot much.
    """

    def __init__(self, target: float) -> None:
        """Batches are to take `target` seconds."""
        self.target = target
        self._seconds: dict[int, float] = {}

    def observe(self, size: int, seconds: float) -> None:
        """Notes that a batch of `size` row-steps took so long; one of none counts as one."""
        size = max(size, 1)
        bucket = size.bit_length() - 1
        scaled = seconds * (1 << bucket) / size
        known = self._seconds.get(bucket, scaled)
        self._seconds[bucket] = known + _WEIGHT * (scaled - known)

    def predict(self, size: int) -> float:
        """Seconds that a batch of `size` row-steps will take; 0 while nothing was measured."""
        size = max(size, 1)
        bucket = size.bit_length() - 1
        known = [b for b in self._seconds if b <= bucket] or list(self._seconds)[:1]
        if not known:
            return 0.0
        nearest = max(known)
        return self._seconds[nearest] * size / (1 << nearest)

    def rows(self, steps: int, *, most: int) -> int:
        """How many rows of `steps` steps fit the target, 1 to `most`."""
        if not self._seconds:
            return min(64, most)
        best, size = 1, 1
        while size <= most:
            if self.predict(size * steps) > self.target:
                break
            best, size = size, size * 2
        # Between two powers of two the cost is linear: take what still fits.
        fits = int(best * self.target / max(self.predict(best * steps), 1e-9))
        return max(1, min(max(best, min(fits, 2 * best)), most))
