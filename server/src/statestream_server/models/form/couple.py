"""A couple: an encoder and a decoder that somebody else exported: which of their tensors are what. Pure.

What decides: types and shapes, what is told (model.toml), the graph, as of any file with memory; then names, which
others give alike: `encoder_hidden_states` takes `last_hidden_state`, `past_key_values.0.key` is `present.0.key` before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from statestream_server.models.form import pairs
from statestream_server.models.form.flow import Flow
from statestream_server.models.form.names import likeness
from statestream_server.models.form.pairs import Pair, Tensor, UnsettledError, fits, tensor
from statestream_server.models.form.told import Told, ToldError, quoted, unknown

MASK: Final = ""
"""What a mask of the source is wired to: it is made of the source's length."""
_PAST: Final = re.compile(r"^(past_key_values?|past|cache)(?=[._])")
_PRESENT: Final = re.compile(r"^(present_key_values?|present|new_cache|cache)(?=[._])")
_OF_ENCODER: Final = re.compile(r"^encoder_|(?<![a-z])(encoder|cross)(?![a-z])")
_POSITIONS: Final = frozenset("cache_position cache_positions position_ids decoder_position_ids past_length".split())
_WHOLE: Final = ("int32", "int64")


class GrowingError(ToldError):
    """The memory of a decoder grows with the text; the message says which part."""


@dataclass(frozen=True, slots=True)
class Couple:
    """What the tensors of an encoder and its decoder are.

    Attributes:
        source: The encoder's input of tokens.
        masks: Its inputs that mark tokens that count.
        token: The decoder's input of tokens.
        scores: Its output of a score for every token.
        attention: Its output that says how much it looks at each token of the source, where there is one.
        marks: Inputs of the decoder that mark which of its own tokens count, as many as it is given.
        pairs: Its states.
        wires: Inputs by the encoder's output that they take, or start from; `MASK` for the mask of the source.
        counters: Inputs that count the tokens.
        rereads: Whether it has no memory of its own, and reads all tokens so far.
        ports: The decoder's inputs.
        notes: Why, by what it is about.
    """

    source: Tensor
    masks: Sequence[Tensor]
    token: Tensor
    scores: Tensor
    attention: Tensor | None
    marks: Sequence[Tensor]
    pairs: Sequence[Pair]
    wires: Mapping[str, str]
    counters: Mapping[str, float]
    rereads: bool
    ports: Mapping[str, Tensor]
    notes: Sequence[tuple[str, str]]


def coupled(encoder: onnx.ModelProto, decoder: onnx.ModelProto, told: Told) -> Couple:
    """What the tensors of both graphs are.

    Args:
        encoder: The graph that reads the source.
        decoder: The graph that scores the next token.
        told: What is told; names are the decoder's.

    Raises:
        ToldError: What is told does not fit them, or they are none that generate text.
        GrowingError: The decoder's memory grows.
        UnsettledError: Something stays open.
    """
    return _Coupling(encoder, decoder, told).couple()


class _Coupling:
    def __init__(self, encoder: onnx.ModelProto, decoder: onnx.ModelProto, told: Told) -> None:
        self._told, self._flow = told, Flow(decoder)
        self._reads, self._gives = _ports(encoder)
        self._inputs, self._outputs = _ports(decoder)
        told.check(self._inputs, self._outputs)
        self._notes = list[tuple[str, str]]()

    def couple(self) -> Couple:
        source, masks = self._source()
        token = self._token()
        apart = {token.name, *self._told.constants, *self._told.session, *self._told.counters}
        counters = dict(self._told.counters)
        for name in self._inputs.keys() & _POSITIONS - apart:
            counters[name] = 1.0
            self._notes.append(("evidence", f"{name} counts the tokens"))
        rest = [each for name, each in self._inputs.items() if name not in apart and name not in counters]
        self._refuse_growth(token, rest)
        found = self._pairs(token, rest)
        scores = self._scores({pair.new for pair in found})
        attention = self._attention({pair.new for pair in found})
        olds = {pair.old for pair in found}
        length = token.dims[1] if token.dims is not None and len(token.dims) > 1 else 1
        rereads = not found and not counters and length != 1
        if rereads:
            attention = None  # It has all tokens so far.
        marks = [each for each in rest if rereads and each.name not in olds and _marks_own(each, token)]
        rest = [each for each in rest if each not in marks]
        wires = self._wires(rest, olds)
        if missing := [each for each in rest if each.name not in wires and each.name not in olds]:
            raise self._missing(missing[0])
        return Couple(
            source, masks, token, scores, attention, marks, found, wires, counters, rereads, self._inputs, self._notes
        )

    def _source(self) -> tuple[Tensor, list[Tensor]]:
        """The encoder's input of tokens, and its masks."""
        masks = [each for name, each in self._reads.items() if "mask" in name.lower()]
        left = [each for each in self._reads.values() if each not in masks]
        tokens = [each for each in left if each.dtype in _WHOLE and each.dims is not None and len(each.dims) == 2]
        if len(left) != 1 or not tokens:
            shown = ", ".join(map(str, self._reads.values()))
            raise ToldError(
                f"the encoder takes {shown}; expected whole numbers of tokens [batch, length] and masks of them alone:"
                " make the others constants of its graph"
            )
        if odd := [each for each in masks if each.dims is None or len(each.dims) != 2]:
            raise ToldError(f"the encoder takes {odd[0]}; expected a mask of its tokens [batch, length]")
        return tokens[0], masks

    def _token(self) -> Tensor:
        """The decoder's input of tokens."""
        told = self._told
        apart = {*told.constants, *told.session, *told.counters, *(told.states or {}), *(told.wires or {})}
        whole = [
            each
            for name, each in self._inputs.items()
            if each.dtype in _WHOLE and name not in apart and name not in _POSITIONS and "mask" not in name.lower()
        ]
        named = [each for each in whole if each.name in ("input_ids", "decoder_input_ids")]
        found = named or [each for each in whole if 1 <= len(each.dims or ()) <= 2]
        if len(found) != 1:
            shown = ", ".join(map(str, self._inputs.values()))
            raise ToldError(
                f"the decoder takes {shown}; expected one input of tokens, int64 [batch, length] or [batch]"
                + (": say which others are counters or constants" if found else "")
            )
        return found[0]

    def _refuse_growth(self, token: Tensor, rest: Sequence[Tensor]) -> None:
        """Refuses what has one length more with every token."""
        first = (token.dims or (None,))[0]
        for each in rest:
            if _PAST.match(each.name) and not _OF_ENCODER.search(each.name) and each.name not in self._told.shapes:
                free = [size for size in each.dims or () if not isinstance(size, int)]
                batch = not isinstance(first, int) and (first in free or None in free)
                if len(free) > batch:
                    raise GrowingError(growing(f"input {each}"))
        taken = any(_PAST.match(each.name) for each in rest)
        given = [each for each in self._outputs.values() if _PRESENT.match(each.name)]
        if given and not taken and self._told.states is None:
            raise GrowingError(growing(f"output {given[0]}"))

    def _pairs(self, token: Tensor, rest: Sequence[Tensor]) -> list[Pair]:
        """The states: as told, caches by their names, the others as in any file."""
        if self._told.states is not None:
            return [Pair(old, new, "as model.toml says") for old, new in self._told.states.items()]
        caches = [
            Pair(old.name, new.name, "name and type")
            for old in rest
            for new in self._outputs.values()
            if _PAST.match(old.name) and _PRESENT.match(new.name) and fits(old, new)
            and _PAST.sub("", old.name) == _PRESENT.sub("", new.name)
        ]  # fmt: skip
        used = {name for pair in caches for name in pair[:2]}
        inputs = [each for each in rest if each.name not in used and not _OF_ENCODER.search(each.name)]
        outputs = [each for each in self._outputs.values() if each.name not in used and each.name != "logits"]
        inputs = [each for each in inputs if not _is_mark(each)]
        try:
            found = pairs.found(self._flow, [token, *inputs], outputs, {token.name})
        except UnsettledError as error:
            # What the encoder gives by that name, and no output is called like, is read and not changed.
            kept = [
                each
                for each in inputs
                if each.name in error.settled
                or each.name not in self._gives
                or any(likeness(each.name, other.name) for other in outputs)
            ]
            if len(kept) == len(inputs):
                raise
            found = pairs.found(self._flow, [token, *kept], outputs, {token.name})
        plain = [pair for pair in found if not self._flow.same(pair.old, pair.new)]
        self._notes += [("evidence", f"{pair.old} → {pair.new}: {pair.why}") for pair in (*caches, *plain)]
        return [*caches, *found]

    def _scores(self, news: Collection[str]) -> Tensor:
        """The output with a score for every token."""
        floats = [each for name, each in self._outputs.items() if name not in news and each.dtype.startswith("float")]
        named = [each for each in floats if each.name == "logits"]
        found = named or [each for each in floats if not _PRESENT.match(each.name) and "attention" not in each.name]
        if len(found) != 1 or not 2 <= len(found[0].dims or ()) <= 3:
            shown = ", ".join(map(str, self._outputs.values()))
            raise ToldError(
                f"the decoder gives {shown}; expected one output of scores, called logits where there are more"
            )
        return found[0]

    def _attention(self, news: Collection[str]) -> Tensor | None:
        """The output that is called so; of several layers none says alone where it looks."""
        found = [
            each
            for name, each in self._outputs.items()
            if "attention" in name and name not in news and each.dtype.startswith("float") and len(each.dims or ()) > 1
        ]
        cross = [each for each in found if _OF_ENCODER.search(each.name)] or found
        return cross[0] if len(cross) == 1 else None

    def _wires(self, rest: Sequence[Tensor], olds: Collection[str]) -> dict[str, str]:
        """What of the decoder takes what of the encoder, or starts from it."""
        told = self._told.wires
        if told is not None:
            for name, given in told.items():
                if name not in self._inputs:
                    raise ToldError(
                        f"wires names {name!r}, which is no input of the decoder{unknown(name, self._inputs)}"
                    )
                if given not in self._gives:
                    raise ToldError(f"wires.{name} is {given!r}, no output of the encoder{unknown(given, self._gives)}")
                if not fits(self._inputs[name], self._gives[given]):
                    raise ToldError(f"wires: {given} is {self._gives[given].kind} and {name} {self._inputs[name].kind}")
            found = dict(told)
        else:
            found = self._named(rest, olds)
        for each in rest:
            if each.name not in found and each.name not in olds and _is_mark(each):
                found[each.name] = MASK
        self._notes += [
            ("wire", f"{name} {'starts from' if name in olds else 'takes'} the encoder's {given}"
             if given else f"{name} marks the tokens of the source")
            for name, given in found.items()
        ]  # fmt: skip
        return found

    def _named(self, rest: Sequence[Tensor], olds: Collection[str]) -> dict[str, str]:
        """The wires by names, then by what fits alone."""
        found, open_ = dict[str, str](), list[Tensor]()
        for each in rest:
            fit = [given for given in self._gives.values() if fits(each, given)]
            best = max((_alike(each.name, given.name) for given in fit), default=0)
            good = [given for given in fit if best and _alike(each.name, given.name) == best]
            if len(good) == 1:
                found[each.name] = good[0].name
            elif each.name not in self._told.start and not (each.name in olds and _PAST.match(each.name)):
                open_.append(each)
        for each in open_:
            if _is_mark(each):
                continue
            fit = [given for name, given in self._gives.items() if fits(each, given) and name not in found.values()]
            rivals = [other for other in open_ if other is not each and any(fits(other, given) for given in fit)]
            if len(fit) == 1 and not rivals and each.name not in olds:
                found[each.name] = fit[0].name
            elif fit:
                lines = [f"wires = {{ {_line({**found, each.name: given.name})} }}" for given in fit]
                lines += [f"start = {{ {quoted(each.name)} = 0 }}"] * (each.name in olds)
                shown = " or ".join(map(str, fit))
                raise UnsettledError(f"decoder input {each} may take the encoder's {shown}: no name says which", lines)
        return found

    def _missing(self, each: Tensor) -> UnsettledError:
        given = ", ".join(map(str, self._gives.values()))
        return UnsettledError(
            f"decoder input {each} is taken from nowhere: the encoder gives {given}, and no output of the decoder is"
            " its next value",
            [
                f"wires = {{ {quoted(each.name)} = … }}",
                f"constants = {{ {quoted(each.name)} = … }}",
                f"counters = {{ {quoted(each.name)} = 1 }}",
                f"states = {{ {quoted(each.name)} = … }}",
            ],
        )


def _ports(model: onnx.ModelProto) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {each.name for each in model.graph.initializer}
    inputs = [tensor(value) for value in model.graph.input if value.name not in weights]
    return {each.name: each for each in inputs}, {value.name: tensor(value) for value in model.graph.output}


def _is_mark(each: Tensor) -> bool:
    """Whether a tensor says by its name that it marks tokens."""
    return "mask" in each.name.lower() and len(each.dims or ()) == 2


def _marks_own(each: Tensor, token: Tensor) -> bool:
    """Whether it marks the decoder's own tokens, not those of the source."""
    length = (token.dims or (None, None))[1]
    own = each.name.startswith("decoder_") or (isinstance(length, str) and (each.dims or (None, None))[1] == length)
    return _is_mark(each) and own


def _alike(name: str, given: str) -> int:
    """How much an encoder's output is called like an input of its decoder; 0 for not at all."""
    if name == given:
        return 3
    if name in ("encoder_hidden_states", "encoder_outputs") and given == "last_hidden_state":
        return 2
    return int(_stem(name) == _stem(given))


def _stem(name: str) -> str:
    """What a value is called, whoever has it: `encoder_hidden_states`, `last_hidden_state` are one."""
    bare = _PRESENT.sub("", _PAST.sub("", name))
    for part in ("encoder_", "last_"):
        bare = bare.removeprefix(part)
    return bare.removesuffix("s") if bare.endswith("states") else bare


def _line(wires: Mapping[str, str]) -> str:
    return ", ".join(f"{quoted(name)} = {quoted(given)}" for name, given in wires.items() if given)


def growing(what: str) -> str:
    """Why a decoder whose memory grows is refused, and what to do."""
    return (
        f"the decoder's memory grows: {what} is longer by one with every token, and a row of memory keeps one shape."
        " Export it without a cache (optimum-cli export onnx --task text2text-generation): then the tokens so far are"
        " its memory; or with a cache of a fixed length"
    )
