from vigil.audit.v1 import service_pb2 as _service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadingTask(_message.Message):
    __slots__ = ("folder", "log", "budget_us", "tenant_hashes", "search", "get", "prove", "verify_range")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    BUDGET_US_FIELD_NUMBER: _ClassVar[int]
    TENANT_HASHES_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    PROVE_FIELD_NUMBER: _ClassVar[int]
    VERIFY_RANGE_FIELD_NUMBER: _ClassVar[int]
    folder: str
    log: str
    budget_us: int
    tenant_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    search: _service_pb2.SearchRequest
    get: _service_pb2.GetRequest
    prove: _service_pb2.ProveRequest
    verify_range: _service_pb2.VerifyRangeRequest
    def __init__(self, folder: _Optional[str] = ..., log: _Optional[str] = ..., budget_us: _Optional[int] = ..., tenant_hashes: _Optional[_Iterable[bytes]] = ..., search: _Optional[_Union[_service_pb2.SearchRequest, _Mapping]] = ..., get: _Optional[_Union[_service_pb2.GetRequest, _Mapping]] = ..., prove: _Optional[_Union[_service_pb2.ProveRequest, _Mapping]] = ..., verify_range: _Optional[_Union[_service_pb2.VerifyRangeRequest, _Mapping]] = ...) -> None: ...

class ReadingReply(_message.Message):
    __slots__ = ("message", "fault")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    fault: ReadingFault
    def __init__(self, message: _Optional[bytes] = ..., fault: _Optional[_Union[ReadingFault, _Mapping]] = ...) -> None: ...

class ReadingFault(_message.Message):
    __slots__ = ("code", "text", "field")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    code: int
    text: str
    field: str
    def __init__(self, code: _Optional[int] = ..., text: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...
