"""Comparing: an encoder and a decoder as they are in their files, and the graphs that are to serve in their place.

What is compared is what a caller hears: sources of several lengths, each by itself and unfilled, token by token; and
the same filled up, with one token a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature
from statestream_server.arrays import Array
from statestream_server.models.files.generation import Bounds
from statestream_server.models.form.couple import MASK, Couple, GrowingError, growing
from statestream_server.models.form.told import Told
from statestream_server.models.graphs.runtime import Graph, GraphError
from statestream_server.models.proof.draws import Draws
from statestream_server.models.proof.proof import ROUNDED, Difference
from statestream_server.models.rows import Axes, start_values

_LENGTHS: Final = (1, 3, 7)
_DRAWN: Final = (3, 1, 7, 2, 5)
"""Lengths of the sources that rows are tried with."""
_TRIES: Final = 8
"""Sources that are drawn for one that the encoder takes."""
_STEPS: Final = 4


class Pair:
    """An encoder and a decoder as they are in their files."""

    def __init__(self, encoder: Graph, decoder: Graph, couple: Couple, known: Bounds, told: Told) -> None:
        """Their graphs, what is known of their tensors and of texts, and what is told."""
        self._encoder, self._decoder, self._couple, self._known, self._told = encoder, decoder, couple, known, told
        last = (couple.scores.dims or (None,))[-1]
        self._symbols = last if isinstance(last, int) else 0

    def drawn(self, rows: int, length: int, seed: int = 0) -> Array:
        """Any sources [rows, length]."""
        dtype = signatures.numpy_dtype(self._couple.source.dtype)
        symbols = self._known.symbols or self._symbols or 2
        return np.random.default_rng(seed).integers(0, symbols, (rows, length)).astype(dtype)

    def encode(self, source: Array) -> dict[str, Array]:
        """The encoder as it is in the file."""
        couple, length = self._couple, (self._couple.source.dims or (None, None))[1]
        missing = length - source.shape[1] if isinstance(length, int) else 0
        filled = np.pad(source, ((0, 0), (0, missing)), constant_values=self._known.pad or 0)
        feeds = {couple.source.name: filled}
        for each in couple.masks:
            feeds[each.name] = np.pad(np.ones(source.shape), ((0, 0), (0, missing))).astype(each.dtype)
        names = sorted({given for given in couple.wires.values() if given})
        try:
            found = self._encoder.run(feeds, names)
        except GraphError:
            found = self._encoder.run({**feeds, couple.source.name: np.zeros_like(filled)}, names)
        return dict(zip(names, found, strict=True))

    def compare(self, encoder: Graph, decoder: Graph, first: Signature, second: Signature) -> str:
        """Where the graphs that are to serve answer otherwise than the files; "" where they do not.

        Raises:
            GrowingError: A state is longer after a token than before.
            GraphError: One of them does not run.
        """
        couple = self._couple
        longest = min(self._known.source, 2 * _LENGTHS[-1])
        for length in sorted({min(each, longest) for each in (*_LENGTHS, longest)}):
            source = self.drawn(1, length, length)
            drawn = np.random.default_rng(length).integers(0, self._symbols or 2, _STEPS)
            given = [self._known.start, *drawn.tolist()][: min(_STEPS, self._known.most)]
            wanted = self.decode(source, given)
            found = _served(encoder, decoder, first, second, source, given)
            difference = Difference(ROUNDED)
            kept = np.ones(wanted[0].shape[-1], bool)
            kept[[token for token in self._known.banned if token < len(kept)]] = False
            difference.note([each[kept] for each in wanted], [each[kept] for each in found])
            if difference.wrong:
                why = (
                    "its mask does not hide that" if MASK in couple.wires.values() else "it takes no mask of the source"
                )
                return (
                    f"a source of {length} tokens, filled up to {self._known.source}, has other scores than by itself"
                    f" (by up to {difference.largest:.3g}): {why}{', or it looks ahead' * couple.rereads}. A row of"
                    " memory keeps one shape: export the decoder with an encoder_attention_mask"
                )
        return ""

    def decode(self, source: Array, given: Sequence[int]) -> list[Array]:
        """The scores [symbols] after each token, by the files as they are."""
        couple, found = self._couple, self.encode(source)
        length = (couple.source.dims or (None, None))[1]
        missing = length - source.shape[1] if isinstance(length, int) else 0
        mask = np.pad(np.ones(source.shape), ((0, 0), (0, missing)))
        values = {name: found[name_of] if name_of else mask.astype(couple.ports[name].dtype)
                  for name, name_of in couple.wires.items()}  # fmt: skip
        for pair in couple.pairs:
            values.setdefault(pair.old, self._full(pair.old, self._told.start.get(pair.old, ()), source.shape[1]))
        for name, numbers in {**self._told.constants, **self._told.session}.items():
            values[name] = self._full(name, numbers, source.shape[1])
        told = list[Array]()
        wanted = [couple.scores.name, *(pair.new for pair in couple.pairs)]
        for step, token in enumerate(given):
            feeds = dict(values)
            for name, by in couple.counters.items():
                start = self._told.start.get(name, (0,))
                feeds[name] = self._full(name, [start[0] + by * step], 1)
            feeds[couple.token.name] = (
                self._so_far([*given[: step + 1]]) if couple.rereads else self._full(couple.token.name, [token], 1)
            )
            for each in couple.marks:
                feeds[each.name] = np.ones(feeds[couple.token.name].shape, signatures.numpy_dtype(each.dtype))
            scores, *states = self._decoder.run(feeds, wanted)
            fixed = couple.rereads and scores.shape[1] > step + 1
            told.append(scores[0, step] if fixed else scores[0, -1] if scores.ndim == 3 else scores[0])
            for pair, value in zip(couple.pairs, states, strict=True):
                if value.shape != values[pair.old].shape:
                    was = list(values[pair.old].shape)
                    raise GrowingError(
                        growing(f"{pair.old} of shape {was} becomes {pair.new} of {list(value.shape)}, which")
                    )
                values[pair.old] = value
        return told

    def _so_far(self, given: Sequence[int]) -> Array:
        """All tokens so far; those behind them, where the decoder takes a fixed number, are anything."""
        couple = self._couple
        length = couple.token.dims[1] if couple.token.dims is not None else None
        more = length - len(given) if isinstance(length, int) else 0
        behind = np.random.default_rng(len(given)).integers(0, self._symbols or 2, more).tolist()
        return np.asarray([[*given, *behind]], signatures.numpy_dtype(couple.token.dtype))

    def _full(self, name: str, numbers: Sequence[float], source: int) -> Array:
        """An input of one session filled with numbers; an axis of the source is as long as that."""
        each = self._couple.ports[name]
        shape = [size for size in self._told.shapes.get(name, each.dims or ())]
        free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        sizes = [
            size if isinstance(size, int) else 1 if axis == free[0] or name not in self._olds() else source
            for axis, size in enumerate(shape)
        ]
        values = np.asarray(numbers or [0], np.float64).astype(signatures.numpy_dtype(each.dtype))
        return np.array(np.broadcast_to(values.reshape(sizes if values.size > 1 else ()), sizes))

    def _olds(self) -> set[str]:
        return {pair.old for pair in self._couple.pairs}


def _served(
    encoder: Graph, decoder: Graph, first: Signature, second: Signature, source: Array, given: Sequence[int]
) -> list[Array]:
    """The scores after each token as they are served: one row, one token a step."""
    names = [spec.name for spec in first.outputs]
    found = dict(zip(names, encoder.run({first.inputs[0].name: source}, names), strict=True))
    rows = start_values(second)
    for place, state in enumerate(second.states):
        if state.from_encoder:
            spec = next(spec for spec in first.outputs if spec.name == state.from_encoder)
            rows[place] = found[state.from_encoder].take(0, spec.batch_axis)
    told, token = list[Array](), second.inputs[0]
    wanted = [second.decoding.output, *(state.output for state in second.states)]
    for number in given:
        value = np.asarray([[number]], signatures.numpy_dtype(token.dtype))
        feeds = {token.name: Axes.of_tensor(token).to_graph(value)}
        feeds |= {
            state.input: Axes.of_state(state).to_graph(row[None])
            for state, row in zip(second.states, rows, strict=False)
        }
        scores, *states = decoder.run(feeds, wanted)
        told.append(scores.reshape(-1))
        rows = [Axes.of_state(state).from_graph(value)[0] for state, value in zip(second.states, states, strict=True)]
    return told


def contexts(encoder: Graph, first: Signature, second: Signature, way: Draws) -> dict[str, Array]:
    """What states of a decoder start from, of several sources, by their inputs: [sources, *row shape].

    A source that the encoder refuses is drawn again, some times; none where it refuses them all: states start then as
    the signature says.
    """
    names, rng = [spec.name for spec in first.outputs], np.random.default_rng(9)
    runs = list[dict[str, Array]]()
    for length in _DRAWN:
        spec = first.inputs[0]
        for _ in range(_TRIES):
            value = Axes.of_tensor(spec).to_graph(way.inputs(1, length, rng)[0])
            try:
                runs.append(dict(zip(names, encoder.run({spec.name: value}, names), strict=True)))
                break
            except GraphError:
                continue
    if not runs:
        return {}
    axes = {spec.name: spec.batch_axis for spec in first.outputs}
    return {
        state.input: np.stack([run[state.from_encoder].take(0, axes[state.from_encoder]) for run in runs])
        for state in second.states
        if state.from_encoder
    }
