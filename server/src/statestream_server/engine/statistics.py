"""What engine and scheduler did so far, in integers: batches by size, why none was larger, how long work waited.

The hot path counts; whoever wants to know reads (metrics.py, ServerService.GetStatistics).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

SIZES: Final = 13
"""Sizes by powers of two: 1, 2, 3–4, 5–8, … up to 4,096 rows."""
WAITS: Final = 26
"""Waits by powers of two of microseconds: below 1, 2, 4, … up to 33 s."""


class Why(enum.IntEnum):
    """Why a batch was not larger. The first that holds counts."""

    SERIAL = 0
    """The model runs its rows one by one."""
    TIME = 1
    """More of the same waited and would have made it longer than a batch may take."""
    MOST = 2
    """More of the same waited, and a batch has no more rows than that."""
    SLICES = 3
    """What else waited has slices of another length or another shape, or is of another class."""
    BUSY = 4
    """What else waited is behind an earlier chunk of its session."""
    ALL = 5
    """Nothing else waited for the model."""


@dataclass(slots=True)
class Statistics:
    """What the engine did so far.

    Attributes:
        batches: Batches run.
        rows: Rows in them, in all; `rows / batches` is the mean batch.
        steps: Row-steps run.
        failed: Chunks that were not applied.
        seconds: Seconds spent running models.
        threaded: Batches that ran on the thread; the others ran on the loop.
        why: Batches by `Why`.
        sizes: Batches by their rows: index i has those of at most 2**i, and more than the one before.
        waits: Batches by how long their oldest work waited: index i has those of less than 2**i µs.
        waited: Seconds of those waits.
    """

    batches: int = 0
    rows: int = 0
    steps: int = 0
    failed: int = 0
    seconds: float = 0.0
    threaded: int = 0
    why: list[int] = field(default_factory=lambda: [0] * len(Why))
    sizes: list[int] = field(default_factory=lambda: [0] * SIZES)
    waits: list[int] = field(default_factory=lambda: [0] * WAITS)
    waited: float = 0.0

    def count(self, rows: int, steps: int, seconds: float, why: Why, waited: float) -> None:
        """Counts a batch of `rows` rows and `steps` steps each, that ran for `seconds` after it `waited`."""
        self.batches += 1
        self.rows += rows
        self.steps += rows * steps
        self.seconds += seconds
        self.why[why] += 1
        self.sizes[min((rows - 1).bit_length(), SIZES - 1)] += 1
        self.waits[min(int(waited * 1e6).bit_length(), WAITS - 1)] += 1
        self.waited += waited


@dataclass(slots=True)
class Share:
    """What a class of work had of the engine.

    Attributes:
        batches: Its batches.
        seconds: Seconds that they ran.
    """

    batches: int = 0
    seconds: float = 0.0
