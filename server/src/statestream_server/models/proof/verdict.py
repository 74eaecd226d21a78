"""The verdict: what a trial found of a model, enough to build it without trying it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from statestream.v1.model_pb2 import BatchInvariance


class TrialLimits(NamedTuple):
    """What trying one model may take, before its size counts.

    Attributes:
        seconds: Seconds; one more for every 64 MiB of the model's files and for every MiB of a row (up to 60), and 60
            more on a device of its own.
        megabytes: MiB of memory; eight more for every MiB of the model's files.
    """

    seconds: float = 10.0
    megabytes: int = 2048

    def seconds_for(self, nbytes: int, row: int = 0, *, apart: bool) -> float:
        """Seconds that a model of so many bytes, with rows of so many, may take."""
        rows = min(ROWS * row, _ROWS_SECONDS * _BYTES_A_SECOND)
        return self.seconds + (nbytes + rows) / _BYTES_A_SECOND + (_DEVICE_SECONDS if apart else 0.0)

    def bytes_for(self, nbytes: int) -> int:
        """Bytes of memory that a model of so many bytes may take."""
        return (self.megabytes << 20) + _COPIES * nbytes


_BYTES_A_SECOND: Final = 64 << 20
_DEVICE_SECONDS: Final = 60.0
ROWS: Final = 64
"""Rows of a trial's largest batch: each of their bytes takes the time of one of a file's."""
_ROWS_SECONDS: Final = 60
_COPIES: Final = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial found.

    Attributes:
        digest: Of the files that were tried; another one was not.
        fused: Whether the graph itself gathers and commits rows, and gives what it gives alone.
        unfolded: Whether a model over windows takes several steps at once, with the same bits as one by one.
        in_place: Whether a device commits rows in place.
        policy: How batches run: "plain", "padded" or "serial".
        batch_invariance: Whether sessions answer the same alone and among others.
        invariance_note: What was tried and what came out, one sentence.
        hides: Float inputs whose NaN ("nan") or infinity ("inf") becomes an ordinary number inside, and which.
        shared: Of a model without memory: what its calls may share; see `sharing.Sharing`.
        encoder_shared: The same of an encoder.
        draws: How values were drawn that it takes; see `draws.Kind`.
        said: What is worth a line in the log: levels of `logging`, and texts.
        plan: How a file without a signature becomes what is served, as `Plan.values` writes it; None for others.
        encoder_plan: The same of an encoder.
    """

    digest: str
    fused: bool = False
    unfolded: bool = False
    in_place: bool = True
    policy: str = "plain"
    batch_invariance: BatchInvariance = BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
    invariance_note: str = ""
    hides: Mapping[str, str] = field(default_factory=dict)
    shared: tuple[Any, ...] = ()
    encoder_shared: tuple[Any, ...] = ()
    draws: str = "noise"
    said: tuple[tuple[int, str], ...] = ()
    plan: Mapping[str, Any] | None = None
    encoder_plan: Mapping[str, Any] | None = None

    def dumps(self) -> str:
        """As one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, values: Mapping[str, Any]) -> Verdict:
        """From what `dumps` wrote, parsed."""
        said = tuple((int(level), str(text)) for level, text in values["said"])
        shared, encoder = tuple(values["shared"]), tuple(values["encoder_shared"])
        return cls(**{**values, "said": said, "shared": shared, "encoder_shared": encoder})


class _Watch:
    """Who hears what a trial is doing."""

    doing: Callable[[str], None] = staticmethod(lambda text: None)
    sized: Callable[[int, int], None] = staticmethod(lambda nbytes, row: None)


watch: Final = _Watch()
"""A trial's own process puts its reporters here; elsewhere nobody listens."""
