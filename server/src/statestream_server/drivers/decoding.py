"""Decoding: the policies of texts: the likeliest token, or one that is drawn. What all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import Signature, numpy_dtype, step_shape
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.drivers.drive import Move
from statestream_server.drivers.randoms import Draws, Floats

_NUMBERS = 1 << 20
"""Scores that are looked at together: what a policy takes of memory does not grow with the rows."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; see GenerateRequest."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_samples: int = 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text.

    Attributes:
        tokens: [K], its end not among them.
        log_probs: [K] the logarithm of what the model gave each.
        log_prob: That of all of it, its end included where it ended.
        score: What texts of one source are compared by.
        ended: Whether it ended.
        attention: [K, S]; None where it is not wanted.
    """

    tokens: Ints
    log_probs: Floats
    log_prob: float
    score: float
    ended: bool
    attention: Array | None = None


class Token(NamedTuple):
    """A token of the text of a drive that has one; see `Decoded`, attention [S]."""

    number: int
    log_prob: float
    attention: Array | None


class Told(NamedTuple):
    """What a step tells: sources, by their places, whose texts are whole; of a drive that has one text its token."""

    done: Sequence[tuple[int, Sequence[Decoded]]]
    token: Token | None = None


class Scores:
    """The last outputs of some rows as logarithms of probabilities, of some rows at a time."""

    def __init__(self, outputs: Sequence[Array]) -> None:
        """Of scores [R, ..., V], and where they are wanted of weights [R, ..., S].

        Raises:
            NonFiniteState: There is a NaN among them, or nothing that could come next.
        """
        self._scores = outputs[0].reshape(len(outputs[0]), -1)
        self.rows, self.size = self._scores.shape
        self.attention: Array | None = None
        if len(outputs) > 1:
            weights = outputs[1]
            heads = weights.reshape(len(weights), -1, weights.shape[-1])
            self.attention = heads.mean(1, dtype=np.float64).astype(np.float32)

    def parts(self, each: int = 1) -> Iterator[tuple[slice, Floats]]:
        """Some rows after the other, a multiple of `each` of them: which they are, and [r, V] of them."""
        count = max(1, _NUMBERS // (self.size * each)) * each
        for low in range(0, self.rows, count):
            rows = slice(low, min(low + count, self.rows))
            scores = self._scores[rows].astype(np.float64)
            top = scores.max(1, keepdims=True)
            if not np.isfinite(top).all():
                raise errors.NonFiniteState(
                    "the decoder gave scores that are not finite; nothing can come next of them"
                )
            scores -= top
            scores -= np.log(np.exp(scores).sum(1, keepdims=True))
            yield rows, scores


class Input:
    """Tokens as a decoder takes them."""

    def __init__(self, signature: Signature) -> None:
        """As the decoder of this signature does."""
        (spec,) = signature.inputs
        self._dtype, self._shape, self._start = (
            numpy_dtype(spec.dtype),
            step_shape(spec),
            signature.decoding.start_token,
        )

    def of(self, tokens: Ints) -> list[Array]:
        """Of tokens [R]."""
        return [tokens.astype(self._dtype).reshape(len(tokens), 1, *self._shape)]

    def start(self, count: int) -> list[Array]:
        """Of `count` texts that begin."""
        return self.of(np.full(count, self._start))


class Chosen:
    """One token after the other for every text: the likeliest, or one that is drawn."""

    def __init__(
        self,
        signature: Signature,
        most: int,
        numbers: Array,
        sampling: Sampling | None = None,
        *,
        stream: bool = False,
    ) -> None:
        """The policy of some texts.

        Args:
            signature: The decoder's.
            most: Tokens of a text.
            numbers: [N] uint64, those of the sources.
            sampling: How tokens are drawn; None for the likeliest.
            stream: Whether tokens are told, of the only text.
        """
        self._decoding = signature.decoding
        self._input = Input(signature)
        self._most, self._numbers, self._sampling, self._stream = most, numbers, sampling, stream
        self._paths = 1 if sampling is None else sampling.num_samples
        texts = len(numbers) * self._paths
        self._alive: Ints = np.arange(texts)
        self._tokens, self._log_probs = np.empty((texts, 0), np.int64), np.empty((texts, 0))
        self._attention: Array | None = None
        self._whole: dict[int, dict[int, Decoded]] = {}

    def next(self, step: int, outputs: Sequence[Array]) -> Move[Told]:
        """The tokens that have just been scored; the first step only begins."""
        if not step:
            return Move(None, self._input.start(len(self._numbers)))
        scores, at = Scores(outputs), step - 1
        places = self._alive // self._paths if step == 1 else np.arange(len(self._alive))
        tokens, log_probs = self._choose(scores, step)
        ended = tokens == self._decoding.end_token
        over = ended | (step >= self._most)
        told: Told | None = None
        if self._stream:
            # Of the only text nothing is kept.
            if not ended[0]:
                attention = None if scores.attention is None else scores.attention[0]
                told = Told([], Token(int(tokens[0]), float(log_probs[0]), attention))
        else:
            self._note(scores, at, tokens, log_probs, places)
            done = self._done(np.flatnonzero(over), at, ended)
            told = Told(done) if done else None
        go_on = np.flatnonzero(~over)
        if not len(go_on):
            return Move(told)
        parents = None if len(go_on) == scores.rows == len(places) else places[go_on]
        self._alive = self._alive[go_on]
        return Move(told, self._input.of(tokens[go_on]), parents)

    def _done(self, places: Ints, at: int, ended: Bools) -> list[tuple[int, list[Decoded]]]:
        """The sources of which the last text is whole."""
        done = []
        for place in places.tolist():
            source, path = divmod(int(self._alive[place]), self._paths)
            found = self._whole.setdefault(source, {})
            found[path] = self._text(source * self._paths + path, at + (not ended[place]), ended=bool(ended[place]))
            if len(found) == self._paths:
                del self._whole[source]
                done.append((source, [found[each] for each in range(self._paths)]))
        return done

    def _choose(self, scores: Scores, step: int) -> tuple[Ints, Floats]:
        """For every text that goes on a token, and the logarithm of what the model gave it."""
        if self._sampling is None:
            best = [(part.argmax(1), part.max(1)) for _, part in scores.parts()]
            return np.concatenate([one for one, _ in best]), np.concatenate([other for _, other in best])
        sampling, drawn = self._sampling, self._draws(step)
        tokens, log_probs = np.empty(len(drawn), np.int64), np.empty(len(drawn))
        each = self._paths if step == 1 else 1
        for rows, part in scores.parts():
            mine = slice(rows.start * each, rows.stop * each)
            bounds = np.repeat(np.cumsum(_left(part, sampling), 1), each, 0)
            found = (drawn[mine, None] * bounds[:, -1:] >= bounds).sum(1)
            tokens[mine] = found
            log_probs[mine] = part[np.arange(len(found)) // each, found]
        return tokens, log_probs

    def _draws(self, step: int) -> Floats:
        """A number for every text that goes on: by seed, number of its source, place among its texts, and step."""
        assert self._sampling is not None
        sources, mine = np.unique(self._alive // self._paths, return_inverse=True)
        draws = Draws(self._sampling.seed, self._numbers[sources], self._paths, step)
        drawn: Floats = draws.uniforms(1)[mine, self._alive % self._paths, 0]
        return drawn

    def _note(self, scores: Scores, at: int, tokens: Ints, log_probs: Floats, places: Ints) -> None:
        """Keeps what was chosen."""
        if at == self._tokens.shape[1]:
            more = min(self._most, max(16, 2 * at)) - at
            self._tokens = np.pad(self._tokens, ((0, 0), (0, more)))
            self._log_probs = np.pad(self._log_probs, ((0, 0), (0, more)))
            if scores.attention is not None:
                old = self._attention
                wide = np.empty((len(self._tokens), at + more, scores.attention.shape[1]), np.float32)
                if old is not None:
                    wide[:, :at] = old
                self._attention = wide
        self._tokens[self._alive, at], self._log_probs[self._alive, at] = tokens, log_probs
        if self._attention is not None and scores.attention is not None:
            self._attention[self._alive, at] = scores.attention[places]

    def _text(self, text: int, length: int, *, ended: bool) -> Decoded:
        log_probs = self._log_probs[text, : length + ended]
        total = float(log_probs.sum())
        attention = None if self._attention is None else self._attention[text, :length].copy()
        return Decoded(self._tokens[text, :length].copy(), log_probs[:length].copy(), total, total, ended, attention)


def _left(log_probs: Floats, sampling: Sampling) -> Floats:
    """What is left to be drawn from, [R, V]: probabilities that do not sum up to 1."""
    with np.errstate(over="ignore"):  # What is left behind so far has no probability.
        left: Floats = np.exp((log_probs - log_probs.max(1, keepdims=True)) / sampling.temperature)
    if 0 < sampling.top_k < left.shape[1]:
        least = np.partition(left, -sampling.top_k, 1)[:, -sampling.top_k, None]
        left[left < least] = 0
    if sampling.top_p < 1:
        order = np.argsort(-left, 1, kind="stable")
        sorted_ = np.take_along_axis(left, order, 1)
        bounds = np.cumsum(sorted_, 1)
        sorted_[bounds - sorted_ >= sampling.top_p * bounds[:, -1:]] = 0
        np.put_along_axis(left, order, sorted_, 1)
    return left
