"""The generate driver: an encoder's output initialises a row, then the decoder is stepped token by token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import Signature, encode_text, numpy_dtype
from statestream_server.arrays import Array
from statestream_server.drivers.drive import Drive, Move, roll
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.watch import tag_of
from statestream_server.engine.work import Priority
from statestream_server.models.model import Model
from statestream_server.models.rows import start_values
from statestream_server.registry import Registry
from statestream_server.sessions.admission.accounts import COPIES, Budget
from statestream_server.settings import Limits


class Token(NamedTuple):
    """One decoded symbol."""

    text: str
    number: int
    log_probability: float


class Greedy:
    """The policy of one text: the best token, and that in again."""

    def __init__(self, signature: Signature, most: int) -> None:
        """Decodes at most `most` tokens."""
        self._decoding = signature.decoding
        self._dtype = numpy_dtype(signature.inputs[0].dtype)
        self._most = most

    def next(self, step: int, outputs: Sequence[Array]) -> Move[Token]:
        """The token that has just been scored; the first step only begins."""
        decoding = self._decoding
        if not step:
            return Move(None, self._inputs(decoding.start_token))
        scores = outputs[0].reshape(-1).astype(np.float64)
        token = int(scores.argmax())
        if token == decoding.end_token:
            return Move(None)
        told = Token(decoding.text.vocabulary[token], token, _log_probability(scores, token))
        return Move(told, self._inputs(token) if step < self._most else None)

    def _inputs(self, token: int) -> list[Array]:
        return [np.asarray([[token]], self._dtype)]


class Generator:
    """Decodes greedily with encoder-decoder models."""

    def __init__(self, registry: Registry, engine: Engine, limits: Limits, budget: Budget) -> None:
        """Texts are decoded on `engine`, as rows among the others; `budget` is what they may hold together."""
        self._registry = registry
        self._engine = engine
        self._limits = limits
        self._budget = budget

    def model(self, name: str, version: int) -> tuple[Model, Table]:
        """The encoder-decoder that a caller means, and its decoder's table; version 0 for the default one.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It is no encoder-decoder.
        """
        served = self._registry.get(name, version)
        if served.model.kind != "generate" or served.table is None:
            raise errors.Unsupported(f"model {name!r} is no encoder-decoder; it cannot generate")
        return served.model, served.table

    async def generate(self, model: Model, table: Table, text: str, max_tokens: int) -> AsyncGenerator[Token, None]:
        """Encodes a text, then decodes until the end token or `max_tokens`.

        Args:
            model: As `model` gave it.
            table: Its decoder's.
            text: The source, in the encoder's vocabulary.
            max_tokens: The most tokens wanted; 0 for the model's own limit, which is also the most.

        Yields:
            The tokens; the end token is not among them.

        Raises:
            BadTensor: A symbol of the text is not in the vocabulary, or the text is empty.
            BadFrame: The text has too many symbols.
            TooManySessions, Overloaded: With what is under way, this would be more than may be driven.
        """
        with self._budget.holding(COPIES * len(text)):
            async with aclosing(self._decoded(model, table, text, max_tokens)) as tokens:
                async for token in tokens:
                    yield token

    async def _decoded(self, model: Model, table: Table, text: str, max_tokens: int) -> AsyncGenerator[Token, None]:
        """The tokens of a text, with the model's decoder in a row of `table`."""
        decoding = model.signature.decoding
        states = await self._encode(model, text)
        values = [array[None] for array in start_values(model.signature)]
        for index, spec in enumerate(model.signature.states):
            if spec.from_encoder:
                values[index] = states[spec.from_encoder][None]
        policy = Greedy(model.signature, min(max_tokens or decoding.max_tokens, decoding.max_tokens))
        drive = Drive(self._engine, table, self._limits, Priority.GENERATE, [decoding.output], most=1)
        async with drive:
            await drive.begin(tag_of("text", text), values)
            async with aclosing(roll(drive, policy, ())) as tokens:
                async for token in tokens:
                    yield token

    async def _encode(self, model: Model, text: str) -> dict[str, Array]:
        """The encoder's outputs for a text, by name, without their batch axis."""
        encoder, signature = model.encoder, model.encoder_signature
        if encoder is None or signature is None:
            raise errors.Unsupported(f"model {model.name!r} has no encoder")
        spec = signature.inputs[0]
        try:
            tokens = encode_text(spec.text, text)
        except ValueError as error:
            raise errors.BadTensor(f"text {errors.quoted(text)}: {error}", metadata={"field": "text"}) from error
        if not tokens:
            raise errors.BadTensor("the text is empty; expected one symbol at least", metadata={"field": "text"})
        if len(tokens) > self._limits.max_text_symbols:
            # The encoder takes it in one run, and nothing else runs meanwhile.
            raise errors.BadFrame(
                f"the text has {len(tokens)} symbols; expected at most {self._limits.max_text_symbols}",
                metadata={"field": "text", "came": str(len(tokens)), "expected": str(self._limits.max_text_symbols)},
            )
        shape = [-1 if axis == spec.time_axis else 1 for axis in range(len(spec.shape))]
        source = np.asarray(tokens, numpy_dtype(spec.dtype)).reshape(shape)
        axes = [output.batch_axis for output in signature.outputs]
        outputs = await self._engine.predict(encoder, [source], [spec.batch_axis], axes, model.mark)
        return {
            output.name: array.take(0, axis)
            for output, array, axis in zip(signature.outputs, outputs, axes, strict=True)
        }


def _log_probability(scores: Array, token: int) -> float:
    """The logarithm of softmax(scores)[token], computed without overflow."""
    top = scores.max()
    return float(scores[token] - top - np.log(np.exp(scores - top).sum()))
