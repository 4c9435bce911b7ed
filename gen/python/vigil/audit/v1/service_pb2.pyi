from validate import validate_pb2 as _validate_pb2
from vigil.audit.v1 import audit_pb2 as _audit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Log(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_UNSPECIFIED: _ClassVar[Log]
    LOG_GATEWAY: _ClassVar[Log]
    LOG_SIDECAR: _ClassVar[Log]
LOG_UNSPECIFIED: Log
LOG_GATEWAY: Log
LOG_SIDECAR: Log

class CheckpointRequest(_message.Message):
    __slots__ = ("log",)
    LOG_FIELD_NUMBER: _ClassVar[int]
    log: Log
    def __init__(self, log: _Optional[_Union[Log, str]] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("note",)
    NOTE_FIELD_NUMBER: _ClassVar[int]
    note: str
    def __init__(self, note: _Optional[str] = ...) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ("log", "reason")
    LOG_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    log: Log
    reason: str
    def __init__(self, log: _Optional[_Union[Log, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class RotateKeyResponse(_message.Message):
    __slots__ = ("verifier_key",)
    VERIFIER_KEY_FIELD_NUMBER: _ClassVar[int]
    verifier_key: str
    def __init__(self, verifier_key: _Optional[str] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("position", "sequence", "time_ns", "time_uncertainty_ns", "monotonic_ns", "kind", "event_id", "event", "status_code", "trace_id", "span_id", "request_id_hash", "tenant_hash", "model_digest", "model_version", "input_hash", "output_hash", "safety_state", "quality", "clock_source", "clock_status", "batch_size", "batch_row", "latency_ns", "call", "model", "state", "system", "note")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    TIME_UNCERTAINTY_NS_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_HASH_FIELD_NUMBER: _ClassVar[int]
    TENANT_HASH_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_HASH_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_HASH_FIELD_NUMBER: _ClassVar[int]
    SAFETY_STATE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SOURCE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_STATUS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROW_FIELD_NUMBER: _ClassVar[int]
    LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    position: str
    sequence: int
    time_ns: int
    time_uncertainty_ns: int
    monotonic_ns: int
    kind: str
    event_id: int
    event: str
    status_code: int
    trace_id: str
    span_id: str
    request_id_hash: str
    tenant_hash: str
    model_digest: str
    model_version: int
    input_hash: str
    output_hash: str
    safety_state: int
    quality: int
    clock_source: int
    clock_status: int
    batch_size: int
    batch_row: int
    latency_ns: int
    call: _audit_pb2.CallPayload
    model: _audit_pb2.ModelPayload
    state: _audit_pb2.StatePayload
    system: _audit_pb2.SystemPayload
    note: str
    def __init__(self, position: _Optional[str] = ..., sequence: _Optional[int] = ..., time_ns: _Optional[int] = ..., time_uncertainty_ns: _Optional[int] = ..., monotonic_ns: _Optional[int] = ..., kind: _Optional[str] = ..., event_id: _Optional[int] = ..., event: _Optional[str] = ..., status_code: _Optional[int] = ..., trace_id: _Optional[str] = ..., span_id: _Optional[str] = ..., request_id_hash: _Optional[str] = ..., tenant_hash: _Optional[str] = ..., model_digest: _Optional[str] = ..., model_version: _Optional[int] = ..., input_hash: _Optional[str] = ..., output_hash: _Optional[str] = ..., safety_state: _Optional[int] = ..., quality: _Optional[int] = ..., clock_source: _Optional[int] = ..., clock_status: _Optional[int] = ..., batch_size: _Optional[int] = ..., batch_row: _Optional[int] = ..., latency_ns: _Optional[int] = ..., call: _Optional[_Union[_audit_pb2.CallPayload, _Mapping]] = ..., model: _Optional[_Union[_audit_pb2.ModelPayload, _Mapping]] = ..., state: _Optional[_Union[_audit_pb2.StatePayload, _Mapping]] = ..., system: _Optional[_Union[_audit_pb2.SystemPayload, _Mapping]] = ..., note: _Optional[str] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("log", "from_ns", "to_ns", "trace_id", "model", "event_ids", "tenant", "page_size", "page_token", "newest_first")
    LOG_FIELD_NUMBER: _ClassVar[int]
    FROM_NS_FIELD_NUMBER: _ClassVar[int]
    TO_NS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EVENT_IDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    log: Log
    from_ns: int
    to_ns: int
    trace_id: str
    model: str
    event_ids: _containers.RepeatedScalarFieldContainer[int]
    tenant: str
    page_size: int
    page_token: str
    newest_first: bool
    def __init__(self, log: _Optional[_Union[Log, str]] = ..., from_ns: _Optional[int] = ..., to_ns: _Optional[int] = ..., trace_id: _Optional[str] = ..., model: _Optional[str] = ..., event_ids: _Optional[_Iterable[int]] = ..., tenant: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., newest_first: _Optional[bool] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("records", "next_page_token", "records_read", "damage")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RECORDS_READ_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    next_page_token: str
    records_read: int
    damage: str
    def __init__(self, records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., records_read: _Optional[int] = ..., damage: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: str
    def __init__(self, position: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("record", "raw", "leaf_hash")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    LEAF_HASH_FIELD_NUMBER: _ClassVar[int]
    record: LogRecord
    raw: bytes
    leaf_hash: bytes
    def __init__(self, record: _Optional[_Union[LogRecord, _Mapping]] = ..., raw: _Optional[bytes] = ..., leaf_hash: _Optional[bytes] = ...) -> None: ...

class ProveRequest(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: str
    def __init__(self, position: _Optional[str] = ...) -> None: ...

class ProveResponse(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class VerifyRangeRequest(_message.Message):
    __slots__ = ("log", "from_sequence", "to_sequence", "trusted_keys")
    LOG_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TO_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_KEYS_FIELD_NUMBER: _ClassVar[int]
    log: Log
    from_sequence: int
    to_sequence: int
    trusted_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, log: _Optional[_Union[Log, str]] = ..., from_sequence: _Optional[int] = ..., to_sequence: _Optional[int] = ..., trusted_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class VerifyRangeResponse(_message.Message):
    __slots__ = ("progress", "verdict")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    progress: VerifyProgress
    verdict: VerifyVerdict
    def __init__(self, progress: _Optional[_Union[VerifyProgress, _Mapping]] = ..., verdict: _Optional[_Union[VerifyVerdict, _Mapping]] = ...) -> None: ...

class VerifyProgress(_message.Message):
    __slots__ = ("records", "bytes", "bytes_total")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    records: int
    bytes: int
    bytes_total: int
    def __init__(self, records: _Optional[int] = ..., bytes: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class VerifyVerdict(_message.Message):
    __slots__ = ("exit_code", "verdict", "origin", "first_sequence", "last_sequence", "sealed_sequence", "checkpoints", "unlogged", "reason", "damaged_sequence", "damaged_file", "damaged_offset")
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEALED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    UNLOGGED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FILE_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    verdict: str
    origin: str
    first_sequence: int
    last_sequence: int
    sealed_sequence: int
    checkpoints: int
    unlogged: int
    reason: str
    damaged_sequence: int
    damaged_file: str
    damaged_offset: int
    def __init__(self, exit_code: _Optional[int] = ..., verdict: _Optional[str] = ..., origin: _Optional[str] = ..., first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., sealed_sequence: _Optional[int] = ..., checkpoints: _Optional[int] = ..., unlogged: _Optional[int] = ..., reason: _Optional[str] = ..., damaged_sequence: _Optional[int] = ..., damaged_file: _Optional[str] = ..., damaged_offset: _Optional[int] = ...) -> None: ...
