"""Layouts: what the bytes of one model's records mean."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from statestream.contract.signature import numpy_dtype, score_outputs, step_shape
from statestream_server.arrays import Array
from statestream_server.models.model import Model
from statestream_server.models.rows import Column


@dataclass(frozen=True, slots=True)
class Layout:
    """What the bytes of one model's records mean.

    Attributes:
        model: The first 16 bytes of the model's digest.
        fingerprint: Stands for runtime, provider and hardware: outputs are the same bits where it is equal.
        columns: The columns of its slab, sparse ones last.
        outputs: One step of every output.
        scores: One step of every score, where its steps can be scored.
        columns_digest: Stands for names, dtypes and shapes of the columns.
        outputs_digest: Stands for those of the outputs and scores.
        dense: How many of the columns are not sparse.
        row_bytes: Bytes of a row, at most.
        step_bytes: Bytes of one step of all outputs and scores.
    """

    model: bytes
    fingerprint: int
    columns: Sequence[Column]
    outputs: Sequence[Column]
    scores: Sequence[Column] = ()
    columns_digest: int = field(init=False)
    outputs_digest: int = field(init=False)
    dense: int = field(init=False)
    row_bytes: int = field(init=False)
    step_bytes: int = field(init=False)

    @classmethod
    def of(cls, model: Model, columns: Sequence[Column], fingerprint: str) -> Layout:
        """The records of a model's sessions; `fingerprint` names runtime, provider and hardware."""
        outputs, scores = (
            [Column(spec.name, numpy_dtype(spec.dtype), step_shape(spec)) for spec in specs]
            for specs in (model.signature.outputs, score_outputs(model.signature))
        )
        number = int.from_bytes(hashlib.blake2b(fingerprint.encode(), digest_size=8).digest(), "little")
        return cls(model.mark, number, columns, outputs, scores)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns_digest", digest_of(self.columns))
        object.__setattr__(self, "outputs_digest", digest_of([*self.outputs, *self.scores]))
        object.__setattr__(self, "dense", sum(not column.sparse for column in self.columns))
        object.__setattr__(self, "row_bytes", _nbytes(self.columns))
        object.__setattr__(self, "step_bytes", _nbytes([*self.outputs, *self.scores]))

    def has_scores(self, outputs: Sequence[Array]) -> bool:
        """Whether the scores stand behind the outputs of a reply."""
        return len(outputs) > len(self.outputs)


def digest_of(columns: Sequence[Column]) -> int:
    """What a header says of the columns of a row, or of the outputs."""
    text = "\n".join(f"{column.name} {column.dtype.str} {list(column.shape)}" for column in columns)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _nbytes(columns: Sequence[Column]) -> int:
    return sum(abs(math.prod(column.shape)) * column.dtype.itemsize for column in columns)
