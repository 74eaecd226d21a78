"""Many sessions of a asyncio client, stepped as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from statestream.aio.link import Link
from statestream.base import PoolBase, saves_on_close
from statestream.calls import check_control, check_pool
from statestream.core import ControlTicket, OpenTicket, StreamCore
from statestream.layout import Input, Layout
from statestream.wire import Ints

if TYPE_CHECKING:
    from types import TracebackType

    from statestream.aio.client import Client


class Pool(PoolBase):
    """Sessions in rows. Made by `client.sessions`; to be used on the loop that made it.

    As a context manager: leaving detaches sessions that were opened with ids, and deletes others.
    """

    def __init__(
        self,
        client: Client,
        link: Link,
        core: StreamCore,
        layout: Layout,
        ticket: OpenTicket,
        ids: Sequence[str],
        *,
        ephemeral: bool,
    ) -> None:
        super().__init__(link, core, layout, ticket, ids, ephemeral=ephemeral)
        self._client = client
        self._link = link

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
        await self._link.finish(ticket, self._link.begin(ticket))
        return check_pool(self._layout, ticket, single)

    async def flush(self) -> Ints:
        """Makes all steps so far durable; returns the durable positions, [N].

        Raises:
            StoreUnavailable: The server's store cannot be written.
        """
        handles = self._live()
        check_control((await self._link.perform(lambda: self._core.flush(handles))).errors)
        return self.durable_positions

    async def delete(self) -> None:
        """Deletes all sessions on the server and closes the pool."""
        await self._close(delete=True)

    async def close(self) -> None:
        """Lets all sessions go: those opened with ids stay on the server, the others are deleted."""
        if not self.closed:
            await self._close(delete=self.ephemeral)

    async def _close(self, *, delete: bool) -> None:
        handles = self._live()
        last = (self.positions, self.durable_positions)
        flushed = ControlTicket()
        if not delete and saves_on_close(self._core, handles):
            flushed = await self._link.perform(lambda: self._core.flush(handles))
        try:
            ticket = await self._link.perform(lambda: self._core.close(handles, delete=delete))
        finally:
            self._last = last
        check_control(ticket.errors, missing_is_fine=True)
        check_control(flushed.errors, missing_is_fine=True)
