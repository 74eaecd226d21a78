"""Encoders and decoders as Optimum exports them, or somebody by hand: two small files, and what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from statestream_server.arrays import Array
from tests.server.models.form_zoo import Value, ints, model
from tests.server.models.graphs import Builder

V: Final = 11
"""Tokens that both know."""
D: Final = 6
CONFIG: Final = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "max_length": 9, "vocab_size": V}
_SOURCE: Final = 16


@dataclass(frozen=True)
class Couple:
    """Two files, and how they are run by hand.

    Attributes:
        encoder: The one.
        decoder: The other.
        wires: The decoder's inputs by the encoder's outputs; "" for a mask of the source.
        states: Its states: input to output.
        start: States that the encoder does not give start from zeros of this shape.
        counts: Inputs that count the tokens, by the axes that they have.
        rereads: Whether it is given all tokens so far.
        fixed: How many tokens a source has, where that is fixed.
        config: What lies beside.
        told: The text of the model.toml.
    """

    encoder: onnx.ModelProto
    decoder: onnx.ModelProto
    wires: Mapping[str, str]
    states: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, Sequence[int]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    rereads: bool = False
    fixed: int = 0
    config: Mapping[str, Any] = field(default_factory=lambda: {**CONFIG, "max_position_embeddings": _SOURCE})
    told: str = ""

    def save(self, folder: Path, decoder: str = "decoder_model.onnx") -> Path:
        """The decoder, as the files lie."""
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(self.encoder, folder / "encoder_model.onnx")
        onnx.save(self.decoder, folder / decoder)
        if self.config:
            (folder / "config.json").write_text(json.dumps(self.config))
        if self.told:
            (folder / "model.toml").write_text(self.told)
        return folder / decoder

    def scores(self, source: Sequence[int], given: Sequence[int]) -> list[Array]:
        """The scores [V] after each token, as a loop over ONNX Runtime has them."""
        encoder, decoder = (
            onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
            for each in (self.encoder, self.decoder)
        )
        missing = max(0, self.fixed - len(source))
        tokens = np.asarray([[*source, *[0] * missing]], np.int64)
        mask = np.asarray([[1] * len(source) + [0] * missing], np.int64)
        feeds = {each.name: mask if "mask" in each.name else tokens for each in encoder.get_inputs()}
        found = dict(zip([each.name for each in encoder.get_outputs()], encoder.run(None, feeds), strict=True))
        values = {name: found[given] if given else mask for name, given in self.wires.items()}
        values |= {name: np.zeros(shape, np.float32) for name, shape in self.start.items()}
        told, names = list[Array](), [each.name for each in decoder.get_outputs()]
        (first,) = (each for each in decoder.get_inputs() if each.name in ("input_ids", "token"))
        for step, token in enumerate(given):
            feeds = {**values, **{name: np.full([1] * rank, step, np.int64) for name, rank in self.counts.items()}}
            feeds[first.name] = np.asarray(given[: step + 1] if self.rereads else [token], np.int64)
            feeds[first.name] = feeds[first.name].reshape([1, -1] if len(first.shape) == 2 else [-1])
            results = dict(zip(names, decoder.run(None, feeds), strict=True))
            told.append(results["logits"].reshape(-1, V)[-1])
            values |= {old: results[new] for old, new in self.states.items()}
        return told

    def greedy(self, source: Sequence[int], most: int) -> list[int]:
        """The likeliest tokens, one after the other, without the end."""
        given = [int(self.config.get("decoder_start_token_id", 0))]
        while len(given) <= most:
            token = int(self.scores(source, given)[-1].argmax())
            if token == self.config.get("eos_token_id", 1):
                break
            given.append(token)
        return given[1:]


def _encoder(
    b: Builder,
    outputs: Sequence[Value],
    *,
    mask: bool = True,
    dims: Sequence[int | str] = ("batch_size", "encoder_sequence"),
) -> onnx.ModelProto:
    """A graph that reads `input_ids`; whoever calls adds what makes the outputs."""
    inputs: list[Value] = [("input_ids", "int64", dims)]
    inputs += [("attention_mask", "int64", dims)] * mask
    return model(b, inputs, outputs)


def _embedded(b: Builder, tokens: str) -> str:
    return b.add("Gather", [b.weight(V, D, scale=1.0), tokens])


def _read(b: Builder) -> tuple[str, str]:
    """A GRU over a source: its outputs [B, S, D] and last state [1, B, D]; what is masked does not count."""
    embedded = _embedded(b, "input_ids")
    kept = b.add("Unsqueeze", [b.add("Cast", ["attention_mask"], to=1), ints(b, 2)])
    lengths = b.add("ReduceSum", [b.add("Cast", ["attention_mask"], to=6), ints(b, 1)], keepdims=0)
    turned = b.add("Transpose", [b.add("Mul", [embedded, kept])], perm=[1, 0, 2])
    inputs = [turned, b.weight(1, 3 * D, D), b.weight(1, 3 * D, D), "", lengths]
    made, state = b.add("GRU", inputs, 2, hidden_size=D)
    whole = b.add("Transpose", [b.add("Squeeze", [made, ints(b, 1)])], perm=[1, 0, 2])
    return whole, state


def _named(b: Builder, value: str, name: str) -> None:
    b.add("Identity", [value], [name])


def _hidden(b: Builder, mask: str, scores: str) -> str:
    """Scores [B, T, S] of attention, with none for what is masked [B, S]."""
    away = b.add(
        "Mul", [b.add("Sub", [b.constant(np.float32(1)), b.add("Cast", [mask], to=1)]), b.constant(np.float32(-1e9))]
    )
    return b.add("Softmax", [b.add("Add", [scores, b.add("Unsqueeze", [away, ints(b, 1)])])], axis=-1)


def _attend(b: Builder, query: str, memory: str, mask: str = "", looks: str = "") -> str:
    """What a query [B, T, D] finds in a memory [B, S, D]; `looks`: an output of how much it looks at each."""
    scores = b.add(
        "MatMul", [b.add("MatMul", [query, b.weight(D, D, scale=1.0)]), b.add("Transpose", [memory], perm=[0, 2, 1])]
    )
    weights = _hidden(b, mask, scores) if mask else b.add("Softmax", [scores], axis=-1)
    if looks:
        _named(b, weights, looks)
    return b.add("MatMul", [weights, memory])


def _logits(b: Builder, hidden: str) -> None:
    b.add("MatMul", [b.add("Tanh", [hidden]), b.weight(D, V, scale=1.0)], ["logits"])


_HIDDEN: Final[Value] = ("encoder_hidden_states", "float32", ["batch_size", "encoder_sequence", D])
_MASK: Final[Value] = ("encoder_attention_mask", "int64", ["batch_size", "encoder_sequence"])
_LAST: Final[Value] = ("last_hidden_state", "float32", ["batch_size", "encoder_sequence", D])


def gru_attention(*, mask: bool = True, mixing: bool = False, looks: bool = False) -> Couple:
    """A GRU that attends to the encoder's outputs, called as Optimum does; its state starts as the encoder's."""
    e = Builder(1)
    whole, state = _read(e)
    _named(e, whole, "last_hidden_state")
    _named(e, state, "hidden_state")
    h: Value = ("hidden_state", "float32", [1, "batch_size", D])
    encoder = _encoder(e, [_LAST, h])
    b = Builder(2)
    step = b.add("Transpose", [_embedded(b, "input_ids")], perm=[1, 0, 2])
    made, new = b.add(
        "GRU", [step, b.weight(1, 3 * D, D), b.weight(1, 3 * D, D), "", "", "hidden_state"], 2, hidden_size=D
    )
    _named(b, new, "hidden_state_out")
    query = b.add("Transpose", [b.add("Squeeze", [made, ints(b, 1)])], perm=[1, 0, 2])
    memory = "encoder_hidden_states"
    if mixing:
        memory = b.add("Add", [memory, b.add("ReduceMean", [memory], axes=[0], keepdims=1)])
    found = _attend(b, query, memory, "encoder_attention_mask" if mask else "", "cross_attentions" if looks else "")
    _logits(b, b.add("Add", [query, found]))
    inputs: list[Value] = [("input_ids", "int64", ["batch_size", 1]), *([_MASK] * mask), _HIDDEN, h]
    outputs: list[Value] = [
        ("logits", "float32", ["batch_size", 1, V]),
        ("hidden_state_out", "float32", [1, "batch_size", D]),
    ]
    outputs += [("cross_attentions", "float32", ["batch_size", 1, "encoder_sequence"])] * looks
    wires = {"encoder_hidden_states": "last_hidden_state", "hidden_state": "hidden_state"}
    wires |= {"encoder_attention_mask": ""} if mask else {}
    return Couple(encoder, model(b, inputs, outputs), wires, {"hidden_state": "hidden_state_out"})


def lstm() -> Couple:
    """An LSTM that starts from the encoder's and attends to nothing; a token is [B], and there are no masks."""
    files = []
    for given, axes, states in (("input_ids", None, ("h", "c")), ("token", ["batch_size"], ("h_next", "c_next"))):
        b = Builder(3)
        embedded = _embedded(b, given)
        step = b.add("Unsqueeze", [embedded, ints(b, 0)]) if axes else b.add("Transpose", [embedded], perm=[1, 0, 2])
        begin = ["", "", "h", "c"] if axes else []
        made, *new = b.add("LSTM", [step, b.weight(1, 4 * D, D), b.weight(1, 4 * D, D), *begin], 3, hidden_size=D)
        for value, name in zip(new, states, strict=True):
            _named(b, value, name)
        kept: list[Value] = [(name, "float32", [1, "batch_size", D]) for name in states]
        if axes is None:
            files.append(_encoder(b, kept, mask=False))
            continue
        _logits(b, b.add("Squeeze", [made, ints(b, 0, 1)]))
        olds: list[Value] = [(name, "float32", [1, "batch_size", D]) for name in ("h", "c")]
        files.append(model(b, [("token", "int64", axes), *olds], [("logits", "float32", ["batch_size", V]), *kept]))
    return Couple(files[0], files[1], {"h": "h", "c": "c"}, {"h": "h_next", "c": "c_next"})


def static_cache(*, cells: int = 8, fixed: bool = False) -> Couple:
    """A layer of a transformer with caches of one shape: its own, written at `cache_position`, and the encoder's.

    `fixed`: exported with no free axis at all: one source of 8 tokens, one token.
    """
    batch: int | str = 1 if fixed else "batch_size"
    length: int | str = 8 if fixed else "encoder_sequence"
    e = Builder(4)
    whole, _ = _read(e)
    encoded: list[Value] = []
    for part in ("key", "value"):
        name = f"present.0.encoder.{part}"
        e.add("Unsqueeze", [e.add("MatMul", [whole, e.weight(D, D, scale=1.0)]), ints(e, 1)], [name])
        encoded.append((name, "float32", [batch, 1, length, D]))
    encoder = _encoder(e, encoded, dims=(batch, length))
    b = Builder(5)
    hidden = _embedded(b, "input_ids")
    here = b.add("Reshape", ["cache_position", ints(b, -1, 1, 1, 1)])
    places = b.constant(np.arange(cells, dtype=np.int64).reshape(1, 1, -1, 1))
    news: list[Value] = []
    for part in ("key", "value"):
        step = b.add("Unsqueeze", [b.add("MatMul", [hidden, b.weight(D, D, scale=1.0)]), ints(b, 1)])
        name = f"present.0.decoder.{part}"
        b.add("Where", [b.add("Equal", [places, here]), step, f"past_key_values.0.decoder.{part}"], [name])
        news.append((name, "float32", [batch, 1, cells, D]))
    query = b.add("Unsqueeze", [b.add("MatMul", [hidden, b.weight(D, D, scale=1.0)]), ints(b, 1)])
    scores = b.add("MatMul", [query, b.add("Transpose", [news[0][0]], perm=[0, 1, 3, 2])])
    later = b.add("Cast", [b.add("Greater", [b.add("Reshape", [places, ints(b, 1, 1, 1, -1)]), here])], to=1)
    weights = b.add("Softmax", [b.add("Add", [scores, b.add("Mul", [later, b.constant(np.float32(-1e9))])])], axis=-1)
    own = b.add("Squeeze", [b.add("MatMul", [weights, news[1][0]]), ints(b, 1)])
    hidden = b.add("Add", [hidden, own])
    key, value = ("past_key_values.0.encoder.key", "past_key_values.0.encoder.value")
    across = b.add("MatMul", [b.add("Unsqueeze", [hidden, ints(b, 1)]), b.add("Transpose", [key], perm=[0, 1, 3, 2])])
    weights = _hidden(b, "encoder_attention_mask", b.add("Squeeze", [across, ints(b, 1)]))
    found = b.add("Squeeze", [b.add("MatMul", [b.add("Unsqueeze", [weights, ints(b, 1)]), value]), ints(b, 1)])
    _logits(b, b.add("Add", [hidden, found]))
    caches: list[Value] = [
        (name.replace("present", "past_key_values"), dtype, dims) for name, dtype, dims in (*news, *encoded)
    ]
    inputs: list[Value] = [
        ("encoder_attention_mask", "int64", [batch, length]),
        ("input_ids", "int64", [batch, 1]),
        *caches,
        ("cache_position", "int64", [batch]),
    ]
    decoder = model(b, inputs, [("logits", "float32", [batch, 1, V]), *news])
    own_caches = [f"past_key_values.0.decoder.{part}" for part in ("key", "value")]
    return Couple(
        encoder,
        decoder,
        {"encoder_attention_mask": "", key: "present.0.encoder.key", value: "present.0.encoder.value"},
        {name: name.replace("past_key_values", "present") for name in own_caches},
        {name: [1, 1, cells, D] for name in own_caches},
        {"cache_position": 1},
        fixed=8 if fixed else 0,
    )


def rereading(*, causal: bool = True, presents: bool = False) -> Couple:
    """A layer of a transformer without a cache: it is given all tokens so far, as Optimum exports it without past.

    `presents`: with what a cache would begin with as outputs, as it exports the first step of one with past.
    """
    e = Builder(6)
    _named(e, _read(e)[0], "last_hidden_state")
    encoder = _encoder(e, [_LAST])
    b = Builder(7)
    hidden = _embedded(b, "input_ids")
    length = b.add("Gather", [b.add("Shape", ["input_ids"]), ints(b, 1)])
    place = b.add("Range", [b.constant(np.int64(0)), b.add("Squeeze", [length, ints(b, 0)]), b.constant(np.int64(1))])
    hidden = b.add("Add", [hidden, b.add("Gather", [b.weight(64, D, scale=1.0), place])])
    key = b.add("MatMul", [hidden, b.weight(D, D, scale=1.0)])
    scores = b.add(
        "MatMul", [b.add("MatMul", [hidden, b.weight(D, D, scale=1.0)]), b.add("Transpose", [key], perm=[0, 2, 1])]
    )
    if causal:
        across, down = (b.add("Unsqueeze", [place, ints(b, axis)]) for axis in (0, 1))
        later = b.add("Cast", [b.add("Greater", [across, down])], to=1)
        scores = b.add("Add", [scores, b.add("Mul", [later, b.constant(np.float32(-1e9))])])
    hidden = b.add("Add", [hidden, b.add("MatMul", [b.add("Softmax", [scores], axis=-1), key])])
    found = _attend(b, hidden, "encoder_hidden_states", "encoder_attention_mask")
    _logits(b, b.add("Add", [hidden, found]))
    outputs: list[Value] = [("logits", "float32", ["batch_size", "decoder_sequence", V])]
    if presents:
        _named(b, b.add("Unsqueeze", [key, ints(b, 1)]), "present.0.decoder.key")
        outputs.append(("present.0.decoder.key", "float32", ["batch_size", 1, "past + decoder_sequence", D]))
    decoder = model(b, [_MASK, ("input_ids", "int64", ["batch_size", "decoder_sequence"]), _HIDDEN], outputs)
    wires = {"encoder_hidden_states": "last_hidden_state", "encoder_attention_mask": ""}
    return Couple(encoder, decoder, wires, rereads=True)


def growing(
    *, names: tuple[str, str] = ("past_key_values", "present"), merged: bool = False, said: bool = True
) -> Couple:
    """A layer of a transformer whose cache has one more place with every token.

    `merged`: with the input by which a merged decoder chooses its first step. `said`: whether the file names its axes.
    """
    made = rereading()
    b = Builder(8)
    hidden = _embedded(b, "input_ids")
    key = b.add("MatMul", [hidden, b.weight(D, D, scale=1.0)])
    b.add("Concat", [f"{names[0]}.0.key", key], [f"{names[1]}.0.key"], axis=1)
    if merged:
        hidden = b.add("Mul", [hidden, b.add("Cast", ["use_cache_branch"], to=1)])
    hidden = b.add("Add", [hidden, _attend(b, hidden, f"{names[1]}.0.key")])
    found = _attend(b, hidden, "encoder_hidden_states", "encoder_attention_mask")
    _logits(b, b.add("Add", [hidden, found]))
    axes: list[str | None] = ["past_sequence", "past_sequence + 1"] if said else [None, None]
    inputs: list[Value] = [
        _MASK,
        ("input_ids", "int64", ["batch_size", 1]),
        _HIDDEN,
        (f"{names[0]}.0.key", "float32", ["batch_size", axes[0], D]),
        *([("use_cache_branch", "bool", [1])] if merged else []),
    ]
    outputs: list[Value] = [
        ("logits", "float32", ["batch_size", 1, V]),
        (f"{names[1]}.0.key", "float32", ["batch_size", axes[1], D]),
    ]
    return Couple(made.encoder, model(b, inputs, outputs), made.wires)


COUPLES: Final[Mapping[str, Callable[[], Couple]]] = {
    "gru-attention": lambda: gru_attention(looks=True),
    "lstm": lstm,
    "static-cache": static_cache,
    "static-shapes": lambda: static_cache(fixed=True),
    "rereading": rereading,
}
