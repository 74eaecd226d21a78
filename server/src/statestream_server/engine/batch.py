"""One batch of steps, from gather to scatter; what the model refuses, and whose fault it is."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import numpy_dtype, step_shape
from statestream_server.arrays import Array, Bools, Ints, Positions, counting, every, some
from statestream_server.engine.scheduler import Why
from statestream_server.engine.table import Table
from statestream_server.engine.watch import Watch
from statestream_server.engine.work import NONE, Part, Priority
from statestream_server.models.rows import SCRATCH_ROW

log = logging.getLogger(__name__)

_NOT_FINITE = (
    "the chunk would have put a value that is not finite into the state; the session stays before the chunk."
    " Look for NaN, infinity or very large numbers in the inputs"
)


_NUMBERS = re.compile(r"-?\d[\d.]*(?:e[+-]?\d+)?")
_MOST_RUNS = 32
"""Runs in which the guilty of one batch are looked for."""
APART = 8
"""Rows in a batch whose rows run each by itself."""


class Batch:
    """Chunks that run together, each for as many steps."""

    def __init__(self, table: Table, priority: Priority, steps: int, most: int, watch: Watch) -> None:
        """Takes what waits longest of a class and slice, as many rows as a batch should have, at most `most`.

        Finds out which row each chunk reads and which it writes; shadow rows are allocated here. A chunk that takes
        several slices runs on a shadow row, so that its own row stays as it is until the last. Suspects run each by
        itself. Every run is told to `watch`.
        """
        self.table = table
        self.steps = steps
        self.costs = table.costs
        self.apart = priority is Priority.SUSPECT
        fitting = APART if self.apart else table.costs.rows(steps, most=most)
        self.parts, self.rows, self.why = table.lane.take(priority, steps, fitting)
        """Its chunks, [count] the rows of their sessions, and why there are not more."""
        if table.rows.row_by_row:
            self.why = Why.SERIAL
        elif self.why is Why.TIME and fitting == most:
            self.why = Why.MOST
        self.count = len(self.rows)
        self.since = self.parts[0].work.since
        """When the oldest of its works came."""
        self.bad: Bools | None = None
        """[count] which chunks were not committed, in the order of the parts; None for none of them."""
        self.again: Bools | None = None
        """[count] which chunks did not run and wait again, as suspects; None for none of them."""
        self.searched = self.apart
        """Whether it took more runs than batches of its size take, which says nothing of their cost."""
        self.tags: Array = table.tag[self.rows]
        """[count] what stands for the chunks' sessions where work is noted."""
        self.began: Positions = table.position[self.rows]
        """[count] the positions at which the chunks' sessions are."""
        self.ran = 0.0
        """Seconds of them that the model itself took."""
        self.used = 0.0
        """Seconds of them all that its thread had a processor."""
        self.started = self.first = 0.0
        """When it began, and when the model first ran, by the performance counter."""
        self._watch = watch
        self._row_by_row = self.apart or table.rows.row_by_row
        self._refusals: dict[int, errors.StatestreamError] = {}
        self._runs = _MOST_RUNS
        self._put_back: list[int] = []
        self._suspects: list[str] = []
        """The inputs that hold NaN or infinity in chunks that were not committed."""
        self._blamed: dict[int, errors.StatestreamError] = {}
        """By row, what was wrong with what arrived, where it was seen before the model ran."""
        self._scored = table.is_scored and any([part.work.scored for part in self.parts])
        self._source = self._target = self.rows
        if not all([part.work.lengths.each == steps and part.work.done is None for part in self.parts]):
            rows = [self._shadowed(part) for part in self.parts]
            self._source, self._target = (np.concatenate(column) for column in zip(*rows, strict=True))

    def run(self) -> float:
        """Gathers, runs the model, commits good rows, keeps the outputs in the works; the seconds that it took."""
        self.started, used = (began := time.perf_counter()), time.thread_time()
        parts = self.parts
        inputs = self._gather(parts[0])
        if len(parts) > 1:
            gathered = [inputs, *(self._gather(part) for part in parts[1:])]
            inputs = [np.concatenate(arrays) for arrays in zip(*gathered, strict=True)]
        before = self._expected() if self._scored else None
        found, bad = self._run(self._source, self._target, inputs)
        outputs = found if found is not None else self._no_outputs(inputs)
        if self._put_back:
            self.again = np.zeros(len(bad), np.bool_)
            self.again[self._put_back] = True
            bad &= ~self.again
        if self._refusals:
            bad |= self._target == SCRATCH_ROW
            self.searched = True
        if some(bad):
            self.bad, specs = bad, self.table.model.signature.inputs
            floats = [
                (spec.name, array[bad]) for spec, array in zip(specs, inputs, strict=True) if array.dtype.kind == "f"
            ]
            self._suspects = [name for name, array in floats if not every(np.isfinite(array))]
            if self.table.observed is not None:
                self._blame(bad, inputs)
        scores = self._scores(before, found, inputs, bad) if before is not None else []
        start = seen = 0
        for part in parts:
            cut = slice(start, start := start + len(part.places))
            mine = outputs if len(parts) == 1 else [array[cut] for array in outputs]
            if scores and part.work.scored:
                at = slice(seen, seen := seen + len(part.places))
                mine = [*mine, *(array[at] for array in scores)]
            self._scatter(part, mine)
        self.used = time.thread_time() - used
        return time.perf_counter() - began

    def _asked(self) -> Ints:
        """[m] the places of chunks that are to be scored."""
        ends = np.cumsum([len(part.places) for part in self.parts]).tolist()
        spans = zip([0, *ends], ends, self.parts, strict=False)
        return np.concatenate([np.arange(low, high) for low, high, part in spans if part.work.scored])

    def _expected(self) -> dict[str, Array]:
        """What the rows to be scored expect, before they run."""
        assert self.table.observed is not None
        return self.table.observed.expected(self._source[self._asked()])

    def _scores(
        self, before: dict[str, Array], outputs: Sequence[Array] | None, inputs: Sequence[Array], bad: Bools
    ) -> list[Array]:
        """The scores of the chunks that are to be scored: for each [m, steps, ...]; their past is committed."""
        assert self.table.observed is not None
        asked, specs = self._asked(), self.table.answers[-len(self.table.observed.score_specs) :]
        if outputs is None:
            return [np.full((len(asked), self.steps, *step_shape(spec)), np.nan, np.float32) for spec in specs]
        good = ~(bad if self.again is None else bad | self.again)[asked]
        return self.table.observed.score(
            before, self._source[asked], self._target[asked], good,
            [array[asked] for array in inputs], [array[asked] for array in outputs],
        )  # fmt: skip

    def _blame(self, bad: Bools, inputs: Sequence[Array]) -> None:
        """Finds out which of the chunks that were not committed had gaps, or times, that are refused."""
        assert self.table.observed is not None
        found = self.table.observed.blame(self._source[bad], [array[bad] for array in inputs])
        rows = self.rows[bad].tolist()
        if not found:
            return
        columns = [
            (np.zeros(len(places), np.int64) if work.done is None else work.done[places], work.lengths.column[places])
            for work, places, _ in self.parts
        ]
        begun, steps = (np.concatenate(column)[bad] for column in zip(*columns, strict=True))
        for place, (step, why) in found.items():
            where = f"step {begun[place] + step} of the chunk: " if steps[place] > 1 else ""
            self._blamed[rows[place]] = errors.BadTensor(where + why, metadata={"field": "inputs"})

    def _gather(self, part: Part) -> list[Array]:
        """The next steps of chunks: one array for every input, [n, steps, ...one step]."""
        work, places, _ = part
        if work.lengths.each == self.steps and work.done is None:
            packed = work.inputs if len(places) == len(work.rows) else work.lengths.pack(work.inputs, places)
            return [array.reshape(len(places), self.steps, *array.shape[1:]) for array in packed]
        index = self._index(part)
        return [array[index] for array in work.inputs]

    def _scatter(self, part: Part, outputs: Sequence[Array]) -> None:
        """Gives a work the outputs [n, steps, ...one step] of what `_gather` gave."""
        work, places, _ = part
        if not work.wanted:
            return
        straight = work.lengths.each == self.steps and work.done is None
        if straight:
            outputs = [array.reshape(-1, *array.shape[2:]) for array in outputs]
            if len(places) == len(work.rows):
                work.outputs = outputs
                return
        if not work.outputs:
            lead = 1 if straight else 2
            work.outputs = [np.zeros((work.lengths.total, *array.shape[lead:]), array.dtype) for array in outputs]
        index = work.lengths.cut(places) if straight else self._index(part)
        for mine, array in zip(work.outputs, outputs, strict=True):
            mine[index] = array

    def _index(self, part: Part) -> Ints:
        work, places, _ = part
        starts = work.lengths.offsets[places]
        if work.done is not None:
            starts = starts + work.done[places]
        index: Ints = starts[:, None] + counting(self.steps)
        return index

    def errors_of(self, rows: Ints, places: Ints) -> Iterator[tuple[Ints, errors.StatestreamError]]:
        """Why the chunks of sessions' rows failed: those of `places` that share an error, and the error."""
        told = {**self._blamed, **self._refusals}
        blamed = np.isin(rows, np.fromiter(told, np.int64, len(told)))
        if not every(blamed):
            yield places[~blamed], errors.NonFiniteState(_NOT_FINITE + _named(self._suspects))
        alike = dict[int, tuple[errors.StatestreamError, list[int]]]()
        for row, place in zip(rows[blamed].tolist(), places[blamed].tolist(), strict=True):
            error = told[row]
            alike.setdefault(id(error), (error, []))[1].append(place)
        for error, mine in alike.values():
            yield np.asarray(mine), error

    def _shadowed(self, part: Part) -> tuple[Ints, Ints]:
        """The rows that chunks start from and those that they end on."""
        work, places, rows = part
        steps = self.steps
        if work.done is None and work.lengths.each == steps:
            return rows, rows
        done, shadow = work.column("done")[places], work.column("shadow")
        first, last = done == 0, done + steps >= work.lengths.column[places]
        fresh = ~last & (shadow[places] == NONE)
        if fresh.any():
            try:
                shadow[places[fresh]] = self.table.allocate(int(fresh.sum()), scratch=True)
            except errors.TooManySessions as error:
                # Without a shadow their chunks end here: what they come to goes to the scratch row, and is bad.
                self._refusals.update(dict.fromkeys(rows[fresh].tolist(), error))
        target = np.where(last, rows, shadow[places])
        return np.where(first, rows, shadow[places]), np.where(target == NONE, SCRATCH_ROW, target)

    def judge(self) -> None:
        """Suspects the rows whose inputs the model refused, or may have; suspects that ran well are trusted more."""
        suspects = self.table.lane.suspects
        if self.apart:
            suspects.trust(self.rows)
            self._watch.survived(self.table.mark, self.tags, self.began)
        refused = np.fromiter(self._refusals, np.int64, len(self._refusals))
        if self.again is not None:
            refused = np.concatenate([refused, self.rows[self.again]])
        if len(refused):
            suspects.suspect(refused)

    def _run(
        self, source: Ints, target: Ints, inputs: Sequence[Array], first: int = 0
    ) -> tuple[list[Array] | None, Bools]:
        """Runs chunks, of which `first` is the place of the first in the batch; None for outputs where none ran."""
        if self._row_by_row and len(source) > 1:
            # Row by row: where one is refused, those before it are committed already.
            ones = (slice(place, place + 1) for place in range(len(source)))
            return _joined(
                [
                    self._run(source[one], target[one], [array[one] for array in inputs], first + one.start)
                    for one in ones
                ]
            )
        self._runs -= 1
        tags, began = self.tags, self.began
        if len(source) < self.count:
            tags, began = tags[first : first + len(source)], began[first : first + len(source)]
        try:
            if self.apart:
                self._watch.check(self.table.mark, int(tags[0]), int(began[0]))
            self._watch.notes.enter(self.table.mark, tags, began, self._name(first) if self.apart else "")
            began_running = time.perf_counter()
            found = self.table.rows.step(source, target, inputs)
            self.ran += time.perf_counter() - began_running
            self.first = self.first or began_running
            return found
        except errors.Quarantined as error:
            self._refusals[int(self.rows[first])] = error
            return None, np.ones(1, np.bool_)
        except Exception as error:
            # The model itself refused something (a token beyond its table, say). Alone, only the
            # guilty rows are refused.
            if len(source) > 1:
                if self._runs <= 0:
                    # So many are guilty that the search would hold all others up: it goes on later, beside them.
                    self._put_back += range(first, first + len(source))
                    return None, np.ones(len(source), np.bool_)
                half = len(source) // 2
                left = self._run(source[:half], target[:half], [array[:half] for array in inputs], first)
                right = self._run(source[half:], target[half:], [array[half:] for array in inputs], first + half)
                return _joined([left, right])
            row = int(self.rows[first])
            log.log(
                logging.DEBUG if self.apart else logging.WARNING,
                "model %r refused a chunk: %s",
                self.table.model.name,
                _NUMBERS.sub("#", str(error)),  # They may be what the caller sent.
                extra={"model": self.table.model.name, "version": self.table.model.version},
            )
            self._refusals[row] = errors.BadTensor(
                f"the model cannot run these inputs: {error}", metadata={"field": "inputs"}
            )
            return None, np.ones(1, np.bool_)
        finally:
            self._watch.notes.leave()

    def _name(self, place: int) -> str:
        """The session of the chunk at a place, in words."""
        name, session = self.table.model.name, self.table.ids[int(self.rows[place])]
        return f"a forecast or a text of {name!r}" if session is None else f"session {session!r} of {name!r}"

    def _no_outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs that nobody will see, in the shape of real ones."""
        lead = inputs[0].shape[:2]
        outputs = self.table.model.signature.outputs
        return [np.zeros((*lead, *np.maximum(step_shape(spec), 1)), numpy_dtype(spec.dtype)) for spec in outputs]


def _named(inputs: Sequence[str]) -> str:
    """Which inputs are meant, of this chunk or of others that were refused with it."""
    return f": there are some in input {', '.join(map(repr, inputs))}" if inputs else ""


def _joined(results: Sequence[tuple[list[Array] | None, Bools]]) -> tuple[list[Array] | None, Bools]:
    """What runs of neighbouring rows gave, as one."""
    bad = np.concatenate([bad for _, bad in results])
    real = next((outputs for outputs, _ in results if outputs is not None), None)
    if real is None:
        return None, bad
    # What did not run has outputs that nobody will see, in the shape of the others.
    given = [
        outputs if outputs is not None else [np.zeros((len(those), *one.shape[1:]), one.dtype) for one in real]
        for outputs, those in results
    ]
    return [np.concatenate(arrays) for arrays in zip(*given, strict=True)], bad
