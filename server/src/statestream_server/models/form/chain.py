"""Chains: several files that are one model: their graphs joined into one, and the wires between them.

A name that several of the files have is written FILE.NAME, without the file's ending. Wires are as they are told; where
nothing is told, an input takes the output of its name, else the one output that fits it. What stays open is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, NamedTuple

import onnx
from onnx import compose, inliner, version_converter

from statestream.contract import signature as signatures
from statestream_server.models.form import pairs
from statestream_server.models.form.edits import made_as, opset_of, read_as
from statestream_server.models.form.flow import Flow
from statestream_server.models.form.pairs import Owner, Tensor, UnsettledError, fits, tensor
from statestream_server.models.form.told import Told, ToldError, quoted, unknown

_OLDEST_IR = 4
"""The oldest that lets weights be no inputs."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Files as one graph.

    Attributes:
        model: The graph; outputs that are wired are outputs still.
        files: How the files are called.
        whose: By name of an input or output of which file it is: memory is never of two.
        wired: Outputs that only other files take.
        states: What the files' own signatures say: input to output.
        start: What those start from.
        signed: The inputs and outputs of files with a signature: nothing is looked for among them.
        notes: The wires, in words.
    """

    model: onnx.ModelProto
    files: Sequence[str] = ()
    whose: Mapping[str, Owner] = field(default_factory=dict)
    wired: frozenset[str] = frozenset()
    states: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, Sequence[float]] = field(default_factory=dict)
    signed: frozenset[str] = frozenset()
    notes: Sequence[str] = ()


class _End(NamedTuple):
    """An input or output of one of the files."""

    part: int
    name: str


@dataclass(slots=True)
class _Part:
    """One file while it is joined."""

    file: str
    model: onnx.ModelProto
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    signature: signatures.Signature | None
    states: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        return PurePath(self.file).stem


def joined(files: Mapping[str, onnx.ModelProto], told: Told) -> Joined:
    """The files of a chain as one graph.

    Args:
        files: Graphs by the names of their files, in the order in which they run.
        told: What is told of the chain.

    Raises:
        ToldError: What is told does not fit the files, or they cannot be one graph.
        UnsettledError: Which wires there are stays open.
    """
    parts = [_part(file, model) for file, model in _alike(files).items()]
    if len({part.stem for part in parts}) < len(parts):
        raise ToldError(f"chain: two of {', '.join(files)} have one name; rename one")
    wires = _wires_told(parts, told.wires) if told.wires is not None else _wires_found(parts, told)
    for number in range(1, len(parts)):
        if not any(end.part == number for end in wires):
            raise ToldError(_unwired(parts, number))
    return _join(parts, wires, told=told.wires is not None)


def _alike(files: Mapping[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """Copies of all graphs, of one version of operators, without functions, labels, and inputs that are weights."""
    newest = max(opset_of(model) for model in files.values())
    found, others = dict[str, onnx.ModelProto](), dict[str, tuple[str, int]]()
    for file, model in files.items():
        copy = onnx.ModelProto()
        copy.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
        weights = {each.name for each in copy.graph.initializer}
        inputs = [value for value in copy.graph.input if value.name not in weights]
        if len(inputs) < len(copy.graph.input):
            del copy.graph.input[:]
            copy.graph.input.extend(inputs)
        copy.ir_version = max(_OLDEST_IR, *(each.ir_version for each in files.values()))
        copy.graph.ClearField("value_info")
        copy.graph.ClearField("quantization_annotation")
        metadata = [(entry.key, entry.value) for entry in copy.metadata_props]
        if opset_of(copy) < newest:
            try:
                copy = version_converter.convert_version(copy, newest)
            except Exception as error:  # Whatever its adapters make of a graph.
                raise ToldError(
                    f"chain: {file} has opset {opset_of(copy)}, another file {newest}, and it cannot be brought there"
                    f" ({' '.join(str(error).split())}); export all files with one opset"
                ) from error
        del copy.metadata_props[:]
        for key, value in metadata:
            copy.metadata_props.add(key=key, value=value)
        for entry in copy.opset_import:
            first = others.setdefault(entry.domain or "ai.onnx", (file, entry.version))
            if first[1] != entry.version:
                raise ToldError(
                    f"chain: {first[0]} uses version {first[1]} of the operators {entry.domain!r}, {file} version"
                    f" {entry.version}; export both alike"
                )
        found[file] = copy
    return found


def _part(file: str, model: onnx.ModelProto) -> _Part:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    said = metadata.get(signatures.METADATA_KEY)
    inputs = {value.name: tensor(value) for value in model.graph.input}
    outputs = {value.name: tensor(value) for value in model.graph.output}
    try:
        part = _Part(file, model, inputs, outputs, signatures.loads(said) if said else None)
    except signatures.SignatureError as error:
        raise ToldError(f"chain: {file}: {error}") from error
    if part.signature is not None:
        part.states = {state.input: state.output for state in part.signature.states}
    return part


def _wires_told(parts: Sequence[_Part], told: Mapping[str, str]) -> dict[_End, _End]:
    """The wires as they are told.

    Raises:
        ToldError: One names what there is not, or what does not fit.
    """
    wires = dict[_End, _End]()
    takers = _spelled(parts, [[*part.inputs] for part in parts])
    givers = _spelled(parts, [[*part.outputs] for part in parts])
    shared = {name: end for name, end in takers.items() if name not in givers}
    for to, source in told.items():
        if to not in takers:
            raise ToldError(f"wires names {to!r}, which is no input of one file{unknown(to, takers)}")
        end, start = takers[to], givers.get(source) or shared.get(source)
        if start is None:
            raise ToldError(f"wires.{to} is {source!r}, which is no output of one file{unknown(source, givers)}")
        if start.part >= end.part:
            raise ToldError(
                f"wires: {to!r} is of {parts[end.part].file}, and {source!r} of {parts[start.part].file}, which runs no"
                " earlier; a chain goes one way, in the order of its files"
            )
        given, taken = _tensor(parts, start), parts[end.part].inputs[end.name]
        if not fits(given, taken):
            raise ToldError(
                f"wires: {source} is {given.kind} and {to} {taken.kind}; what lies between them, a change of shape or"
                " an FFT, is a file of the chain, too"
            )
        wires[end] = wires.get(start, start)
    return wires


def _tensor(parts: Sequence[_Part], end: _End) -> Tensor:
    part = parts[end.part]
    return part.outputs.get(end.name) or part.inputs[end.name]


def _spelled(parts: Sequence[_Part], names: Sequence[Sequence[str]]) -> dict[str, _End]:
    """Inputs or outputs by how they may be written: FILE.NAME, or the name alone where one file has it."""
    count = Counter(name for some in names for name in some)
    found = {name: _End(n, name) for n, some in enumerate(names) for name in some if count[name] == 1}
    for n, some in enumerate(names):
        found.update({f"{parts[n].stem}.{name}": _End(n, name) for name in some})
    return found


def _wires_found(parts: Sequence[_Part], told: Told) -> dict[_End, _End]:
    """The wires that names and shapes show.

    Raises:
        UnsettledError: An input may take one of several outputs, or an output go to several inputs.
    """
    apart = {*(told.states or {}), *told.constants, *told.session, *told.counters}
    memory = set((told.states or {}).values())
    wires, open_ = dict[_End, _End](), dict[_End, list[_End]]()
    for number, part in enumerate(parts):
        free = [name for name in part.inputs if apart.isdisjoint((name, f"{part.stem}.{name}"))]
        if part.signature is None:
            part.states = _states(part, [part.inputs[name] for name in free], told)
        if not number:
            continue
        free = [name for name in free if name not in part.states]
        for name in free:
            same = [_End(n, name) for n in reversed(range(number)) if name in parts[n].outputs]
            if same and fits(_tensor(parts, same[0]), part.inputs[name]):
                wires[_End(number, name)] = wires.get(same[0], same[0])
        left = {
            _End(number, name): list(_givers(parts[:number], part.inputs[name], memory, {*wires.values()}))
            for name in free
            if _End(number, name) not in wires
        }
        found = _forced(left)
        wires.update(found)
        taken = {*found.values()}
        for end, givers in left.items():
            if end not in found and (rest := [giver for giver in givers if giver not in taken]):
                open_[end] = rest
    if open_:
        raise _asked(parts, wires, open_)
    return wires


def _states(part: _Part, inputs: Sequence[Tensor], told: Told) -> Mapping[str, str]:
    """The states of a file as far as they are seen without the others."""
    if told.states is not None or told.stateless:
        return {}
    try:
        found = pairs.found(Flow(part.model), inputs, [*part.outputs.values()])
    except UnsettledError as error:
        return error.settled
    return {pair.old: pair.new for pair in found}


def _givers(parts: Sequence[_Part], taker: Tensor, memory: set[str], taken: set[_End]) -> Iterator[_End]:
    """The outputs that fit an input and go nowhere yet; new values of states only where nothing else does."""
    plain, kept = list[_End](), list[_End]()
    for number, part in enumerate(parts):
        for name, given in part.outputs.items():
            if fits(given, taker) and _End(number, name) not in taken:
                state = name in part.states.values() or not memory.isdisjoint((name, f"{part.stem}.{name}"))
                (kept if state else plain).append(_End(number, name))
    yield from plain or kept


def _forced(open_: Mapping[_End, Sequence[_End]]) -> dict[_End, _End]:
    """The wires that have no other choice: one output fits an input, and no other input."""
    count = Counter(giver for givers in open_.values() for giver in givers)
    return {end: givers[0] for end, givers in open_.items() if len(givers) == 1 and count[givers[0]] == 1}


def _asked(parts: Sequence[_Part], wires: Mapping[_End, _End], open_: Mapping[_End, Sequence[_End]]) -> UnsettledError:
    texts = [
        f"input {_written(parts, end)} {parts[end.part].inputs[end.name].kind} may take "
        + " or ".join(_written(parts, giver) for giver in givers)
        + ", or be what callers send"
        for end, givers in open_.items()
    ]
    first, taken = dict(wires), set[_End]()
    for end, givers in open_.items():
        if choice := next((giver for giver in givers if giver not in taken), None):
            first[end] = choice
            taken.add(choice)
    lines = [_line(parts, first)] + [_line(parts, wires)] * bool(wires)
    return UnsettledError(f"{', and '.join(texts)}: types and shapes fit, and no name says which", lines)


def _line(parts: Sequence[_Part], wires: Mapping[_End, _End]) -> str:
    """The entry of model.toml that names wires."""
    inside = ", ".join(
        f"{quoted(_written(parts, end))} = {quoted(_written(parts, start))}" for end, start in wires.items()
    )
    return f"wires = {{ {inside} }}"


def _written(parts: Sequence[_Part], end: _End) -> str:
    return f"{parts[end.part].stem}.{end.name}"


def _unwired(parts: Sequence[_Part], number: int) -> str:
    given = [
        f"{_written(parts, _End(n, name))} {each.kind}"
        for n in range(number)
        for name, each in parts[n].outputs.items()
    ]
    taken = [f"{name} {each.kind}" for name, each in parts[number].inputs.items()]
    return (
        f"chain: {parts[number].file} takes nothing from the files before it: its inputs are {', '.join(taken)}, their"
        f" outputs {', '.join(given)}. What lies between them, a change of shape or an FFT, is a file of the chain,"
        " too; or serve them as two models"
    )


def _join(parts: Sequence[_Part], wires: Mapping[_End, _End], *, told: bool) -> Joined:
    """One graph of all files, its inputs and outputs called as callers know them."""
    ends = [_End(n, name) for n, part in enumerate(parts) for name in dict.fromkeys((*part.inputs, *part.outputs))]
    wired = {start for start in wires.values() if start.name in parts[start.part].outputs}
    seen = [end for end in ends if end not in wires and end not in wired]
    count, whole_count = Counter(end.name for end in seen), Counter(end.name for end in ends if end not in wires)
    names = {
        end: end.name
        if (count if end in seen else whole_count)[end.name] == 1 and end not in wires
        else _written(parts, end)
        for end in ends
    }
    whole, notes = onnx.ModelProto(), list[str]()
    for number, part in enumerate(parts):
        model = compose.add_prefix(part.model, f"{part.stem}/")
        _unite_axes(parts, number, wires, model)
        inner, shared = set[str](), dict[str, str]()
        for name in dict.fromkeys((*part.inputs, *part.outputs)):
            end = _End(number, name)
            start, inside = wires.get(end, end), f"{part.stem}/{name}"
            if end in wires:
                # What is handed through is given by the file that it comes from.
                _drop(model.graph.output, inside)
                if start not in wired:
                    shared[inside] = names[start]
                    continue
                inner.add(names[start])
            _call(model.graph, inside, names[start])
        if not number:
            whole.CopyFrom(model)
            continue
        outputs = [value.name for value in (*whole.graph.output, *model.graph.output)]
        whole.graph.CopyFrom(
            compose.merge_graphs(whole.graph, model.graph, [(name, name) for name in sorted(inner)], outputs=outputs)
        )
        for inside, outside in shared.items():
            _drop(whole.graph.input, inside)
            read_as(whole.graph.node, inside, outside)
        for entry in model.opset_import:
            if entry.domain not in {each.domain for each in whole.opset_import}:
                whole.opset_import.add(domain=entry.domain, version=entry.version)
    for end, start in wires.items():
        why = "told" if told else "it has its name" if end.name == start.name else "no other output fits"
        notes.append(f"{_written(parts, end)} takes {_written(parts, start)}: {why}")
    del whole.metadata_props[:]
    return _told_by_signatures(parts, names, wires, Joined(whole, [part.file for part in parts], notes=notes))


def _call(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Gives an input or output another name."""
    read_as(graph.node, old, new)
    made_as(graph.node, old, new)
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new


def _drop(values: Any, name: str) -> None:
    """Takes an entry out of inputs or outputs, where it is."""
    for value in [each for each in values if each.name == name]:
        values.remove(value)


def _unite_axes(parts: Sequence[_Part], number: int, wires: Mapping[_End, _End], model: onnx.ModelProto) -> None:
    """Calls the free axes of a file as those of the files are called that it takes values from."""
    same = dict[str, str]()
    for end, start in wires.items():
        if end.part == number:
            given, taken = _tensor(parts, start).dims or (), parts[number].inputs[end.name].dims or ()
            known = {size for each in parts[start.part].inputs.values() for size in each.dims or ()}
            for one, other in zip(given, taken, strict=False):
                if isinstance(one, str) and isinstance(other, str) and one in known:
                    same.setdefault(other, one)
    for value in (*model.graph.input, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in same:
                size.dim_param = same[size.dim_param]


def _told_by_signatures(
    parts: Sequence[_Part], names: Mapping[_End, str], wires: Mapping[_End, _End], plain: Joined
) -> Joined:
    """The same with what the files' own signatures tell, by the names of the whole."""
    whose = {names[end]: Owner(*end) for end in names if end not in wires}
    wired = {names[start] for start in wires.values() if start.name in parts[start.part].outputs}
    states, start, signed = dict[str, str](), dict[str, Sequence[float]](), set[str]()
    for number, part in enumerate(parts):
        if part.signature is None:
            continue
        signed |= {names[_End(number, name)] for name in (*part.inputs, *part.outputs)}
        for state in part.signature.states:
            if _End(number, state.input) in wires:
                continue
            old = names[_End(number, state.input)]
            states[old] = names[_End(number, state.output)]
            if state.start:
                start[old] = tuple(state.start)
    return replace(plain, whose=whose, wired=frozenset(wired), states=states, start=start, signed=frozenset(signed))
