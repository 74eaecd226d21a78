"""The table of one model version: its slab of states and, beside it, the columns of its sessions.

A row is a session, or scratch: the shadow of a chunk in progress, the fork that a forecast runs on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Final
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from statestream.contract import errors
from statestream.contract.signature import numpy_dtype, step_shape
from statestream_server.arrays import Array, Bools, Freelist, Ints, Positions, grown
from statestream_server.engine.counts import Counts
from statestream_server.engine.lane import Lane
from statestream_server.engine.marks import RESET
from statestream_server.engine.replies import ReplyWindow, Returning
from statestream_server.engine.scheduler import BATCH_BYTES, BATCH_SECONDS, Costs, Statistics
from statestream_server.engine.watch import tags_of
from statestream_server.engine.work import NONE, Part, Work
from statestream_server.models.memory.observed import ObservedRows
from statestream_server.models.model import Model
from statestream_server.models.rows import FIRST_ROW, Rows, restart
from statestream_server.stores.base import Key

UNBOUND = 0
"""The owner of a row that no stream has."""

_FIRST_CAPACITY = 1024
_NOBODYS: Final[Mapping[str, int]] = {}
_COLUMNS: Final[Mapping[str, tuple[Any, object]]] = (
    dict.fromkeys("position tag queued durable origin epoch incarnation request".split(), (np.uint64, 0))
    | dict.fromkeys("binding owner unacknowledged serial confirmed".split(), (np.int64, 0))
    | dict.fromkeys("ephemeral dirty claiming".split(), (np.bool_, False))
    | {"tenant": (np.object_, 0), "writer": ("V16", np.void(bytes(16)))}
    | {"handle": (np.uint32, 0), "used": (np.float64, 0.0), "asked": (np.float64, -np.inf)}
)
"""The dtype of every column, and what stands in it where nobody wrote."""


class Table:
    """Rows, columns, queue and reply window of one model version.

    All columns have the length `capacity` and grow together, by doubling. Columns of a row that is not
    allocated mean nothing.
    """

    tenant: Array
    """Whose session the row is, a str; means nothing for scratch rows."""
    position: Positions
    """Steps applied."""
    tag: Positions
    """What stands for the row's session where work is noted; 0 for scratch rows of which nobody said more."""
    queued: Positions
    """Steps applied once everything accepted has run."""
    durable: Positions
    """Steps that survive a crash."""
    origin: Positions
    """The position behind the last reset, where the present history began."""
    epoch: Positions
    """The claim under which the session is here; 0 where another server has it and the row is about to go."""
    incarnation: Positions
    """The writer's count of its openings, as it was claimed."""
    writer: Array
    """Who claimed it: 16 bytes."""
    request: Positions
    """Digest of the last request id; 0 for none."""
    binding: Ints
    """A number that no other claim of any row ever had; frames of older claims carry another."""
    owner: Ints
    """The stream that has the session, or UNBOUND."""
    handle: Array
    """The session's handle on that stream."""
    ephemeral: Bools
    """Whether nothing of it is to outlive its row."""
    dirty: Bools
    """Whether the store lacks something of the row."""
    claiming: Bools
    """Whether a claim is on its way to the store: a save that is refused meanwhile says nothing."""
    unacknowledged: Ints
    """Chunks accepted and not acknowledged, or more: bounds.py counts anew where it matters."""
    serial: Ints
    """A number that no other use of any row of this table ever had."""
    confirmed: Ints
    """The lease (see lease.py) under which the store last said that the epoch stands."""
    used: npt.NDArray[np.float64]
    """When it was last opened or stepped, in seconds on a clock that nobody sets."""
    asked: Array
    """When its stream was last asked to take it elsewhere, by that clock; -inf for never."""

    named = False
    """Whether a session here was ever stepped by a request with an id."""

    def __init__(self, model: Model, rows: Rows, *, max_rows: int) -> None:
        """An empty table that grows up to `max_rows` rows."""
        self.model = model
        self.rows = rows
        self.max_rows = max_rows
        self.observed = rows if isinstance(rows, ObservedRows) else None
        """The same, where callers send observations."""
        scores = self.observed.score_specs if self.observed is not None else ()
        self.dense_columns = [column for column in rows.columns if not column.sparse]
        """The columns of its rows that a copy which runs on by itself needs."""
        self.answers = [*model.signature.outputs, *scores]
        """The outputs, then the scores: those have the answers to chunks that are scored."""
        self.is_scored = len(scores) > 0
        """Whether steps can be scored."""
        self.inputs = [(numpy_dtype(spec.dtype), step_shape(spec)) for spec in model.signature.inputs]
        """Dtype and shape of one step of every input."""
        outputs = [(numpy_dtype(spec.dtype), step_shape(spec)) for spec in self.answers]
        self.input_bytes, self.output_bytes = (
            sum(dtype.itemsize * math.prod(shape) for dtype, shape in ports if min(shape, default=0) >= 0)
            for ports in (self.inputs, outputs)
        )
        """Bytes of one step of all inputs, of all outputs and scores; what has a free shape counts as nothing."""
        count = len(model.signature.outputs)
        self.no_outputs = [np.zeros((0, *np.maximum(shape, 0)), dtype) for dtype, shape in outputs[:count]]
        """The outputs of marks: no steps of every output."""
        self.mark = model.mark
        """What stands for the model where work is noted."""
        self.max_slice = min(rows.max_slice, 1 << (max(1, BATCH_BYTES // max(1, self.output_bytes)).bit_length() - 1))
        """The most steps of one run: a power of two, fewer where the outputs of so many would be large."""
        self.lane = Lane(self.max_slice)
        self.costs = Costs(BATCH_SECONDS, self.output_bytes)
        self.statistics = Statistics()
        """What ran of it so far."""
        self.counts = Counts()
        """What became of its sessions so far."""
        self.replies = ReplyWindow()
        self.capacity = 0
        self.ids: list[str | None] = []
        """The session of each row; None for scratch and free rows. No `Key` each: a million of them cost 80 MB."""
        for name, (dtype, _) in _COLUMNS.items():
            setattr(self, name, np.empty(0, dtype))
        self.cursors: dict[int, bytes] = {}
        """The cursors of their callers, by row; few have one."""
        self.sessions = 0
        """Resident sessions."""
        self._rows_of: dict[str, dict[str, int]] = {}
        """The rows of resident sessions, by tenant and id; a tenant without any has no entry."""
        self._returning = WeakSet[Returning]()
        self.promised = 0
        """Rows handed out for sessions that are not there yet."""
        self.driven = 0
        """Scratch rows that drives have, or may come to have."""
        self._free = Freelist(FIRST_ROW)
        self._serials = 1

    def sessions_of(self, tenant: str | None) -> int:
        """How many sessions of a tenant it has, None for all."""
        return self.sessions if tenant is None else len(self.rows_of(tenant))

    def rows_of(self, tenant: str) -> Mapping[str, int]:
        """The rows of a tenant's resident sessions, by their ids."""
        return self._rows_of.get(tenant, _NOBODYS)

    @property
    def tenants(self) -> Iterable[str]:
        """The tenants that have sessions in memory."""
        return self._rows_of

    def resident(self) -> Ints:
        """The rows of all resident sessions."""
        return np.fromiter(chain.from_iterable(rows.values() for rows in self._rows_of.values()), np.int64)

    def returning(self, rows: Ints) -> Returning:
        """Has rows stay in memory, whose kept replies are on their way, for as long as somebody has what it gives."""
        returning = Returning(rows)
        self._returning.add(returning)
        return returning

    def rows_returning(self) -> Ints:
        """The rows whose kept replies are on their way."""
        return np.concatenate([np.empty(0, np.int64), *[returning.rows for returning in self._returning]])

    @property
    def allocated(self) -> int:
        """Rows in use, shadows and forks among them."""
        return self.capacity - FIRST_ROW - len(self._free) if self.capacity else 0

    @property
    def acked(self) -> Positions:
        """[capacity] steps whose replies the caller has."""
        return self.replies.acked

    def allocate(self, count: int, *, scratch: bool = False) -> Ints:
        """Hands out rows; their state is undefined until it is reset, written or copied.

        Args:
            count: How many.
            scratch: Shadows and forks: they may exceed `max_rows`, because work in progress needs them.

        Raises:
            TooManySessions: The table may not grow that far, or there is no memory; then no row is handed out.
        """
        wanted = self.sessions + self.promised + count
        if not scratch and wanted > self.max_rows:
            raise errors.TooManySessions(
                f"{count} more sessions of {self.model.name!r} would make {wanted}; the limit is"
                f" {self.max_rows}. Close some, or raise --max-sessions",
                retry_after=1.0,
            )
        self.reserve(count)
        rows = self._free.take(count)
        if scratch:
            self.tag[rows] = self.position[rows] = self.queued[rows] = 0
        self.serial[rows] = np.arange(self._serials, self._serials + count)
        self._serials += count
        return rows

    def reserve(self, count: int) -> None:
        """Grows until `count` rows are free.

        Raises:
            TooManySessions: There is no memory for them; nothing changed.
        """
        if count <= len(self._free):
            return
        least = self.capacity + FIRST_ROW + count
        wanted = max(_FIRST_CAPACITY, 2 * self.capacity, least)
        try:
            try:
                self._grow(wanted)
            except MemoryError:
                if wanted == least:
                    raise
                self._grow(least)
        except MemoryError as error:
            raise errors.TooManySessions(
                f"there is no memory for {count} more rows of {self.model.name!r} beside {self.allocated}: {error}."
                " Close sessions, lower --max-sessions so that idle ones leave in time, or add memory",
                retry_after=1.0,
            ) from error

    def claims(self, rows: Ints) -> tuple[Ints, Positions]:
        """What `are_claimed` compares: the present use and epoch of rows."""
        return self.serial[rows], self.epoch[rows]

    def are_claimed(self, rows: Ints, claims: tuple[Ints, Positions]) -> Bools:
        """Which rows are still the same session under the same claim."""
        serials, epochs = claims
        return np.asarray((self.serial[rows] == serials) & (self.epoch[rows] == epochs) & (epochs > 0), np.bool_)

    def bind_ids(self, rows: Ints, tenant: str, sessions: Sequence[str]) -> None:
        """Makes rows [n] the rows of a tenant's sessions."""
        places, ids = rows.tolist(), self.ids
        for row, session in zip(places, sessions, strict=True):
            ids[row] = session
        self.tenant[rows] = tenant
        rows_of = self._rows_of.setdefault(tenant, {})
        before = len(rows_of)
        rows_of.update(zip(sessions, places, strict=True))
        self.sessions += len(rows_of) - before
        self.tag[rows] = np.array(tags_of((tenant, self.model.name), sessions), np.uint64)

    def key(self, row: int) -> Key | None:
        """What the store calls the session of a row; None for scratch and free rows."""
        session = self.ids[row]
        return None if session is None else Key(self.tenant[row], self.model.name, session)

    def keys(self, rows: Ints) -> list[Key]:
        """What the store calls the sessions of rows, of which none is scratch or free."""
        ids = [self.ids[row] for row in rows.tolist()]
        return list(map(Key._make, zip(self.tenant[rows].tolist(), repeat(self.model.name), ids)))

    def release(self, rows: Ints, *, scratch: bool = False) -> None:
        """Takes rows back; their queue must be empty. What is known to be scratch is not looked at one by one."""
        self.replies.drop(rows)
        self._drop_cursors(rows)
        self.lane.suspects.acquit(rows)
        self.owner[rows], self.binding[rows], self.serial[rows], self.dirty[rows] = UNBOUND, 0, 0, False
        self.claiming[rows], self.epoch[rows] = False, 0
        self.rows.free(rows)
        if scratch:
            self._free.give(rows)
            return
        tenants, ids, rows_of = self.tenant[rows].tolist(), self.ids, self._rows_of
        for row, tenant in zip(rows.tolist(), tenants, strict=True):
            session = ids[row]
            if session is not None:
                del rows_of[tenant][session]
                ids[row] = None
                self.sessions -= 1
        for tenant in set(tenants):
            if not rows_of.get(tenant, True):
                del rows_of[tenant]
        self._free.give(rows)

    def restart(self, part: Part) -> None:
        """Takes back to their start the rows of marks that are resets."""
        assert part.work.marks is not None
        reset = part.rows[part.work.marks.kinds[part.places] == RESET]
        if len(reset):
            restart(self.rows, self.model.signature, reset)

    def free_shadows(self, work: Work, places: Ints) -> None:
        """Takes back the rows that ended chunks of a work needed to run."""
        if work.shadow is not None:
            shadows = work.shadow[places]
            self.release(shadows[shadows != NONE])

    def clear_columns(self, rows: Ints) -> None:
        """Sets the columns of rows to those of a session at position 0; state and owner are not touched."""
        self.replies.drop(rows)
        self._drop_cursors(rows)
        for column in (
            self.position, self.queued, self.durable, self.origin, self.epoch, self.request, self.incarnation,
        ):  # fmt: skip
            column[rows] = 0
        self.unacknowledged[rows] = 0
        self.dirty[rows], self.ephemeral[rows], self.asked[rows] = False, False, -np.inf

    def cursors_of(self, rows: Ints) -> list[bytes]:
        """[n] the cursors of rows, b"" for none; no items where none of them has one."""
        if not self.cursors:
            return []
        found = [self.cursors.get(row, b"") for row in rows.tolist()]
        return found if any(found) else []

    def _drop_cursors(self, rows: Ints) -> None:
        for row in rows.tolist() if self.cursors else ():
            self.cursors.pop(row, None)

    def _grow(self, capacity: int) -> None:
        self.rows.grow(capacity)
        self.lane.grow(capacity)
        self.replies.grow(capacity)
        self._free.grow(capacity)
        for name, (_, fill) in _COLUMNS.items():
            setattr(self, name, grown(getattr(self, name), capacity, fill))
        self.ids.extend([None] * (capacity - len(self.ids)))
        self.capacity = capacity


class Claiming:
    """Rows whose claim is on its way, until `end`."""

    def __init__(self) -> None:
        """No rows."""
        self._rows: list[tuple[Table, Ints, Ints]] = []

    def mark(self, table: Table, rows: Ints) -> None:
        """Marks rows."""
        table.claiming[rows] = True
        self._rows.append((table, rows, table.serial[rows]))

    def end(self) -> None:
        """Takes the marks away; a row that was released meanwhile may be another session's."""
        marked, self._rows = self._rows, []
        for table, rows, serials in marked:
            table.claiming[rows[table.serial[rows] == serials]] = False
