"""Coupling: an encoder and a decoder of somebody else get their forms; comparing sees that these answer alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from statestream.contract import signature as signatures
from statestream.contract.signature import FORMAT, Decoding, Signature, TensorSpec, ValueRange
from statestream_server.models.files.generation import Bounds
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.form import tokens
from statestream_server.models.form.couple import MASK, Couple
from statestream_server.models.form.draft import drafted
from statestream_server.models.form.edits import fresh, opset_of, taken
from statestream_server.models.form.pairs import Tensor, tensor
from statestream_server.models.form.plan import Note, Plan
from statestream_server.models.form.surgery import Change, together
from statestream_server.models.form.told import BATCH, Shape, Told, ToldError
from statestream_server.models.proof import forming
from statestream_server.models.proof.batches import Source
from statestream_server.models.proof.comparing import Pair

_SOURCE: Final = "source"
"""The word for the axis of the source's tokens."""
_SIZES: Final = ((2, 3), (3, 5))
_ALONE: Final = ((1, 3), (1, 5))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What the encoder's outputs follow, by their axes: a length, BATCH or "source"."""

    shapes: Mapping[str, Shape]
    batched: bool


class Coupling:
    """A pair while it is formed."""

    def __init__(
        self, pair: Pair, files: tuple[ModelFile, ModelFile], couple: Couple, known: Bounds, told: Told
    ) -> None:
        """The files, as they run and as they lie there, what is known of them, and what is told.

        Raises:
            ToldError: They are of an old version of operators.
        """
        self._pair, self._files, self._couple, self._known, self._told = pair, files, couple, known, told
        for file in files:
            if opset_of(file.proto) < tokens.OLDEST:
                raise ToldError(
                    f"{file.path.name} is of opset {opset_of(file.proto)}; export both with {tokens.OLDEST} or newer"
                )
        outputs = [tensor(value) for value in files[1].proto.graph.output]
        (scores,) = (each for each in outputs if each.name == couple.scores.name)
        last = (scores.dims or (None,))[-1]
        self._symbols = last if isinstance(last, int) else 0
        self._encoded = self._axes()

    def forms(self, source: Source, before: Sequence[Change], refused: list[str]) -> Iterator[tuple[Plan, Plan]]:
        """The plans of both that are as the files are; `source` is the decoder with the changes before."""
        mask = fresh("source_mask", taken(self._files[0].proto.graph))
        first = self._encoder_plan(mask)
        draft = drafted(source.model(()), self._decoder_told())
        for plan in forming.plans(draft, self._decoder_told(), source, refused):
            signature = self._signed(plan.signature, first.signature, mask)
            kept = [note for note in plan.notes if note.about in ("one at a time", "follows", "surgery")]
            found = [Note(*note) for note in self._couple.notes]
            changed = [Note("surgery", str(change)) for change in together(before)]
            form = Note(
                "form", "an encoder and a decoder" + (", and what model.toml says" if self._told != Told() else "")
            )
            notes = [form, *self._known.notes, *found, *first.notes, *changed, *kept]
            yield first, Plan(signature, [*before, *plan.changes], notes)

    def changes(self) -> list[Change]:
        """What is done to the decoder first: one token a step, and one score for each symbol."""
        couple, graph, made = self._couple, self._files[1].proto.graph, list[Change]()
        used, most = taken(graph), self._known.most
        news = {pair.new for pair in couple.pairs}
        made += [Change("ones", each.name, couple.token.name, [0]) for each in couple.marks]
        if couple.rereads:
            length = couple.token.dims[1] if couple.token.dims is not None else None
            places = length if isinstance(length, int) else most
            state, count = fresh(f"{couple.token.name}_past", used), fresh(f"{couple.token.name}_count", used)
            made.append(Change("prefix", couple.token.name, state, [places], count))
            made.append(Change("at", couple.scores.name, "", [places], count))
        else:
            if len(couple.token.dims or ()) == 2:
                made.append(Change("lift", couple.token.name, "", [1]))
            if len(couple.scores.dims or ()) == 3:
                made.append(Change("drop", couple.scores.name, "", [1]))
        banned = [token for token in self._known.banned if token < self._symbols]
        if banned:
            made.append(Change("ban", couple.scores.name, "", [self._symbols, *banned]))
        kept = {couple.scores.name, *news} | ({couple.attention.name} if couple.attention else set())
        return made + [Change("inner", value.name) for value in graph.output if value.name not in kept]

    def _axes(self) -> _Encoded:
        """What the axes of the encoder's outputs follow, in small runs."""
        dims = self._couple.source.dims or ()
        one, length = dims[0] == 1, dims[1]
        if isinstance(dims[0], int) and not one:
            raise ToldError(f"the encoder takes {dims[0]} sources at a time; export it with any number, or with one")
        sizes = [(rows, length if isinstance(length, int) else steps) for rows, steps in (_ALONE if one else _SIZES)]
        runs = [self._pair.encode(self._pair.drawn(*size)) for size in sizes]
        found = dict[str, Shape]()
        for name in {given for given in self._couple.wires.values() if given}:
            shape = list[int | str]()
            for axis, lengths in enumerate(zip(*(run[name].shape for run in runs), strict=True)):
                if lengths == tuple(rows for rows, _ in sizes) and (not one or axis == 0 or BATCH not in shape):
                    shape.append(BATCH if BATCH not in shape else lengths[0])
                elif len(set(lengths)) == 1:
                    shape.append(lengths[0])
                elif lengths == tuple(steps for _, steps in sizes):
                    shape.append(_SOURCE)
                else:
                    raise ToldError(
                        f"axis {axis} of the encoder's {name} follows neither sources nor their tokens: {lengths}"
                    )
            if BATCH not in shape:
                raise ToldError(f"the encoder's {name} is of shape {shape}, however many sources there are")
            found[name] = tuple(shape)
        return _Encoded(found, not one)

    def _encoder_plan(self, mask: str) -> Plan:
        couple, known, shapes = self._couple, self._known, self._encoded.shapes
        dims = couple.source.dims or (None, None)
        length, changes = dims[1], list[Change]()
        fixed = length if isinstance(length, int) else 0
        if fixed:  # Before all that looks at how many tokens callers send.
            changes.append(Change("source", couple.source.name, "", [fixed, known.pad or 0]))
        changes += [Change("ones", each.name, couple.source.name, [fixed]) for each in couple.masks]
        told = self._mask_type()
        if told is not None:
            changes.append(Change("tell", couple.source.name, mask, [fixed or known.source, told]))
        for name, shape in sorted(shapes.items()):
            if _SOURCE in shape:
                changes.append(Change("fill", name, "", [shape.index(_SOURCE), known.source]))
        kept = {*shapes}
        changes += [
            Change("inner", value.name) for value in self._files[0].proto.graph.output if value.name not in kept
        ]
        rows = -1 if self._encoded.batched else 1
        signature = Signature(format=FORMAT)
        signature.inputs.append(
            TensorSpec(name=couple.source.name, dtype=couple.source.dtype, shape=[rows, -1], batch_axis=0, time_axis=1)
        )
        symbols = known.symbols or self._symbols
        if symbols:
            signature.inputs[0].ranges.append(ValueRange(lowest=0, highest=symbols - 1, whole=True))
        dtypes = {each.name: each.dtype for each in map(tensor, self._files[0].proto.graph.output)}
        for name, shape in sorted(shapes.items()):
            sizes = [rows if size == BATCH else known.source if size == _SOURCE else int(size) for size in shape]
            signature.outputs.append(
                TensorSpec(name=name, dtype=dtypes[name], shape=sizes, batch_axis=shape.index(BATCH))
            )
        if told is not None:
            dtype = self._mask().dtype
            signature.outputs.append(
                TensorSpec(name=mask, dtype=dtype, shape=[rows, fixed or known.source], batch_axis=0)
            )
        notes = [Note("surgery", f"encoder: {change}") for change in together(changes)]
        return Plan(signature, changes, notes)

    def _mask(self) -> Tensor:
        name = next(name for name, given in self._couple.wires.items() if given == MASK)
        return self._input(name)

    def _input(self, name: str) -> Tensor:
        return next(each for each in map(tensor, self._files[1].proto.graph.input) if each.name == name)

    def _mask_type(self) -> int | None:
        """The ONNX type of the mask that the decoder takes; None where it takes none."""
        names = [name for name, given in self._couple.wires.items() if given == MASK]
        values = {value.name: value for value in self._files[1].proto.graph.input}
        return int(values[names[0]].type.tensor_type.elem_type) if names else None

    def _decoder_told(self) -> Told:
        """What is known of the changed decoder, as if a person told it."""
        couple, told, shapes = self._couple, self._told, dict(self._told.shapes)
        source = self._places()
        states = {pair.old: pair.new for pair in couple.pairs}
        for change in self.changes():
            if change.kind == "prefix":
                states |= {change.made: f"{change.made}_next", change.tally: f"{change.tally}_next"}
        for name, given in couple.wires.items():
            if name not in shapes:
                wired = self._encoded.shapes[given] if given else (BATCH, _SOURCE)
                shapes[name] = tuple(source if size == _SOURCE else size for size in wired)
        held = {name: (0.0,) for name in couple.wires if name not in states}
        return replace(
            told, states=states, shapes=shapes, session={**told.session, **held}, counters=couple.counters,
            wires=None, generate={}, chain=(),
            start={name: values for name, values in told.start.items() if name not in couple.wires},
        )  # fmt: skip

    def _places(self) -> int:
        """How many places for the tokens of a source the decoder is given."""
        length = (self._couple.source.dims or (None, None))[1]
        return length if isinstance(length, int) else self._known.source

    def _signed(self, found: Signature, encoder: Signature, mask: str) -> Signature:
        couple, known = self._couple, self._known
        signature = Signature()
        signature.CopyFrom(found)
        for state in signature.states:
            if state.input in couple.wires:
                state.from_encoder = couple.wires[state.input] or mask
                state.constant = False
                state.ClearField("start")
        if self._symbols:
            signature.inputs[0].ranges.append(ValueRange(lowest=0, highest=self._symbols - 1, whole=True))
        signature.decoding.CopyFrom(
            Decoding(
                input=couple.token.name, output=couple.scores.name, start_token=known.start, end_token=known.end,
                max_tokens=known.most, max_source_tokens=known.source,
            )
        )  # fmt: skip
        for spec in signature.outputs:
            looks = couple.attention is not None and spec.name == couple.attention.name
            if looks and signatures.step_shape(spec)[-1:] == (self._places(),):
                signature.decoding.attention = spec.name
        try:
            signatures.check(signature)
        except signatures.SignatureError as error:
            raise ToldError(str(error)) from error
        return signature
