"""Many sessions of an asyncio client, stepped as arrays."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from statestream import series
from statestream.aio.awaiting import hinting
from statestream.aio.calling import answers
from statestream.aio.copying import Copying
from statestream.aio.link import Link
from statestream.aio.pipeline import counted, pipeline
from statestream.aio.stepping import PoolStepping
from statestream.aio.together import perform_all
from statestream.aio.waiting import LIVE
from statestream.arguments import check_flag, check_items, lookahead
from statestream.base import POOL_LOOKAHEAD, PoolBase, PoolStep
from statestream.calls import check_control
from statestream.contract.tensors import Array, Ints
from statestream.core import ControlTicket, Feed, PoolTicket
from statestream.fans import shown
from statestream.forecasts import Told, Wish, asked, cuts, forecast_call, reordered, row, start_bytes, whole
from statestream.layout import Input
from statestream.parts import Opened, Part, control_errors
from statestream.progress import Progress, check_progress
from statestream.rows import Rows
from statestream.series import Past
from statestream.unary import StreamCall
from statestream.v1.inference_pb2 import MARK_CURSOR, MARK_RESET

if TYPE_CHECKING:
    from types import TracebackType

    from statestream.aio.client import Client


@hinting  # asyncio only
class Pool(PoolBase[Link]):
    """Sessions in rows. Made by `client.sessions`; to be used on the loop that made it.

    As a context manager: leaving detaches sessions that were opened with ids, and deletes others.
    """

    def __init__(
        self,
        client: Client,
        opened: Opened[Link],
        ids: Sequence[str],
        *,
        ephemeral: bool,
    ) -> None:
        super().__init__(opened, ids, ephemeral=ephemeral)
        self._client = client

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.closed:
            await self.close()

    async def step(
        self,
        x: Input,
        rows: Rows | None = None,
        lengths: Sequence[int] | Ints | None = None,
        *,
        cursors: Sequence[bytes | None] | None = None,
        score: bool = False,
    ) -> Any:
        """Applies a step, or several, to every row at once.

        Args:
            x: [N, F] for one step each, [N, T, F] for T; a dict by name where the model has several inputs. Or
                a table (pandas, polars and what else narwhals reads) with unique_id, whose row it is, in any order, and
                a column for each feature; with ds, when, a session may have several. All that are stepped need one.
            rows: [N] which sessions (places, ids, or a mask over all); all of them where left out.
            lengths: [N] how many of the T steps each row has, 0 to T; the rest of x is padding.
            cursors: [N] where the caller is behind the steps of each row, see `Session.step`; None for rows without.
            score: Whether to tell how likely what arrived was, see `Session.step`.

        Returns:
            Y: [N, O] or [N, T, O]; zeros past a row's length. A dict by name for several outputs. With `score` the pair
                of that and the `Scores`, [N] or [N, T]: NaN past a row's length, and of rows that failed. For a table
                with unique_id one with the same rows, and scores in their order: unique_id, ds, and the outputs, called
                as the model, or MODEL-OUTPUT where there are several numbers.

        Raises:
            BadTensor: Wrong name, dtype or shape; nothing was sent.
            PoolError: Some rows failed: `errors` by row. The others were applied; `outputs` has theirs.
        """
        return await self._begin(PoolStep(x, rows, lengths, cursors, score)).answer()

    def stream(
        self,
        items: Iterable[Input | PoolStep] | AsyncIterable[Input | PoolStep],
        *,
        ahead: int | None = None,
        return_errors: bool = False,
        score: bool = False,
        progress: Progress = False,
    ) -> AsyncIterator[Any]:
        """Steps through items and yields each one's outputs, in order, with several under way at a time.

        So neither side waits for the other, as both do in turn where each step waits for the one before: this is the
        fastest way through a feed whose next input does not depend on the last output.

        A row whose step is refused is out of the stream: no step behind it is applied to that row, whatever was
        under way, and `positions` tells where it stands. The others go on. When left early, steps that are on their
        way are applied all the same.

        Args:
            items: What `step` takes: x alone, or a `PoolStep` with rows and lengths.
            ahead: How many items are sent before the first output is waited for. By default 4 for lists, arrays and
                asynchronous iterables, and 1 for other iterables: these may wait for the world, and an output
                should not wait with them.
            return_errors: A step of which rows failed yields its PoolError, in place of raising it, and the stream
                goes on; the steps behind it have an error for those rows as well.
            score: As for `step`; of a `PoolStep` what that says counts.
            progress: Tells how many items are answered: see `Client.forecast`.

        Raises:
            BadTensor: Wrong name, dtype or shape of an item; raised in its turn, it ends the stream; it was not sent.
            PoolError: Rows failed, see `step`; raised in its turn, it ends the stream. Not with `return_errors`.
        """
        check_items(items, LIVE, pool=True)
        check_flag("return_errors", return_errors)
        check_flag("score", score)
        check_progress(progress)
        feed = Feed()

        def send(item: Input | PoolStep) -> PoolStepping:
            one = item if isinstance(item, PoolStep) else PoolStep(item, score=score)
            return self._begin(one, feed, return_errors)

        answers = pipeline(items, send, lookahead(items, ahead, POOL_LOOKAHEAD, LIVE))
        return counted(answers, progress, f"stream {self.model}", items, "items")

    async def reset(
        self,
        rows: Rows | None = None,
        *,
        cursors: Sequence[bytes | None] | None = None,
    ) -> None:
        """Starts sessions anew, each in its turn: see `Session.reset`.

        Args:
            rows: Which sessions (places, ids, or a mask over all); all of them where left out.
            cursors: As for `step`.

        Raises:
            PoolError: Some rows failed: `errors` by row. The others were reset.
        """
        await self._under_way(self._mark(MARK_RESET, rows, cursors), single=True).answer()

    async def mark(self, cursors: Sequence[bytes], rows: Rows | None = None) -> None:
        """Keeps cursors without steps: see `Session.mark`.

        Args:
            cursors: [N] one for each of the sessions.
            rows: Which sessions (places, ids, or a mask over all); all of them where left out.

        Raises:
            PoolError: Some rows failed: `errors` by row.
        """
        await self._under_way(self._mark(MARK_CURSOR, rows, cursors), single=True).answer()

    async def forecast(
        self,
        h: int,
        *,
        quantiles: Sequence[float] | None = None,
        level: Sequence[float] | float | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        future: Any = None,
        samples: bool = False,
        bands: str | None = None,
        past: Any = None,
        until: tuple[str, str, float] | None = None,
    ) -> Any:
        """Forecasts h steps of every session on copies, all as rows of the same batches; the sessions do not move.

        Args:
            h: The number of steps.
            quantiles: These and the following are as for `client.forecast`.
            level: In percent.
            num_samples: Paths that are drawn for each session.
            seed: What draws begin with: the row's number is that of the series.
            future: [h, F] for all, or [N, h, F], what is known beforehand; a dict by name for several inputs.
            samples: Whether the paths themselves are wanted.
            bands: "conformal"; then `past` is needed, as the server keeps no inputs.
            past: [N, T, F], or a list of [T, F], the sessions' past inputs, that errors are taken from.
            until: When a session's forecast ends before the horizon.

        Returns:
            [N, h, O], with quantiles [N, h, O, Q], with samples [N, S, h, O]; a dict by name for several values.

        Raises:
            Unsupported: The model cannot forecast, or says nothing of how sure it is; or a session took no step yet.
            BadTensor: Future or past do not fit the model, are too short, or have a gap.
        """
        wish, inputs = asked(
            self._layout, h, quantiles, level, num_samples, seed, samples, bands, until, len(self.ids), past
        )
        known = None if future is None else series.future(self._layout, future, len(self.ids), h)
        rows, parts = list[Ints](), list[list[Told]]()
        for link, mine, call in self._forecasts(wish, inputs, known):
            copying = Copying(link, mine[1], self._submit)
            rows.append(mine[0])
            parts.append([told async for told in answers(link, call, partial(copying.attempts, call.request))])
        found = reordered(whole(parts, h), np.concatenate(rows))
        return shown(self._layout, wish, found, inputs, row(wish, found), None if self.ephemeral else self.ids)

    def _forecasts(
        self, wish: Wish, past: Past | None, known: Mapping[str, Array] | None
    ) -> Iterator[tuple[Link, tuple[Ints, Ints], StreamCall[Told]]]:
        """The calls of a forecast: each shard's sessions, as many at a time as a request brings back elsewhere."""
        self._live()
        # Where it started comes back in a request: a row for each session.
        size = start_bytes(self._layout) + len(max(self.ids, key=len)) * 4
        for part in self._parts:
            sizes = np.full(len(part.rows), size, np.int64)
            for low, high in cuts(part.link.state.info.limits, wish, sizes, self._layout):
                rows, handles = part.rows[low:high], part.handles[low:high]
                call = forecast_call(
                    self._layout,
                    wish,
                    self.version,
                    sessions=[self.ids[each] for each in rows.tolist()],
                    series=rows,
                    past=None if past is None else past.some(rows),
                    future=None if known is None else {name: array[rows] for name, array in known.items()},
                )
                yield part.link, (rows, handles), call

    async def flush(self) -> Ints:
        """Makes all steps so far durable; returns the durable positions, [N].

        Raises:
            StoreUnavailable: The server's store cannot be written.
            PoolError: The same of several rows: `errors` by row.
        """
        await self._control(lambda part: part.link.core.flush(part.handles), self._submit)
        return self.durable_positions

    async def delete(self) -> None:
        """Deletes all sessions on the server and closes the pool."""
        await self._close(delete=True)

    async def close(self) -> None:
        """Lets all sessions go: those opened with ids stay on the server, the others are deleted."""
        if not self.closed and not self._parts[0].link.copied:
            await self._close(delete=False)

    async def _close(self, *, delete: bool) -> None:
        await self._control(lambda part: part.link.core.close(part.handles, delete=delete), self._end)

    def _begin(self, step: PoolStep, feed: Feed | None = None, return_errors: bool = False) -> PoolStepping:
        ticket, single, told = self._ticket(step, feed)
        return self._under_way(ticket, single, return_errors, told)

    def _under_way(
        self,
        ticket: PoolTicket,
        single: bool,
        return_errors: bool = False,
        told: Callable[[Any], Any] | None = None,
    ) -> PoolStepping:
        shares = self._shares(ticket)
        with self._turn:
            if self._last is not None:
                self._check()
            return PoolStepping(self._layout, ticket, single, shares, return_errors, partial(self._id_of, ticket), told)

    async def _control(
        self, make: Callable[[Part[Link]], ControlTicket], submit: Callable[[Callable[[], object]], object]
    ) -> None:
        """Has the shards do something at once; raises what went wrong."""
        links, makes = [part.link for part in self._parts], [partial(make, part) for part in self._parts]
        check_control(control_errors(self._parts, await perform_all(links, makes, submit)), self.ids.__getitem__)
