from statestream.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MoveSessionsRequest(_message.Message):
    __slots__ = ("model", "share")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    model: str
    share: float
    def __init__(self, model: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class MoveSessionsResponse(_message.Message):
    __slots__ = ("sessions", "streams")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    streams: int
    def __init__(self, sessions: _Optional[int] = ..., streams: _Optional[int] = ...) -> None: ...

class ListQuarantineRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListQuarantineResponse(_message.Message):
    __slots__ = ("suspects",)
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    suspects: _containers.RepeatedCompositeFieldContainer[Suspect]
    def __init__(self, suspects: _Optional[_Iterable[_Union[Suspect, _Mapping]]] = ...) -> None: ...

class Suspect(_message.Message):
    __slots__ = ("name", "what", "deaths", "crashes", "since", "quarantined")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    DEATHS_FIELD_NUMBER: _ClassVar[int]
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    name: str
    what: str
    deaths: int
    crashes: int
    since: float
    quarantined: bool
    def __init__(self, name: _Optional[str] = ..., what: _Optional[str] = ..., deaths: _Optional[int] = ..., crashes: _Optional[int] = ..., since: _Optional[float] = ..., quarantined: bool = ...) -> None: ...

class FreeQuarantinedRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class FreeQuarantinedResponse(_message.Message):
    __slots__ = ("freed",)
    FREED_FIELD_NUMBER: _ClassVar[int]
    freed: Suspect
    def __init__(self, freed: _Optional[_Union[Suspect, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ("protocol", "oldest_protocol", "client")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    oldest_protocol: int
    client: str
    def __init__(self, protocol: _Optional[int] = ..., oldest_protocol: _Optional[int] = ..., client: _Optional[str] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "protocol", "server_id", "limits", "durability", "store", "device", "fingerprint", "draining")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    version: str
    protocol: int
    server_id: str
    limits: Limits
    durability: _inference_pb2.DurabilityMode
    store: StoreInfo
    device: str
    fingerprint: str
    draining: bool
    def __init__(self, version: _Optional[str] = ..., protocol: _Optional[int] = ..., server_id: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., durability: _Optional[_Union[_inference_pb2.DurabilityMode, str]] = ..., store: _Optional[_Union[StoreInfo, _Mapping]] = ..., device: _Optional[str] = ..., fingerprint: _Optional[str] = ..., draining: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_chunk_steps", "max_message_bytes", "max_unacknowledged_chunks", "max_sessions", "max_queued_bytes", "max_horizon", "max_answer_bytes", "max_kept_bytes", "max_window_bytes", "max_frame_chunks", "max_frame_sessions", "max_name_bytes", "max_text_symbols", "max_forecast_series", "max_driven_rows", "max_replies_bytes", "max_forecast_samples", "max_generate_sources", "max_beams", "max_frame_calls")
    MAX_CHUNK_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UNACKNOWLEDGED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HORIZON_FIELD_NUMBER: _ClassVar[int]
    MAX_ANSWER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_NAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    MAX_FORECAST_SERIES_FIELD_NUMBER: _ClassVar[int]
    MAX_DRIVEN_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLIES_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FORECAST_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_GENERATE_SOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_BEAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_CALLS_FIELD_NUMBER: _ClassVar[int]
    max_chunk_steps: int
    max_message_bytes: int
    max_unacknowledged_chunks: int
    max_sessions: int
    max_queued_bytes: int
    max_horizon: int
    max_answer_bytes: int
    max_kept_bytes: int
    max_window_bytes: int
    max_frame_chunks: int
    max_frame_sessions: int
    max_name_bytes: int
    max_text_symbols: int
    max_forecast_series: int
    max_driven_rows: int
    max_replies_bytes: int
    max_forecast_samples: int
    max_generate_sources: int
    max_beams: int
    max_frame_calls: int
    def __init__(self, max_chunk_steps: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_unacknowledged_chunks: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_queued_bytes: _Optional[int] = ..., max_horizon: _Optional[int] = ..., max_answer_bytes: _Optional[int] = ..., max_kept_bytes: _Optional[int] = ..., max_window_bytes: _Optional[int] = ..., max_frame_chunks: _Optional[int] = ..., max_frame_sessions: _Optional[int] = ..., max_name_bytes: _Optional[int] = ..., max_text_symbols: _Optional[int] = ..., max_forecast_series: _Optional[int] = ..., max_driven_rows: _Optional[int] = ..., max_replies_bytes: _Optional[int] = ..., max_forecast_samples: _Optional[int] = ..., max_generate_sources: _Optional[int] = ..., max_beams: _Optional[int] = ..., max_frame_calls: _Optional[int] = ...) -> None: ...

class StoreInfo(_message.Message):
    __slots__ = ("kind", "survives_process_kill", "survives_power_loss", "survives_failover")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SURVIVES_PROCESS_KILL_FIELD_NUMBER: _ClassVar[int]
    SURVIVES_POWER_LOSS_FIELD_NUMBER: _ClassVar[int]
    SURVIVES_FAILOVER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    survives_process_kill: bool
    survives_power_loss: bool
    survives_failover: bool
    def __init__(self, kind: _Optional[str] = ..., survives_process_kill: bool = ..., survives_power_loss: bool = ..., survives_failover: bool = ...) -> None: ...

class GetStatisticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatisticsResponse(_message.Message):
    __slots__ = ("batches", "rows", "steps", "failed_chunks", "model_seconds", "threaded_batches", "batches_by_reason", "batches_by_size", "batches_by_wait", "classes", "queued_chunks")
    class BatchesByReasonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ClassesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ClassShare
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ClassShare, _Mapping]] = ...) -> None: ...
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FAILED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THREADED_BATCHES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_BY_REASON_FIELD_NUMBER: _ClassVar[int]
    BATCHES_BY_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCHES_BY_WAIT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    batches: int
    rows: int
    steps: int
    failed_chunks: int
    model_seconds: float
    threaded_batches: int
    batches_by_reason: _containers.ScalarMap[str, int]
    batches_by_size: _containers.RepeatedScalarFieldContainer[int]
    batches_by_wait: _containers.RepeatedScalarFieldContainer[int]
    classes: _containers.MessageMap[str, ClassShare]
    queued_chunks: int
    def __init__(self, batches: _Optional[int] = ..., rows: _Optional[int] = ..., steps: _Optional[int] = ..., failed_chunks: _Optional[int] = ..., model_seconds: _Optional[float] = ..., threaded_batches: _Optional[int] = ..., batches_by_reason: _Optional[_Mapping[str, int]] = ..., batches_by_size: _Optional[_Iterable[int]] = ..., batches_by_wait: _Optional[_Iterable[int]] = ..., classes: _Optional[_Mapping[str, ClassShare]] = ..., queued_chunks: _Optional[int] = ...) -> None: ...

class ClassShare(_message.Message):
    __slots__ = ("batches", "seconds")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    batches: int
    seconds: float
    def __init__(self, batches: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
