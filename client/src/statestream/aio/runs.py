"""What an asyncio client has run without a session: predictions, forecasts, texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from statestream import arguments, causes, dataframes, unary
from statestream.aio.calling import answer, answers
from statestream.aio.catalogue import Catalogue
from statestream.contract.errors import NonFiniteState
from statestream.layout import Input, Layout


class Runs(Catalogue):
    """The part of a client that runs models without a session of its own."""

    async def predict(
        self, model: str, x: Input, *, outputs: Sequence[str] | None = None, version: int | None = None
    ) -> Any:
        """Runs a model without memory once.

        Args:
            model: The model's name.
            x: The model's input [B, …]; a dict by name where it has several.
            outputs: The names of the outputs wanted; all where left out.
            version: The model's version; the default one where left out.

        Returns:
            The output; a dict by name where there are several.

        Raises:
            BadTensor: Wrong name, dtype or shape.
            Unsupported: The model has memory: use a session.
        """
        arguments.check_model(model, version)
        wanted = arguments.check_outputs(outputs)
        limits = self._link.state.info.limits

        async def run(layout: Layout) -> Any:
            return await answer(self._link, unary.predict(layout, x, wanted, version, limits))

        return await self._fitting(model, version, "predict", run)

    async def forecast(
        self,
        model: str,
        history: Any,
        h: int = 24,
        *,
        quantiles: Sequence[float] | None = None,
        level: Sequence[float] | None = None,
        version: int | None = None,
    ) -> Any:
        """Forecasts h steps from past ones.

        Args:
            model: The model's name; its signature must name a feedback.
            history: [T, F], [N, T, F], or [T] for one feature; or a DataFrame (pandas, polars) with the model's
                columns, a row a step, in any order (y will do for a single one). With a column unique_id it has
                several series, with a column ds their times; rows are put in the order of those.
            h: The number of steps.
            quantiles: Not served; must be left out.
            level: Not served; must be left out.
            version: The model's version; the default one where left out.

        Returns:
            [h, O] or [N, h, O]; a DataFrame for a DataFrame.

        Raises:
            BadTensor: The history does not fit the model.
            Unsupported: The model cannot forecast, or intervals were asked for.
        """
        arguments.check_forecast(model, h, quantiles, level, version)

        async def run(layout: Layout) -> Any:
            table = dataframes.read_history(layout, history)
            if table is not None:
                found = [
                    await self._forecast(layout, version, h, group.inputs, alone=False, names=group.names)
                    for group in table.groups
                ]
                first = [next(iter(one.values())) if isinstance(one, dict) else one for one in found]
                return dataframes.write_forecast(layout, table, first, h)
            inputs, alone = layout.history(history)
            return await self._forecast(layout, version, h, inputs, alone=alone)

        return await self._fitting(model, version, "session", run)

    def generate(
        self, model: str, text: str, *, max_tokens: int | None = None, version: int | None = None
    ) -> AsyncIterator[str]:
        """Encodes a text and yields the symbols of the answer as the server decodes them.

        Raises:
            InvalidRequest: A symbol is not in the model's vocabulary.
            Unsupported: The model is no encoder-decoder.
        """
        return answers(self._link, unary.generate(model, text, max_tokens, version))

    async def _forecast(
        self,
        layout: Layout,
        version: int | None,
        h: int,
        inputs: Mapping[str, Any],
        *,
        alone: bool,
        names: Sequence[Any] | None = None,
    ) -> Any:
        call = unary.forecast_history(layout, version, h, inputs, self._link.state.info.limits, alone=alone)
        try:
            return await answer(self._link, call)
        except NonFiniteState as error:
            raise causes.of_history(layout, error, inputs, names) from error
