"""Metrics for Prometheus, read from the rooms when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from statestream_server.engine.scheduler import Scheduler, Statistics, Why
from statestream_server.server import Server


class ServerCollector(Collector):
    """Reads a server's figures."""

    def __init__(self, server: Server) -> None:
        """Reads `server`."""
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        engine = self._server.engine
        statistics = engine.statistics
        for name, text, value in (
            ("batches", "Batches run", statistics.batches),
            ("steps", "Steps run", statistics.steps),
            ("failed_chunks", "Chunks that were not applied", statistics.failed),
            ("threaded_batches", "Batches that ran on the engine's thread", statistics.threaded),
            ("model_seconds", "Seconds spent running models", statistics.seconds),
        ):
            yield CounterMetricFamily(f"statestream_{name}", text, value=value)
        yield from _batches(statistics)
        yield from _classes(engine.scheduler)
        about = {"device": self._server.device, "fingerprint": self._server.fingerprint}
        yield InfoMetricFamily("statestream_runtime", "Where models run, and what their bits depend on", about)
        yield GaugeMetricFamily("statestream_queued_chunks", "Chunks that wait or run", value=engine.queued)
        yield GaugeMetricFamily(
            "statestream_queued_bytes", "Bytes of chunks that wait or run", value=engine.queued_bytes
        )
        yield GaugeMetricFamily("statestream_streams", "Connected streams", value=len(self._server.streams))
        yield GaugeMetricFamily("statestream_handles", "Handles of all streams", value=self._server.streams.handles)
        lag, turns = self._server.lag, self._server.turns
        yield _histogram("loop_lag_seconds", "How late wake-ups of the event loop were", lag.counts, 1e-3, lag.total)
        yield GaugeMetricFamily("statestream_loop_lag_most_seconds", "The latest wake-up so far", value=lag.most)
        for name, value in (("rows", turns.rows), ("errors", turns.errors), ("bytes", turns.nbytes)):
            text = f"The most {name} that one turn of the event loop had to do with so far"
            yield GaugeMetricFamily(f"statestream_turn_most_{name}", text, value=value)
        if self._server.connected is not None:
            connections, calls = self._server.connected()
            yield GaugeMetricFamily("statestream_edge_connections", "Connections to the gRPC port", value=connections)
            yield GaugeMetricFamily("statestream_edge_calls", "Calls and streams on them", value=calls)
        accounts = self._server.accounts
        yield GaugeMetricFamily("statestream_stream_bytes", "Bytes under way on streams", value=accounts.held)
        yield GaugeMetricFamily(
            "statestream_waiting_streams", "Streams that are not read because of them", value=len(accounts.waiting)
        )
        failures = self._server.checkpointer.failures
        yield GaugeMetricFamily("statestream_store_failures", "Failed saves since the last good one", value=failures)
        lease = self._server.lease
        yield GaugeMetricFamily("statestream_held_replies", "Replies that wait for the store", value=lease.holding)
        yield CounterMetricFamily("statestream_fenced_sessions", "Sessions found to have moved", value=lease.fenced)
        yield CounterMetricFamily("statestream_store_resets", "Times the store was emptied", value=lease.resets)
        yield CounterMetricFamily(
            "statestream_foreign_records",
            "Sessions taken over from another runtime or device",
            value=self._server.sessions.placement.foreign,
        )
        sessions = GaugeMetricFamily("statestream_sessions", "Sessions in memory", labels=["model", "version"])
        dirty = GaugeMetricFamily(
            "statestream_dirty_sessions", "Sessions the store is behind of", labels=["model", "version"]
        )
        rows = GaugeMetricFamily(
            "statestream_rows", "Rows in use: sessions, shadows and forks", labels=["model", "version"]
        )
        replies = GaugeMetricFamily(
            "statestream_kept_replies", "Replies that are not acknowledged yet", labels=["model", "version"]
        )
        for served in self._server.registry:
            if served.table is not None:
                labels = [served.model.name, str(served.model.version)]
                sessions.add_metric(labels, served.table.sessions)
                dirty.add_metric(labels, int(served.table.dirty.sum()))
                rows.add_metric(labels, served.table.allocated)
                replies.add_metric(labels, served.table.replies.entries)
        yield from (sessions, dirty, rows, replies)


def _batches(statistics: Statistics) -> Iterator[Metric]:
    """Batches by why they were not larger, by size, and by how long their oldest work waited."""
    reasons = CounterMetricFamily("statestream_batch_reasons", "Batches by why they were not larger", labels=["reason"])
    for why in Why:
        reasons.add_metric([why.name.lower()], statistics.why[why])
    yield reasons
    yield _histogram("batch_rows", "Rows of batches", statistics.sizes, 1.0, statistics.rows)
    yield _histogram(
        "batch_wait_seconds", "Since a batch's oldest work came", statistics.waits, 1e-6, statistics.waited
    )


def _histogram(name: str, text: str, counts: Sequence[int], unit: float, total: float) -> Metric:
    """Counts by powers of two of a unit; the last one is open."""
    below, buckets = 0, list[tuple[str, float]]()
    for exponent, count in enumerate(counts[:-1]):
        below += count
        buckets.append((f"{unit * 2**exponent:.6g}", below))
    buckets.append(("+Inf", below + counts[-1]))
    return HistogramMetricFamily(f"statestream_{name}", text, buckets=buckets, sum_value=total)


def _classes(scheduler: Scheduler) -> Iterator[Metric]:
    """What each class of work had of the engine."""
    batches = CounterMetricFamily("statestream_class_batches", "Batches of a class of work", labels=["class"])
    seconds = CounterMetricFamily("statestream_class_seconds", "Seconds that they ran", labels=["class"])
    for priority, share in scheduler.had.items():
        batches.add_metric([priority.name.lower()], share.batches)
        seconds.add_metric([priority.name.lower()], share.seconds)
    yield from (batches, seconds)
