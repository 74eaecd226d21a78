"""The metrics that there are: name, kind, labels and what each means. docs/metrics.md is made of this list."""

from __future__ import annotations

from typing import Final, NamedTuple


class Family(NamedTuple):
    """One metric.

    Attributes:
        name: Its name, without the ending `_total` or `_info`.
        kind: counter, gauge, histogram or info.
        text: What it says.
        labels: What its series are told apart by; of several workers `worker` is added.
        values: How many values its labels have at most, in words; "" where there are none.
    """

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    values: str = ""

    @property
    def shown(self) -> str:
        """The name as people look for it."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


_MODEL: Final = ("model", "version")
_LOADED: Final = "the versions that are loaded"

CALLS: Final = (
    Family(
        "statestream_requests",
        "counter",
        "Calls and streams that ended",
        ("method", "model", "code"),
        "methods × models that serve (else empty) × status codes",
    ),
    Family(
        "statestream_request_seconds",
        "histogram",
        "How long calls took, from the request to the answer; of streams how long they were connected",
        ("method", "model"),
        "methods × models that serve (else empty)",
    ),
    Family("statestream_requests_under_way", "gauge", "Calls and streams that were let in and have not ended"),
    Family("statestream_streams", "gauge", "Connected streams"),
    Family("statestream_handles", "gauge", "Sessions that connected streams have"),
    Family("statestream_stream_bytes", "gauge", "Bytes under way on streams"),
    Family("statestream_waiting_streams", "gauge", "Streams that are not read because of them"),
    Family(
        "statestream_refused_connections",
        "counter",
        "Connections beyond --max-connections (grpc; of the edge h2 alone) or --max-http-connections (http)",
        ("door",),
        "2",
    ),
    Family("statestream_edge_connections", "gauge", "Connections to the gRPC port; of the edge h2 alone"),
    Family("statestream_edge_calls", "gauge", "Calls and streams on them; of the edge h2 alone"),
)
STEPS: Final = (
    Family("statestream_steps", "counter", "Steps of rows that were run", _MODEL, _LOADED),
    Family("statestream_batches", "counter", "Batches that were run", _MODEL, _LOADED),
    Family("statestream_batch_rows", "histogram", "Rows of a batch", _MODEL, _LOADED),
    Family(
        "statestream_batch_wait_seconds",
        "histogram",
        "Since a batch's oldest work came until it ran: the queue",
        _MODEL,
        _LOADED,
    ),
    Family("statestream_batch_run_seconds", "histogram", "How long a batch ran", _MODEL, _LOADED),
    Family("statestream_threaded_batches", "counter", "Batches that ran on the engine's thread, not on the loop"),
    Family("statestream_batch_reasons", "counter", "Batches by why they were not larger", ("reason",), "6"),
    Family("statestream_class_batches", "counter", "Batches of a class of work", ("class",), "4"),
    Family("statestream_class_seconds", "counter", "Seconds that they ran", ("class",), "4"),
    Family("statestream_queued_chunks", "gauge", "Chunks that wait or run"),
    Family("statestream_queued_bytes", "gauge", "Bytes of inputs that wait or run"),
    Family("statestream_failed_chunks", "counter", "Chunks that the engine did not apply, forecasts' and texts' too"),
    Family(
        "statestream_refused_chunks",
        "counter",
        "Chunks of sessions that were not applied: POSITION_GAP is a gap, POSITION_CONFLICT a second writer,"
        " NON_FINITE_STATE a state that was refused",
        (*_MODEL, "reason"),
        "the versions that are loaded × reasons of errors",
    ),
    Family(
        "statestream_repeated_chunks",
        "counter",
        "Chunks that had run already, and were answered again: duplicates",
        _MODEL,
        _LOADED,
    ),
)
SESSIONS: Final = (
    Family("statestream_sessions", "gauge", "Sessions in memory", _MODEL, _LOADED),
    Family("statestream_asleep_sessions", "gauge", "Sessions that connected streams have and that are in the store"),
    Family("statestream_created_sessions", "counter", "Sessions that began here", _MODEL, _LOADED),
    Family(
        "statestream_recovered_sessions",
        "counter",
        "Sessions that came from the store: of another server, of an earlier process, or asleep",
        _MODEL,
        _LOADED,
    ),
    Family("statestream_hibernated_sessions", "counter", "Sessions that left memory for the store", _MODEL, _LOADED),
    Family("statestream_rows", "gauge", "Rows in use: sessions, shadows and forks", _MODEL, _LOADED),
    Family("statestream_rows_bytes", "gauge", "Bytes of the states of rows in use", _MODEL, _LOADED),
    Family("statestream_kept_replies", "gauge", "Replies that are not acknowledged yet", _MODEL, _LOADED),
    Family("statestream_kept_reply_bytes", "gauge", "Bytes of these, about", _MODEL, _LOADED),
    Family("statestream_dirty_sessions", "gauge", "Sessions that the store is behind of", _MODEL, _LOADED),
)
STORE: Final = (
    Family("statestream_checkpoint_seconds", "histogram", "How long checkpoints that wrote something took"),
    Family("statestream_checkpoint_lag_seconds", "gauge", "How far the store may be behind of what was applied"),
    Family("statestream_saved_records", "counter", "Records that the store took"),
    Family("statestream_saved_bytes", "counter", "Bytes of these"),
    Family("statestream_store_failures", "gauge", "Failed saves since the last good one"),
    Family("statestream_held_replies", "gauge", "Replies that wait for the store"),
    Family("statestream_fenced_sessions", "counter", "Sessions found to have moved"),
    Family("statestream_store_resets", "counter", "Times the store was emptied"),
    Family("statestream_foreign_records", "counter", "Sessions taken over from another runtime or device"),
)
MODELS: Final = (
    Family("statestream_model_loaded", "gauge", "1 for a version that is loaded", _MODEL, _LOADED),
    Family("statestream_model_loads", "counter", "Versions that were read to be loaded"),
    Family("statestream_model_load_failures", "counter", "Versions that were read and cannot be served"),
    Family("statestream_failing_models", "gauge", "Versions that lie there and do not serve because of a failure"),
    Family("statestream_quarantined", "gauge", "Models, sessions and calls that are not run any more"),
    Family("statestream_suspected", "gauge", "Models, sessions and calls that ran when a process died"),
)
PROCESS: Final = (
    Family("statestream_build", "info", "What runs", ("version", "python", "edge", "durability"), "1"),
    Family(
        "statestream_runtime", "info", "Where models run, what their bits depend on", ("device", "fingerprint"), "1"
    ),
    Family("statestream_loop_lag_seconds", "histogram", "How late wake-ups of the event loop were"),
    Family("statestream_loop_lag_most_seconds", "gauge", "The latest wake-up so far"),
    Family("statestream_turn_most_rows", "gauge", "The most rows that one turn of the event loop had to do with"),
    Family("statestream_turn_most_errors", "gauge", "The most errors that one turn of the event loop had to do with"),
    Family("statestream_turn_most_bytes", "gauge", "The most bytes that one turn of the event loop had to do with"),
    Family("process_cpu_seconds", "counter", "Seconds of processors that the process used"),
    Family("process_resident_memory_bytes", "gauge", "Memory that the process has"),
    Family("process_virtual_memory_bytes", "gauge", "Address space that the process has"),
    Family("process_start_time_seconds", "gauge", "Unix time at which it started"),
    Family("process_open_fds", "gauge", "Open files and sockets"),
    Family("process_max_fds", "gauge", "The most of these that it may have"),
)
WORKERS: Final = (
    Family("statestream_worker_up", "gauge", "Whether a worker answers and serves", ("worker",), "--workers"),
    Family("statestream_worker_restarts", "counter", "How often a worker was started again", ("worker",), "--workers"),
)
_TENANT: Final = ("tenant",)
_TENANTS: Final = "--tenant-metrics, 65"
TENANTS: Final = (
    Family("statestream_tenant_sessions", "gauge", "Sessions of a tenant in memory", _TENANT, _TENANTS),
    Family("statestream_tenant_streams", "gauge", "Connected streams of a tenant", _TENANT, _TENANTS),
    Family("statestream_tenant_calls", "gauge", "Calls of a tenant beside streams under way", _TENANT, _TENANTS),
    Family("statestream_tenant_refused", "counter", "What was beyond a limit of a tenant's", _TENANT, _TENANTS),
)

GROUPS: Final = {
    "Calls and streams": CALLS,
    "Steps and batches": STEPS,
    "Sessions": SESSIONS,
    "The store": STORE,
    "Models": MODELS,
    "Tenants": TENANTS,
    "The process": PROCESS,
    "Of several workers": WORKERS,
}
"""All metrics, by what they are about; those of the last group come from the first process of several."""
