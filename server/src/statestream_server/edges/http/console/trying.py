"""Trying models: predict, step, forecast and generate from a form, with values as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import Signature, forecast_values
from statestream_server import caller
from statestream_server.arrays import Array
from statestream_server.drivers.asking import Request as Forecast
from statestream_server.drivers.asking import State
from statestream_server.drivers.bands import Past
from statestream_server.drivers.decoding import Sampling
from statestream_server.drivers.generate import Request as Text
from statestream_server.edges.http.console import door, models, values
from statestream_server.engine.table import UNBOUND
from statestream_server.engine.watch import tag_of
from statestream_server.server import Server
from statestream_server.stores.base import Mode

_MOST_VERSION: Final = (1 << 63) - 1
_MOST_STEPS: Final = 1000
"""Of a forecast, as many as a chart can show."""
_MOST_SAMPLES: Final = 500
_MOST_NUMBERS: Final = 1 << 16
"""Numbers of an answer: a page shows no more."""


def _asked_model(asked: Mapping[str, Any]) -> tuple[str, int]:
    return values.text(asked, "model"), values.whole(asked, "version", 0, _MOST_VERSION, 0)


async def predict(server: Server, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a model without memory.

    Raises:
        StatestreamError: It cannot.
    """
    server.budgets.predictions.check()
    model = server.predictor.model(*_asked_model(asked))
    wanted = server.predictor.asked(model, ())
    inputs = values.graph_inputs(model.signature.inputs, asked)
    outputs = await server.predictor.predict(wanted, inputs)
    names = [spec.name for spec in wanted.specs]
    return {"version": model.version, "outputs": _shown(names, outputs)}


async def step(server: Server, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Applies steps to a session, which is made if there is none; they are durable when this returns.

    Raises:
        StatestreamError: They were not applied; one that a client's stream has is left to it.
    """
    model, version = _asked_model(asked)
    key = caller.key(model, values.text(asked, "id"))
    here = server.sessions.find(key)
    if here is not None and int(here[0].owner[here[1]]) != UNBOUND:
        raise errors.Unsupported(
            f"session {errors.quoted(key.id)} is open in a client, which would lose it by a step from here: fork it and"
            " step the copy"
        )
    target = await server.unary.target(key, version, Mode.EITHER)
    steps, inputs = values.steps_of(target.table.model.signature.inputs, asked)
    server.unary.check_steps(steps)
    for spec, array in zip(target.table.model.signature.inputs, inputs, strict=True):
        if len(array) != steps:
            raise errors.BadTensor(f"input {spec.name!r} has {len(array)} steps; expected {steps}, as the first one")
    found = await server.unary.step(target, key, steps, inputs, position=None, acked=0, request_id="")
    names = [spec.name for spec in target.table.answers[: len(found.outputs)]]
    return {
        "version": target.table.model.version,
        "position": found.position,
        "durable": found.durable,
        "outputs": _shown(names, found.outputs),
    }


def _shown(names: list[str], outputs: Any) -> dict[str, Any]:
    if sum(array.size for array in outputs) > _MOST_NUMBERS:
        raise errors.AnswerTooLarge(f"the outputs have more than {_MOST_NUMBERS:,} numbers; use a client for so many")
    return {name: values.plain(array) for name, array in zip(names, outputs, strict=True)}


async def forecast(server: Server, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Forecasts from a session, which does not move, or from a history.

    Raises:
        StatestreamError: It cannot.
    """
    server.budgets.forecasts.check()
    name, version = _asked_model(asked)
    wanted = Forecast(
        horizon=values.whole(asked, "horizon", 1, _MOST_STEPS),
        samples=values.whole(asked, "samples", 0, _MOST_SAMPLES, 0),
        seed=values.whole(asked, "seed", 0, (1 << 64) - 1, 0),
        quantiles=tuple(values.numbers(asked, "quantiles", 16)),
    )
    forecaster = server.forecaster
    forecaster.check(wanted)
    if "history" in asked:
        table = await server.sessions.table(name, version)
        wanted = _with_future(table.model.signature, asked, wanted)
        steps, inputs = values.steps_of(table.model.signature.inputs, asked, "history")
        if any(len(array) != steps for array in inputs):
            raise errors.BadTensor("the inputs of the history differ in steps", metadata={"field": "history"})
        told = forecaster.from_history(table, Past(inputs, np.asarray([steps], np.int64)), wanted)
    else:
        key = caller.key(name, values.text(asked, "id"))
        copies = await server.copies.read_all([key], [0], version=version)
        table = copies[0].table
        wanted = _with_future(table.model.signature, asked, wanted)
        position, origin = (np.asarray([each], np.uint64) for each in (copies[0].position, copies[0].origin))
        forecaster.check_begun(table, position, origin, [key.id])
        columns = [column[None] for column in copies[0].values[: len(table.dense_columns)]]
        told = forecaster.from_state(table, State(columns, np.asarray([tag_of("forecast", *key)], np.uint64)), wanted)
    names = [value.name for value in forecast_values(table.model.signature)]
    points: dict[str, list[Any]] = {value: [] for value in names}
    bands: dict[str, list[Any]] = {}
    count = 0
    async with aclosing(told):
        async for part in told:
            count += sum(array.size for array in [*part.points, *part.quantiles.values()])
            if count > _MOST_NUMBERS:
                raise errors.AnswerTooLarge(
                    f"the forecast has more than {_MOST_NUMBERS:,} numbers; ask for fewer steps"
                )
            for value, array in zip(names, part.points, strict=True):
                points[value] += values.plain(array[0])
            for value, array in part.quantiles.items():
                bands.setdefault(value, []).extend(values.plain(array[0]))
    return {"version": table.model.version, "quantiles": list(wanted.quantiles), "points": points, "bands": bands}


def _with_future(signature: Signature, asked: Mapping[str, Any], wanted: Forecast) -> Forecast:
    """A forecast with what is known beforehand, by input."""
    came, specs = asked.get("future") or {}, {spec.name: spec for spec in signature.inputs}
    if not isinstance(came, dict) or not came.keys() <= specs.keys():
        raise values.wrong("future", came, f"an object with some of {', '.join(specs)}")
    found = dict[str, Array]()
    for name, value in came.items():
        shape = models.future_shape(signature, specs[name])
        if shape is None:
            raise values.wrong("future", name, "inputs that the forecast does not feed itself")
        found[name] = values.future_of(specs[name], value, wanted.horizon, shape)
    return replace(wanted, future=found)


async def generate(server: Server, asked: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
    """Decodes a text: a line of JSON for each token as it comes, then one for its end, or for an error."""
    try:
        async with aclosing(_tokens(server, asked)) as tokens:
            async for told in tokens:
                yield json.dumps(told).encode() + b"\n"
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        yield json.dumps({"error": door.said(door.told(error))}).encode() + b"\n"


async def _tokens(server: Server, asked: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    model, table = server.generator.model(*_asked_model(asked))
    way = None
    temperature = values.numbers({"temperature": [asked.get("temperature", 0)]}, "temperature", 1)[0]
    if temperature:
        way = Sampling(temperature, seed=values.whole(asked, "seed", 0, (1 << 64) - 1, 0))
    tokens = asked.get("tokens")
    source: Any = values.text(asked, "text", "")
    if tokens is not None:
        if not isinstance(tokens, list) or not all(type(each) is int and abs(each) < 1 << 62 for each in tokens):
            raise values.wrong("tokens", tokens, "a list of whole numbers")
        source = np.asarray(tokens, np.int64)
    wanted = Text([source], values.whole(asked, "most", 0, 1 << 20, 0), way, stream=True)
    server.generator.check(wanted)
    speller = model.writes.speller() if model.writes is not None else None
    total, count = 0.0, 0
    async with aclosing(server.generator.generate(model, table, wanted)) as steps:
        async for told in steps:
            if told.token is not None:
                total, count = total + float(told.token.log_prob), count + 1
                number = int(told.token.number)
                text = speller.add(number) if speller is not None else f"{number} "
                yield {"token": number, "text": text, "log_probability": float(told.token.log_prob)}
    yield {"tokens": count, "log_probability": total}
