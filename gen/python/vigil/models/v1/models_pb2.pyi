from validate import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    VERSION_STATE_LOADING: _ClassVar[VersionState]
    VERSION_STATE_SERVING: _ClassVar[VersionState]
    VERSION_STATE_STANDBY: _ClassVar[VersionState]
    VERSION_STATE_REFUSED: _ClassVar[VersionState]
    VERSION_STATE_RETIRED: _ClassVar[VersionState]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_STAGING: _ClassVar[Stage]
    STAGE_WARMING: _ClassVar[Stage]
    STAGE_LOADED: _ClassVar[Stage]
    STAGE_SERVING: _ClassVar[Stage]
    STAGE_DRAINING: _ClassVar[Stage]
    STAGE_RETIRED: _ClassVar[Stage]
    STAGE_REFUSED: _ClassVar[Stage]
VERSION_STATE_UNSPECIFIED: VersionState
VERSION_STATE_LOADING: VersionState
VERSION_STATE_SERVING: VersionState
VERSION_STATE_STANDBY: VersionState
VERSION_STATE_REFUSED: VersionState
VERSION_STATE_RETIRED: VersionState
STAGE_UNSPECIFIED: Stage
STAGE_STAGING: Stage
STAGE_WARMING: Stage
STAGE_LOADED: Stage
STAGE_SERVING: Stage
STAGE_DRAINING: Stage
STAGE_RETIRED: Stage
STAGE_REFUSED: Stage

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ActivateVersionRequest(_message.Message):
    __slots__ = ("name", "version", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ActivateVersionResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ReloadModelRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("version", "digest", "state", "reason", "since_us", "size_bytes", "gates", "memory_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    state: VersionState
    reason: str
    since_us: int
    size_bytes: int
    gates: _containers.RepeatedCompositeFieldContainer[Gate]
    memory_bytes: int
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[VersionState, str]] = ..., reason: _Optional[str] = ..., since_us: _Optional[int] = ..., size_bytes: _Optional[int] = ..., gates: _Optional[_Iterable[_Union[Gate, _Mapping]]] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Gate(_message.Message):
    __slots__ = ("name", "found", "took_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    TOOK_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    found: str
    took_us: int
    def __init__(self, name: _Optional[str] = ..., found: _Optional[str] = ..., took_us: _Optional[int] = ...) -> None: ...

class ModelEvent(_message.Message):
    __slots__ = ("model", "version", "digest", "stage", "reason", "time_us", "replaced_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    REPLACED_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    digest: str
    stage: Stage
    reason: str
    time_us: int
    replaced_version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., reason: _Optional[str] = ..., time_us: _Optional[int] = ..., replaced_version: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "serving_version", "serving_digest", "versions", "inputs", "outputs", "max_batch_size", "providers", "pipeline", "safety_state", "safety_reason", "generation", "runs_inline", "batch_difference")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    SAFETY_STATE_FIELD_NUMBER: _ClassVar[int]
    SAFETY_REASON_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RUNS_INLINE_FIELD_NUMBER: _ClassVar[int]
    BATCH_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    serving_version: int
    serving_digest: str
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    max_batch_size: int
    providers: _containers.RepeatedScalarFieldContainer[str]
    pipeline: str
    safety_state: str
    safety_reason: str
    generation: int
    runs_inline: bool
    batch_difference: float
    def __init__(self, name: _Optional[str] = ..., serving_version: _Optional[int] = ..., serving_digest: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., max_batch_size: _Optional[int] = ..., providers: _Optional[_Iterable[str]] = ..., pipeline: _Optional[str] = ..., safety_state: _Optional[str] = ..., safety_reason: _Optional[str] = ..., generation: _Optional[int] = ..., runs_inline: _Optional[bool] = ..., batch_difference: _Optional[float] = ...) -> None: ...
