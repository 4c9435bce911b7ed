from validate import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_STARTING: _ClassVar[State]
    STATE_NORMAL: _ClassVar[State]
    STATE_DEGRADED: _ClassVar[State]
    STATE_RECOVERING: _ClassVar[State]
    STATE_SAFE_STOP: _ClassVar[State]
STATE_UNSPECIFIED: State
STATE_STARTING: State
STATE_NORMAL: State
STATE_DEGRADED: State
STATE_RECOVERING: State
STATE_SAFE_STOP: State

class InjectRequest(_message.Message):
    __slots__ = ("kind", "model", "duration_ms", "magnitude")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    model: str
    duration_ms: int
    magnitude: float
    def __init__(self, kind: _Optional[str] = ..., model: _Optional[str] = ..., duration_ms: _Optional[int] = ..., magnitude: _Optional[float] = ...) -> None: ...

class InjectResponse(_message.Message):
    __slots__ = ("inject_delay_ms", "duration_ms", "magnitude", "begins_us")
    INJECT_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDE_FIELD_NUMBER: _ClassVar[int]
    BEGINS_US_FIELD_NUMBER: _ClassVar[int]
    inject_delay_ms: int
    duration_ms: int
    magnitude: float
    begins_us: int
    def __init__(self, inject_delay_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., magnitude: _Optional[float] = ..., begins_us: _Optional[int] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("subjects", "limit")
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    subjects: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    def __init__(self, subjects: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("transitions",)
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    transitions: _containers.RepeatedCompositeFieldContainer[Transition]
    def __init__(self, transitions: _Optional[_Iterable[_Union[Transition, _Mapping]]] = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("subject", "reason", "by")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    subject: str
    reason: str
    by: str
    def __init__(self, subject: _Optional[str] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class ResetResponse(_message.Message):
    __slots__ = ("subjects", "state")
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    subjects: _containers.RepeatedScalarFieldContainer[str]
    state: SystemState
    def __init__(self, subjects: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[SystemState, _Mapping]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SystemState
    def __init__(self, state: _Optional[_Union[SystemState, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("subjects", "resume")
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    subjects: _containers.RepeatedScalarFieldContainer[str]
    resume: str
    def __init__(self, subjects: _Optional[_Iterable[str]] = ..., resume: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("state", "transition")
    STATE_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    state: SystemState
    transition: Transition
    def __init__(self, state: _Optional[_Union[SystemState, _Mapping]] = ..., transition: _Optional[_Union[Transition, _Mapping]] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("subject", "to", "event", "reason", "time_us", "resume")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    subject: str
    to: State
    event: str
    reason: str
    time_us: int
    resume: str
    def __init__(self, subject: _Optional[str] = ..., to: _Optional[_Union[State, str]] = ..., event: _Optional[str] = ..., reason: _Optional[str] = ..., time_us: _Optional[int] = ..., resume: _Optional[str] = ..., **kwargs) -> None: ...

class SubjectState(_message.Message):
    __slots__ = ("subject", "state", "reason", "since_us", "degraded", "stopped", "restarted", "expired", "probes")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    subject: str
    state: State
    reason: str
    since_us: int
    degraded: int
    stopped: int
    restarted: int
    expired: int
    probes: Probes
    def __init__(self, subject: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., reason: _Optional[str] = ..., since_us: _Optional[int] = ..., degraded: _Optional[int] = ..., stopped: _Optional[int] = ..., restarted: _Optional[int] = ..., expired: _Optional[int] = ..., probes: _Optional[_Union[Probes, _Mapping]] = ...) -> None: ...

class Probes(_message.Message):
    __slots__ = ("good", "needed", "lease_ends_us")
    GOOD_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    LEASE_ENDS_US_FIELD_NUMBER: _ClassVar[int]
    good: int
    needed: int
    lease_ends_us: int
    def __init__(self, good: _Optional[int] = ..., needed: _Optional[int] = ..., lease_ends_us: _Optional[int] = ...) -> None: ...

class SystemState(_message.Message):
    __slots__ = ("state", "subjects", "table_digest", "injection")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    TABLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INJECTION_FIELD_NUMBER: _ClassVar[int]
    state: State
    subjects: _containers.RepeatedCompositeFieldContainer[SubjectState]
    table_digest: str
    injection: bool
    def __init__(self, state: _Optional[_Union[State, str]] = ..., subjects: _Optional[_Iterable[_Union[SubjectState, _Mapping]]] = ..., table_digest: _Optional[str] = ..., injection: _Optional[bool] = ...) -> None: ...
