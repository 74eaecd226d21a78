"""Fitting: what small runs of a graph show of a guess at its axes, and so its signature; or why the guess is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import FORMAT, Signature, StateSpec, TensorSpec
from statestream_server.arrays import Array
from statestream_server.models.form import axes
from statestream_server.models.form.axes import Guess
from statestream_server.models.form.draft import Draft
from statestream_server.models.form.pairs import Tensor
from statestream_server.models.form.plan import Note
from statestream_server.models.form.told import BATCH, TIME, Shape, ToldError, quoted
from statestream_server.models.graphs.runtime import Graph, GraphError
from statestream_server.models.proof import draws
from statestream_server.models.proof.draws import Draws, Kind
from statestream_server.models.proof.proof import Difference
from statestream_server.models.rows import Axes

_SIZES, _TIMED = ((2, 1), (3, 1)), ((2, 3), (3, 3), (2, 5))
_ALONE, _ALONE_TIMED = ((1, 1),), ((1, 3), (1, 5))


class MisfitError(Exception):
    """A graph is not as it was guessed to be; the message says how.

    Attributes:
        lines: The entries of model.toml that may help.
    """

    def __init__(self, problem: str, lines: Sequence[str] = ()) -> None:
        """What is not as it was guessed, in words, and what may help."""
        super().__init__(problem)
        self.lines = lines


def fitted(graph: Graph, draft: Draft, guess: Guess) -> tuple[Signature, list[Note]]:
    """The signature by a guess, outputs as runs of several sizes show them.

    Raises:
        MisfitError: New states have other shapes than old ones, or outputs follow nothing.
        GraphError: It runs with no values that were drawn.
    """
    sizes = (_ALONE_TIMED if guess.timed else _ALONE) if guess.alone else _TIMED if guess.timed else _SIZES
    first: GraphError | None = None
    for way in draws.ladder(_drafted(draft, guess)):
        try:
            settled, notes = _settled(graph, draft, guess, way, sizes)
            signature = _drafted(draft, settled)
            found, more = _by(graph, draft, settled, signature, Draws(signature, way.kind), sizes)
            return found, [*notes, *more]
        except GraphError as error:
            first = first or error
    assert first is not None
    raise first


def _drafted(draft: Draft, guess: Guess) -> Signature:
    """The signature by a guess, without outputs.

    Raises:
        MisfitError: It has no inputs.
    """
    signature = Signature(
        format=FORMAT,
        inputs=[entry(each, shape, alone=guess.alone) for each, shape in zip(draft.inputs, guess.inputs, strict=True)],
        windows=draft.windows,
    )
    for held, shape in zip(draft.states, guess.states, strict=True):
        state = StateSpec(
            input=held.old.name, output=held.new, dtype=held.old.dtype, start=held.start, constant=held.constant
        )
        spec = entry(held.old, shape, alone=guess.alone)
        state.shape.extend(spec.shape)
        if spec.HasField("batch_axis"):
            state.batch_axis = spec.batch_axis
        signature.states.append(state)
    if not signature.inputs:
        raise MisfitError("nothing is left for callers to send")
    return signature


def _settled(
    graph: Graph, draft: Draft, guess: Guess, way: Draws, sizes: Sequence[tuple[int, int]]
) -> tuple[Guess, list[Note]]:
    """The guess with the shapes of states that follow the inputs: those that they have once they were stepped.

    A row has its later shape from the beginning, filled with what it starts from; that must come to the same.

    Raises:
        MisfitError: It does not, or their shapes follow nothing.
    """
    if not guess.follow:
        return guess, []
    runs = [_run(graph, draft, guess, way, rows, steps) for rows, steps in sizes]
    states = list(guess.states)
    for place, held in enumerate(draft.states):
        if held.old.name in guess.follow:
            states[place] = _followed(held.new, [run[held.new].shape for run in runs], sizes)
            if guess.alone and states[place][:1] == (1,):
                states[place] = (BATCH, *states[place][1:])
            if BATCH not in states[place]:
                raise MisfitError(f"state {held.old.name!r} becomes {list(states[place])}, however many rows there are")
    full, difference = guess._replace(states=states, follow=frozenset()), Difference()
    filled = _run(graph, draft, full, Draws(_drafted(draft, full), way.kind), *sizes[0])
    difference.note([*runs[0].values()], [*filled.values()])
    if difference.wrong:
        raise MisfitError(
            f"it answers otherwise where {', '.join(sorted(guess.follow))} start in the shape that they have later:"
            f" {difference.largest:.3g} apart"
        )
    shown = (f"{held.old.name} [{', '.join(map(str, shape))}]" for held, shape in zip(draft.states, states, strict=True)
             if held.old.name in guess.follow)  # fmt: skip
    return full, [Note("follows", f"states have the size of what is sent: {', '.join(shown)}")]


def _by(
    graph: Graph, draft: Draft, guess: Guess, signature: Signature, way: Draws, sizes: Sequence[tuple[int, int]]
) -> tuple[Signature, list[Note]]:
    """The same with one way to draw values."""
    runs = [_run(graph, draft, guess, way, rows, steps) for rows, steps in sizes]
    found = Signature()
    found.CopyFrom(signature)
    for held, shape in zip(draft.states, guess.states, strict=True):
        for (rows, steps), results in zip(sizes, runs, strict=True):
            wanted = tuple(axes.lengths(shape, rows, steps))
            if results[held.new].shape != wanted:
                raise MisfitError(
                    f"state {held.old.name!r} of shape {list(wanted)} becomes {list(results[held.new].shape)}"
                )
    for each in draft.outputs:
        shape = _followed(each.name, [results[each.name].shape for results in runs], sizes)
        if guess.alone and shape and shape[0] == 1 and BATCH not in shape:
            shape = (BATCH, *shape[1:])
        if not guess.alone and BATCH not in shape:
            raise MisfitError(f"output {each.name!r} is of shape {list(shape)}, however many rows there are")
        found.outputs.append(entry(each, shape, alone=guess.alone))
    _check_values(graph, draft, guess, way, sizes[0], runs[0])
    if guess.timed and not all(spec.HasField("time_axis") for spec in found.outputs):
        _check_cut(graph, draft, guess, way)
    return found, _effects(graph, draft, guess, way)


def _run(
    graph: Graph,
    draft: Draft,
    guess: Guess,
    way: Draws,
    rows: int,
    steps: int,
    *,
    inputs: Sequence[Array] | None = None,
    states: Sequence[Array] | None = None,
) -> dict[str, Array]:
    """Outputs and new states of one run; inputs and states in the graph's axes, drawn and zeros where not given."""
    rng = np.random.default_rng(0)
    feeds = dict(zip([each.name for each in draft.inputs], inputs or _drawn(way, rows, steps, rng),
                     strict=True))  # fmt: skip
    old = states or [
        _start(held.start, spec, tuple(axes.lengths(shape, rows, steps)))
        for held, spec, shape in zip(draft.states, way.signature.states, guess.states, strict=True)
    ]
    feeds.update(zip([held.old.name for held in draft.states], old, strict=True))
    fetches = [each.name for each in draft.outputs] + [held.new for held in draft.states]
    return dict(zip(fetches, graph.run(feeds, fetches), strict=True))


def _drawn(way: Draws, rows: int, steps: int, rng: np.random.Generator) -> list[Array]:
    specs = way.signature.inputs
    return [
        Axes.of_tensor(spec).to_graph(value) for spec, value in zip(specs, way.inputs(rows, steps, rng), strict=True)
    ]


def _start(start: Sequence[float], spec: StateSpec, shape: tuple[int, ...]) -> Array:
    try:
        row = signatures.start_row(spec)
    except ValueError as error:
        count = math.prod(signatures.row_shape(spec))
        given = f"state {spec.input!r} is given {len(start)} numbers"
        raise ToldError(f"start: {given}; expected one or {count}") from error
    if spec.HasField("batch_axis"):
        row = np.expand_dims(row, spec.batch_axis)
    return np.array(np.broadcast_to(row, shape))


def _followed(name: str, shapes: Sequence[tuple[int, ...]], sizes: Sequence[tuple[int, int]]) -> Shape:
    """What the axes of an output follow, by its shapes in runs of several sizes."""
    if len({len(shape) for shape in shapes}) > 1:
        raise MisfitError(f"output {name!r} has now {len(shapes[0])} axes, now others")
    found = list[int | str]()
    for axis, lengths in enumerate(zip(*shapes, strict=True)):
        if len(set(lengths)) == 1:
            found.append(lengths[0])
        elif lengths == tuple(rows for rows, _ in sizes):
            found.append(BATCH)
        elif lengths == tuple(steps for _, steps in sizes):
            found.append(TIME)
        else:
            told = ", ".join(f"{list(shape)} of {rows} rows and {steps} steps"
                             for shape, (rows, steps) in zip(shapes, sizes, strict=True))  # fmt: skip
            raise MisfitError(f"axis {axis} of output {name!r} follows neither rows nor steps: {told}")
    if found.count(BATCH) > 1 or found.count(TIME) > 1:
        raise MisfitError(f"output {name!r} has several axes that follow the same: {found}")
    return tuple(found)


def _check_values(
    graph: Graph, draft: Draft, guess: Guess, way: Draws, size: tuple[int, int], results: Mapping[str, Array]
) -> None:
    """Checks that shapes follow rows and steps and no values: else a step has no one shape, as of how often to loop."""
    for kind in (Kind.ZEROS, Kind.ONES):
        try:
            others = _run(graph, draft, guess, Draws(way.signature, kind), *size)
        except GraphError:
            continue  # They are not of its domain.
        for name, value in results.items():
            if others[name].shape != value.shape:
                counting = [each.name for each in draft.inputs if np.dtype(each.dtype).kind != "f"]
                raise MisfitError(
                    f"{name!r} is of shape {list(value.shape)}, and of {list(others[name].shape)} where inputs are"
                    f" {kind}: a step needs one shape, so what says how much there is has to be a constant",
                    ["constants = { " + ", ".join(f"{quoted(each)} = …" for each in counting) + " }"] * bool(counting)
                    + ["stateless = true"],
                )


def _check_cut(graph: Graph, draft: Draft, guess: Guess, way: Draws) -> None:
    """Checks that two steps in one run end as two runs of one: else what is taken for steps is none."""
    rows = 1 if guess.alone else 2
    inputs = _drawn(way, rows, 2, np.random.default_rng(0))
    whole = _run(graph, draft, guess, way, rows, 2, inputs=inputs)
    states, part = None, dict[str, Array]()
    for step in range(2):
        cut = [
            value.take([step], shape.index(TIME)) if TIME in shape else value
            for value, shape in zip(inputs, guess.inputs, strict=True)
        ]
        part = _run(graph, draft, guess, way, rows, 1, inputs=cut, states=states)
        states = [part[held.new] for held in draft.states]
    difference = Difference()
    names = [held.new for held in draft.states]
    names += [each.name for each in draft.outputs if whole[each.name].shape == part[each.name].shape]
    difference.note([whole[name] for name in names], [part[name] for name in names])
    if difference.wrong:
        raise MisfitError(f"two steps in one run and in two differ by {difference.largest:.3g}: those are no steps")


def _effects(graph: Graph, draft: Draft, guess: Guess, way: Draws) -> list[Note]:
    """Notes on states whose old value was not seen to change anything."""
    rows, rng, notes = (1 if guess.alone else 2), np.random.default_rng(1), list[Note]()
    inputs = _drawn(way, rows, 1, rng)
    before = _run(graph, draft, guess, way, rows, 1, inputs=inputs)
    starts = [
        _start(held.start, spec, tuple(axes.lengths(shape, rows, 1)))
        for held, spec, shape in zip(draft.states, way.signature.states, guess.states, strict=True)
    ]
    for place, held in enumerate(draft.states):
        other = list(starts)
        other[place] = _other(starts[place], rng)
        try:
            after = _run(graph, draft, guess, way, rows, 1, inputs=inputs, states=other)
        except GraphError:
            continue  # It has a domain of its own.
        if all(before[name].tobytes() == after[name].tobytes() for name in before):
            notes.append(Note("no effect", f"another value of state {held.old.name} changed nothing that was seen"))
    return notes


def _other(value: Array, rng: np.random.Generator) -> Array:
    """Another value of the same type and shape."""
    if value.dtype.kind == "f":
        return rng.standard_normal(value.shape).astype(value.dtype)
    return ~value if value.dtype.kind == "b" else value + np.asarray(1, value.dtype)


def entry(tensor: Tensor, shape: Shape, *, alone: bool = False) -> TensorSpec:
    """The entry of a signature for a tensor with such axes."""
    sizes = [size if isinstance(size, int) else 1 if alone and size == BATCH else -1 for size in shape]
    spec = TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=sizes)
    if BATCH in shape:
        spec.batch_axis = shape.index(BATCH)
    if TIME in shape:
        spec.time_axis = shape.index(TIME)
    return spec
