"""Forming: a file without a signature gets its form. The draft says what is memory; fitting sees its axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from statestream.contract import signature as signatures
from statestream.contract.observations import POLICIES
from statestream.contract.signature import FORMAT, Elapsed, Feedback, Signature
from statestream_server.models.form import axes
from statestream_server.models.form.axes import Guess
from statestream_server.models.form.draft import Draft
from statestream_server.models.form.pairs import Tensor, UnsettledError, shapes_line
from statestream_server.models.form.places import BoundError
from statestream_server.models.form.plan import Note, Plan, counted
from statestream_server.models.form.told import BATCH, Shape, Told, ToldError, quoted
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.runtime import Graph, GraphError
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import batches
from statestream_server.models.proof.batches import Source
from statestream_server.models.proof.fitting import MisfitError, entry, fitted

_IMAGE_AXES = 4


def plain(draft: Draft, said: Told) -> Plan:
    """The plan for a draft without memory: first axes of free length are batch axes, where nothing else is told.

    An axis of it may be one of past steps: nothing in the graph tells, so that is asked.
    """
    signature = Signature(format=FORMAT)
    for specs, tensors in ((signature.inputs, draft.inputs), (signature.outputs, draft.outputs)):
        for each in tensors:
            free: Shape = tuple(size if isinstance(size, int) else -1 for size in each.dims or ())
            rows = specs is signature.inputs or any(spec.HasField("batch_axis") for spec in signature.inputs)
            if free and free[0] == -1 and rows:
                free = (BATCH, *free[1:])
            specs.append(entry(each, draft.shapes.get(each.name, free)))
    _tell(signature, said)
    asked = [] if said.stateless else filter(None, map(_window, draft.inputs))
    notes = [*draft.notes, *(_asked(found, draft.outputs) for found in asked)]
    return Plan(signature, draft.changes, notes)


def _window(tensor: Tensor) -> tuple[Tensor, int] | None:
    """An axis of an input that may be one of past steps, by its length; None where none may."""
    dims = tensor.dims or ()
    fits = [size for size in dims[1:] if isinstance(size, int) and size > 1]
    return (tensor, fits[0]) if 1 < len(dims) < _IMAGE_AXES and fits else None


def _asked(found: tuple[Tensor, int], outputs: Sequence[Tensor]) -> Note:
    tensor, steps = found
    several = [each.name for each in outputs if len(each.dims or ()) > 1]
    then = f" and, if output {several[0]} has steps ahead, horizon = {{ {quoted(several[0])} = 1 }}" if several else ""
    return Note(
        "a window?",
        f"{tensor} is sent whole. If its {steps} are past steps, of which callers are to send the newest alone, say"
        f" window = {{ {quoted(tensor.name)} = {steps} }}{then}; if not, nothing, or stateless = true",
    )


def plans(draft: Draft, said: Told, source: Source, refused: list[str]) -> Iterator[Plan]:
    """Plans for a draft with memory that fit what small runs show, the one that allows most first.

    Args:
        draft: What the file is to become.
        said: What a person tells.
        source: The file.
        refused: Why guesses were not good enough; whoever tries a plan adds what is found against it.

    Raises:
        UnsettledError: Shapes are not told and cannot be seen, or no guess fits.
    """
    options, graph, help = axes.guesses(draft), source.graph(draft.changes), list[str]()
    shared = [guess for guess in options if not guess.alone]
    yield from _fitting(graph, draft, said, shared, refused, help, source)
    yield from _widened(draft, said, source, refused, help)
    yield from _fitting(graph, draft, said, [guess for guess in options if guess.alone], refused, help)
    wide = [each for each in draft.inputs if any(not isinstance(size, int) for size in each.dims or ())]
    lines = help + [shapes_line(each, draft.shapes.get(each.name)) for each in wide] or ["stateless = true"]
    raise UnsettledError(f"it has memory, and no way to run it was found ({'; '.join(refused[:3])})", lines)


def _fitting(
    graph: Graph,
    draft: Draft,
    said: Told,
    options: Sequence[Guess],
    refused: list[str],
    help: list[str],
    source: Source | None = None,
) -> Iterator[Plan]:
    """The plans by those guesses that fit what small runs show; of a source also what its operators are known to do."""
    for guess in options:
        try:
            signature, more = fitted(graph, draft, guess)
            if source is not None and (why := batches.across(draft, guess, source)):
                raise MisfitError(why)
        except (MisfitError, GraphError) as error:
            refused.append(f"{guess}: {error}")
            help += [line for line in getattr(error, "lines", ()) if line not in help]
            continue
        _tell(signature, said)
        notes = [*draft.notes, *more]
        if guess.alone:
            notes.append(Note("one at a time", _why_alone(draft, guess, refused)))
        yield Plan(counted(signature, full=False), draft.changes, notes)


def _widened(draft: Draft, said: Told, source: Source, refused: list[str], help: list[str]) -> Iterator[Plan]:
    """The plans by which a batch of 1 becomes one of any."""
    try:
        wide = batches.widened(draft, source)
        options = [guess for guess in axes.guesses(wide) if not guess.alone]
        graph = source.graph(wide.changes)
        told = any(BATCH in shape for shape in draft.shapes.values())
        if not told and not batches.same_bits(draft, wide, source.graph(draft.changes), graph):
            raise BoundError('together rows have other bits than one by one (tell "batch" in shapes, and it is)')
    except (BoundError, GraphError, FusionError, UnsettledError, ModelLoadError) as error:
        if not refused:  # Where an axis was free all along, what was found against that says more.
            refused.append(f"its batch of 1 cannot be freed: {error}")
        return
    yield from _fitting(graph, wide, said, options, refused, help)


def _why_alone(draft: Draft, guess: Guess, refused: Sequence[str]) -> str:
    if refused:
        return f"sessions do not share runs: {refused[0]}"
    fixed = [
        str(tensor)
        for tensor, shape in (
            *zip(draft.inputs, guess.inputs, strict=True),
            *((held.old, shape) for held, shape in zip(draft.states, guess.states, strict=True)),
        )
        if all(isinstance(size, int) for size in tensor.dims or ()) or BATCH not in shape
    ]
    return f"sessions do not share runs: no free axis for them has {', '.join(fixed)}"


def _tell(signature: Signature, said: Told) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        spec.columns.extend(said.columns.get(spec.name, ()))
        if spec.name in said.horizon:
            spec.horizon_axis = said.horizon[spec.name]
    for spec in signature.inputs:
        spec.ahead = spec.name in said.ahead
        if spec.name in said.missing:
            spec.missing = POLICIES[said.missing[spec.name]]
        if spec.name in said.elapsed:
            told = said.elapsed[spec.name]
            spec.elapsed.CopyFrom(Elapsed(seconds=told.seconds, first=told.first))
    signature.feedback.extend(Feedback(output=output, input=name) for output, name in said.feedback.items())
    try:
        signatures.check(signature)
    except signatures.SignatureError as error:
        if said == Told():
            raise
        raise ToldError(str(error)) from error
