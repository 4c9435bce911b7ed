"""config.pbtxt's model_warmup, with the files of its inputs."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from inference.model_config_pb2 import DataType, ModelConfig, ModelWarmup

from vigil_sidecar.engine.datatypes import NUMPY
from vigil_sidecar.engine.samples import SampleInput, WarmupSample
from vigil_sidecar.errors import CandidateRefused

__all__ = ["read_warmup"]

_FILE_BYTES_MAX = 64 << 20
_TOTAL_BYTES_MAX = 256 << 20
_SAMPLES_MAX, _COUNT_MAX = 64, 1000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


def _data(folder: Path, name: str, where: str) -> bytes:
    """A file of the model's folder ``warmup``, as Triton has it."""
    if _NAME.fullmatch(name) is None:
        raise CandidateRefused(f"config.pbtxt: {where}: input_data_file '{name}' is no name of a file in the folder warmup")
    try:
        descriptor = os.open(folder / "warmup" / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CandidateRefused(f"config.pbtxt: {where}: warmup/{name} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CandidateRefused(f"config.pbtxt: {where}: warmup/{name} is not a regular file")
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise CandidateRefused(f"config.pbtxt: {where}: warmup/{name} is larger than {_FILE_BYTES_MAX} bytes")
    return data


def _input(folder: Path, given: ModelWarmup.Input, where: str) -> SampleInput:
    datatype = DataType.Name(given.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    if datatype != "BYTES" and datatype not in NUMPY:
        raise CandidateRefused(f"config.pbtxt: {where}: data_type {DataType.Name(given.data_type)} cannot be served")
    if any(d < 0 for d in given.dims):
        raise CandidateRefused(f"config.pbtxt: {where}: dims {list(given.dims)} must all be known")
    kind = given.WhichOneof("input_data_type")
    if kind == "input_data_file":
        name = given.input_data_file
        return SampleInput(datatype, tuple(given.dims), "", name, _data(folder, name, where))
    if kind is None or not getattr(given, kind):
        raise CandidateRefused(f"config.pbtxt: {where}: says neither zero_data, random_data nor input_data_file")
    return SampleInput(datatype, tuple(given.dims), kind.removesuffix("_data"))


def read_warmup(config: ModelConfig, folder: Path) -> tuple[WarmupSample, ...]:
    """The samples in order. Raises ``CandidateRefused`` naming the sample, the input and what is wrong."""
    if len(config.model_warmup) > _SAMPLES_MAX:
        raise CandidateRefused(f"config.pbtxt: model_warmup has {len(config.model_warmup)} samples, allowed are {_SAMPLES_MAX}")
    out, total = [], 0
    for sample in config.model_warmup:
        inputs = {}
        for name, given in sorted(sample.inputs.items()):
            inputs[name] = _input(folder, given, f"model_warmup '{sample.name}', input '{name}'")
            total += len(inputs[name].data or b"")
            if total > _TOTAL_BYTES_MAX:
                raise CandidateRefused(f"config.pbtxt: model_warmup has files of more than {_TOTAL_BYTES_MAX} bytes")
        if sample.count > _COUNT_MAX:
            raise CandidateRefused(f"config.pbtxt: model_warmup '{sample.name}' has the count {sample.count}, allowed is 0..{_COUNT_MAX}")
        if sample.batch_size < 1:
            raise CandidateRefused(f"config.pbtxt: model_warmup '{sample.name}' has the batch_size 0, it must be at least 1")
        out.append(WarmupSample(sample.name, sample.batch_size, inputs, max(1, sample.count)))
    return tuple(out)
