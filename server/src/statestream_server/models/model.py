"""One loaded version of a model: what it is, what runs it, what was proved of it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from statestream.contract.signature import Signature
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array
from statestream_server.models.rows import Rows
from statestream_server.models.words import Words


class ModelLoadError(Exception):
    """A model cannot be served: one line with the file, the reason and what to do."""


class Kind(enum.StrEnum):
    """How a model is served."""

    PREDICT = "predict"
    SESSION = "session"
    GENERATE = "generate"


class BatchPolicy(enum.StrEnum):
    """What is done where a model answers in other bits alone than in a batch."""

    PAD = "pad"
    """A batch of one runs as two where that gives the same bits; else sessions as WARN, and calls of Predict alone."""
    WARN = "warn"
    """The difference is told, nothing else, as long as it is rounding."""
    SERIALISE = "serialise"
    """Every row and step runs alone."""


class Print(Protocol):
    """A file as it was when it was read; see `files.prints`."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def sha256(self) -> str:
        """Of its bytes, in hex."""

    def changed(self) -> bool:
        """Whether it looks other now: its size, its time, or that it is another file."""


class Predictor(Protocol):
    """A graph without rows."""

    @property
    def together(self) -> int:
        """The most rows of a run that calls may share: beyond, or alone, an answer could have other bits."""

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """Runs it once: arrays in the signature's order and the graph's axes, one for every output."""


@dataclass(slots=True)
class Model:
    """One version of a model.

    Attributes:
        name: The folder's name.
        version: The folder's number.
        kind: How it is served.
        signature: Inputs, outputs and memory; of an encoder-decoder the decoder's.
        digest: SHA-256 over graph, weights and signature without its labels, in hex.
        rows: The memory, and what steps it; None for models without memory.
        graph: The graph of a model without memory, else None.
        encoder: The encoder's graph, only of an encoder-decoder.
        encoder_signature: The encoder's inputs and outputs.
        reads: How the text of an encoder-decoder becomes tokens; None where only tokens do.
        writes: How tokens become its text; None where they stay tokens.
        batch_invariance: Whether its sessions, or its calls, answer the same alone and among others.
        invariance_note: What was tried and what came out, one sentence.
        encoder_invariance: The same of the encoder.
        encoder_note: The same of the encoder, one sentence.
        form: How a file without a signature became what is served: what each note is about, and a sentence.
        providers: What runs it, as ONNX Runtime names its providers, the preferred one first.
        files: What it was read from: graphs, and the files with their weights.
        prints: The same files as they were then, with what settles the signature.
    """

    name: str
    version: int
    kind: Kind
    signature: Signature
    digest: str
    rows: Rows | None = None
    graph: Predictor | None = None
    encoder: Predictor | None = None
    encoder_signature: Signature | None = None
    reads: Words | None = None
    writes: Words | None = None
    batch_invariance: BatchInvariance = BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
    invariance_note: str = ""
    encoder_invariance: BatchInvariance = BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
    encoder_note: str = ""
    form: Sequence[tuple[str, str]] = ()
    providers: tuple[str, ...] = field(default=())
    files: tuple[Path, ...] = ()
    prints: tuple[Print, ...] = ()

    @property
    def mark(self) -> bytes:
        """16 bytes that stand for it where work is noted."""
        return bytes.fromhex(self.digest)[:16]
