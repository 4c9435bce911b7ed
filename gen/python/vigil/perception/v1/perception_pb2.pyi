from validate import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QualityKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUALITY_KIND_UNSPECIFIED: _ClassVar[QualityKind]
    QUALITY_KIND_NORMAL: _ClassVar[QualityKind]
    QUALITY_KIND_CACHE: _ClassVar[QualityKind]
    QUALITY_KIND_RULE: _ClassVar[QualityKind]
QUALITY_KIND_UNSPECIFIED: QualityKind
QUALITY_KIND_NORMAL: QualityKind
QUALITY_KIND_CACHE: QualityKind
QUALITY_KIND_RULE: QualityKind

class ListSourcesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSourcesResponse(_message.Message):
    __slots__ = ("sources",)
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    def __init__(self, sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("source_id", "capture_time_us", "idle_ms")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    capture_time_us: int
    idle_ms: int
    def __init__(self, source_id: _Optional[str] = ..., capture_time_us: _Optional[int] = ..., idle_ms: _Optional[int] = ...) -> None: ...

class DetectRequest(_message.Message):
    __slots__ = ("source_id", "capture_time_us", "frame", "model", "min_confidence", "request_id", "model_version")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MIN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    capture_time_us: int
    frame: Frame
    model: str
    min_confidence: float
    request_id: str
    model_version: str
    def __init__(self, source_id: _Optional[str] = ..., capture_time_us: _Optional[int] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., model: _Optional[str] = ..., min_confidence: _Optional[float] = ..., request_id: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("encoded", "raw")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawFrame
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawFrame, _Mapping]] = ...) -> None: ...

class RawFrame(_message.Message):
    __slots__ = ("width", "height", "rgb")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    rgb: bytes
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., rgb: _Optional[bytes] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("output",)
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    output: Output
    def __init__(self, output: _Optional[_Union[Output, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("source_id", "frames")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    frames: bool
    def __init__(self, source_id: _Optional[str] = ..., frames: _Optional[bool] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("output", "dropped", "frame")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    output: Output
    dropped: int
    frame: Frame
    def __init__(self, output: _Optional[_Union[Output, _Mapping]] = ..., dropped: _Optional[int] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max", "confidence", "label", "quadrilateral", "landmarks")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    QUADRILATERAL_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_FIELD_NUMBER: _ClassVar[int]
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    confidence: float
    label: str
    quadrilateral: _containers.RepeatedCompositeFieldContainer[Point]
    landmarks: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, x_min: _Optional[float] = ..., y_min: _Optional[float] = ..., x_max: _Optional[float] = ..., y_max: _Optional[float] = ..., confidence: _Optional[float] = ..., label: _Optional[str] = ..., quadrilateral: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., landmarks: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Quality(_message.Message):
    __slots__ = ("kind", "source", "age_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    kind: QualityKind
    source: str
    age_ms: int
    def __init__(self, kind: _Optional[_Union[QualityKind, str]] = ..., source: _Optional[str] = ..., age_ms: _Optional[int] = ...) -> None: ...

class AuditPosition(_message.Message):
    __slots__ = ("log", "boot", "sequence")
    LOG_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    log: str
    boot: str
    sequence: int
    def __init__(self, log: _Optional[str] = ..., boot: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("source_id", "capture_time_us", "confidence", "boxes", "frame_width", "frame_height", "model", "model_version", "model_digest", "quality", "trace_id", "audit_position")
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    FRAME_WIDTH_FIELD_NUMBER: _ClassVar[int]
    FRAME_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    AUDIT_POSITION_FIELD_NUMBER: _ClassVar[int]
    source_id: str
    capture_time_us: int
    confidence: float
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    frame_width: int
    frame_height: int
    model: str
    model_version: str
    model_digest: str
    quality: Quality
    trace_id: str
    audit_position: AuditPosition
    def __init__(self, source_id: _Optional[str] = ..., capture_time_us: _Optional[int] = ..., confidence: _Optional[float] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., frame_width: _Optional[int] = ..., frame_height: _Optional[int] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., model_digest: _Optional[str] = ..., quality: _Optional[_Union[Quality, _Mapping]] = ..., trace_id: _Optional[str] = ..., audit_position: _Optional[_Union[AuditPosition, _Mapping]] = ...) -> None: ...
