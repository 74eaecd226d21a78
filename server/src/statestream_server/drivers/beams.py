"""Beams: the policy of texts that are searched, the likeliest of every source side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from statestream.contract.signature import Signature
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.drivers.decoding import Decoded, Input, Scores, Told
from statestream_server.drivers.drive import Move
from statestream_server.drivers.randoms import Floats


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """How texts are searched; see GenerateRequest."""

    num_beams: int
    n_best: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False


class Beams:
    """The likeliest texts of every source side by side."""

    def __init__(self, signature: Signature, most: int, sources: int, search: BeamSearch) -> None:
        """The policy of some sources; `most` tokens of a text."""
        self._decoding = signature.decoding
        self._input = Input(signature)
        self._most, self._search = most, search
        self._alive: Ints = np.arange(sources)
        """[n] the sources that go on."""
        shape = (sources, search.num_beams)
        self._sums: Floats = np.zeros((sources, 1))
        """[n, B] of those that go on, the logarithm of their probability; -inf where there is no text."""
        self._kept = _Kept.none(shape)
        self._steps: list[_Step] = []

    def next(self, step: int, outputs: Sequence[Array]) -> Move[Told]:
        """The continuations that have just been scored; the first step only begins."""
        if not step:
            return Move(None, self._input.start(len(self._alive)))
        search, scores, alive = self._search, Scores(outputs), self._alive
        count, width, beams = len(alive), self._sums.shape[1], search.num_beams
        found = self._best(scores, width)
        ends = found.tokens == self._decoding.end_token
        # One that ends is kept where it is among the first of all, so that a likely text is not crowded out.
        ended = ends & (np.arange(found.tokens.shape[1]) < beams)
        self._keep(found, ended, step, ended=True)
        order = np.argsort(ends, 1, kind="stable")[:, :beams]
        on = found.at(order)
        on.sums[np.take_along_axis(ends, order, 1)] = -np.inf
        on = on.padded(beams)
        self._steps.append(_Step.of(self._kept.scores.shape, alive, on, scores.attention, width))
        if step == self._most:
            self._keep(on, np.ones(on.sums.shape, np.bool_), step, ended=False)
            over = np.ones(count, np.bool_)
        else:
            over = self._over(on.sums[:, 0], step)
        done = [(source, self._texts(source)) for source in alive[over].tolist()]
        told = Told(done) if done else None
        if over.all():
            return Move(told)
        go_on = np.flatnonzero(~over)
        parents = (go_on[:, None] * width + on.parents[go_on]).reshape(-1)
        self._alive, self._sums = alive[go_on], on.sums[go_on]
        return Move(told, self._input.of(on.tokens[go_on].reshape(-1)), parents)

    def _best(self, scores: Scores, width: int) -> _Found:
        """The likeliest continuations of every source, the best first: so many that as many as beams do not end."""
        wanted = min(2 * self._search.num_beams, width * scores.size)
        parts = []
        for rows, part in scores.parts(width):
            sums = self._sums[rows.start // width : rows.stop // width]
            totals = (part.reshape(len(sums), width, -1) + sums[:, :, None]).reshape(len(sums), -1)
            places = _highest(totals, wanted)
            log_probs = np.take_along_axis(part.reshape(len(sums), -1), places, 1)
            found = np.take_along_axis(totals, places, 1)
            parts.append(_Found(places % scores.size, places // scores.size, found, log_probs))
        tokens, parents, sums, log_probs = (np.concatenate(column) for column in zip(*parts, strict=True))
        return _Found(tokens.astype(np.int64), parents.astype(np.int64), sums, log_probs)

    def _keep(self, found: _Found, which: Bools, step: int, *, ended: bool) -> None:
        """Keeps the best of what is whole, of texts of this step and of those before it."""
        scores = np.where(which & np.isfinite(found.sums), found.sums / step**self._search.length_penalty, -np.inf)
        if not np.isfinite(scores).any():
            return
        alive = self._alive
        beams = found.parents if ended else np.broadcast_to(np.arange(found.sums.shape[1]), found.sums.shape)
        more = _Kept(scores, found.sums, np.full(scores.shape, step), beams, np.full(scores.shape, ended))
        both = [np.concatenate([old[alive], new], 1) for old, new in zip(self._kept, more, strict=True)]
        order = np.argsort(-both[0], 1, kind="stable")[:, : self._search.num_beams]
        for old, new in zip(self._kept, both, strict=True):
            old[alive] = np.take_along_axis(new, order, 1)

    def _over(self, best: Floats, step: int) -> Bools:
        """[n] whether the sources have their texts: `best` [n] is the likeliest of those that go on."""
        search, kept = self._search, self._kept.scores[self._alive]
        nothing = ~np.isfinite(best)
        if search.early_stopping:
            return np.asarray(nothing | np.isfinite(kept[:, -1]), np.bool_)
        # What it could come to if all that follows were certain.
        length = self._most if search.length_penalty > 0 else step + 1
        return np.asarray(nothing | (kept[:, search.n_best - 1] >= best / length**search.length_penalty), np.bool_)

    def _texts(self, source: int) -> list[Decoded]:
        kept = [column[source] for column in self._kept]
        return [
            self._text(source, *(column[place] for column in kept))
            for place in range(self._search.n_best)
            if np.isfinite(kept[0][place])
        ]

    def _text(self, source: int, score: float, total: float, step: int, beam: int, ended: bool) -> Decoded:
        """Goes back from where a text is whole to its beginning."""
        tokens, log_probs, weights = list[int](), list[float](), list[Array]()
        for each in reversed(self._steps[: step - 1 if ended else step]):
            tokens.append(int(each.tokens[source, beam]))
            log_probs.append(float(each.log_probs[source, beam]))
            beam = int(each.parents[source, beam])
            if each.attention is not None:
                weights.append(each.attention[source, beam])
        attention = None
        first = self._steps[0].attention
        if first is not None:
            attention = np.stack(weights[::-1]) if weights else np.zeros((0, first.shape[2]), np.float32)
        return Decoded(
            np.asarray(tokens[::-1], np.int64),
            np.asarray(log_probs[::-1]),
            float(total),
            float(score),
            bool(ended),
            attention,
        )


class _Found(NamedTuple):
    """Continuations [n, C]: tokens, whose they are, logarithms of their probability, and of that of the token alone."""

    tokens: Ints
    parents: Ints
    sums: Floats
    log_probs: Floats

    def at(self, places: Ints) -> _Found:
        return _Found(
            np.take_along_axis(self.tokens, places, 1),
            np.take_along_axis(self.parents, places, 1),
            np.take_along_axis(self.sums, places, 1),
            np.take_along_axis(self.log_probs, places, 1),
        )

    def padded(self, width: int) -> _Found:
        """With as many as there are beams: those that there are not have no probability."""
        more = ((0, 0), (0, width - self.tokens.shape[1]))
        return _Found(
            np.pad(self.tokens, more),
            np.pad(self.parents, more),
            np.pad(self.sums, more, constant_values=-np.inf),
            np.pad(self.log_probs, more, constant_values=-np.inf),
        )


class _Kept(NamedTuple):
    """Texts that are whole, [N, B] by source, the best first.

    Their score, the logarithm of their probability, at which step they were whole, which beam they were (where they
    ended, which one was before), whether they ended.
    """

    scores: Floats
    sums: Floats
    steps: Ints
    beams: Ints
    ended: Bools

    @classmethod
    def none(cls, shape: tuple[int, int]) -> _Kept:
        return cls(
            np.full(shape, -np.inf),
            np.full(shape, -np.inf),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.bool_),
        )


class _Step(NamedTuple):
    """What went on at a step, [N, B] by source; attention [N, W, S] by the beams before it."""

    tokens: Ints
    parents: Ints
    log_probs: Floats
    attention: Array | None

    @classmethod
    def of(cls, shape: tuple[int, ...], alive: Ints, on: _Found, attention: Array | None, width: int) -> _Step:
        tokens, parents, log_probs = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
        tokens[alive], parents[alive], log_probs[alive] = on.tokens, on.parents, on.log_probs
        weights: Array | None = None
        if attention is not None:
            weights = np.zeros((shape[0], width, attention.shape[1]), np.float32)
            weights[alive] = attention.reshape(len(alive), width, -1)
        return cls(tokens, parents, log_probs, weights)


def _highest(values: Floats, count: int) -> Ints:
    """The places of the highest values [n, M] of each row, the highest first; of equal ones the first."""
    if count * 4 >= values.shape[1]:
        return np.argsort(-values, 1, kind="stable")[:, :count]
    places = np.sort(np.argpartition(values, -count, 1)[:, -count:], 1)
    found = np.take_along_axis(values, places, 1)
    least = found.min(1, keepdims=True)
    # Of equal ones at the border a partition takes any.
    for row in np.flatnonzero(((values == least).sum(1) > (found == least).sum(1)) & np.isfinite(least[:, 0])):
        places[row] = np.sort(np.argsort(-values[row], kind="stable")[:count])
    found = np.take_along_axis(values, places, 1)
    return np.take_along_axis(places, np.argsort(-found, 1, kind="stable"), 1)
