"""Rows that one wrapped graph gathers, steps and commits in place, on the CPU; and that graph, on any device.

To bind an array takes ONNX Runtime's interface several microseconds; a small model runs a row in not many more. So
arrays stay bound, a set for each shape of batch that came lately, and a batch is copied into them and out of them. Of
a large batch the run takes so long that the copies do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from statestream.contract.signature import Signature, StateCheck, TensorSpec, numpy_dtype, step_shape
from statestream_server.arrays import Array, Bools, Ints, every
from statestream_server.models.graphs.fused_names import Names, Wrapped
from statestream_server.models.graphs.runtime import Binding, Device, Graph
from statestream_server.models.memory.contexts import context_of
from statestream_server.models.memory.slab import SlabRows
from statestream_server.models.rows import EVERYTHING, MAX_SLICE, SCRATCH_ROW, is_checked

if TYPE_CHECKING:
    import onnx

_MOST_STAGES: Final = 64
"""Sets of arrays that are kept for batches to come."""
_MOST_BYTES: Final = 4 << 20
"""Bytes of all that are kept."""
_MOST_LAID_OUT: Final = 256 << 10
"""Bytes of the windows of one row in a run of an unfolded graph."""


def unfolded_slice(row_nbytes: int) -> int:
    """The most steps of a run of an unfolded graph, in which each has a window of its own; a power of two."""
    return min(MAX_SLICE, 1 << (max(1, _MOST_LAID_OUT // max(1, row_nbytes)).bit_length() - 1))


_WRONG: Final[Mapping[str, Callable[[Array], Bools]]] = {"nan": np.isnan, "inf": np.isinf}


class FusedRows(SlabRows):
    """A `Rows` whose `step` is one run of one graph, at a cost that does not grow with the capacity."""

    def __init__(
        self,
        model: onnx.ModelProto | Wrapped,
        signature: Signature,
        device: Device,
        *,
        check_inputs: bool | Mapping[str, str],
        unfolded: tuple[onnx.ModelProto | Wrapped, Signature] | None = None,
    ) -> None:
        """Rows for a graph as its author wrote it; capacity is 0 until `grow`.

        Args:
            model: The graph, weights included; or as it was wrapped before.
            signature: Its signature, which fits it.
            device: What it runs on; the CPU.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.
            unfolded: The same for several steps at once, where it takes one; see form/unfold.py.

        Raises:
            FusionError: The graph cannot be wrapped.
            GraphError: ONNX Runtime does not take the wrapped graph.
        """
        context = model.context if isinstance(model, Wrapped) else context_of(model, signature)
        super().__init__(signature, context)
        self._graph = StepGraph(model, signature, device, check_inputs=check_inputs, context=context)
        self._unfolded: StepGraph | None = None
        if unfolded is not None:
            # What was not finite would have left the window before anybody looked.
            whole = {window.input: EVERYTHING for window in signature.windows}
            checks = check_inputs if check_inputs is True else {**(check_inputs or {}), **whole}
            self._unfolded = StepGraph(*unfolded, device, check_inputs=checks, context=context)
            self.max_slice = unfolded_slice(self.row_nbytes)

    def grow(self, capacity: int) -> None:
        """Makes room; waits for a `step` that runs in another thread."""
        with self._lock:
            self._graph.unbind()
            if self._unfolded is not None:
                self._unfolded.unbind()
            self._slab.grow(capacity)

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run of the wrapped graph; see `Rows.step`."""
        with self._lock:
            graph = self._graph if self._unfolded is None or inputs[0].shape[1] < 2 else self._unfolded
            if self.contexts is None:
                return graph.step(source, target, inputs, self._bind)
            outputs, bad = graph.step(source, target, inputs, self._bind, self.contexts.of(source))
            self._slab.share(source[~bad], target[~bad])
            return outputs, bad

    def _bind(self, binding: Binding) -> None:
        # Both graphs call the columns alike, as their states are the same.
        for slab, array in zip(self._graph.slabs, self._slab.arrays, strict=True):
            items = array.reshape(self._slab.capacity * slab.parts, *slab.item)
            if slab.after:
                binding.fix(slab.before, slab.after, items)
            else:
                binding.give(slab.before, items)


class StepGraph:
    """A wrapped graph (see fusion.py) and what is bound to it. For one caller at a time.

    Attributes:
        slabs: What the graph calls the columns, in their order.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Wrapped,
        signature: Signature,
        device: Device,
        *,
        check_inputs: bool | Mapping[str, str],
        context: Collection[int] = (),
    ) -> None:
        """Wraps and loads a graph as its author wrote it.

        Args:
            model: The graph, weights included, which stays as it is; or as it was wrapped before.
            signature: Its signature, which fits it.
            device: What it runs on.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.
            context: The places of states that rows share; see contexts.py.

        Raises:
            FusionError: The graph cannot be wrapped.
            GraphError: ONNX Runtime does not take the wrapped graph.
        """
        if not isinstance(model, Wrapped):
            from statestream_server.models.graphs.fusion import wrapped

            model = wrapped(model, signature, context)
        self._names, self._touching = model.names, model.touching
        self.slabs = self._names.slabs
        self._graph = Graph(model.graph, device)
        self._signature = signature
        self._input_check = InputCheck(signature, wanted=check_inputs)
        self._stages: dict[tuple[int, int], _Stage] = {}
        self._nbytes = 0

    def strangers(self) -> list[str]:
        """Which of the nodes that touch rows run elsewhere than on the device, by name."""
        return self._graph.elsewhere(self._touching)

    @property
    def bound(self) -> list[tuple[int, int]]:
        """Rows and steps of the batches whose arrays are bound, oldest first."""
        return list(self._stages)

    def unbind(self) -> None:
        """Lets go of everything that is bound; call it before the slab moves."""
        self._stages.clear()
        self._nbytes = 0

    def step(
        self,
        source: Ints,
        target: Ints,
        inputs: Sequence[Array],
        bind: Callable[[Binding], None],
        slots: Ints | None = None,
    ) -> tuple[list[Array], Bools]:
        """One run; see `Rows.step`.

        Args:
            source: [n] rows to read.
            target: [n] rows to write.
            inputs: In the signature's order.
            bind: Binds the slab, where batches of this shape have nothing bound yet.
            slots: [n] where those rows have what they share; only where they share something.

        Raises:
            GraphError: ONNX Runtime refused the values or failed.
        """
        refused = self._input_check(inputs)
        if refused is not None:
            target = np.where(refused, SCRATCH_ROW, target)
        shape = inputs[0].shape[:2]
        outputs, bad = (self._stages.get(shape) or self._stage(shape, bind)).run(source, target, inputs, slots)
        return outputs, bad if refused is None else bad | refused

    def _stage(self, shape: tuple[int, int], bind: Callable[[Binding], None]) -> _Stage:
        stage = self._stages[shape] = _Stage(self._graph, self._names, self._signature, *shape)
        bind(stage.binding)
        self._nbytes += stage.nbytes
        while self._nbytes > _MOST_BYTES or len(self._stages) > _MOST_STAGES:
            self._nbytes -= self._stages.pop(next(iter(self._stages))).nbytes
        return stage


class InputCheck:
    """Holds inputs to the strictest check of the states, where their NaN or infinity would vanish on its way there.

    ONNX Runtime's LSTM, GRU and RNN clamp what enters their gates, and whole numbers know no NaN: it becomes an
    ordinary number there, the new state would be finite and wrong, and nobody would know.
    """

    def __init__(self, signature: Signature, *, wanted: bool | Mapping[str, str]) -> None:
        """`wanted`: by input what of it vanishes ("nan", "inf", "nan inf"; see hiding.py); True for all of each."""
        checks = {state.check or StateCheck.STATE_CHECK_FINITE for state in signature.states if is_checked(state)}
        self._checks: list[tuple[int, str]] = []
        if not checks or not wanted:
            return
        finite = min(checks) == StateCheck.STATE_CHECK_FINITE
        for place, spec in enumerate(signature.inputs):
            kinds = "nan inf" if wanted is True else wanted.get(spec.name, "")
            kinds = kinds if finite else kinds.replace("inf", "").strip()
            if kinds and numpy_dtype(spec.dtype).kind == "f":
                self._checks.append((place, kinds))

    def __call__(self, inputs: Sequence[Array]) -> Bools | None:
        """Which rows of inputs [n, T, ...] fail: bool [n], or None where none does."""
        bad: Bools | None = None
        for place, kinds in self._checks:
            value = inputs[place]
            if not every(np.isfinite(value)):
                wrong = ~np.isfinite(value) if kinds == "nan inf" else _WRONG[kinds](value)
                found = np.asarray(wrong.reshape(len(value), -1).any(axis=1), np.bool_)
                bad = found if bad is None else bad | found
        return bad


class _Stage:
    """The arrays for batches of `count` rows and `steps` steps, and the graph with them bound to it."""

    def __init__(self, graph: Graph, names: Names, signature: Signature, count: int, steps: int) -> None:
        self._source, self._target = np.empty(count, np.int64), np.empty(count, np.int64)
        self._slots = np.empty(count if names.slots else 0, np.int64)
        self._inputs = [_batch(spec, count, steps) for spec in signature.inputs]
        self._outputs = [_batch(spec, count, steps) for spec in signature.outputs]
        self._bad = np.zeros(count, np.bool_)
        self.nbytes = sum(array.nbytes for array in (*self._inputs, *self._outputs))
        self.binding = Binding(graph)
        self._names = names
        self._travels = graph.device.apart
        self._give()
        for name, array in zip(names.outputs, self._outputs, strict=True):
            self.binding.take(name, array)
        if names.bad:
            self.binding.take(names.bad, self._bad[np.newaxis])

    def run(self, source: Ints, target: Ints, inputs: Sequence[Array], slots: Ints | None) -> tuple[list[Array], Bools]:
        self._source[:], self._target[:] = source, target
        if slots is not None:
            self._slots[:] = slots
        for mine, array in zip(self._inputs, inputs, strict=True):
            mine[...] = array
        if self._travels:
            self._give()  # A device took its copy of what was in the arrays then.
        self.binding.run()
        return [array.copy() for array in self._outputs], self._bad.copy()

    def _give(self) -> None:
        self.binding.give(self._names.source, self._source)
        self.binding.give(self._names.target, self._target)
        if self._names.slots:
            self.binding.give(self._names.slots, self._slots)
        for name, array in zip(self._names.inputs, self._inputs, strict=True):
            self.binding.give(name, array)


def _batch(spec: TensorSpec, count: int, steps: int) -> Array:
    return np.empty((count, steps, *step_shape(spec)), numpy_dtype(spec.dtype))
