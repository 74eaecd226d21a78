from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WindowStart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WINDOW_START_UNSPECIFIED: _ClassVar[WindowStart]
    WINDOW_START_VALUE: _ClassVar[WindowStart]
    WINDOW_START_PAD: _ClassVar[WindowStart]
    WINDOW_START_HOLD: _ClassVar[WindowStart]

class Missing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISSING_UNSPECIFIED: _ClassVar[Missing]
    MISSING_REFUSE: _ClassVar[Missing]
    MISSING_HOLD: _ClassVar[Missing]
    MISSING_PREDICT: _ClassVar[Missing]

class StateCheck(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_CHECK_UNSPECIFIED: _ClassVar[StateCheck]
    STATE_CHECK_FINITE: _ClassVar[StateCheck]
    STATE_CHECK_NAN: _ClassVar[StateCheck]
    STATE_CHECK_OFF: _ClassVar[StateCheck]

class HeadKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_KIND_UNSPECIFIED: _ClassVar[HeadKind]
    HEAD_KIND_GAUSSIAN: _ClassVar[HeadKind]
    HEAD_KIND_STUDENT_T: _ClassVar[HeadKind]
    HEAD_KIND_NEGATIVE_BINOMIAL: _ClassVar[HeadKind]
    HEAD_KIND_CATEGORICAL: _ClassVar[HeadKind]
    HEAD_KIND_QUANTILES: _ClassVar[HeadKind]
WINDOW_START_UNSPECIFIED: WindowStart
WINDOW_START_VALUE: WindowStart
WINDOW_START_PAD: WindowStart
WINDOW_START_HOLD: WindowStart
MISSING_UNSPECIFIED: Missing
MISSING_REFUSE: Missing
MISSING_HOLD: Missing
MISSING_PREDICT: Missing
STATE_CHECK_UNSPECIFIED: StateCheck
STATE_CHECK_FINITE: StateCheck
STATE_CHECK_NAN: StateCheck
STATE_CHECK_OFF: StateCheck
HEAD_KIND_UNSPECIFIED: HeadKind
HEAD_KIND_GAUSSIAN: HeadKind
HEAD_KIND_STUDENT_T: HeadKind
HEAD_KIND_NEGATIVE_BINOMIAL: HeadKind
HEAD_KIND_CATEGORICAL: HeadKind
HEAD_KIND_QUANTILES: HeadKind

class Signature(_message.Message):
    __slots__ = ("format", "inputs", "outputs", "states", "feedback", "decoding", "description", "quantization", "windows", "heads", "lookback", "score_past")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LOOKBACK_FIELD_NUMBER: _ClassVar[int]
    SCORE_PAST_FIELD_NUMBER: _ClassVar[int]
    format: int
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    states: _containers.RepeatedCompositeFieldContainer[StateSpec]
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    decoding: Decoding
    description: str
    quantization: Quantization
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    lookback: int
    score_past: int
    def __init__(self, format: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[StateSpec, _Mapping]]] = ..., feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ..., decoding: _Optional[_Union[Decoding, _Mapping]] = ..., description: _Optional[str] = ..., quantization: _Optional[_Union[Quantization, _Mapping]] = ..., windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., lookback: _Optional[int] = ..., score_past: _Optional[int] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("input", "steps", "state", "before", "count", "full", "axis")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    input: str
    steps: int
    state: str
    before: WindowStart
    count: str
    full: str
    axis: int
    def __init__(self, input: _Optional[str] = ..., steps: _Optional[int] = ..., state: _Optional[str] = ..., before: _Optional[_Union[WindowStart, str]] = ..., count: _Optional[str] = ..., full: _Optional[str] = ..., axis: _Optional[int] = ...) -> None: ...

class Quantization(_message.Message):
    __slots__ = ("dtype", "layers", "loss")
    class LayersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    layers: _containers.ScalarMap[str, int]
    loss: float
    def __init__(self, dtype: _Optional[str] = ..., layers: _Optional[_Mapping[str, int]] = ..., loss: _Optional[float] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "batch_axis", "time_axis", "columns", "classes", "text", "ranges", "ahead", "horizon_axis", "missing", "elapsed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BATCH_AXIS_FIELD_NUMBER: _ClassVar[int]
    TIME_AXIS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    HORIZON_AXIS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    batch_axis: int
    time_axis: int
    columns: _containers.RepeatedScalarFieldContainer[str]
    classes: _containers.RepeatedScalarFieldContainer[str]
    text: Text
    ranges: _containers.RepeatedCompositeFieldContainer[ValueRange]
    ahead: bool
    horizon_axis: int
    missing: Missing
    elapsed: Elapsed
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., batch_axis: _Optional[int] = ..., time_axis: _Optional[int] = ..., columns: _Optional[_Iterable[str]] = ..., classes: _Optional[_Iterable[str]] = ..., text: _Optional[_Union[Text, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[ValueRange, _Mapping]]] = ..., ahead: bool = ..., horizon_axis: _Optional[int] = ..., missing: _Optional[_Union[Missing, str]] = ..., elapsed: _Optional[_Union[Elapsed, _Mapping]] = ...) -> None: ...

class Elapsed(_message.Message):
    __slots__ = ("seconds", "first")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    first: float
    def __init__(self, seconds: _Optional[float] = ..., first: _Optional[float] = ...) -> None: ...

class ValueRange(_message.Message):
    __slots__ = ("lowest", "highest", "whole", "counts_steps")
    LOWEST_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_STEPS_FIELD_NUMBER: _ClassVar[int]
    lowest: float
    highest: float
    whole: bool
    counts_steps: bool
    def __init__(self, lowest: _Optional[float] = ..., highest: _Optional[float] = ..., whole: bool = ..., counts_steps: bool = ...) -> None: ...

class StateSpec(_message.Message):
    __slots__ = ("input", "output", "dtype", "shape", "batch_axis", "start", "check", "from_encoder", "ranges", "constant")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BATCH_AXIS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    FROM_ENCODER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    input: str
    output: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    batch_axis: int
    start: _containers.RepeatedScalarFieldContainer[float]
    check: StateCheck
    from_encoder: str
    ranges: _containers.RepeatedCompositeFieldContainer[ValueRange]
    constant: bool
    def __init__(self, input: _Optional[str] = ..., output: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., batch_axis: _Optional[int] = ..., start: _Optional[_Iterable[float]] = ..., check: _Optional[_Union[StateCheck, str]] = ..., from_encoder: _Optional[str] = ..., ranges: _Optional[_Iterable[_Union[ValueRange, _Mapping]]] = ..., constant: bool = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("output", "input", "places")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    output: str
    input: str
    places: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, output: _Optional[str] = ..., input: _Optional[str] = ..., places: _Optional[_Iterable[int]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("name", "kind", "parameters", "quantiles", "values")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: HeadKind
    parameters: _containers.ScalarMap[str, str]
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[HeadKind, str]] = ..., parameters: _Optional[_Mapping[str, str]] = ..., quantiles: _Optional[_Iterable[float]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Text(_message.Message):
    __slots__ = ("vocabulary", "separator", "unknown")
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    vocabulary: _containers.RepeatedScalarFieldContainer[str]
    separator: str
    unknown: str
    def __init__(self, vocabulary: _Optional[_Iterable[str]] = ..., separator: _Optional[str] = ..., unknown: _Optional[str] = ...) -> None: ...

class Decoding(_message.Message):
    __slots__ = ("input", "output", "start_token", "end_token", "text", "max_tokens", "attention", "max_source_tokens")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MAX_SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input: str
    output: str
    start_token: int
    end_token: int
    text: Text
    max_tokens: int
    attention: str
    max_source_tokens: int
    def __init__(self, input: _Optional[str] = ..., output: _Optional[str] = ..., start_token: _Optional[int] = ..., end_token: _Optional[int] = ..., text: _Optional[_Union[Text, _Mapping]] = ..., max_tokens: _Optional[int] = ..., attention: _Optional[str] = ..., max_source_tokens: _Optional[int] = ...) -> None: ...
