"""Metrics for Prometheus, read from the rooms when somebody asks; families.py says what each means."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any, Final

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from statestream_server.edges.http import families
from statestream_server.edges.http.families import Family
from statestream_server.engine.scheduler import Statistics, Why
from statestream_server.server import Server

_TYPES: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_OWN: Final = chain.from_iterable(group for group in families.GROUPS.values() if group is not families.WORKERS)
_FAMILIES: Final = {family.name: family for family in _OWN}
_MOST_TENANTS: Final = 64
_OTHERS: Final = "*"
"""In place of the tenants beyond these; no tenant is called so."""


class _Samples:
    """Metrics as they are read: every family is there, with or without series."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {
            name: _TYPES[family.kind](name, family.text, labels=family.labels)
            for name, family in _FAMILIES.items()
            if family.kind in _TYPES and name.startswith("statestream_")
        }

    def add(self, name: str, value: float, *labels: str) -> None:
        self.metrics[f"statestream_{name}"].add_metric(labels, value)

    def info(self, name: str, **values: str) -> None:
        family: Family = _FAMILIES[f"statestream_{name}"]
        assert {*values} == {*family.labels}, name
        self.metrics[family.name] = InfoMetricFamily(family.name, family.text, values)

    def histogram(self, name: str, counts: Sequence[int], unit: float, total: float, *labels: str) -> None:
        """Counts by powers of two of a unit; the last one is open."""
        below, buckets = 0, list[tuple[str, float]]()
        for exponent, count in enumerate(counts[:-1]):
            below += count
            buckets.append((f"{unit * 2**exponent:.6g}", below))
        buckets.append(("+Inf", below + counts[-1]))
        self.metrics[f"statestream_{name}"].add_metric(labels, buckets, total)


class ServerCollector(Collector):
    """Reads a server's figures."""

    def __init__(self, server: Server) -> None:
        """Reads `server`."""
        self._server = server
        self._process = ProcessCollector(registry=None)
        self._version = version("statestream-server")

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        samples = _Samples()
        _calls(self._server, samples)
        _engine(self._server, samples)
        _models(self._server, samples)
        _store(self._server, samples)
        _tenants(self._server, samples)
        _loop(self._server, samples)
        settings = self._server.settings
        samples.info(
            "build",
            version=self._version,
            python=platform.python_version(),
            edge=settings.edge,
            durability=settings.durability.name.lower(),
        )
        samples.info("runtime", device=self._server.device, fingerprint=self._server.fingerprint)
        yield from samples.metrics.values()
        yield from self._process.collect()


def _calls(server: Server, samples: _Samples) -> None:
    durations: dict[tuple[str, str], tuple[list[int], float]] = {}
    for (method, model, code), kind in server.requests.kinds.items():
        samples.add("requests", sum(kind.counts), method, model, code)
        counts, total = durations.get((method, model), ([0] * len(kind.counts), 0.0))
        both = [ours + theirs for ours, theirs in zip(counts, kind.counts, strict=True)]
        durations[method, model] = both, total + kind.total
    for (method, model), (counts, total) in durations.items():
        samples.histogram("request_seconds", counts, 1e-6, total, method, model)
    samples.add("requests_under_way", server.requests.under_way)
    samples.add("streams", len(server.streams))
    samples.add("handles", server.streams.handles)
    samples.add("stream_bytes", server.accounts.held)
    samples.add("waiting_streams", len(server.accounts.waiting))
    for door, count in server.refused_connections.items():
        samples.add("refused_connections", count, door)
    if server.connected is not None:
        connections, calls = server.connected()
        samples.add("edge_connections", connections)
        samples.add("edge_calls", calls)


def _engine(server: Server, samples: _Samples) -> None:
    engine = server.engine
    for why in Why:
        samples.add("batch_reasons", engine.statistics.why[why], why.name.lower())
    for priority, share in engine.scheduler.had.items():
        samples.add("class_batches", share.batches, priority.name.lower())
        samples.add("class_seconds", share.seconds, priority.name.lower())
    samples.add("threaded_batches", engine.statistics.threaded)
    samples.add("failed_chunks", engine.statistics.failed)
    samples.add("queued_chunks", engine.queued)
    samples.add("queued_bytes", engine.queued_bytes)


def _models(server: Server, samples: _Samples) -> None:
    for served in server.registry:
        model, table = served.model, served.table
        labels = model.name, str(model.version)
        samples.add("model_loaded", 1, *labels)
        _steps(server.engine.statistics_of(table, (model.graph, model.encoder)), samples, *labels)
        if table is None:
            continue
        samples.add("sessions", table.sessions, *labels)
        samples.add("dirty_sessions", int(table.dirty.sum()), *labels)
        samples.add("rows", table.allocated, *labels)
        samples.add("rows_bytes", table.allocated * table.rows.row_nbytes, *labels)
        samples.add("kept_replies", table.replies.entries, *labels)
        samples.add("kept_reply_bytes", table.replies.nbytes, *labels)
        samples.add("created_sessions", table.counts.created, *labels)
        samples.add("recovered_sessions", table.counts.recovered, *labels)
        samples.add("hibernated_sessions", table.counts.hibernated, *labels)
        samples.add("repeated_chunks", table.counts.repeated, *labels)
        for reason, count in table.counts.refused.items():
            samples.add("refused_chunks", count, *labels, reason)
    samples.add("model_loads", server.registry.loader.loads)
    samples.add("model_load_failures", server.registry.loader.failed)
    samples.add("failing_models", len(server.registry.failures))
    known = [suspicion.quarantined for _, suspicion in server.quarantine]
    samples.add("quarantined", sum(known))
    samples.add("suspected", len(known) - sum(known))


def _steps(statistics: Statistics, samples: _Samples, *labels: str) -> None:
    samples.add("steps", statistics.steps, *labels)
    samples.add("batches", statistics.batches, *labels)
    samples.histogram("batch_rows", statistics.sizes, 1.0, statistics.rows, *labels)
    samples.histogram("batch_wait_seconds", statistics.waits, 1e-6, statistics.waited, *labels)
    samples.histogram("batch_run_seconds", statistics.runs, 1e-6, statistics.seconds, *labels)


def _store(server: Server, samples: _Samples) -> None:
    checkpointer, lease = server.checkpointer, server.lease
    samples.histogram("checkpoint_seconds", checkpointer.took, 1e-3, checkpointer.seconds)
    samples.add("checkpoint_lag_seconds", checkpointer.lag())
    samples.add("saved_records", checkpointer.writes.records)
    samples.add("saved_bytes", checkpointer.writes.nbytes)
    samples.add("store_failures", checkpointer.failures)
    samples.add("held_replies", lease.holding)
    samples.add("fenced_sessions", lease.fenced)
    samples.add("store_resets", lease.resets)
    samples.add("foreign_records", server.sessions.placement.foreign)
    samples.add("asleep_sessions", server.streams.asleep)


def _tenants(server: Server, samples: _Samples) -> None:
    """What each tenant of the file has, the first of them; the others together, lest there are too many series."""
    if server.access is None or not server.settings.tenant_metrics:
        return
    tables = [served.table for served in server.registry if served.table is not None]
    others = [0, 0, 0, 0]
    for number, (tenant, usage) in enumerate(server.access.usages.items()):
        sessions = sum(len(table.rows_of(tenant)) for table in tables)
        found = [sessions, usage.held.get("streams", 0), usage.held.get("calls", 0), usage.refused]
        if number >= _MOST_TENANTS:
            others = [one + more for one, more in zip(others, found, strict=True)]
            continue
        _tenant(samples, tenant, found)
    if len(server.access.usages) > _MOST_TENANTS:
        _tenant(samples, _OTHERS, others)


def _tenant(samples: _Samples, tenant: str, found: list[int]) -> None:
    for name, value in zip(("sessions", "streams", "calls", "refused"), found, strict=True):
        samples.add(f"tenant_{name}", value, tenant)


def _loop(server: Server, samples: _Samples) -> None:
    lag, turns = server.lag, server.turns
    samples.histogram("loop_lag_seconds", lag.counts, 1e-3, lag.total)
    samples.add("loop_lag_most_seconds", lag.most)
    samples.add("turn_most_rows", turns.rows)
    samples.add("turn_most_errors", turns.errors)
    samples.add("turn_most_bytes", turns.nbytes)
