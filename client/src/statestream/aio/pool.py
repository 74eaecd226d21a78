"""Many sessions of a asyncio client, stepped as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from statestream.aio.link import Link
from statestream.aio.together import perform_all, step_all
from statestream.base import PoolBase, saves_on_close
from statestream.calls import check_control, check_pool
from statestream.core import ControlTicket, OpenTicket
from statestream.errors import StatestreamError
from statestream.layout import Input, Layout
from statestream.parts import Part, control_errors, merge
from statestream.wire import Ints

if TYPE_CHECKING:
    from types import TracebackType

    from statestream.aio.client import Client


class Pool(PoolBase[Link]):
    """Sessions in rows. Made by `client.sessions`; to be used on the loop that made it.

    As a context manager: leaving detaches sessions that were opened with ids, and deletes others.
    """

    def __init__(
        self,
        client: Client,
        parts: Sequence[Part[Link]],
        layout: Layout,
        ticket: OpenTicket,
        ids: Sequence[str],
        *,
        ephemeral: bool,
    ) -> None:
        super().__init__(parts, layout, ticket, ids, ephemeral=ephemeral)
        self._client = client

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.closed:
            await self.close()

    async def step(
        self, x: Input, rows: Sequence[int] | Ints | None = None, lengths: Sequence[int] | Ints | None = None
    ) -> Any:
        """Applies a step, or several, to every row at once.

        Args:
            x: [N, F] for one step each, [N, T, F] for T; a dict by name where the model has several inputs.
            rows: [N] which sessions (indices, or a mask over all); all of them where left out.
            lengths: [N] how many of the T steps each row has, 0 to T; the rest of x is padding.

        Returns:
            Y: [N, O] or [N, T, O]; zeros past a row's length. A dict by name for several outputs.

        Raises:
            BadTensor: Wrong name, dtype or shape; nothing was sent.
            PoolError: Some rows failed: `errors` by row. The others were applied; `outputs` has theirs.
        """
        ticket, single = self._layout.pool(self._live(rows), x, lengths)
        if self._division is None:
            link = self._parts[0].link
            await link.finish(ticket, link.begin(ticket))
        else:
            shares = self._division.split(ticket)
            await step_all(shares)
            merge(ticket, shares)
        return check_pool(self._layout, ticket, single)

    async def flush(self) -> Ints:
        """Makes all steps so far durable; returns the durable positions, [N].

        Raises:
            StoreUnavailable: The server's store cannot be written.
            PoolError: The same of several rows: `errors` by row.
        """
        self._live()
        check_control(await self._control(self._parts, lambda part: part.link.core.flush(part.handles)))
        return self.durable_positions

    async def delete(self) -> None:
        """Deletes all sessions on the server and closes the pool."""
        await self._close(delete=True)

    async def close(self) -> None:
        """Lets all sessions go: those opened with ids stay on the server, the others are deleted."""
        if not self.closed:
            await self._close(delete=self.ephemeral)

    async def _close(self, *, delete: bool) -> None:
        self._live()
        last = (self.positions, self.durable_positions)
        behind = [] if delete else [part for part in self._parts if saves_on_close(part.link.core, part.handles)]
        flushed = await self._control(behind, lambda part: part.link.core.flush(part.handles))
        try:
            closed = await self._control(self._parts, lambda part: part.link.core.close(part.handles, delete=delete))
        finally:
            self._last = last
        check_control(closed, missing_is_fine=True)
        check_control(flushed, missing_is_fine=True)

    async def _control(
        self, parts: Sequence[Part[Link]], make: Callable[[Part[Link]], ControlTicket]
    ) -> dict[int, StatestreamError]:
        """Has the shards do something at once; what went wrong, by row."""
        answers = await perform_all([part.link for part in parts], [partial(make, part) for part in parts])
        return control_errors(parts, answers)
