from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallPayload(_message.Message):
    __slots__ = ("method", "model", "request_id", "source_id", "message", "violations", "reason", "handed_over", "stand_in", "age_ms", "cause", "first_given")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    STAND_IN_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    FIRST_GIVEN_FIELD_NUMBER: _ClassVar[int]
    method: str
    model: str
    request_id: str
    source_id: str
    message: str
    violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    reason: str
    handed_over: bool
    stand_in: str
    age_ms: int
    cause: str
    first_given: str
    def __init__(self, method: _Optional[str] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., source_id: _Optional[str] = ..., message: _Optional[str] = ..., violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ..., reason: _Optional[str] = ..., handed_over: _Optional[bool] = ..., stand_in: _Optional[str] = ..., age_ms: _Optional[int] = ..., cause: _Optional[str] = ..., first_given: _Optional[str] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class ModelPayload(_message.Message):
    __slots__ = ("model", "version", "digest", "reason", "replaced_version", "replaced_digest", "generation")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPLACED_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLACED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    digest: str
    reason: str
    replaced_version: int
    replaced_digest: str
    generation: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., reason: _Optional[str] = ..., replaced_version: _Optional[int] = ..., replaced_digest: _Optional[str] = ..., generation: _Optional[int] = ...) -> None: ...

class StatePayload(_message.Message):
    __slots__ = ("subject", "to", "event", "reason", "table_digest", "now_ms", "counters", "parameters", "actions", "by")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: CountedTimes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[CountedTimes, _Mapping]] = ...) -> None: ...
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TABLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    subject: str
    to: str
    event: str
    reason: str
    table_digest: str
    now_ms: int
    counters: _containers.MessageMap[str, CountedTimes]
    parameters: _containers.ScalarMap[str, int]
    actions: _containers.RepeatedScalarFieldContainer[str]
    by: str
    def __init__(self, subject: _Optional[str] = ..., to: _Optional[str] = ..., event: _Optional[str] = ..., reason: _Optional[str] = ..., table_digest: _Optional[str] = ..., now_ms: _Optional[int] = ..., counters: _Optional[_Mapping[str, CountedTimes]] = ..., parameters: _Optional[_Mapping[str, int]] = ..., actions: _Optional[_Iterable[str]] = ..., by: _Optional[str] = ..., **kwargs) -> None: ...

class CountedTimes(_message.Message):
    __slots__ = ("times_ms",)
    TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    times_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, times_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class SystemPayload(_message.Message):
    __slots__ = ("text", "fields")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    fields: _containers.ScalarMap[str, str]
    def __init__(self, text: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...
