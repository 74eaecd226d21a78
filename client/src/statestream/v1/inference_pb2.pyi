import datetime

from google.rpc import status_pb2 as _status_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from statestream.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPEN_MODE_UNSPECIFIED: _ClassVar[OpenMode]
    OPEN_MODE_CREATE: _ClassVar[OpenMode]
    OPEN_MODE_RESUME: _ClassVar[OpenMode]
    OPEN_MODE_EITHER: _ClassVar[OpenMode]
    OPEN_MODE_REPLACE: _ClassVar[OpenMode]

class DurabilityMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_MODE_UNSPECIFIED: _ClassVar[DurabilityMode]
    DURABILITY_MODE_NONE: _ClassVar[DurabilityMode]
    DURABILITY_MODE_INTERVAL: _ClassVar[DurabilityMode]
    DURABILITY_MODE_SYNC: _ClassVar[DurabilityMode]

class Mark(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MARK_UNSPECIFIED: _ClassVar[Mark]
    MARK_RESET: _ClassVar[Mark]
    MARK_CURSOR: _ClassVar[Mark]

class CloseAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSE_ACTION_UNSPECIFIED: _ClassVar[CloseAction]
    CLOSE_ACTION_DETACH: _ClassVar[CloseAction]
    CLOSE_ACTION_DELETE: _ClassVar[CloseAction]

class ForecastBands(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORECAST_BANDS_UNSPECIFIED: _ClassVar[ForecastBands]
    FORECAST_BANDS_CONFORMAL: _ClassVar[ForecastBands]
OPEN_MODE_UNSPECIFIED: OpenMode
OPEN_MODE_CREATE: OpenMode
OPEN_MODE_RESUME: OpenMode
OPEN_MODE_EITHER: OpenMode
OPEN_MODE_REPLACE: OpenMode
DURABILITY_MODE_UNSPECIFIED: DurabilityMode
DURABILITY_MODE_NONE: DurabilityMode
DURABILITY_MODE_INTERVAL: DurabilityMode
DURABILITY_MODE_SYNC: DurabilityMode
MARK_UNSPECIFIED: Mark
MARK_RESET: Mark
MARK_CURSOR: Mark
CLOSE_ACTION_UNSPECIFIED: CloseAction
CLOSE_ACTION_DETACH: CloseAction
CLOSE_ACTION_DELETE: CloseAction
FORECAST_BANDS_UNSPECIFIED: ForecastBands
FORECAST_BANDS_CONFORMAL: ForecastBands

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "inputs", "outputs", "alias")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    alias: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ..., alias: _Optional[str] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("version", "outputs")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, version: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("frame", "open", "chunk", "ack", "close", "flush", "predict", "part")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    frame: int
    open: OpenFrame
    chunk: ChunkFrame
    ack: AckFrame
    close: CloseFrame
    flush: FlushFrame
    predict: PredictFrame
    part: PartFrame
    def __init__(self, frame: _Optional[int] = ..., open: _Optional[_Union[OpenFrame, _Mapping]] = ..., chunk: _Optional[_Union[ChunkFrame, _Mapping]] = ..., ack: _Optional[_Union[AckFrame, _Mapping]] = ..., close: _Optional[_Union[CloseFrame, _Mapping]] = ..., flush: _Optional[_Union[FlushFrame, _Mapping]] = ..., predict: _Optional[_Union[PredictFrame, _Mapping]] = ..., part: _Optional[_Union[PartFrame, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("frame", "opened", "result", "closed", "durable", "refused", "notice", "go_away", "part", "move", "predicted")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    frame: int
    opened: OpenedFrame
    result: ResultFrame
    closed: ClosedFrame
    durable: DurableFrame
    refused: RefusedFrame
    notice: NoticeFrame
    go_away: GoAwayFrame
    part: PartFrame
    move: MoveFrame
    predicted: PredictedFrame
    def __init__(self, frame: _Optional[int] = ..., opened: _Optional[_Union[OpenedFrame, _Mapping]] = ..., result: _Optional[_Union[ResultFrame, _Mapping]] = ..., closed: _Optional[_Union[ClosedFrame, _Mapping]] = ..., durable: _Optional[_Union[DurableFrame, _Mapping]] = ..., refused: _Optional[_Union[RefusedFrame, _Mapping]] = ..., notice: _Optional[_Union[NoticeFrame, _Mapping]] = ..., go_away: _Optional[_Union[GoAwayFrame, _Mapping]] = ..., part: _Optional[_Union[PartFrame, _Mapping]] = ..., move: _Optional[_Union[MoveFrame, _Mapping]] = ..., predicted: _Optional[_Union[PredictedFrame, _Mapping]] = ...) -> None: ...

class OpenFrame(_message.Message):
    __slots__ = ("model", "version", "handles", "ids", "mode", "writer", "incarnation", "seen_epochs", "replay_positions", "acked_positions", "ephemeral", "initial_states", "return_replies", "upgrade", "alias")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEEN_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    REPLAY_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ACKED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATES_FIELD_NUMBER: _ClassVar[int]
    RETURN_REPLIES_FIELD_NUMBER: _ClassVar[int]
    UPGRADE_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    handles: bytes
    ids: _containers.RepeatedScalarFieldContainer[str]
    mode: OpenMode
    writer: bytes
    incarnation: int
    seen_epochs: bytes
    replay_positions: bytes
    acked_positions: bytes
    ephemeral: bool
    initial_states: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    return_replies: bool
    upgrade: bool
    alias: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., handles: _Optional[bytes] = ..., ids: _Optional[_Iterable[str]] = ..., mode: _Optional[_Union[OpenMode, str]] = ..., writer: _Optional[bytes] = ..., incarnation: _Optional[int] = ..., seen_epochs: _Optional[bytes] = ..., replay_positions: _Optional[bytes] = ..., acked_positions: _Optional[bytes] = ..., ephemeral: bool = ..., initial_states: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., return_replies: bool = ..., upgrade: bool = ..., alias: _Optional[str] = ...) -> None: ...

class OpenedFrame(_message.Message):
    __slots__ = ("version", "handles", "epochs", "positions", "durable_positions", "created", "durability", "errors", "kept", "window_bytes", "origins", "cursors", "kept_window_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    KEPT_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    handles: bytes
    epochs: bytes
    positions: bytes
    durable_positions: bytes
    created: bytes
    durability: DurabilityMode
    errors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowError]
    kept: bytes
    window_bytes: int
    origins: bytes
    cursors: _containers.RepeatedScalarFieldContainer[bytes]
    kept_window_bytes: int
    def __init__(self, version: _Optional[int] = ..., handles: _Optional[bytes] = ..., epochs: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., durable_positions: _Optional[bytes] = ..., created: _Optional[bytes] = ..., durability: _Optional[_Union[DurabilityMode, str]] = ..., errors: _Optional[_Iterable[_Union[_tensor_pb2.RowError, _Mapping]]] = ..., kept: _Optional[bytes] = ..., window_bytes: _Optional[int] = ..., origins: _Optional[bytes] = ..., cursors: _Optional[_Iterable[bytes]] = ..., kept_window_bytes: _Optional[int] = ...) -> None: ...

class ChunkFrame(_message.Message):
    __slots__ = ("handles", "positions", "acked_positions", "steps", "lengths", "inputs", "marks", "cursors", "score")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ACKED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    positions: bytes
    acked_positions: bytes
    steps: int
    lengths: bytes
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    marks: bytes
    cursors: _containers.RepeatedScalarFieldContainer[bytes]
    score: bool
    def __init__(self, handles: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., acked_positions: _Optional[bytes] = ..., steps: _Optional[int] = ..., lengths: _Optional[bytes] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., marks: _Optional[bytes] = ..., cursors: _Optional[_Iterable[bytes]] = ..., score: bool = ...) -> None: ...

class ResultFrame(_message.Message):
    __slots__ = ("handles", "positions", "steps", "lengths", "durable_positions", "outputs", "errors")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    positions: bytes
    steps: int
    lengths: bytes
    durable_positions: bytes
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    errors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowError]
    def __init__(self, handles: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., steps: _Optional[int] = ..., lengths: _Optional[bytes] = ..., durable_positions: _Optional[bytes] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_tensor_pb2.RowError, _Mapping]]] = ...) -> None: ...

class PredictFrame(_message.Message):
    __slots__ = ("model", "version", "inputs", "outputs", "rows", "parts", "alias")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    rows: bytes
    parts: int
    alias: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ..., rows: _Optional[bytes] = ..., parts: _Optional[int] = ..., alias: _Optional[str] = ...) -> None: ...

class PredictedFrame(_message.Message):
    __slots__ = ("version", "calls", "outputs", "errors")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    version: int
    calls: bytes
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    errors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowError]
    def __init__(self, version: _Optional[int] = ..., calls: _Optional[bytes] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_tensor_pb2.RowError, _Mapping]]] = ...) -> None: ...

class PartFrame(_message.Message):
    __slots__ = ("handle", "position", "part", "parts", "offset", "data", "size", "steps", "outputs", "durable_position", "version")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    handle: int
    position: int
    part: int
    parts: int
    offset: int
    data: bytes
    size: int
    steps: int
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    durable_position: int
    version: int
    def __init__(self, handle: _Optional[int] = ..., position: _Optional[int] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., size: _Optional[int] = ..., steps: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., durable_position: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class AckFrame(_message.Message):
    __slots__ = ("handles", "acked_positions")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ACKED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    acked_positions: bytes
    def __init__(self, handles: _Optional[bytes] = ..., acked_positions: _Optional[bytes] = ...) -> None: ...

class CloseFrame(_message.Message):
    __slots__ = ("handles", "action", "positions", "epochs")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    action: CloseAction
    positions: bytes
    epochs: bytes
    def __init__(self, handles: _Optional[bytes] = ..., action: _Optional[_Union[CloseAction, str]] = ..., positions: _Optional[bytes] = ..., epochs: _Optional[bytes] = ...) -> None: ...

class ClosedFrame(_message.Message):
    __slots__ = ("handles", "errors")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    errors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowError]
    def __init__(self, handles: _Optional[bytes] = ..., errors: _Optional[_Iterable[_Union[_tensor_pb2.RowError, _Mapping]]] = ...) -> None: ...

class FlushFrame(_message.Message):
    __slots__ = ("handles", "positions")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    positions: bytes
    def __init__(self, handles: _Optional[bytes] = ..., positions: _Optional[bytes] = ...) -> None: ...

class DurableFrame(_message.Message):
    __slots__ = ("handles", "durable_positions", "errors")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    durable_positions: bytes
    errors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowError]
    def __init__(self, handles: _Optional[bytes] = ..., durable_positions: _Optional[bytes] = ..., errors: _Optional[_Iterable[_Union[_tensor_pb2.RowError, _Mapping]]] = ...) -> None: ...

class RefusedFrame(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class NoticeFrame(_message.Message):
    __slots__ = ("errors",)
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    errors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowError]
    def __init__(self, errors: _Optional[_Iterable[_Union[_tensor_pb2.RowError, _Mapping]]] = ...) -> None: ...

class MoveFrame(_message.Message):
    __slots__ = ("handles",)
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    def __init__(self, handles: _Optional[bytes] = ...) -> None: ...

class GoAwayFrame(_message.Message):
    __slots__ = ("grace",)
    GRACE_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("model", "version", "session_id", "mode", "position", "acked_position", "request_id", "inputs", "mark", "cursor", "score", "alias")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ACKED_POSITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    session_id: str
    mode: OpenMode
    position: int
    acked_position: int
    request_id: str
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    mark: Mark
    cursor: bytes
    score: bool
    alias: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., session_id: _Optional[str] = ..., mode: _Optional[_Union[OpenMode, str]] = ..., position: _Optional[int] = ..., acked_position: _Optional[int] = ..., request_id: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., mark: _Optional[_Union[Mark, str]] = ..., cursor: _Optional[bytes] = ..., score: bool = ..., alias: _Optional[str] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("position", "durable_position", "epoch", "version", "outputs")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    position: int
    durable_position: int
    epoch: int
    version: int
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, position: _Optional[int] = ..., durable_position: _Optional[int] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("model", "version", "session_id", "history", "sessions", "start", "horizon", "epoch", "future", "num_samples", "seed", "quantiles", "return_samples", "bands", "past", "from_step", "series", "stop", "digest", "cutoffs", "alias")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FUTURE_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    RETURN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CUTOFFS_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    session_id: str
    history: History
    sessions: ForecastSessions
    start: ForecastStart
    horizon: int
    epoch: int
    future: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    num_samples: int
    seed: int
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    return_samples: bool
    bands: ForecastBands
    past: History
    from_step: int
    series: bytes
    stop: ForecastStop
    digest: str
    cutoffs: bytes
    alias: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., session_id: _Optional[str] = ..., history: _Optional[_Union[History, _Mapping]] = ..., sessions: _Optional[_Union[ForecastSessions, _Mapping]] = ..., start: _Optional[_Union[ForecastStart, _Mapping]] = ..., horizon: _Optional[int] = ..., epoch: _Optional[int] = ..., future: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., num_samples: _Optional[int] = ..., seed: _Optional[int] = ..., quantiles: _Optional[_Iterable[float]] = ..., return_samples: bool = ..., bands: _Optional[_Union[ForecastBands, str]] = ..., past: _Optional[_Union[History, _Mapping]] = ..., from_step: _Optional[int] = ..., series: _Optional[bytes] = ..., stop: _Optional[_Union[ForecastStop, _Mapping]] = ..., digest: _Optional[str] = ..., cutoffs: _Optional[bytes] = ..., alias: _Optional[str] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("inputs", "lengths")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    lengths: bytes
    def __init__(self, inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class ForecastSessions(_message.Message):
    __slots__ = ("ids", "epochs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    epochs: bytes
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., epochs: _Optional[bytes] = ...) -> None: ...

class ForecastStart(_message.Message):
    __slots__ = ("version", "digest", "columns")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    columns: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., columns: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class ForecastStop(_message.Message):
    __slots__ = ("output", "place", "bound", "below")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    output: str
    place: int
    bound: float
    below: bool
    def __init__(self, output: _Optional[str] = ..., place: _Optional[int] = ..., bound: _Optional[float] = ..., below: bool = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("offset", "outputs", "start", "quantiles", "samples")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    start: ForecastStart
    quantiles: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    samples: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, offset: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., start: _Optional[_Union[ForecastStart, _Mapping]] = ..., quantiles: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., samples: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "version", "texts", "max_tokens", "tokens", "lengths", "sampling", "beam_search", "attention", "stream", "numbers", "from_token", "digest", "alias")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    BEAM_SEARCH_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    FROM_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    texts: _containers.RepeatedScalarFieldContainer[str]
    max_tokens: int
    tokens: bytes
    lengths: bytes
    sampling: Sampling
    beam_search: BeamSearch
    attention: bool
    stream: bool
    numbers: bytes
    from_token: int
    digest: str
    alias: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., texts: _Optional[_Iterable[str]] = ..., max_tokens: _Optional[int] = ..., tokens: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., beam_search: _Optional[_Union[BeamSearch, _Mapping]] = ..., attention: bool = ..., stream: bool = ..., numbers: _Optional[bytes] = ..., from_token: _Optional[int] = ..., digest: _Optional[str] = ..., alias: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "num_samples")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    num_samples: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., num_samples: _Optional[int] = ...) -> None: ...

class BeamSearch(_message.Message):
    __slots__ = ("num_beams", "n_best", "length_penalty", "early_stopping")
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    N_BEST_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_FIELD_NUMBER: _ClassVar[int]
    num_beams: int
    n_best: int
    length_penalty: float
    early_stopping: bool
    def __init__(self, num_beams: _Optional[int] = ..., n_best: _Optional[int] = ..., length_penalty: _Optional[float] = ..., early_stopping: bool = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("sources", "tokens", "version", "digest")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[GeneratedSource]
    tokens: _containers.RepeatedCompositeFieldContainer[GeneratedToken]
    version: int
    digest: str
    def __init__(self, sources: _Optional[_Iterable[_Union[GeneratedSource, _Mapping]]] = ..., tokens: _Optional[_Iterable[_Union[GeneratedToken, _Mapping]]] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class GeneratedSource(_message.Message):
    __slots__ = ("source", "texts")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    source: int
    texts: _containers.RepeatedCompositeFieldContainer[GeneratedText]
    def __init__(self, source: _Optional[int] = ..., texts: _Optional[_Iterable[_Union[GeneratedText, _Mapping]]] = ...) -> None: ...

class GeneratedText(_message.Message):
    __slots__ = ("text", "tokens", "log_probabilities", "log_probability", "score", "ended", "attention")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    log_probability: float
    score: float
    ended: bool
    attention: _tensor_pb2.Tensor
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., log_probabilities: _Optional[_Iterable[float]] = ..., log_probability: _Optional[float] = ..., score: _Optional[float] = ..., ended: bool = ..., attention: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class GeneratedToken(_message.Message):
    __slots__ = ("text", "token", "log_probability", "attention")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    text: str
    token: int
    log_probability: float
    attention: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, text: _Optional[str] = ..., token: _Optional[int] = ..., log_probability: _Optional[float] = ..., attention: _Optional[_Iterable[float]] = ...) -> None: ...
