"""Pairs: which inputs of a graph are memory, and which outputs are their next values. Judged by the graph first.

What types and shapes allow is a candidate; first where the output is computed from the input, or is what another input
held (the last values that came). Evidence in the graph decides: a
recurrent operator or a loop that starts from the input and ends in the output, or a queue of the input's last values.
Names choose among candidates; the order of inputs and outputs never counts. What stays open is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

import onnx
from onnx import helper

from statestream_server.models.form.flow import Flow
from statestream_server.models.form.names import likeness
from statestream_server.models.form.told import Shape, quoted

Dims = tuple[int | str | None, ...]
Likeness = Callable[[tuple[str, str]], float]
_MOST_CHOICES: Final = 4
"""What a question shows at most, beside that there is no more memory."""
"""How much the names of a pair agree; see names.py."""


class Tensor(NamedTuple):
    """An input or output of a graph; a free axis is its name, or None where it has none; `dims` None: nothing said."""

    name: str
    dtype: str
    dims: Dims | None

    @property
    def kind(self) -> str:
        """As in `float32[1, batch, 5]`."""
        shape = "?" if self.dims is None else ", ".join("?" if size is None else str(size) for size in self.dims)
        return f"{self.dtype}[{shape}]"

    def __str__(self) -> str:
        """As in `h float32[1, batch, 5]`."""
        return f"{self.name} {self.kind}"


def tensor(value: onnx.ValueInfoProto) -> Tensor:
    """What a graph says of one of its inputs or outputs."""
    said = value.type.tensor_type
    try:
        dtype = helper.tensor_dtype_to_np_dtype(said.elem_type).name
    except KeyError:
        dtype = ""
    return Tensor(value.name, dtype, _dims(said) if said.HasField("shape") else None)


def _dims(said: onnx.TypeProto.Tensor) -> Dims:
    return tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in said.shape.dim)


class Owner(NamedTuple):
    """Which of several files a tensor is of, and how it is called there."""

    file: int
    name: str


class Pair(NamedTuple):
    """A state: what it is read from, what gives its next value, and why."""

    old: str
    new: str
    why: str


class UnsettledError(Exception):
    """It stays open which tensors are memory, or of which shape; the message says what.

    Attributes:
        lines: The entries of model.toml that settle it, each a choice.
        settled: The states that are found all the same: input to output.
    """

    def __init__(self, problem: str, lines: Sequence[str], settled: Mapping[str, str] | None = None) -> None:
        """What is open, in words, and what settles it."""
        super().__init__(problem)
        self.lines, self.settled = lines, settled or {}


def found(
    flow: Flow,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    sent: Collection[str] = (),
    whose: Mapping[str, Owner] | None = None,
) -> list[Pair]:
    """The states of a graph; none where it has no memory.

    Args:
        flow: What it computes from what.
        inputs: Those that may be memory.
        outputs: Those that may be a next value.
        sent: Inputs of which it is known that they are no memory.
        whose: By name which of several files an input or output is of: no state is of two.

    Raises:
        UnsettledError: Something may be memory, and the graph does not tell.
    """
    if len(inputs) < 2:
        return []
    given, whose = {each.name for each in inputs}, whose or {}

    def like(pair: tuple[str, str]) -> float:
        return likeness(*(whose[name].name if name in whose else name for name in pair))

    sources = {output.name: flow.sources(output.name) for output in outputs}
    fitting = {
        (old.name, new.name)
        for old in inputs
        for new in outputs
        if old.name not in sent
        and fits(old, new)
        and (not whose or whose[old.name].file == whose[new.name].file)
        and not given.isdisjoint(sources[new.name])
        and not _grows(old, inputs)
    }
    candidates = {(old, new) for old, new in fitting if old in sources[new] or not given.isdisjoint(flow.moved_to(new))}
    evidence = {pair: why for pair in candidates if (why := _evidence(flow, *pair))}
    settled = _settled(set(evidence), like)
    pairs = [Pair(old, new, evidence[old, new]) for old, new in settled]
    if tied := _without(set(evidence), settled):
        raise _asked(tied, inputs, outputs, settled, like, "the graph carries more than one of them on")
    # What is kept of a value that is computed from others alone comes last: names may tell it, else it is asked, too.
    open_ = set[tuple[str, str]]()
    for group, why in ((candidates, "name, type and path"), (fitting - candidates, "name and type")):
        named = _by_names(_without(group, settled), like)
        left = (len(inputs) - len(pairs) - len(named), len(outputs) - len(pairs) - len(named))
        if left[0] > 0 and left[1] > 0:
            pairs += [Pair(old, new, f"the only candidate of its {why}") for old, new in named]
            settled += named
        open_ = _without(open_ | group, settled)
    if open_ and len(inputs) - len(pairs) >= 2:  # One that is left is what callers send.
        raise _asked(open_, inputs, outputs, settled, like, "nothing in the graph says which")
    order = [each.name for each in inputs]
    return sorted(pairs, key=lambda pair: order.index(pair.old))


def fits(old: Tensor, new: Tensor) -> bool:
    """Whether type and shape allow that one has the other's values; a free axis fits any, no shape does too."""
    if old.dtype != new.dtype or old.dims is None or new.dims is None:
        return old.dtype == new.dtype
    return len(old.dims) == len(new.dims) and all(
        one == other for one, other in zip(old.dims, new.dims, strict=True)
        if isinstance(one, int) and isinstance(other, int)
    )  # fmt: skip


def _grows(old: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether a tensor has an axis, not its first free one, that another input has: a length callers choose."""
    free = [size for size in old.dims or () if isinstance(size, str)][1:]
    others = {
        size
        for each in inputs
        if each.name != old.name
        for size in [size for size in each.dims or () if isinstance(size, str)][1:]
    }
    return bool(others.intersection(free))


def _evidence(flow: Flow, old: str, new: str) -> str:
    """What in the graph says that a value is carried from an input to an output; "" where nothing does."""
    plain, ends = flow.moved_from(old), flow.moved_to(new)
    starts = flow.moved_from(old, gated=True)
    for each in flow.recurrences:
        if each.start in starts and each.end in ends:
            return f"{each.kind} starts from it and ends in {new}"
    for queue in flow.queues:
        others = [value for value in queue.inputs[1:] if value not in plain]
        if queue.inputs[0] in plain and others and queue.outputs[0] in ends:
            return f"{new} holds its last values behind which new ones are put"
    return ""


def _settled(pairs: set[tuple[str, str]], like: Likeness) -> list[tuple[str, str]]:
    """The pairs that follow from evidence: an end with one start only, then whatever names alone tell apart."""
    open_, done = set(pairs), list[tuple[str, str]]()
    while open_:
        olds, news = _by(open_, 0), _by(open_, 1)
        forced = sorted(pair for pair in open_ if len(olds[pair[0]]) == 1 and len(news[pair[1]]) == 1)
        if not forced:
            forced = sorted(_by_names(open_, like))[:1]
        if not forced:
            return done
        for old, new in forced:
            done.append((old, new))
        open_ = _without(open_, forced)
    return done


def _without(pairs: set[tuple[str, str]], settled: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs with none of what is settled."""
    olds, news = {old for old, _ in settled}, {new for _, new in settled}
    return {(old, new) for old, new in pairs if old not in olds and new not in news}


def _by(pairs: set[tuple[str, str]], side: int) -> Mapping[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        found.setdefault(pair[side], []).append(pair)
    return found


def _by_names(pairs: set[tuple[str, str]], like: Likeness) -> list[tuple[str, str]]:
    """The pairs whose names are more alike than those of any other pair with one of them."""
    best: dict[tuple[int, str], list[float]] = {}
    score = {pair: like(pair) for pair in pairs}
    for pair, value in score.items():
        for side, name in enumerate(pair):
            best.setdefault((side, name), []).append(value)
    alone = {key: max(values) for key, values in best.items() if values.count(max(values)) == 1}
    return sorted(
        pair
        for pair, value in score.items()
        if value > 0 and all(alone.get((side, name)) == value for side, name in enumerate(pair))
    )


def _asked(
    candidates: set[tuple[str, str]],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    settled: Sequence[tuple[str, str]],
    like: Likeness,
    why: str,
) -> UnsettledError:
    told = {tensor.name: str(tensor) for tensor in inputs}
    results = {tensor.name: str(tensor) for tensor in outputs}
    texts = [
        f"input {told[old]} may be memory whose next value is output "
        + " or ".join(results[new] for _, new in sorted(group))
        for old, group in sorted(_by(candidates, 0).items())
    ]
    choices = list[list[tuple[str, str]]]()
    for first in ("", *sorted(_by(candidates, 0))):
        choice = sorted(_chosen(candidates, len(inputs) - 1 - len(settled), like, first))
        if choice not in choices:
            choices.append(choice)
    lines = [states_line([*settled, *choice]) for choice in choices[:_MOST_CHOICES]]
    lines.append(states_line(settled) if settled else "stateless = true")
    return UnsettledError(f"{', and '.join(texts)}: types and shapes fit, {why}", lines, dict(settled))


def _chosen(candidates: set[tuple[str, str]], most: int, like: Likeness, first: str) -> list[tuple[str, str]]:
    """So many states among candidates that are most alike; before all others that of the input `first`."""
    chosen, left = list[tuple[str, str]](), candidates
    while left and len(chosen) < most:
        chosen.append(min(left, key=lambda pair: (pair[0] != first, -like(pair), pair)))
        left = _without(left, chosen)
    return chosen


def states_line(pairs: Sequence[tuple[str, str]]) -> str:
    """The entry of model.toml that names states."""
    return "states = { " + ", ".join(f"{quoted(old)} = {quoted(new)}" for old, new in pairs) + " }"


def shapes_line(tensor: Tensor, told: Shape | None) -> str:
    """The entry of model.toml that tells a tensor's shape, with "…" for each length to fill in."""
    if told is None and tensor.dims is None:
        return f'shapes = {{ {quoted(tensor.name)} = ["batch", …] }}'
    dims = list(told or tensor.dims or ())
    free = [axis for axis, size in enumerate(dims) if not isinstance(size, int)]
    shown = [
        str(size) if isinstance(size, int) else '"batch"' if free and axis == free[0] else "…"
        for axis, size in enumerate(dims)
    ]
    return f"shapes = {{ {quoted(tensor.name)} = [{', '.join(shown)}] }}"
