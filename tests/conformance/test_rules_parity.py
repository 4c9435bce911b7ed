"""The sidecar's rules on the shared corpus; gateway-go/internal/rules runs the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from inference import grpc_service_pb2
from protoc_gen_validate import validator
from vigil import rules_gen
from vigil.audit.v1 import service_pb2 as audit_pb2
from vigil.models.v1 import models_pb2
from vigil.perception.v1 import perception_pb2
from vigil.safety.v1 import safety_pb2

from vigil_sidecar.errors import ContractViolation
from vigil_sidecar.server.rules import check_rules

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*.txtpb"))
MODULES = (audit_pb2, grpc_service_pb2, models_pb2, perception_pb2, safety_pb2)


def test_corpus_is_large_enough() -> None:
    """At least 300 messages are compared, valid and invalid ones."""
    invalid = [f for f in FILES if f.read_text().splitlines()[1] != "# violated: "]
    assert len(FILES) >= 300
    assert len(invalid) >= 50
    assert len(FILES) - len(invalid) >= 50


def _message(file: Path) -> tuple[Message, list[str]]:
    """The message of a file, and the fields that it says are violated."""
    lines = file.read_text().splitlines()
    kind, violated = lines[0].removeprefix("# message: "), lines[1].removeprefix("# violated: ").split()
    package, name = kind.rsplit(".", 1)
    message: Message = next(getattr(m, name) for m in MODULES if m.DESCRIPTOR.package == package)()
    text_format.Parse("\n".join(lines[2:]), message)
    return message, violated


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_written_out_rules_say_what_the_plugin_says(file: Path) -> None:
    """The generated module and protoc-gen-validate, which makes its functions anew at run time, agree to the word."""
    message, _ = _message(file)
    said = []
    for validate, failed in ((rules_gen.validate, rules_gen.ValidationFailed), (validator.validate, validator.ValidationFailed)):
        try:
            validate(message)
            said.append("")
        except failed as failure:
            said.append(str(failure))
    assert said[0] == said[1]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_verdict_and_fields(file: Path) -> None:
    """Verdict and violated fields of a message are those that its file states."""
    message, violated = _message(file)
    try:
        check_rules(message)
        found: list[str] = []
    except ContractViolation as violation:
        found = [field for field, _ in violation.violations]
    assert sorted(found) == sorted(violated)
