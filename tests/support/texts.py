"""Encoder-decoders with random weights, and decoding written plainly: what the server's texts are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from statestream import signature as signatures
from statestream.signature import Decoding, Signature, StateSpec, TensorSpec, Text, start_row
from statestream_server.arrays import Array
from tests.server.models.graphs import Builder, save
from tests.support.models import Whole

WINDOW = 6
"""Places of a source that the decoder of an attending pair sees."""
START, END = 0, 1


def write_pair(
    folder: Path,
    *,
    seed: int = 0,
    letters: int = 8,
    hidden: int = 5,
    attends: bool = False,
    most: int = 9,
    end: float = 0.0,
    spelt: bool = True,
) -> Path:
    """Writes encoder.onnx and decoder.onnx; the encoder reads a, b, c, …, the decoder writes them too.

    `end` is added to the score of the end token; signatures that are not `spelt` have no vocabulary.
    """
    symbols = [chr(ord("a") + number) for number in range(letters)]
    both = [_encoder(seed, symbols, hidden, attends), _decoder(seed + 1, symbols, hidden, attends, most, end)]
    for model, name in zip(both, ("encoder.onnx", "decoder.onnx"), strict=True):
        (entry,) = model.metadata_props
        signature = signatures.loads(entry.value)
        if not spelt:
            signature.inputs[0].ClearField("text")
            if signature.HasField("decoding"):
                signature.decoding.ClearField("text")
            entry.value = signatures.dumps(signature)
        save(model, folder, name)
    return folder


def _encoder(seed: int, symbols: Sequence[str], hidden: int, attends: bool) -> onnx.ModelProto:
    b, one = Builder(seed), np.asarray([1], np.int64)
    text = Text(vocabulary=symbols)
    outputs = [TensorSpec(name="first", dtype="float32", shape=[-1, hidden], batch_axis=0)]
    vectors = b.add("Gather", [b.weight(len(symbols), hidden, scale=1.5), "source"], axis=0)
    b.add("ReduceSum", [vectors, b.constant(one)], ["first"], keepdims=0)
    if attends:
        outputs += [
            TensorSpec(name="memory", dtype="float32", shape=[-1, WINDOW, hidden], batch_axis=0),
            TensorSpec(name="mask", dtype="float32", shape=[-1, WINDOW], batch_axis=0),
        ]
        rows = b.add("Slice", [b.add("Shape", ["source"]), b.constant(one - 1), b.constant(one)])
        shape = b.add("Concat", [rows, b.constant(np.asarray([WINDOW, hidden], np.int64))], axis=0)
        beyond = b.add("ConstantOfShape", [shape])
        cut = [b.constant(one - 1), b.constant(one * WINDOW), b.constant(one)]
        b.add("Slice", [b.add("Concat", [vectors, beyond], axis=1), *cut], ["memory"])
        seen = b.add("Cast", [b.add("Greater", ["source", b.constant(np.asarray(-1, np.int64))])], to=1)
        flat = b.add("ConstantOfShape", [b.add("Concat", [rows, b.constant(one * WINDOW)], axis=0)])
        b.add("Slice", [b.add("Concat", [seen, flat], axis=1), *cut], ["mask"])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="source", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1, text=text)],
        outputs=outputs,
    )
    return b.model(signature)


def _decoder(seed: int, letters: Sequence[str], hidden: int, attends: bool, most: int, end: float) -> onnx.ModelProto:
    b, symbols, two = Builder(seed), ["<s>", "</s>", *letters], np.asarray([2], np.int64)
    vector = b.add("Gather", [b.weight(len(symbols), hidden, scale=1.5), "token"], axis=0)
    total = b.add("Add", [b.add("MatMul", ["h", b.weight(hidden, hidden, scale=1.5 * hidden**-0.5)]), vector])
    states = [StateSpec(input="h", output="h_out", dtype="float32", shape=[-1, hidden], from_encoder="first")]
    outputs = [TensorSpec(name="scores", dtype="float32", shape=[-1, len(symbols)], batch_axis=0)]
    if attends:
        column = b.add("Unsqueeze", [total, b.constant(two)])
        likeness = b.add("Squeeze", [b.add("MatMul", ["memory", column]), b.constant(two)])
        less = b.add("Sub", ["mask", b.constant(np.ones(1, np.float32))])
        hidden_places = b.add("Mul", [less, b.constant(np.full(1, 1e9, np.float32))])
        b.add("Softmax", [b.add("Add", [likeness, hidden_places])], ["looked"], axis=1)
        row = b.add("Unsqueeze", ["looked", b.constant(two - 1)])
        context = b.add("Squeeze", [b.add("MatMul", [row, "memory"]), b.constant(two - 1)])
        total = b.add("Add", [total, context])
        b.add("Identity", ["memory"], ["memory_out"])
        b.add("Identity", ["mask"], ["mask_out"])
        shapes = {"memory": [-1, WINDOW, hidden], "mask": [-1, WINDOW]}
        states += [
            StateSpec(input=name, output=f"{name}_out", dtype="float32", shape=shape, from_encoder=name)
            for name, shape in shapes.items()
        ]
        outputs.append(TensorSpec(name="looked", dtype="float32", shape=[-1, WINDOW], batch_axis=0))
    for state in states:
        state.batch_axis = 0
    b.add("Tanh", [total], ["h_out"])
    scores = b.add("MatMul", ["h_out", b.weight(hidden, len(symbols), scale=3 * hidden**-0.5)])
    b.add("Add", [scores, b.constant(np.asarray([0, end, *[0] * len(letters)], np.float32))], ["scores"])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="token", dtype="int64", shape=[-1], batch_axis=0)],
        outputs=outputs,
        states=states,
        decoding=Decoding(
            input="token",
            output="scores",
            start_token=START,
            end_token=END,
            text=Text(vocabulary=symbols),
            max_tokens=most,
            attention="looked" if attends else "",
        ),
    )
    return b.model(signature)


class Said(NamedTuple):
    """A text as it is decoded plainly."""

    tokens: list[int]
    log_probs: list[float]
    log_prob: float
    score: float
    ended: bool
    attention: list[list[float]]


States = Mapping[str, Array]


class Plain:
    """An encoder-decoder run by ONNX Runtime alone, one text and one token at a time."""

    def __init__(self, folder: Path) -> None:
        self.encoder, self.decoder = Whole(folder / "encoder.onnx"), Whole(folder / "decoder.onnx")
        self.decoding = self.decoder.signature.decoding

    def encode(self, source: Sequence[int]) -> States:
        """What the decoder starts from."""
        (spec,) = self.encoder.signature.inputs
        found = self.encoder.call(**{spec.name: np.asarray([source], spec.dtype)})
        axes = {spec.name: spec.batch_axis for spec in self.encoder.signature.outputs}
        return {
            state.input: found[state.from_encoder].take(0, axes[state.from_encoder])
            if state.from_encoder
            else start_row(state)
            for state in self.decoder.signature.states
        }

    def step(self, token: int, states: States) -> tuple[list[float], States, list[float]]:
        """The logarithm of the probability of every token, the states, where the step looked."""
        dtype = self.decoder.signature.inputs[0].dtype
        outputs, after = self.decoder.run_from({self.decoding.input: np.asarray([token], dtype)}, states)
        scores = [float(each) for each in outputs[self.decoding.output].reshape(-1)]
        top = max(scores)
        rest = math.log(math.fsum(math.exp(each - top) for each in scores))
        looked = outputs[self.decoding.attention].reshape(-1) if self.decoding.attention else np.empty(0)
        return [each - top - rest for each in scores], after, [float(each) for each in looked]

    def decode(self, source: Sequence[int], choose: Callable[[int, list[float]], int], most: int = 0) -> Said:
        """One token after the other, each as `choose` has it of the step's number and the logarithms."""
        token, states, said = self.decoding.start_token, self.encode(source), Said([], [], 0.0, 0.0, False, [])
        total, ended = 0.0, False
        for step in range(1, (most or self.decoding.max_tokens) + 1):
            log_probs, states, looked = self.step(token, states)
            token = choose(step, log_probs)
            total += log_probs[token]
            if token == self.decoding.end_token:
                ended = True
                break
            said.tokens.append(token)
            said.log_probs.append(log_probs[token])
            said.attention.append(looked)
        return said._replace(log_prob=total, score=total, ended=ended)

    def greedy(self, source: Sequence[int], most: int = 0) -> Said:
        """The likeliest token, and that in again."""
        return self.decode(source, lambda _, log_probs: log_probs.index(max(log_probs)), most)

    def search(
        self,
        source: Sequence[int],
        *,
        beams: int,
        n_best: int = 1,
        penalty: float = 1.0,
        early: bool = False,
        most: int = 0,
    ) -> list[Said]:
        """Beam search as it is told in words; without `early` it goes on to the last token whatever comes."""
        most = most or self.decoding.max_tokens
        nothing = Said([], [], 0.0, 0.0, False, [])
        going = [(nothing, self.encode(source), self.decoding.start_token)]
        kept: list[Said] = []
        for step in range(1, most + 1):
            found = []
            for place, (said, states, token) in enumerate(going):
                log_probs, after, looked = self.step(token, states)
                for symbol, log_prob in enumerate(log_probs):
                    found.append((said.log_prob + log_prob, place, symbol, log_prob, after, looked))
            found.sort(key=lambda each: (-each[0], each[1], each[2]))
            on = list[tuple[Said, States, int]]()
            for rank, (total, place, symbol, log_prob, after, looked) in enumerate(found[: 2 * beams]):
                before = going[place][0]
                if symbol == self.decoding.end_token:
                    if rank < beams:
                        kept.append(before._replace(log_prob=total, score=total / step**penalty, ended=True))
                elif len(on) < beams:
                    said = Said(
                        [*before.tokens, symbol],
                        [*before.log_probs, log_prob],
                        total,
                        total / step**penalty,
                        False,
                        [*before.attention, looked],
                    )
                    on.append((said, after, symbol))
            going = on
            if step == most:
                kept += [said for said, _, _ in going]
            kept = sorted(kept, key=lambda said: -said.score)[:beams]
            if not going or (early and len(kept) == beams):
                break
        return kept[:n_best]


def drawn(
    seed: int, number: int, path: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Callable[[int, list[float]], int]:
    """How a token is drawn, written plainly."""

    def choose(step: int, log_probs: list[float]) -> int:
        philox = np.random.Philox(key=np.asarray([seed, number], np.uint64), counter=[0, step, 0, 0])
        uniform = ((int(philox.random_raw(4 * path + 1)[-1]) >> 11) + 0.5) * 2.0**-53
        heated = [each / temperature for each in log_probs]
        weights = [math.exp(each - max(heated)) for each in heated]
        order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
        left = order[: top_k or len(order)]
        total, sum_, allowed = math.fsum(weights[token] for token in left), 0.0, set[int]()
        for token in left:
            if sum_ >= top_p * total:
                break
            allowed.add(token)
            sum_ += weights[token]
        drawn, sum_ = uniform * math.fsum(weights[token] for token in allowed), 0.0
        for token in sorted(allowed):
            sum_ += weights[token]
            if drawn < sum_:
                return token
        return max(allowed)

    return choose
