"""What the HTTP port of several processes says of all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from statestream.contract import errors
from statestream_server.channel import Gone

SILENT_SECONDS: Final = 30.0
"""A worker that said nothing for so long does not live."""
_METRICS_SECONDS: Final = 2.0


class Worker(Protocol):
    """A worker as its first process sees it.

    Attributes:
        index: Its number.
        restarts: How often it was started again.
        reason: Why it does not serve, "" where it does.
        heard: When it last said something, on the monotonic clock; None where it is not up yet.
    """

    index: int
    restarts: int
    reason: str
    heard: float | None

    async def ask(self, what: str, **fields: Any) -> Any:
        """Asks it; raises `Gone` where it ended."""


class WorkersPages:
    """See `edges.http.port.Pages`."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        """Of some workers, which may come and go."""
        self._workers = workers
        self._complete = False
        self.refused = 0
        """Connections to the HTTP port that were one too many."""

    def lives(self) -> tuple[bool, str]:
        """No worker hangs; one that ended is started again, and is no reason to end the others."""
        now = time.monotonic()
        silent = [one for one in self._workers if one.heard is not None and now - one.heard > SILENT_SECONDS]
        if silent:
            which = ", ".join(str(one.index) for one in silent)
            return False, f"worker {which} of {len(self._workers)} has not answered for {SILENT_SECONDS:.0f} s"
        return True, "alive"

    def serves(self) -> tuple[bool, str]:
        """All workers have come up once, and one of them serves: each takes its part of the connections."""
        away = [one for one in self._workers if one.reason]
        self._complete = self._complete or not away
        said = f"{len(self._workers) - len(away)} of {len(self._workers)} workers"
        said += "".join(f"; worker {one.index}: {one.reason}" for one in away)
        good = self._complete and len(away) < len(self._workers)
        return good, f"{'ready' if good else 'not ready'}: {said}"

    async def metrics(self) -> bytes:
        """The figures of every worker, with its number as the label `worker`; of those that ended there are none."""
        found = await asyncio.gather(*map(_metrics, self._workers))
        registry = CollectorRegistry()
        together = _together(zip(self._workers, found, strict=True))
        for metric in together:
            if metric.name == "statestream_refused_connections":
                # This process has the port; theirs is a Unix socket between it and them.
                metric.add_sample(f"{metric.name}_total", {"door": "http", "worker": ""}, self.refused)
        registry.register(_Found([*self._own(found), *together]))
        return generate_latest(registry)

    def _own(self, found: Sequence[list[Any] | None]) -> Iterator[Metric]:
        up = GaugeMetricFamily("statestream_worker_up", "Whether a worker answers and serves", labels=["worker"])
        restarts = CounterMetricFamily(
            "statestream_worker_restarts", "How often a worker was started again", labels=["worker"]
        )
        for worker, figures in zip(self._workers, found, strict=True):
            up.add_metric([str(worker.index)], float(figures is not None and not worker.reason))
            restarts.add_metric([str(worker.index)], worker.restarts)
        yield from (up, restarts)


class _Found(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def _metrics(worker: Worker) -> list[Any] | None:
    try:
        async with asyncio.timeout(_METRICS_SECONDS):
            found: list[Any] = await worker.ask("metrics")
            return found
    except (Gone, TimeoutError, errors.StatestreamError):
        return None


def _together(found: Iterable[tuple[Worker, list[Any] | None]]) -> list[Metric]:
    """One metric a name, with the samples of all workers."""
    metrics: dict[str, Metric] = {}
    for worker, figures in found:
        for name, text, kind, samples in figures or ():
            metric = metrics.setdefault(name, Metric(name, text, kind))
            for sample, labels, value in samples:
                metric.add_sample(sample, {**labels, "worker": str(worker.index)}, value)
    return list(metrics.values())
