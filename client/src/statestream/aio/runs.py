"""What an asyncio client has run without a session: predictions, forecasts, texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from statestream import arguments, backtests, calls, dataframes, driven, fans, forecasts, series, unary
from statestream.aio.calling import answer, answers
from statestream.aio.catalogue import Catalogue
from statestream.contract.signature import Signature
from statestream.contract.tensors import Array
from statestream.core import PredictTicket
from statestream.layout import Input, Layout
from statestream.progress import Progress, Tell, check_progress, pieces, reporting
from statestream.series import Past
from statestream.unary import StreamCall


class Runs(Catalogue):
    """The part of a client that runs models without a session of its own."""

    async def predict(
        self,
        model: str,
        x: Input,
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        progress: Progress = False,
    ) -> Any:
        """Runs a model without memory once.

        Args:
            model: The model's name.
            x: The model's input [B, …]; a dict by name where it has several.
            outputs: The names of the outputs wanted; all where left out.
            version: The model's version, or an alias of one; the default one where left out.
            progress: Tells how many rows are done: see `forecast`. They are then sent some at a time, and may be more
                than the server takes at once.

        Returns:
            The output; a dict by name where there are several.

        Raises:
            BadTensor: Wrong name, dtype or shape.
            Unsupported: The model has memory: use a session.
        """
        arguments.check_model(model, version)
        wanted = arguments.check_outputs(outputs)
        check_progress(progress)
        return await self._predict(model, x, wanted, version, progress, f"predict {model}")

    async def _predict(
        self, model: str, x: Input, wanted: Sequence[str], version: int | str | None, progress: Progress, what: str
    ) -> Any:
        """Runs a model without memory once; a bar says `what` is done."""
        limits = self._link.state.info.limits

        async def once(layout: Layout, x: Input, version: int | str | None) -> Any:
            if not limits.max_frame_calls:
                return await answer(self._link, unary.predict(layout, x, wanted, version, limits))
            return await self._call(layout.call(x, tuple(wanted), version), layout)

        async def run(layout: Layout) -> Any:
            if progress is False:
                return await once(layout, x, version)
            inputs = layout.predict(x)
            rows = layout.rows([*inputs.values()])
            with reporting(progress, what, rows if rows >= 0 else 1, "rows") as tell:
                found = []
                for low, high in pieces(rows, sum(array.nbytes for array in inputs.values()), limits.max_message_bytes):
                    piece = {name: array[low:high] for name, array in inputs.items()}
                    # The default version may become another one meanwhile.
                    found.append(await once(layout, piece, layout.model.version))
                    if tell is not None:
                        tell(high)
                return calls.joined(found, layout) if found else await once(layout, inputs, version)

        return await self._fitting(model, version, "predict", run)

    async def _call(self, ticket: PredictTicket, layout: Layout) -> Any:
        """What comes of a call on the stream, shared with those that are made at the same moment."""
        link = self._link
        calls.check_call(ticket, link.state.info.limits, layout)
        ticket.waiter = done = link.done()
        try:
            link.do(partial(link.core.predict, ticket))
            await done
        except BaseException:
            link.forget(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket.value

    async def forecast(
        self,
        model: str,
        history: Any,
        h: int = 24,
        *,
        quantiles: Sequence[float] | None = None,
        level: Sequence[float] | float | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        future: Any = None,
        samples: bool = False,
        bands: str | None = None,
        until: tuple[str, str, float] | None = None,
        version: int | str | None = None,
        progress: Progress = False,
    ) -> Any:
        """Forecasts h steps from past ones.

        A server that is lost meanwhile is not seen here: the forecast goes on elsewhere, with the same numbers.

        Args:
            model: The model's name; its signature must name a feedback, a head, or an output of several steps.
            history: [T, F], [N, T, F], a list of arrays [T, F] that differ in T, or [T] for one feature; or a DataFrame
                (pandas, polars) with the model's columns, a row a step, in any order (y will do for a single one). With
                a column unique_id it has several series, with a column ds their times; rows are put in the order of
                those. A dict by name where the model has several inputs.
            h: The number of steps.
            quantiles: Those that are wanted, between 0 and 1: of the paths that are drawn from the model's head, or of
                a head of quantiles as the model gives them.
            level: The same as central intervals in percent: 80 is the quantiles 0.1 and 0.9.
            num_samples: Paths that are drawn for each series; 200 where quantiles are asked for.
            seed: What draws begin with, 0 to 2**64 - 1. The same seed draws the same paths for the same series,
                whatever runs beside; without one each call draws others.
            samples: Whether the paths themselves are wanted.
            bands: "conformal" has quantiles made of the model's own errors of one to h steps on the past of the same
                series: for models without a head. At least so much of what is to come lies below each as its quantile
                says, as far as errors stay as they were.
            until: When a series ends before the horizon: ("y", "<=", 0.0) with the step of which the point (of paths
                their mean) is at most that; ">=" with one that is at least that. A column of several is ("y.name", …).
                What would come later is NaN.
            future: Inputs that are known beforehand and not fed back: [h, F] for all series, [N, h, F], or a DataFrame
                with unique_id and ds as the history has them; a dict by name for several.
            version: The model's version, or an alias of one; the default one where left out.
            progress: True draws a bar on standard error, or in a notebook, that tells how many series are done; it
                takes `statestream[progress]`. A function is called with how many are done and how many there are, at
                first with 0, by whoever made the call; what it raises ends that.

        Returns:
            [h, O] or [N, h, O]: points, of paths their mean. With quantiles [..., O, Q] in their order, with level
            lower and upper bound of each, with samples [S, h, O] or [N, S, h, O]. A dict by name where several values
            are forecast. In a notebook an array shows itself as a fan chart of its first series. For a DataFrame the
            same kind of table, with a column for the model, and for each quantile (`-q-10`), level (`-lo-80`, `-hi-80`)
            and path (`-sample-0`) that was asked for.

        Raises:
            BadTensor: History or future do not fit the model, are too short, or have a gap.
            Unsupported: The model cannot forecast, or says nothing of how sure it is.
            BadFrame: The server forecasts no so many steps, series or paths.
            ValueError: An argument has a value that it cannot have, or two do not go together.
        """
        arguments.check_model(model, version)
        wished = forecasts.wanted(h, quantiles, level, num_samples, seed, samples, bands, until)
        check_progress(progress)

        async def run(layout: Layout) -> Any:
            wish = wished(layout.signature)
            table = dataframes.read_history(layout, history)
            past = table.past if table is not None else Past(*series.history(layout, history))
            series.check_past(layout, past)
            known = None
            if table is not None and future is not None:
                known = dataframes.read_future(layout, table, future, h)
            elif future is not None:
                known = series.future(layout, future, len(past.lengths), h)
            with reporting(progress, f"forecast {model}", len(past.lengths), "series") as tell:
                parts = [part async for part in self._parts_of(layout, wish, version, past, known, tell)]
            told = forecasts.whole(parts, h)
            if table is not None:
                return dataframes.write_forecast(layout, table, wish, told)
            return fans.shown(layout, wish, told, past, forecasts.row(wish, told, 0 if past.alone else None))

        return await self._fitting(model, version, "session", run)

    def forecast_steps(
        self,
        model: str,
        history: Any,
        h: int = 24,
        *,
        quantiles: Sequence[float] | None = None,
        level: Sequence[float] | float | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        future: Any = None,
        samples: bool = False,
        bands: str | None = None,
        until: tuple[str, str, float] | None = None,
        version: int | str | None = None,
    ) -> AsyncIterator[Any]:
        """Forecasts step by step, as the server makes them: nothing runs ahead of who reads.

        Arguments and errors are those of `forecast`; arrays alone, no tables, and what one call may have.

        Yields:
            For each step [O] or [N, O]; with quantiles and samples as `forecast` has them, without the axis of steps.
        """
        arguments.check_model(model, version)
        wished = forecasts.wanted(h, quantiles, level, num_samples, seed, samples, bands, until)
        return self._steps(model, version, history, future, wished)

    async def _steps(
        self,
        model: str,
        version: int | str | None,
        history: Any,
        future: Any,
        wished: Callable[[Signature], forecasts.Wish],
    ) -> AsyncIterator[Any]:
        layout = await self._layout(model, version, "session")
        wish, past = wished(layout.signature), Past(*series.history(layout, history))
        series.check_past(layout, past)
        known = None if future is None else series.future(layout, future, len(past.lengths), wish.h)
        call = forecasts.forecast_call(layout, wish, version, past=past, future=known)
        async for told in answers(self._link, call):
            yield forecasts.row(wish, told, 0 if past.alone else None)

    async def backtest(
        self,
        model: str,
        history: Any,
        h: int = 24,
        step: int | None = None,
        *,
        n_windows: int | None = None,
        quantiles: Sequence[float] | None = None,
        level: Sequence[float] | float | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        samples: bool = False,
        bands: str | None = None,
        version: int | str | None = None,
        progress: Progress = False,
    ) -> Any:
        """Forecasts from many moments of a past, where what came then is known: rolling origin, cross-validation.

        The server walks once through each history, and every forecast is a fork of that walk. Each is what `forecast`
        gives, with the same seed, of a history that ends at its cutoff: nothing that came later is seen, but for
        inputs that are known beforehand, which are in the history.

        Args:
            model: The model's name; as of `forecast`.
            history: As of `forecast`, the inputs that are known beforehand too.
            h: The steps of each forecast.
            step: Steps from one cutoff to the next; h where left out, then no two forecasts overlap.
            n_windows: Forecasts of each series, the last of which ends with it; as many as fit into the shortest where
                left out.
            quantiles: As of `forecast`.
            level: As of `forecast`.
            num_samples: As of `forecast`.
            seed: As of `forecast`.
            samples: As of `forecast`.
            bands: As of `forecast`; only errors that were known at a cutoff are used there.
            version: The model's version, or an alias of one; the default one where left out.
            progress: As of `forecast`; each window of each series counts.

        Returns:
            For a DataFrame the same kind of table, with Nixtla's columns: unique_id where the history has it, ds,
            cutoff (the last ds before the forecast), y, and those of `forecast`. For arrays a `Backtest`: cutoffs
            [N, W], y [N, W, h, O], forecast [N, W, h, O] (or as `forecast` has quantiles and samples); of one series
            without N.

        Raises:
            BadTensor: The history does not fit the model, has a gap, or is too short for so many; names the series.
            Unsupported: The model cannot forecast, says nothing of how sure it is, or not which input it forecasts.
            BadFrame: The server forecasts no so many steps or paths.
            ValueError: An argument has a value that it cannot have, or two do not go together.
        """
        arguments.check_model(model, version)
        wished = forecasts.wanted(h, quantiles, level, num_samples, seed, samples, bands, None)
        driven.check_windows(step, n_windows)
        check_progress(progress)

        async def run(layout: Layout) -> Any:
            wish = wished(layout.signature)
            backtests.truths(layout)
            table = dataframes.read_history(layout, history)
            past = table.past if table is not None else Past(*series.history(layout, history))
            series.check_past(layout, past)
            cutoffs = backtests.moments(layout, past, wish, step or h, n_windows)
            limits = self._link.state.info.limits
            calls = backtests.backtest_calls(layout, wish, version, past, cutoffs, limits)
            done, parts = 0, list[list[forecasts.Told]]()
            with reporting(progress, f"backtest {model}", cutoffs.size, "forecasts") as tell:
                for call in calls:
                    parts.append(await self._told(call, h, done, tell))
                    done += parts[-1][0].series
            return backtests.outcome(layout, wish, past, cutoffs, forecasts.whole(parts, h), table)

        return await self._fitting(model, version, "session", run)

    async def _parts_of(
        self,
        layout: Layout,
        wish: forecasts.Wish,
        version: int | str | None,
        past: Past,
        known: Mapping[str, Array] | None,
        tell: Tell | None,
    ) -> AsyncIterator[list[forecasts.Told]]:
        """The steps of some series after the other: as many as fit into one call."""
        sizes = np.zeros(len(past.lengths), np.int64)
        for array in past.inputs.values():
            sizes += past.lengths * (array.nbytes // max(1, len(array)))
        for array in (known or {}).values():
            sizes += array.nbytes // len(array)
        for low, high in forecasts.cuts(self._link.state.info.limits, wish, sizes, layout):
            part = past if high - low == len(sizes) else past.some(np.arange(low, high))
            mine = {name: array[low:high] for name, array in (known or {}).items()}
            call = forecasts.forecast_call(
                layout, wish, version, past=part, series=np.arange(low, high), future=mine or None
            )
            yield await self._told(call, wish.h, low, tell)

    async def _told(
        self, call: StreamCall[forecasts.Told], h: int, done: int, tell: Tell | None
    ) -> list[forecasts.Told]:
        """The steps of a call; `done` forecasts were made before it."""
        found = list[forecasts.Told]()
        async for told in answers(self._link, call):
            found.append(told)
            if tell is not None:
                tell(done + told.series * len(found) // h)
        if tell is not None and found:
            tell(done + found[0].series)  # They may have ended before the horizon.
        return found
