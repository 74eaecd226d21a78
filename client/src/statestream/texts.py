"""What is asked of texts, the calls that ask it, and what their answers come to. Pure, for both twins."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from statestream import arguments, driven
from statestream.contract.errors import BadTensor
from statestream.contract.tensors import Array, Ints, from_tensor
from statestream.driven import Ways
from statestream.unary import StreamCall
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from statestream.v1.server_pb2 import Limits

_ROOM = 1 << 16
"""What a request may have beside its sources."""
_BESIDE = 16
"""Bytes of a source beside its text or its tokens."""


class Generated(str):
    """A text that a model gave, a str: empty where the model writes no text.

    Attributes:
        tokens: [K] int64, its tokens; the end token is not among them.
        log_probs: [K] float64, for each the logarithm of the probability that the model gave it.
        log_prob: That of the whole text: their sum, with that of the end token where it ended.
        score: What texts of one source are compared by: `log_prob`, with beam search divided by
            length ** length_penalty.
        ended: Whether it ended, or has as many tokens as it may.
        attention: [K, S] float32, how much each token looked at each token of the source; None where it was not asked
            for.
    """

    tokens: Ints
    log_probs: Array
    log_prob: float
    score: float
    ended: bool
    attention: Array | None


class GeneratedToken(str):
    """What a text has more by a token, a str: those of all tokens are the text.

    Attributes:
        token: Its number.
        log_prob: The logarithm of the probability that the model gave it.
        attention: [S] float32, how much it looked at each token of the source; None where it was not asked for.
    """

    token: int
    log_prob: float
    attention: Array | None


@dataclass(frozen=True, slots=True)
class Sources:
    """What is encoded: texts, or tokens.

    Attributes:
        texts: N texts, or none.
        tokens: N arrays of tokens, or none.
        alone: Whether it is one, given by itself.
    """

    texts: Sequence[str]
    tokens: Sequence[Ints]
    alone: bool

    def __len__(self) -> int:
        """How many."""
        return len(self.texts) or len(self.tokens)

    def sizes(self) -> list[int]:
        """The bytes that each takes in a request."""
        return [_BESIDE + len(text.encode()) for text in self.texts] or [8 * len(each) for each in self.tokens]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked: a request without its sources, the rows that each takes, whether each has several texts."""

    request: pb.GenerateRequest
    rows: int
    several: bool


def wished(model: str, version: int | str | None, ways: Ways, max_tokens: int | None, attention: bool) -> Wish:
    """What these arguments ask.

    Raises:
        TypeError, ValueError: One has a value that it cannot have, or two do not go together.
    """
    driven.check_generate(model, version, ways, max_tokens, attention)
    request = pb.GenerateRequest(
        model=model, **arguments.naming(version), max_tokens=max_tokens or 0, attention=bool(attention)
    )
    if ways.num_beams is not None:
        request.beam_search.num_beams = int(ways.num_beams)
        request.beam_search.n_best = int(ways.n_best or 1)
        request.beam_search.early_stopping = bool(ways.early_stopping)
        if ways.length_penalty is not None:
            request.beam_search.length_penalty = float(ways.length_penalty)
        return Wish(request, int(ways.num_beams), ways.n_best is not None)
    if ways.draws:
        sampling = request.sampling
        sampling.num_samples, sampling.top_k = int(ways.num_samples or 1), int(ways.top_k or 0)
        sampling.seed = int(ways.seed) if ways.seed is not None else secrets.randbits(64)
        if ways.temperature is not None:
            sampling.temperature = float(ways.temperature)
        if ways.top_p is not None:
            sampling.top_p = float(ways.top_p)
        return Wish(request, sampling.num_samples, ways.num_samples is not None)
    return Wish(request, 1, False)


def read_sources(text: Any) -> Sources:
    """What is encoded: a text or several, the tokens of one source or of several.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(text, str):
        return Sources([arguments.check_source(text)], [], True)
    if isinstance(text, np.ndarray) and text.ndim in (1, 2):
        listed: list[Any] = list(text) if text.ndim == 2 else [text]
        return Sources([], [_tokens(each) for each in listed], text.ndim == 1)
    if isinstance(text, Sequence) and not isinstance(text, bytes | bytearray):
        if all(isinstance(each, str) for each in text):
            return Sources([arguments.check_source(each) for each in text], [], False)
        if all(arguments.is_whole(each) for each in text):
            return Sources([], [_tokens(text)], True)
        if not any(isinstance(each, str | bytes) for each in text):
            return Sources([], [_tokens(each) for each in text], False)
    raise TypeError(f"text is {arguments.came(text)}; {_EXPECTED}")


_EXPECTED = "expected a str, a list of them, the numbers of tokens, or a list of such lists"


def _tokens(given: Any) -> Ints:
    if isinstance(given, np.ndarray):
        whole = given.ndim == 1 and given.dtype.kind in "iu"
    else:
        whole = isinstance(given, Sequence) and all(map(arguments.is_whole, given))
    if not whole:
        raise TypeError(f"text has {arguments.came(given)}; {_EXPECTED}")
    try:
        return np.asarray(given, np.int64).reshape(-1)
    except OverflowError as error:
        raise ValueError("text has a token beyond 64 bits; expected the numbers of tokens") from error


def generate_calls(limits: Limits, wish: Wish, sources: Sources) -> Iterator[StreamCall[tuple[int, list[Generated]]]]:
    """The calls that ask for the texts of all sources, as many of them in each as the server takes.

    Their items are the places of sources, and the texts of each.

    Raises:
        BadTensor: One source alone is larger than what the server takes.
    """
    most = limits.max_generate_sources or len(sources)
    if limits.max_driven_rows:
        most = min(most, max(1, limits.max_driven_rows // wish.rows))
    room = (limits.max_message_bytes or 1 << 62) - _ROOM
    sizes, low, total = sources.sizes(), 0, 0
    for place, size in enumerate(sizes):
        if size > room:
            raise BadTensor(
                f"source {place} has {size:,} bytes; this server takes at most {limits.max_message_bytes:,} in one"
                " request. Send less, or raise its --max-message-bytes",
                metadata={"field": "text", "limit": str(limits.max_message_bytes)},
            )
        if place > low and (place - low >= most or total + size > room):
            yield _whole(wish, sources, range(low, place))
            low, total = place, 0
        total += size
    if sizes:
        yield _whole(wish, sources, range(low, len(sizes)))


def _whole(wish: Wish, sources: Sources, places: Sequence[int]) -> StreamCall[tuple[int, list[Generated]]]:
    going = _Going(wish.request, sources, list(places))
    return StreamCall(_method, going.request, going.read, going.again)


@dataclass(slots=True)
class _Going:
    """Texts under way: their request, as it is made next."""

    wish: pb.GenerateRequest
    sources: Sources
    places: list[int]
    """Which source of all each of the request is."""
    request: pb.GenerateRequest = field(default_factory=pb.GenerateRequest)
    done: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.request.CopyFrom(self.wish)
        self._ask()

    def _ask(self) -> None:
        request, places = self.request, self.places
        for name in ("texts", "tokens", "lengths"):
            request.ClearField(name)
        # What is drawn for a source does not depend on what it is asked beside.
        request.numbers = np.asarray(places, "<u8").tobytes()
        if self.sources.texts:
            request.texts.extend(self.sources.texts[place] for place in places)
            return
        mine = [self.sources.tokens[place] for place in places]
        request.lengths = np.asarray([len(each) for each in mine], "<u4").tobytes()
        request.tokens = np.concatenate(mine).astype("<i8").tobytes()

    def read(self, message: pb.GenerateResponse) -> list[tuple[int, list[Generated]]]:
        """The sources of a message."""
        _pin(self.request, message)
        found = [(self.places[each.source], [_read(text) for text in each.texts]) for each in message.sources]
        self.done += (place for place, _ in found)
        return found

    def again(self, done: int) -> int:
        """Makes the request one for the sources that did not come; where all came for the last once more."""
        left = sorted(set(self.places) - set(self.done))
        self.places = left or self.done[-1:]
        self._ask()
        return 0 if left else 1


def token_call(wish: Wish, sources: Sources) -> StreamCall[GeneratedToken]:
    """The call that asks for the tokens of a text as they come.

    Raises:
        ValueError: There are several sources.
    """
    if not sources.alone:
        raise ValueError("text is a list; tokens come of one text at a time: ask for each, side by side")
    going = _Going(wish.request, sources, [0])
    request = going.request
    request.stream = True

    def read(message: pb.GenerateResponse) -> list[GeneratedToken]:
        _pin(request, message)
        return [_read_token(token) for token in message.tokens]

    def again(done: int) -> int:
        request.from_token = done
        return 0

    return StreamCall(_method, request, read, again)


def answer(wish: Wish, sources: Sources, found: Mapping[int, list[Generated]]) -> Any:
    """What a caller gets: of one source or of each, a text or several."""
    texts: list[Any] = [found[place] if wish.several else found[place][0] for place in range(len(sources))]
    return texts[0] if sources.alone else texts


def _method(channel: Any) -> Any:
    return inference_pb2_grpc.InferenceServiceStub(channel).Generate


def _pin(request: pb.GenerateRequest, message: pb.GenerateResponse) -> None:
    """What goes on elsewhere goes on with the same model."""
    if message.digest:
        request.version, request.digest, request.alias = message.version, message.digest, ""


def _read(message: pb.GeneratedText) -> Generated:
    text = Generated(message.text)
    text.tokens = np.asarray(message.tokens, np.int64)
    text.log_probs = np.asarray(message.log_probabilities, np.float64)
    text.log_prob, text.score, text.ended = message.log_probability, message.score, message.ended
    text.attention = from_tensor(message.attention) if message.HasField("attention") else None
    return text


def _read_token(message: pb.GeneratedToken) -> GeneratedToken:
    token = GeneratedToken(message.text)
    token.token, token.log_prob = message.token, message.log_probability
    token.attention = np.asarray(message.attention, np.float32) if message.attention else None
    return token
