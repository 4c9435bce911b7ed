"""Which calls the sidecar's own listener answers from afar, past the gateway."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from vigil.audit.v1 import service_pb2 as audit
from vigil.models.v1 import models_pb2 as models
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import Stub, own_address
from tests.harness.product import Product


def _code(stub: Stub, method: str, request: object, reply: type) -> grpc.StatusCode:
    try:
        stub.unary(method, request, reply)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


@pytest.mark.skipif(not own_address(), reason="this machine has no address but loopback")
@pytest.mark.parametrize("allowed", ["false", "true"])
def test_the_sidecars_own_door_controls_by_its_setting_only(tmp_path: Path, allowed: str) -> None:
    """Every control method, whatever service it belongs to; methods that only read are not refused."""
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx")
    with Product(tmp_path, {"listen.host": "0.0.0.0", "control.allow_remote": allowed}) as product:
        door = Stub(grpc.insecure_channel(f"{own_address()}:{product.ports['sidecar_grpc']}"))
        reload = models.ReloadModelRequest(name="scale")
        rotate = audit.RotateKeyRequest(log=audit.LOG_SIDECAR, reason="a test")
        reset = safety.ResetRequest(reason="a test", by="nobody")
        codes = [
            _code(door, "/vigil.models.v1.ModelsService/ReloadModel", reload, models.ReloadModelResponse),
            _code(door, "/vigil.audit.v1.AuditService/RotateKey", rotate, audit.RotateKeyResponse),
            _code(door, "/vigil.safety.v1.SafetyService/Reset", reset, safety.ResetResponse),
        ]
        nothing_stopped = grpc.StatusCode.FAILED_PRECONDITION
        refused = [grpc.StatusCode.PERMISSION_DENIED] * 3
        assert codes == ([grpc.StatusCode.OK, grpc.StatusCode.OK, nothing_stopped] if allowed == "true" else refused)
        read = _code(door, "/vigil.models.v1.ModelsService/ListModels", models.ListModelsRequest(), models.ListModelsResponse)
        assert read is grpc.StatusCode.OK
