"""The sidecar's rules on the shared corpus; gateway-go/internal/rules runs the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from inference import grpc_service_pb2
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


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_verdict_and_fields(file: Path) -> None:
    """Verdict and violated fields of a message are those that its file states."""
    lines = file.read_text().splitlines()
    kind, violated = lines[0].removeprefix("# message: "), lines[1].removeprefix("# violated: ").split()
    package, name = kind.rsplit(".", 1)
    message = next(getattr(m, name) for m in MODULES if m.DESCRIPTOR.package == package)()
    text_format.Parse("\n".join(lines[2:]), message)
    try:
        check_rules(message)
        found: list[str] = []
    except ContractViolation as violation:
        found = [field for field, _ in violation.violations]
    assert sorted(found) == sorted(violated)
