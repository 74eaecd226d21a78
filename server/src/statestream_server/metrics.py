"""Metrics for Prometheus, read from the rooms when somebody asks; the hot path counts nothing for them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

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
            ("batch_rows", "Rows in batches", statistics.rows),
            ("steps", "Steps run", statistics.steps),
            ("failed_chunks", "Chunks that were not applied", statistics.failed),
            ("capped_batches", "Batches cut by the time limit", statistics.capped),
            ("model_seconds", "Seconds spent running models", statistics.seconds),
        ):
            yield CounterMetricFamily(f"statestream_{name}", text, value=value)
        about = {"device": self._server.device, "fingerprint": self._server.fingerprint}
        yield InfoMetricFamily("statestream_runtime", "Where models run, and what their bits depend on", about)
        yield GaugeMetricFamily("statestream_queued_chunks", "Chunks that wait or run", value=engine.queued)
        yield GaugeMetricFamily(
            "statestream_queued_bytes", "Bytes of chunks that wait or run", value=engine.queued_bytes
        )
        yield GaugeMetricFamily("statestream_streams", "Connected streams", value=len(self._server.peers))
        yield GaugeMetricFamily("statestream_handles", "Handles of all streams", value=self._server.peers.handles)
        failures = self._server.saver.failures
        yield GaugeMetricFamily("statestream_store_failures", "Failed saves since the last good one", value=failures)
        contact = self._server.contact
        yield GaugeMetricFamily("statestream_held_replies", "Replies that wait for the store", value=contact.holding)
        yield CounterMetricFamily("statestream_fenced_sessions", "Sessions found to have moved", value=contact.fenced)
        yield CounterMetricFamily("statestream_store_resets", "Times the store was emptied", value=contact.resets)
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
