from statestream.v1 import inference_pb2 as _inference_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

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
    __slots__ = ("max_chunk_steps", "max_message_bytes", "max_unacknowledged_chunks", "max_sessions", "max_queued_bytes", "max_horizon")
    MAX_CHUNK_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UNACKNOWLEDGED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HORIZON_FIELD_NUMBER: _ClassVar[int]
    max_chunk_steps: int
    max_message_bytes: int
    max_unacknowledged_chunks: int
    max_sessions: int
    max_queued_bytes: int
    max_horizon: int
    def __init__(self, max_chunk_steps: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_unacknowledged_chunks: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_queued_bytes: _Optional[int] = ..., max_horizon: _Optional[int] = ...) -> None: ...

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
