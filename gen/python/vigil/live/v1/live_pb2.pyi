from validate import validate_pb2 as _validate_pb2
from vigil.models.v1 import models_pb2 as _models_pb2
from vigil.perception.v1 import perception_pb2 as _perception_pb2
from vigil.safety.v1 import safety_pb2 as _safety_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("resume", "sources")
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    resume: str
    sources: _containers.RepeatedCompositeFieldContainer[WatchedSource]
    def __init__(self, resume: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[WatchedSource, _Mapping]]] = ...) -> None: ...

class WatchedSource(_message.Message):
    __slots__ = ("source_id", "frames")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    frames: bool
    def __init__(self, source_id: _Optional[str] = ..., frames: _Optional[bool] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("hello", "event", "figures", "output")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    event: Event
    figures: Figures
    output: SourceOutput
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., figures: _Optional[_Union[Figures, _Mapping]] = ..., output: _Optional[_Union[SourceOutput, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("server_version", "contract_digest", "state", "resume", "time_us", "control", "reads", "frames")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    contract_digest: str
    state: _safety_pb2.SystemState
    resume: str
    time_us: int
    control: bool
    reads: bool
    frames: bool
    def __init__(self, server_version: _Optional[str] = ..., contract_digest: _Optional[str] = ..., state: _Optional[_Union[_safety_pb2.SystemState, _Mapping]] = ..., resume: _Optional[str] = ..., time_us: _Optional[int] = ..., control: _Optional[bool] = ..., reads: _Optional[bool] = ..., frames: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("resume", "transition", "model", "state")
    RESUME_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    resume: str
    transition: _safety_pb2.Transition
    model: _models_pb2.ModelEvent
    state: _safety_pb2.SystemState
    def __init__(self, resume: _Optional[str] = ..., transition: _Optional[_Union[_safety_pb2.Transition, _Mapping]] = ..., model: _Optional[_Union[_models_pb2.ModelEvent, _Mapping]] = ..., state: _Optional[_Union[_safety_pb2.SystemState, _Mapping]] = ...) -> None: ...

class Figures(_message.Message):
    __slots__ = ("time_us", "interval_ms", "models", "calls_in_flight", "bytes_in_flight", "waiting", "streams", "limits", "parts", "heartbeat_age_ms", "state")
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CALLS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    time_us: int
    interval_ms: int
    models: _containers.RepeatedCompositeFieldContainer[ModelFigures]
    calls_in_flight: int
    bytes_in_flight: int
    waiting: int
    streams: int
    limits: _containers.RepeatedCompositeFieldContainer[LimitHits]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    heartbeat_age_ms: int
    state: _safety_pb2.SystemState
    def __init__(self, time_us: _Optional[int] = ..., interval_ms: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelFigures, _Mapping]]] = ..., calls_in_flight: _Optional[int] = ..., bytes_in_flight: _Optional[int] = ..., waiting: _Optional[int] = ..., streams: _Optional[int] = ..., limits: _Optional[_Iterable[_Union[LimitHits, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., heartbeat_age_ms: _Optional[int] = ..., state: _Optional[_Union[_safety_pb2.SystemState, _Mapping]] = ...) -> None: ...

class ModelFigures(_message.Message):
    __slots__ = ("model", "answers", "degraded", "errors", "p50_us", "p90_us", "p99_us", "max_us", "batch_rows")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    P50_US_FIELD_NUMBER: _ClassVar[int]
    P90_US_FIELD_NUMBER: _ClassVar[int]
    P99_US_FIELD_NUMBER: _ClassVar[int]
    MAX_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    model: str
    answers: int
    degraded: int
    errors: int
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int
    batch_rows: float
    def __init__(self, model: _Optional[str] = ..., answers: _Optional[int] = ..., degraded: _Optional[int] = ..., errors: _Optional[int] = ..., p50_us: _Optional[int] = ..., p90_us: _Optional[int] = ..., p99_us: _Optional[int] = ..., max_us: _Optional[int] = ..., batch_rows: _Optional[float] = ...) -> None: ...

class LimitHits(_message.Message):
    __slots__ = ("limit", "count")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    limit: str
    count: int
    def __init__(self, limit: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("process", "name", "status", "reason")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    process: str
    name: str
    status: str
    reason: str
    def __init__(self, process: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SourceOutput(_message.Message):
    __slots__ = ("source_id", "watched", "ended")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    watched: _perception_pb2.WatchResponse
    ended: str
    def __init__(self, source_id: _Optional[str] = ..., watched: _Optional[_Union[_perception_pb2.WatchResponse, _Mapping]] = ..., ended: _Optional[str] = ...) -> None: ...
