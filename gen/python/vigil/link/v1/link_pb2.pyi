from validate import validate_pb2 as _validate_pb2
from vigil.models.v1 import models_pb2 as _models_pb2
from vigil.perception.v1 import perception_pb2 as _perception_pb2
from vigil.safety.v1 import safety_pb2 as _safety_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("sequence", "hello", "welcome", "reject", "heartbeat", "calls", "replies", "cancel", "chunk", "stream_credit", "drain", "drained", "ladders")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    STREAM_CREDIT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    LADDERS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    hello: Hello
    welcome: Welcome
    reject: Reject
    heartbeat: Heartbeat
    calls: Calls
    replies: Replies
    cancel: Cancel
    chunk: Chunk
    stream_credit: StreamCredit
    drain: Drain
    drained: Drained
    ladders: Ladders
    def __init__(self, sequence: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., reject: _Optional[_Union[Reject, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., calls: _Optional[_Union[Calls, _Mapping]] = ..., replies: _Optional[_Union[Replies, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., stream_credit: _Optional[_Union[StreamCredit, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., drained: _Optional[_Union[Drained, _Mapping]] = ..., ladders: _Optional[_Union[Ladders, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "contract_digest", "instance", "frame_bytes_max", "heartbeat_interval_ms")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    contract_digest: str
    instance: str
    frame_bytes_max: int
    heartbeat_interval_ms: int
    def __init__(self, protocol_version: _Optional[int] = ..., contract_digest: _Optional[str] = ..., instance: _Optional[str] = ..., frame_bytes_max: _Optional[int] = ..., heartbeat_interval_ms: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_version", "contract_digest", "instance", "boot_id", "frame_bytes_max", "pid", "methods", "lifelines")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    LIFELINES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    contract_digest: str
    instance: str
    boot_id: str
    frame_bytes_max: int
    pid: int
    methods: _containers.RepeatedScalarFieldContainer[str]
    lifelines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., contract_digest: _Optional[str] = ..., instance: _Optional[str] = ..., boot_id: _Optional[str] = ..., frame_bytes_max: _Optional[int] = ..., pid: _Optional[int] = ..., methods: _Optional[_Iterable[str]] = ..., lifelines: _Optional[_Iterable[str]] = ...) -> None: ...

class Reject(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("count", "monotonic_ns", "ready", "subjects", "models", "transitions", "crc", "checkpoint", "log_failure", "supervision", "pause_ms", "model_events", "memory_free")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    LOG_FAILURE_FIELD_NUMBER: _ClassVar[int]
    SUPERVISION_FIELD_NUMBER: _ClassVar[int]
    PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_EVENTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_FIELD_NUMBER: _ClassVar[int]
    count: int
    monotonic_ns: int
    ready: bool
    subjects: _containers.RepeatedCompositeFieldContainer[_safety_pb2.SubjectState]
    models: _containers.RepeatedScalarFieldContainer[str]
    transitions: _containers.RepeatedCompositeFieldContainer[_safety_pb2.Transition]
    crc: int
    checkpoint: bytes
    log_failure: str
    supervision: Supervision
    pause_ms: int
    model_events: _containers.RepeatedCompositeFieldContainer[_models_pb2.ModelEvent]
    memory_free: int
    def __init__(self, count: _Optional[int] = ..., monotonic_ns: _Optional[int] = ..., ready: _Optional[bool] = ..., subjects: _Optional[_Iterable[_Union[_safety_pb2.SubjectState, _Mapping]]] = ..., models: _Optional[_Iterable[str]] = ..., transitions: _Optional[_Iterable[_Union[_safety_pb2.Transition, _Mapping]]] = ..., crc: _Optional[int] = ..., checkpoint: _Optional[bytes] = ..., log_failure: _Optional[str] = ..., supervision: _Optional[_Union[Supervision, _Mapping]] = ..., pause_ms: _Optional[int] = ..., model_events: _Optional[_Iterable[_Union[_models_pb2.ModelEvent, _Mapping]]] = ..., memory_free: _Optional[int] = ...) -> None: ...

class Supervision(_message.Message):
    __slots__ = ("cycles", "status", "expired")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Supervision.Status]
        STATUS_OK: _ClassVar[Supervision.Status]
        STATUS_FAILED: _ClassVar[Supervision.Status]
        STATUS_EXPIRED: _ClassVar[Supervision.Status]
        STATUS_STOPPED: _ClassVar[Supervision.Status]
    STATUS_UNSPECIFIED: Supervision.Status
    STATUS_OK: Supervision.Status
    STATUS_FAILED: Supervision.Status
    STATUS_EXPIRED: Supervision.Status
    STATUS_STOPPED: Supervision.Status
    CYCLES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    cycles: int
    status: Supervision.Status
    expired: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cycles: _Optional[int] = ..., status: _Optional[_Union[Supervision.Status, str]] = ..., expired: _Optional[_Iterable[str]] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("trace_id", "span_id", "sampled", "timeout_us", "tenant", "control", "stands_for", "asked_before")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    STANDS_FOR_FIELD_NUMBER: _ClassVar[int]
    ASKED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    trace_id: bytes
    span_id: bytes
    sampled: bool
    timeout_us: int
    tenant: str
    control: bool
    stands_for: str
    asked_before: bool
    def __init__(self, trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ..., sampled: _Optional[bool] = ..., timeout_us: _Optional[int] = ..., tenant: _Optional[str] = ..., control: _Optional[bool] = ..., stands_for: _Optional[str] = ..., asked_before: _Optional[bool] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "method", "message", "context", "crc")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    id: int
    method: int
    message: bytes
    context: Context
    crc: int
    def __init__(self, id: _Optional[int] = ..., method: _Optional[int] = ..., message: _Optional[bytes] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., crc: _Optional[int] = ...) -> None: ...

class Calls(_message.Message):
    __slots__ = ("lane", "calls", "model")
    LANE_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    lane: int
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    model: str
    def __init__(self, lane: _Optional[int] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("id", "code", "text", "message", "status", "more", "audit_position", "model_version", "batch_size", "crc", "safety_state", "stand_in")
    ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_POSITION_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    SAFETY_STATE_FIELD_NUMBER: _ClassVar[int]
    STAND_IN_FIELD_NUMBER: _ClassVar[int]
    id: int
    code: int
    text: str
    message: bytes
    status: bytes
    more: bool
    audit_position: str
    model_version: str
    batch_size: int
    crc: int
    safety_state: str
    stand_in: bool
    def __init__(self, id: _Optional[int] = ..., code: _Optional[int] = ..., text: _Optional[str] = ..., message: _Optional[bytes] = ..., status: _Optional[bytes] = ..., more: _Optional[bool] = ..., audit_position: _Optional[str] = ..., model_version: _Optional[str] = ..., batch_size: _Optional[int] = ..., crc: _Optional[int] = ..., safety_state: _Optional[str] = ..., stand_in: _Optional[bool] = ...) -> None: ...

class Replies(_message.Message):
    __slots__ = ("replies", "credits")
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    credits: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ..., credits: _Optional[_Iterable[int]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class StreamCredit(_message.Message):
    __slots__ = ("id", "count")
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    id: int
    count: int
    def __init__(self, id: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drained(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("stream", "data", "last", "size")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    stream: int
    data: bytes
    last: bool
    size: int
    def __init__(self, stream: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ..., size: _Optional[int] = ...) -> None: ...

class Ladders(_message.Message):
    __slots__ = ("ladders", "waiting")
    LADDERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ladders: _containers.RepeatedCompositeFieldContainer[Ladder]
    waiting: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ladders: _Optional[_Iterable[_Union[Ladder, _Mapping]]] = ..., waiting: _Optional[_Iterable[str]] = ...) -> None: ...

class Ladder(_message.Message):
    __slots__ = ("model", "last_good_ms", "fallback_model", "outputs", "constant_boxes", "boxes", "inputs", "max_batch_size", "finite_inputs", "version", "digest", "fallback_detects_only")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAST_GOOD_MS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_BOXES_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    FINITE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_DETECTS_ONLY_FIELD_NUMBER: _ClassVar[int]
    model: str
    last_good_ms: int
    fallback_model: str
    outputs: _containers.RepeatedCompositeFieldContainer[ConstantOutput]
    constant_boxes: bool
    boxes: _containers.RepeatedCompositeFieldContainer[_perception_pb2.Box]
    inputs: _containers.RepeatedCompositeFieldContainer[TensorForm]
    max_batch_size: int
    finite_inputs: bool
    version: str
    digest: str
    fallback_detects_only: bool
    def __init__(self, model: _Optional[str] = ..., last_good_ms: _Optional[int] = ..., fallback_model: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[ConstantOutput, _Mapping]]] = ..., constant_boxes: _Optional[bool] = ..., boxes: _Optional[_Iterable[_Union[_perception_pb2.Box, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[TensorForm, _Mapping]]] = ..., max_batch_size: _Optional[int] = ..., finite_inputs: _Optional[bool] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., fallback_detects_only: _Optional[bool] = ...) -> None: ...

class TensorForm(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ConstantOutput(_message.Message):
    __slots__ = ("name", "datatype", "shape", "raw")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    raw: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., raw: _Optional[bytes] = ...) -> None: ...
