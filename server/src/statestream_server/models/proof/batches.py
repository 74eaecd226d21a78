"""Batches: a draft whose batch is 1 becomes one of any: its shapes are seen in a run, then its graph is followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

import numpy as np
import onnx

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature
from statestream_server.arrays import Array
from statestream_server.models.form import axes, freed
from statestream_server.models.form.axes import Guess
from statestream_server.models.form.draft import Draft
from statestream_server.models.form.pairs import Tensor
from statestream_server.models.form.places import AcrossError, BoundError
from statestream_server.models.form.plan import Note
from statestream_server.models.form.surgery import Change, together
from statestream_server.models.form.told import BATCH, TIME
from statestream_server.models.graphs.operators import uses
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.runtime import Graph, GraphError
from statestream_server.models.model import ModelLoadError

_STEPS: Final = 3
"""How long the axis of steps is in the run."""
_MOST_KEPT: Final = 4096
"""Numbers of a value that is looked at: shapes, axes and bounds have few."""
_TOGETHER: Final = (2, 5)
"""Batches that are compared with each row by itself."""
_FREE: Final = "batch"
"""How the axis of sessions is called then."""


Load = Callable[[onnx.ModelProto], Graph]
"""Loads any graph."""


class Source(Protocol):
    """A file as it is tried."""

    def graph(self, changes: Sequence[Change]) -> Graph:
        """The changed graph, loaded."""

    def model(self, changes: Sequence[Change]) -> onnx.ModelProto:
        """The changed graph with all its weights."""

    def load(self, model: onnx.ModelProto) -> Graph:
        """Any graph, loaded."""


class _Idea(NamedTuple):
    """A way to see the axes: by tensor, how long they are with one session, and which may be that of sessions."""

    lengths: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Sequence[int]]


def widened(draft: Draft, source: Source) -> Draft:
    """A draft with the same memory whose graph takes any batch.

    Raises:
        BoundError: Its operators do not keep sessions apart, or it has no axis for them.
        GraphError: It does not run.
        FusionError: It is too large to be looked at.
    """
    before = [*draft.changes, Change("inline", "")]
    model = source.model(before)
    first: Exception | None = None
    for idea in _ideas(draft):
        try:
            found = freed.freedom(
                model,
                *_seen(model, source.load, idea.lengths, _dtypes(draft)),
                idea.options,
                {held.old.name: held.new for held in draft.states},
                [each.name for each in draft.outputs],
            )
        except (BoundError, GraphError) as error:
            first = first or error
            continue
        if not found.edits and all(_open(each, found.axes[each.name]) for each in _tensors(draft)):
            raise BoundError("nothing in it stands for one session alone")
        return _changed(draft, before, found)
    raise first or BoundError("it has no axis for sessions")


def same_bits(draft: Draft, wide: Draft, one: Graph, many: Graph) -> bool:
    """Whether sessions in one run have the bits that each has in the graph as it was.

    Args:
        draft: What the file was to become.
        wide: The same with any batch.
        one: The graph of the first.
        many: That of the second.

    Raises:
        GraphError: One of them does not run.
    """
    along = {change.name: int(change.values[0]) for change in wide.changes if change.kind == "free"}
    rng, names = np.random.default_rng(8), [*(each.name for each in draft.outputs), *(s.new for s in draft.states)]
    for rows in _TOGETHER:
        feeds = dict[str, Array]()
        for each in _tensors(wide):
            told = draft.shapes.get(each.name) or [size if isinstance(size, int) else TIME for size in each.dims or ()]
            shape = [_STEPS if size == TIME else size for size in told]
            shape[along[each.name]] = rows
            drawn = rng.standard_normal([int(size) for size in shape])
            feeds[each.name] = np.asarray(drawn, signatures.numpy_dtype(each.dtype))
        together = many.run(feeds, names)
        for row in range(rows):
            alone = one.run({name: value.take([row], along[name]) for name, value in feeds.items()}, names)
            for name, found, wanted in zip(names, together, alone, strict=True):
                if found.take([row], along[name]).tobytes() != wanted.tobytes():
                    return False
    return True


def across(draft: Draft, guess: Guess, source: Source) -> str:
    """What in a graph takes one session's values for another's, as it is guessed to be; "" where nothing is known to.

    Small runs show that rows influence each other only where they do for what was drawn: not behind a threshold.
    """
    tensors, shapes = _tensors(draft), [*guess.inputs, *guess.states]
    if guess.follow or not all(BATCH in shape for shape in shapes):
        return ""
    named = {each.name: shape for each, shape in zip(tensors, shapes, strict=True)}
    idea = _Idea(
        {name: tuple(axes.lengths(shape, 1, _STEPS)) for name, shape in named.items()},
        {name: [shape.index(BATCH)] for name, shape in named.items()},
    )
    states, outputs = {held.old.name: held.new for held in draft.states}, [each.name for each in draft.outputs]
    changes = [*draft.changes, Change("inline", "")]
    return _across(lambda: source.model(changes), source.load, idea, _dtypes(draft), states, outputs)


def across_calls(signature: Signature, model: Callable[[], onnx.ModelProto], load: Load) -> str:
    """The same of a graph without memory, all of whose inputs have an axis of rows."""
    lengths = {
        spec.name: tuple(
            1 if axis == spec.batch_axis else _STEPS if size < 0 else size for axis, size in enumerate(spec.shape)
        )
        for spec in signature.inputs
    }
    idea = _Idea(lengths, {spec.name: [spec.batch_axis] for spec in signature.inputs})
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    return _across(model, load, idea, dtypes, {}, [spec.name for spec in signature.outputs])


def _across(
    read: Callable[[], onnx.ModelProto],
    load: Load,
    idea: _Idea,
    dtypes: Mapping[str, str],
    states: Mapping[str, str],
    outputs: Sequence[str],
) -> str:
    try:
        model = read()
        freed.freedom(model, *_seen(model, load, idea.lengths, dtypes), idea.options, states, outputs)
    except AcrossError as error:
        return str(error)
    except (BoundError, GraphError, FusionError, ModelLoadError):
        pass  # Nothing is known of it: what runs show decides.
    return ""


def _changed(draft: Draft, before: Sequence[Change], found: freed.Freedom) -> Draft:
    source, axis = draft.inputs[0].name, found.axes[draft.inputs[0].name]
    more = [Change("free", name, "", [place]) for name, place in found.axes.items()]
    more += [Change(edit.kind, edit.node, source, [axis, *edit.values]) for edit in found.edits]
    notes = [Note("surgery", str(change)) for change in together(more)]
    return replace(
        draft,
        inputs=[_free(each, found.axes[each.name]) for each in draft.inputs],
        states=[replace(held, old=_free(held.old, found.axes[held.old.name])) for held in draft.states],
        changes=[*before, *more],
        notes=[*draft.notes, *notes],
    )


def _free(tensor: Tensor, axis: int) -> Tensor:
    return tensor._replace(dims=tuple(_FREE if place == axis else size for place, size in enumerate(tensor.dims or ())))


def _open(tensor: Tensor, axis: int) -> bool:
    return not isinstance((tensor.dims or ())[axis], int)


def _dtypes(draft: Draft) -> dict[str, str]:
    return {each.name: each.dtype for each in _tensors(draft)}


def _tensors(draft: Draft) -> list[Tensor]:
    return [*draft.inputs, *(held.old for held in draft.states)]


def _ideas(draft: Draft) -> Iterator[_Idea]:
    """Ways to see the axes: sessions lie along axes of length 1, or along free ones of one name where there are such.

    Raises:
        BoundError: A tensor has no such axis, or there are more free axes than sessions and steps have.
    """
    for held in draft.states:
        if held.alone:
            raise BoundError(f"{held.old} has one value for all of a run")
    told = draft.shapes
    free = dict.fromkeys(
        _key(size, axis)
        for each in draft.inputs
        if each.name not in told
        for axis, size in enumerate(each.dims or ())
        if not isinstance(size, int)
    )
    if len(free) > 2:
        raise BoundError("it has more free axes than sessions and steps have")
    none = ""
    for batch in [None, *free]:
        if len(free) - (batch is not None) > 1 or (batch is None and _FREE in free):
            continue
        lengths, options = dict[str, tuple[int, ...]](), dict[str, Sequence[int]]()
        for each in _tensors(draft):
            sizes = _sizes(each, told.get(each.name), batch)
            lengths[each.name] = tuple(abs(size) for size in sizes)
            named = [axis for axis, size in enumerate(sizes) if size < 0]
            fixed = [axis for axis, size in enumerate(sizes) if size == 1] if each.name not in told else []
            options[each.name] = named or fixed
            if not options[each.name]:
                none = none or f"{each} has no axis of length 1"
        if all(options.values()):
            yield _Idea(lengths, options)
    if none:
        raise BoundError(none)


def _sizes(tensor: Tensor, told: Sequence[int | str] | None, batch: str | None) -> list[int]:
    """The lengths of a tensor's axes in a run of one session, that of sessions -1 where it is known."""
    if told is not None:
        return [-1 if size == BATCH else _STEPS if size == TIME else int(size) for size in told]
    return [
        size if isinstance(size, int) else -1 if batch is not None and _key(size, axis) == batch else _STEPS
        for axis, size in enumerate(tensor.dims or ())
    ]


def _key(size: int | str | None, axis: int) -> str:
    return str(size) if size is not None else f"#{axis}"


def _seen(
    model: onnx.ModelProto, load: Load, lengths: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]]:
    """The shapes of all values in a run of one session, and small values that no input changes.

    Raises:
        GraphError: It takes neither ones nor zeros.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = list(dict.fromkeys(name for node in probe.graph.node for name in node.output if name))
    probe.graph.ClearField("output")
    probe.graph.ClearField("value_info")
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    graph, first = load(probe), None
    for value in (1, 0):
        feeds = {name: np.full(lengths[name], value, signatures.numpy_dtype(dtype)) for name, dtype in dtypes.items()}
        try:
            found = dict(zip(names, graph.run(feeds, names), strict=True))
        except GraphError as error:
            first = first or error
            continue
        moving = set(lengths)
        for node in model.graph.node:
            if any(name in moving for name in uses(node)):
                moving.update(node.output)
        arrays = {name: each for name, each in found.items() if isinstance(each, np.ndarray)}
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer} | dict(lengths)
        shapes |= {name: each.shape for name, each in arrays.items()}
        return shapes, {n: each for n, each in arrays.items() if n not in moving and each.size <= _MOST_KEPT}
    assert first is not None
    raise first
