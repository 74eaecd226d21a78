"""What is asked of a forecast, the call that asks it, and what its answers come to. Pure, for both twins."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from statestream import driven
from statestream.arguments import naming
from statestream.contract.errors import BadTensor, ServerUnavailable, Unsupported
from statestream.contract.signature import HeadKind, Signature, forecast_outputs, numpy_dtype, row_shape, step_shape
from statestream.contract.tensors import Array, Ints, from_tensor, to_tensor
from statestream.layout import Layout
from statestream.series import Past, check_past, history
from statestream.unary import StreamCall
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from statestream.v1.server_pb2 import Limits

SAMPLES = 200
"""Paths that are drawn where quantiles are asked for and nothing else is said."""
_ROOM = 5 << 18
"""What a request may have beside its arrays; of a start a server keeps 1 MiB free."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a forecast, beside where it starts.

    Attributes:
        h: Steps.
        quantiles: Those that are asked for, in the order in which they are given.
        labels: What a column of each is called, behind the name of its value.
        samples: Whether the paths themselves are wanted.
        num_samples: Paths of each series.
        seed: What draws begin with.
        conformal: Whether quantiles are made of past errors.
        until: When series end before the horizon; None for never.
    """

    h: int
    quantiles: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    samples: bool = False
    num_samples: int = 0
    seed: int = 0
    conformal: bool = False
    until: pb.ForecastStop | None = None


class Told(NamedTuple):
    """One step of a forecast, of N series: by value [N, ...one step], with quantiles [..., Q], paths [N, S, ...]."""

    points: dict[str, Array]
    quantiles: dict[str, Array]
    samples: dict[str, Array]

    @property
    def series(self) -> int:
        """Of how many series it is, or how many forecasts of them."""
        return len(next(iter(self.points.values())))


def wanted(
    h: int,
    quantiles: Sequence[float] | None,
    level: Sequence[float] | float | None,
    num_samples: int | None,
    seed: int | None,
    samples: bool,
    bands: str | None,
    until: tuple[str, str, float] | None,
) -> Callable[[Signature], Wish]:
    """What gives the wish that these arguments are, by a model's signature; they are checked now.

    It raises Unsupported where the model has no distribution to draw from, and bands of its past errors were not asked
    for.

    Raises:
        TypeError, ValueError: An argument is wrong, or two do not go together.
    """
    driven.check_forecast(h, quantiles, level, num_samples, seed, samples, bands, until)
    levels, labels = _levels(quantiles, level)
    conformal = bands == "conformal"

    def wish(signature: Signature) -> Wish:
        drawn = [head for head in signature.heads if head.kind != HeadKind.HEAD_KIND_QUANTILES]
        if not conformal and (levels or samples or num_samples) and not signature.heads:
            raise Unsupported(
                "the model has no head, so it says nothing of how sure it is: leave out quantiles, level and samples,"
                ' or ask for bands="conformal", which are made of its own past errors'
            )
        paths = 0
        if not conformal and drawn and (levels or samples or num_samples):
            paths = SAMPLES if num_samples is None else num_samples
        elif num_samples and not conformal:
            paths = num_samples
        draws = seed if seed is not None else secrets.randbits(64) if paths else 0
        return Wish(h, levels, labels, samples, paths, draws, conformal, _stop(signature, until))

    return wish


def asked(
    layout: Layout,
    h: int,
    quantiles: Sequence[float] | None,
    level: Sequence[float] | float | None,
    num_samples: int | None,
    seed: int | None,
    samples: bool,
    bands: str | None,
    until: tuple[str, str, float] | None,
    count: int,
    past: Any,
) -> tuple[Wish, Past | None]:
    """What is asked of a forecast from `count` sessions, and their past where errors are taken from it.

    Raises:
        TypeError, ValueError: An argument is wrong, or two do not go together.
        BadTensor: The past does not fit the model, or is of other series.
    """
    wished = wanted(h, quantiles, level, num_samples, seed, samples, bands, until)
    if past is None and bands == "conformal":
        raise ValueError(
            'bands="conformal" are made of past errors, and the server keeps no inputs of sessions: give past= as well,'
            " the inputs that they took. Of a table: client.forecast(model, table, h=…, level=…, bands=…)"
        )
    if past is not None and bands != "conformal":
        raise ValueError('past= is of use for bands="conformal" alone; expected both or neither')
    wish = wished(layout.signature)
    if past is None:
        return wish, None
    inputs = Past(*history(layout, past))
    if len(inputs.lengths) != count:
        raise BadTensor(
            f"past is of {len(inputs.lengths)} series; expected {count}, one for each session",
            metadata={"field": "past"},
        )
    check_past(layout, inputs)
    return wish, inputs


def _levels(
    quantiles: Sequence[float] | None, level: Sequence[float] | float | None
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The quantiles that are asked for, and what their columns are called, after Nixtla's."""
    if quantiles is not None:
        return tuple(map(float, quantiles)), tuple(f"-q-{100 * q:g}" for q in quantiles)
    if level is None:
        return (), ()
    levels = [float(one) for one in np.atleast_1d(np.asarray(level, np.float64))]
    tails = [(50 - one / 2) / 100 for one in levels]
    found = tuple(q for tail in tails for q in (tail, 1 - tail))
    return found, tuple(f"-{side}-{one:g}" for one in levels for side in ("lo", "hi"))


def _stop(signature: Signature, until: tuple[str, str, float] | None) -> pb.ForecastStop | None:
    if until is None:
        return None
    name, how, bound = until
    place = 0
    output, _, column = name.partition(".")
    spec = next((spec for spec in signature.outputs if spec.name == output), None)
    if column:
        known = list(spec.columns) if spec is not None else []
        if column not in known:
            raise ValueError(
                f"until names {column!r} of {output!r}; expected one of {', '.join(known) or 'no columns'}"
            )
        place = known.index(column)
    return pb.ForecastStop(output=output, place=place, bound=bound, below=how == "<=")


@dataclass(slots=True)
class _Going:
    """A forecast under way: its request, as it is made next."""

    request: pb.ForecastRequest
    started: bool = False

    def read(self, message: pb.ForecastResponse) -> list[Told]:
        """The steps of a message."""
        if message.HasField("start") and not self.started:
            self.started = True
            if message.start.columns:
                self.request.start.CopyFrom(message.start)
            # What goes on elsewhere goes on with the same model.
            self.request.version, self.request.digest = message.start.version, message.start.digest
            self.request.alias = ""
        points = {tensor.name: from_tensor(tensor) for tensor in message.outputs}
        quantiles = {tensor.name: from_tensor(tensor) for tensor in message.quantiles}
        samples = {tensor.name: from_tensor(tensor) for tensor in message.samples}
        count = next(iter(points.values())).shape[1] if points else 0
        return [
            Told(
                {name: array[:, step] for name, array in points.items()},
                {name: array[:, step] for name, array in quantiles.items()},
                {name: array[:, :, step] for name, array in samples.items()},
            )
            for step in range(count)
        ]

    def again(self, done: int) -> int:
        """Makes the request one for the steps behind those that came."""
        if done and self.request.WhichOneof("source") in ("session_id", "sessions"):
            raise ServerUnavailable(
                f"the server left after {done} steps of the forecast; where it started is too large to be sent to"
                " another: ask for fewer sessions at a time"
            )
        self.request.from_step = done
        return 0


def forecast_call(
    layout: Layout,
    wish: Wish,
    version: int | str | None,
    *,
    past: Past | None = None,
    sessions: Sequence[str] | None = None,
    series: Ints | None = None,
    future: Mapping[str, Array] | None = None,
    cutoffs: Ints | None = None,
) -> StreamCall[Told]:
    """A forecast from histories, or from sessions: then `past` is what errors are taken from.

    Args:
        layout: The model's.
        wish: What is asked.
        version: Of the model, or an alias of one; None for the default, or the sessions' own.
        past: Past inputs.
        sessions: The sessions' ids.
        series: [N] the numbers of the series, where they are not 0, 1, ….
        future: What is known beforehand, by input [N, h, ...].
        cutoffs: [N, W] after how many steps of the histories forecasts start; behind the last where left out.
    """
    request = pb.ForecastRequest(
        model=layout.model.name,
        **naming(version),
        horizon=wish.h,
        num_samples=wish.num_samples,
        seed=wish.seed,
        quantiles=wish.quantiles,
        return_samples=wish.samples,
        bands=pb.FORECAST_BANDS_CONFORMAL if wish.conformal else pb.FORECAST_BANDS_UNSPECIFIED,
        stop=wish.until,
        series=b"" if series is None else series.astype("<u8").tobytes(),
        cutoffs=b"" if cutoffs is None else cutoffs.astype("<u4").tobytes(),
    )
    if sessions is not None and len(sessions) == 1:
        request.session_id = sessions[0]
    elif sessions is not None:
        request.sessions.ids.extend(sessions)
    if past is not None:
        history = request.history if sessions is None else request.past
        count, steps = len(past.lengths), int(past.lengths[0])
        alike = bool((past.lengths == steps).all())
        if not alike:
            history.lengths = past.lengths.astype("<u4").tobytes()
        history.inputs.extend(
            to_tensor(name, array.reshape(count, steps, *array.shape[1:]) if alike else array)
            for name, array in past.inputs.items()
        )
    request.future.extend(to_tensor(name, array) for name, array in (future or {}).items())
    going = _Going(request)
    return StreamCall(
        lambda channel: inference_pb2_grpc.InferenceServiceStub(channel).Forecast, request, going.read, going.again
    )


def cuts(limits: Limits, wish: Wish, sizes: Array, layout: Layout, windows: int = 1) -> Iterator[tuple[int, int]]:
    """How many series are asked for in one call: as many as fit into a message, and as rows into the server.

    Args:
        limits: The server's.
        wish: What is asked.
        sizes: [N] the bytes that each series takes in a request.
        layout: The model's.
        windows: Forecasts of each series.

    Raises:
        BadTensor: One series alone is larger than what the server takes.
    """
    most = max(1, (limits.max_forecast_series or len(sizes) * windows) // windows)
    if limits.max_driven_rows:
        most = min(most, max(1, limits.max_driven_rows // (windows * max(1, wish.num_samples))))
    room = (limits.max_message_bytes or 1 << 62) - _ROOM
    if len(sizes) and int(sizes.max()) > room:
        raise BadTensor(
            f"series {int(sizes.argmax())} has {int(sizes.max()):,} bytes; this server takes at most"
            f" {limits.max_message_bytes:,} in one request to model {layout.model.name!r}. Send less of its past, or"
            " raise its --max-message-bytes.",
            metadata={"field": layout.names[0], "limit": str(limits.max_message_bytes)},
        )
    low = total = 0
    for place, size in enumerate(sizes.tolist()):
        if place > low and (place - low >= most or total + size > room):
            yield low, place
            low, total = place, 0
        total += size
    yield low, len(sizes)


def row(wish: Wish, told: Told, series: int | None = None) -> Any:
    """One step as callers have it: [N, O], or quantiles [N, O, Q], or samples [N, S, O]; of one series without N."""
    found = told.samples if wish.samples else told.quantiles if wish.quantiles else told.points
    arrays = found if series is None else {name: array[series] for name, array in found.items()}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def whole(parts: Sequence[Sequence[Told]], h: int) -> Told:
    """All steps of all series: by value [N, h, ...], with quantiles [..., Q], paths [N, S, h, ...].

    Behind the end of series that all ended before the horizon stands NaN, or 0 in whole numbers.
    """

    def stacked(part: Sequence[Told], kind: int, name: str, axis: int) -> Array:
        arrays = [step[kind][name] for step in part]
        if len(arrays) < h:
            arrays += [np.full_like(arrays[0], np.nan if arrays[0].dtype.kind == "f" else 0)] * (h - len(arrays))
        return np.stack(arrays, axis)

    def joined(kind: int, axis: int) -> dict[str, Array]:
        return {name: np.concatenate([stacked(part, kind, name, axis) for part in parts]) for name in parts[0][0][kind]}

    return Told(joined(0, 1), joined(1, 1), joined(2, 2))


def reordered(told: Told, rows: Ints) -> Told:
    """The same in the order of `rows` [N], which say whose each is."""
    order = np.argsort(rows, kind="stable")
    return Told(*({name: array[order] for name, array in kind.items()} for kind in told))


def start_bytes(layout: Layout) -> int:
    """What a session's row has, which is where its forecast starts."""
    states = sum(
        numpy_dtype(spec.dtype).itemsize * max(1, math.prod(row_shape(spec))) for spec in layout.signature.states
    )
    outputs = {spec.name: spec for spec in layout.signature.outputs}
    kept = [outputs[name] for name in forecast_outputs(layout.signature)]
    return states + sum(numpy_dtype(spec.dtype).itemsize * max(1, math.prod(step_shape(spec))) for spec in kept)
