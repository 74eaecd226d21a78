"""A call of Generate: what its request means, and its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import numpy as np

from statestream.contract import errors
from statestream.contract.tensors import to_tensor
from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Ints
from statestream_server.drivers.beams import BeamSearch
from statestream_server.drivers.decoding import Decoded, Sampling, Told
from statestream_server.drivers.generate import Request
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.caps import too_many
from statestream_server.models.model import Model
from statestream_server.models.words import Words
from statestream_server.server import Server

_MESSAGE_BYTES = 1 << 17
"""Of texts that are told in one message, if several are whole at once."""


async def answers(server: Server, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
    """The messages that answer a call."""
    generator = server.generator
    model, table = generator.model(request.model, request.version, request.alias)
    if request.digest and request.digest != model.digest:
        raise errors.ModelChanged(
            f"version {model.version} of {model.name!r} is another model here than the one that began the texts; ask"
            " for them anew"
        )
    asked = _asked(request, server.settings.limits.max_generate_sources)
    generator.check(asked)
    written = _written(model, generator.generate(model, table, asked))
    first = True
    async with aclosing(written):
        async for response in written:
            if first:
                response.version, response.digest, first = model.version, model.digest, False
            yield response


async def _written(model: Model, steps: AsyncGenerator[Told, None]) -> AsyncGenerator[pb.GenerateResponse, None]:
    speller = model.writes.speller() if model.writes is not None else None
    async with aclosing(steps):
        async for told in steps:
            if told.token is not None:
                token = told.token
                text = speller.add(token.number) if speller is not None else ""
                message = pb.GeneratedToken(text=text, token=token.number, log_probability=token.log_prob)
                if token.attention is not None:
                    message.attention.extend(token.attention.tolist())
                yield pb.GenerateResponse(tokens=[message])
            for response in _whole(model.writes, told.done):
                yield response


def _whole(words: Words | None, done: Sequence[tuple[int, Sequence[Decoded]]]) -> Iterator[pb.GenerateResponse]:
    """The sources whose texts are whole, a few in one message where they are large."""
    response, size = pb.GenerateResponse(), 0
    for source, texts in done:
        nbytes = sum(32 * len(text.tokens) + (0 if text.attention is None else text.attention.nbytes) for text in texts)
        if response.sources and size + nbytes > _MESSAGE_BYTES:
            yield response
            response, size = pb.GenerateResponse(), 0
        size += nbytes
        response.sources.add(source=source, texts=[_text(words, text) for text in texts])
    if response.sources:
        yield response


def _text(words: Words | None, text: Decoded) -> pb.GeneratedText:
    tokens = text.tokens.tolist()
    message = pb.GeneratedText(
        text=words.decode(tokens) if words is not None else "",
        tokens=tokens,
        log_probabilities=text.log_probs.tolist(),
        log_probability=text.log_prob,
        score=text.score,
        ended=text.ended,
    )
    if text.attention is not None:
        message.attention.CopyFrom(to_tensor("attention", text.attention))
    return message


def _asked(request: pb.GenerateRequest, most: int) -> Request:
    """What is asked, as far as it needs no model; of `most` sources at most."""
    if request.texts and (request.tokens or request.lengths):
        raise errors.BadFrame("texts and tokens came; expected one of them", metadata={"field": "tokens"})
    sources: Sequence[str] | Sequence[Ints] = list(request.texts)
    if not request.texts:
        count = len(request.lengths) // 4
        if count > most:
            raise too_many("lengths", count, most, "Ask for fewer at a time")
        lengths = wire.column(request.lengths, "<u4", count, "lengths").astype(np.int64)
        tokens = wire.column(request.tokens, "<i8", int(lengths.sum()), "tokens").astype(np.int64)
        sources = np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []
    numbers = wire.column(request.numbers, "<u8", len(request.numbers) // 8, "numbers") if request.numbers else None
    way: Sampling | BeamSearch | None = None
    if request.HasField("sampling"):
        drawn = request.sampling
        way = Sampling(
            drawn.temperature if drawn.HasField("temperature") else 1.0,
            drawn.top_k,
            drawn.top_p if drawn.HasField("top_p") else 1.0,
            drawn.seed,
            max(1, drawn.num_samples),
        )
    elif request.HasField("beam_search"):
        search = request.beam_search
        penalty = search.length_penalty if search.HasField("length_penalty") else 1.0
        way = BeamSearch(search.num_beams, max(1, search.n_best), penalty, search.early_stopping)
    return Request(sources, request.max_tokens, way, request.attention, request.stream, numbers, request.from_token)
