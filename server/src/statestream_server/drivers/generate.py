"""The generate driver: an encoder's output initialises a row for each source, then a policy steps the decoder."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, numpy_dtype, step_shape
from statestream_server.arrays import Array, Ints
from statestream_server.catalog import Catalog
from statestream_server.drivers.asking import bad
from statestream_server.drivers.beams import Beams, BeamSearch
from statestream_server.drivers.decoding import Chosen, Decoded, Sampling, Token, Told
from statestream_server.drivers.drive import Drive, aside, roll
from statestream_server.drivers.waiting import predict
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.watch import tag_of
from statestream_server.engine.work import Priority
from statestream_server.models.model import Model
from statestream_server.models.rows import is_checked, start_values
from statestream_server.sessions.admission.accounts import COPIES, Budget
from statestream_server.settings import Limits

MOST_PENALTY = 16.0
"""Of a length penalty, up and down: what lengths are raised to."""
_CHARACTERS = 32
"""Of a text, as long to look at as a row of a policy."""
_SYMBOL_CHARACTERS = 16
"""Characters of a text for each token that it may have: more are refused before a tokenizer looks at them."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks.

    Attributes:
        sources: N texts, or N arrays of tokens.
        most: Tokens of a text; 0 for the model's own limit.
        way: How tokens are chosen; None for the likeliest one.
        attention: Whether it is wanted where each token looked.
        stream: Whether tokens are wanted as they come, of the only text.
        numbers: [N] uint64, the numbers of the sources; None for 0, 1, ….
        begin: With `stream` the first token that is told.
    """

    sources: Sequence[str] | Sequence[Ints]
    most: int = 0
    way: Sampling | BeamSearch | None = None
    attention: bool = False
    stream: bool = False
    numbers: Array | None = None
    begin: int = 0


class Generator:
    """Decodes texts with encoder-decoder models."""

    def __init__(self, catalog: Catalog, engine: Engine, limits: Limits, budget: Budget) -> None:
        """Texts are decoded on `engine`, as rows among the others; `budget` is what they may hold together."""
        self._catalog = catalog
        self._engine = engine
        self._limits = limits
        self._budget = budget

    def model(self, name: str, version: int, alias: str = "") -> tuple[Model, Table]:
        """The encoder-decoder that a caller means, and its decoder's table; by number or alias, 0 for the default.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It is no encoder-decoder.
        """
        served = self._catalog.get(name, version, alias)
        if served.model.kind != "generate" or served.table is None:
            verb = "open a session" if served.model.kind == "session" else "call predict"
            raise errors.Unsupported(f"model {name!r} is no encoder-decoder; it cannot generate: {verb} instead")
        return served.model, served.table

    def check(self, request: Request) -> None:
        """Checks what is asked as far as it needs no model, before anything is done for it.

        Raises:
            BadFrame: Something has a value that it cannot have; `metadata["field"]` names it.
        """
        count, most, way = len(request.sources), self._limits.max_generate_sources, request.way
        if not 1 <= count <= most:
            raise bad("texts", f"{count} sources; expected 1 to {most} in one call. Ask for fewer at a time")
        if request.numbers is not None and len(request.numbers) != count:
            raise bad("numbers", f"{len(request.numbers)} numbers; expected one for each of {count} sources")
        if isinstance(way, Sampling):
            if not 0 < way.temperature < math.inf:
                raise bad("temperature", f"{way.temperature:g}; expected more than 0")
            if not 0 < way.top_p <= 1:
                raise bad("top_p", f"{way.top_p:g}; expected more than 0, and 1 at most")
            if way.num_samples > self._limits.max_forecast_samples:
                raise bad("num_samples", f"{way.num_samples}; expected at most {self._limits.max_forecast_samples}")
        if isinstance(way, BeamSearch):
            if not 1 <= way.num_beams <= self._limits.max_beams:
                raise bad("num_beams", f"{way.num_beams}; expected 1 to {self._limits.max_beams}")
            if way.n_best > way.num_beams:
                raise bad("n_best", f"{way.n_best}; there are {way.num_beams} beams, expected so many at most")
            if not abs(way.length_penalty) <= MOST_PENALTY:
                raise bad("length_penalty", f"{way.length_penalty:g}; expected -{MOST_PENALTY:g} to {MOST_PENALTY:g}")
        if request.stream:
            if isinstance(way, BeamSearch):
                raise bad("stream", "set beside beam_search, whose texts are known only when all have ended")
            if count > 1 or (way is not None and way.num_samples > 1):
                raise bad("stream", "set for several texts; expected one, or leave it out")
        elif request.begin:
            raise bad("from_token", f"{request.begin} without stream; expected 0")

    async def generate(self, model: Model, table: Table, request: Request) -> AsyncGenerator[Told, None]:
        """Encodes sources, then decodes their texts.

        Args:
            model: As `model` gave it.
            table: Its decoder's.
            request: What `check` let through.

        Yields:
            The texts of a source as soon as all of them are whole; with `stream` the tokens.

        Raises:
            BadTensor: A symbol of a text is not in the vocabulary, a token does not exist, or a source is empty.
            BadFrame: A source has too many symbols, or more tokens are wanted than the model gives.
            Unsupported: The model reads no texts, or does not say where it looks.
            TooManySessions, Overloaded: With what is under way, this would be more than may be driven.
            AnswerTooLarge: The texts of one source have more bytes than the server sends.
            NonFiniteState: The model left the finite numbers.
        """
        decoding = model.signature.decoding
        most = self._most(model, request)
        if request.attention and not decoding.attention:
            raise errors.Unsupported(
                f"model {model.name!r} does not say where it looks: its signature names no output of attention"
            )
        rows, held = self._size(model, table, request, most)
        with self._budget.holding(held):
            came = sum(map(len, request.sources))
            sources = await aside(came // _CHARACTERS, self._tokens, model, request.sources)
            async with aclosing(self._decoded(model, table, request, sources, most, rows)) as steps:
                async for told in steps:
                    yield told

    async def _decoded(
        self, model: Model, table: Table, request: Request, sources: list[Ints], most: int, rows: int
    ) -> AsyncGenerator[Told, None]:
        """The texts, with the model's decoder in rows of `table`."""
        signature, count, way = model.signature, len(sources), request.way
        numbers = np.arange(count, dtype=np.uint64) if request.numbers is None else request.numbers
        policy: Chosen | Beams
        if isinstance(way, BeamSearch):
            policy = Beams(signature, most, count, way)
        else:
            policy = Chosen(signature, most, numbers, way, stream=request.stream)
        outputs = [signature.decoding.output, *([signature.decoding.attention] if request.attention else [])]
        scores = max(_numbers_of(signature.outputs, outputs))
        drive = Drive(self._engine, table, self._limits, Priority.GENERATE, outputs, rows, weight=rows * scores >> 7)
        tags = np.asarray([tag_of("text", source.tobytes()) for source in sources], np.uint64)
        async with drive:
            await drive.begin(tags, await self._encode(model, sources), count)
            begin = request.begin + 1 if request.begin else 0
            async with aclosing(roll(drive, policy, (), begin)) as steps:
                async for told in steps:
                    yield _cut(told, sources) if request.attention else told

    def _most(self, model: Model, request: Request) -> int:
        """The tokens of a text at most."""
        most = min(model.signature.decoding.max_tokens, self._limits.max_horizon)
        if request.most > most:
            raise bad("max_tokens", f"{request.most}; texts of model {model.name!r} have {most} at most")
        return request.most or most

    def _size(self, model: Model, table: Table, request: Request, most: int) -> tuple[int, int]:
        """The rows that are needed at most, and the bytes that all of it holds, about."""
        signature, way = model.signature, request.way
        each = way.num_beams if isinstance(way, BeamSearch) else way.num_samples if way is not None else 1
        rows = len(request.sources) * each
        kept = 32  # Of a token: its number, its probability, whose it is.
        if request.attention:
            places = next(spec for spec in signature.outputs if spec.name == signature.decoding.attention)
            kept += 4 * step_shape(places)[-1]
        told = way.n_best if isinstance(way, BeamSearch) else each
        if kept * most * told > self._limits.max_answer_bytes:
            raise errors.AnswerTooLarge(
                f"the texts of one source may have {kept * most * told} bytes; this server sends"
                f" {self._limits.max_answer_bytes} in one answer: ask for fewer texts or tokens, or leave attention out"
            )
        came = sum(len(each) if isinstance(each, str) else each.nbytes for each in request.sources)
        came += len(request.sources) * table.rows.row_nbytes
        return rows, rows * (kept * most + 2 * (table.input_bytes + table.output_bytes)) + COPIES * came

    def _tokens(self, model: Model, sources: Sequence[str] | Sequence[Ints]) -> list[Ints]:
        """The tokens of every source."""
        most, found = self._limits.max_text_symbols, list[Ints]()
        for place, source in enumerate(sources):
            where = {"field": "texts" if isinstance(source, str) else "tokens", "source": str(place)}
            which = f" {place}" if len(sources) > 1 else ""
            try:
                tokens = (
                    self._encoded(model, source)
                    if isinstance(source, str)
                    else _known(model, np.asarray(source, np.int64))
                )
            except ValueError as error:
                raise errors.BadTensor(f"text{which} {error}", metadata=where) from error
            if not len(tokens):
                raise errors.BadTensor(f"text{which} is empty; expected one symbol at least", metadata=where)
            if len(tokens) > most:
                # The encoder takes it in one run, and nothing else runs meanwhile.
                raise errors.BadFrame(
                    f"text{which} has {len(tokens)} symbols; expected at most {most}",
                    metadata={**where, "came": str(len(tokens)), "expected": str(most)},
                )
            if 0 < model.signature.decoding.max_source_tokens < len(tokens):
                most = model.signature.decoding.max_source_tokens
                raise errors.BadFrame(
                    f"text{which} has {len(tokens)} tokens; model {model.name!r} reads {most} at most",
                    metadata={**where, "came": str(len(tokens)), "expected": str(most)},
                )
            found.append(tokens)
        return found

    def _encoded(self, model: Model, text: str) -> Ints:
        if model.reads is None:
            raise errors.Unsupported(
                f"model {model.name!r} reads no text: its encoder has no vocabulary, and no tokenizer.json lies beside"
                " it. Send tokens"
            )
        most = _SYMBOL_CHARACTERS * self._limits.max_text_symbols
        if len(text) > most:
            raise errors.BadFrame(
                f"a text has {len(text)} characters; expected at most {most}", metadata={"field": "texts"}
            )
        try:
            return np.asarray(model.reads.encode(text), np.int64)
        except ValueError as error:
            raise ValueError(f"{errors.quoted(text)}: {error}") from error

    async def _encode(self, model: Model, sources: Sequence[Ints]) -> list[Array]:
        """What the decoder starts from, for every column [N, ...]. Sources of one length are encoded together."""
        encoder, signature = model.encoder, model.encoder_signature
        assert encoder is not None
        assert signature is not None
        values = [np.repeat(array[None], len(sources), 0) for array in start_values(model.signature)]
        axes = [spec.batch_axis for spec in signature.outputs]
        lengths = np.asarray([len(source) for source in sources])
        for length in np.unique(lengths).tolist():
            alike = np.flatnonzero(lengths == length)
            # As many as share a run with others: none has other bits among them than alone.
            for low in range(0, len(alike), encoder.together):
                places = alike[low : low + encoder.together]
                inputs = _inputs(signature.inputs, np.stack([sources[place] for place in places.tolist()]))
                given = [spec.batch_axis for spec in signature.inputs]
                outputs = await predict(self._engine, encoder, inputs, given, axes, model.mark)
                named = dict(zip((spec.name for spec in signature.outputs), outputs, strict=True))
                named_axes = dict(zip((spec.name for spec in signature.outputs), axes, strict=True))
                for column, spec in enumerate(model.signature.states):
                    if spec.from_encoder:
                        array = np.moveaxis(named[spec.from_encoder], named_axes[spec.from_encoder], 0)
                        if is_checked(spec) and np.isnan(array).any():
                            raise errors.NonFiniteState(
                                f"the encoder gave NaN as {spec.from_encoder!r}; the decoder cannot start from it"
                            )
                        values[column][places] = array
        return values


def _encoder_input(model: Model) -> TensorSpec:
    if model.encoder is None or model.encoder_signature is None:
        raise errors.Unsupported(f"model {model.name!r} has no encoder")
    return model.encoder_signature.inputs[0]


def _known(model: Model, tokens: Ints) -> Ints:
    """The tokens that a caller sent.

    Raises:
        ValueError: There is no such token.
    """
    words = model.reads
    size = int(np.iinfo(np.dtype(_encoder_input(model).dtype).type).max) if words is None else words.size
    strange = tokens[(tokens < 0) | (tokens >= size)]
    if len(strange):
        raise ValueError(f"has token {strange[0]}; the model knows 0 to {size - 1}")
    return tokens


def _inputs(specs: Sequence[TensorSpec], tokens: Ints) -> list[Array]:
    """What an encoder takes for sources of one length [n, T]: their tokens; other inputs mask nothing."""
    made = []
    for place, spec in enumerate(specs):
        axis = spec.time_axis if spec.HasField("time_axis") else 1 - spec.batch_axis
        shape = [1] * len(spec.shape)
        shape[spec.batch_axis], shape[axis] = tokens.shape
        array = np.ones_like(tokens) if place else tokens
        array = array.T if spec.batch_axis > axis else array
        made.append(np.ascontiguousarray(array.reshape(shape), numpy_dtype(spec.dtype)))
    return made


def _numbers_of(specs: Sequence[TensorSpec], names: Sequence[str]) -> list[int]:
    """How many numbers one step of outputs has."""
    return [math.prod(step_shape(spec)) for spec in specs if spec.name in names]


def _cut(told: Told, sources: Sequence[Ints]) -> Told:
    """The same, attention for the places that a source has."""
    done = [(place, [_seen(text, len(sources[place])) for text in texts]) for place, texts in told.done]
    token = told.token
    if token is not None and token.attention is not None:
        token = Token(token.number, token.log_prob, token.attention[: len(sources[0])])
    return Told(done, token)


def _seen(text: Decoded, places: int) -> Decoded:
    attention = None if text.attention is None else text.attention[:, :places]
    return Decoded(text.tokens, text.log_probs, text.log_prob, text.score, text.ended, attention)
