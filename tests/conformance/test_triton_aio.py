"""Triton's asynchronous client, unchanged: every function of it, once at least."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.harness import graphs
from tests.harness.product import Product, wait_for

CLIENT = """
import asyncio, inspect, json, sys
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException
import tritonclient.utils.shared_memory as shm

called = set()

class Client(triton.InferenceServerClient):
    def __getattribute__(self, name):
        if not name.startswith("_"):
            called.add(name)
        return super().__getattribute__(name)

async def refused(call):
    try:
        await call
        return "no error"
    except InferenceServerException as e:
        return [e.status(), e.message()]

async def main():
    out = {}
    async with Client(sys.argv[1]) as c:
        out["states"] = [await c.is_server_live(), await c.is_server_ready(), await c.is_model_ready("scale"), await c.is_model_ready("no")]
        out["server"] = (await c.get_server_metadata()).name
        out["model"] = (await c.get_model_metadata("scale")).inputs[0].name
        out["config"] = (await c.get_model_config("scale")).config.max_batch_size
        out["index"] = sorted(m.name for m in (await c.get_model_repository_index()).models)
        x = np.arange(4, dtype=np.float32).reshape(1, 4)
        i = triton.InferInput("x", x.shape, "FP32"); i.set_data_from_numpy(x)
        out["y"] = (await c.infer("scale", [i], request_id="7")).as_numpy("y").tolist()
        async def requests():
            for n in range(20):
                yield {"model_name": "scale" if n != 13 else "no", "inputs": [i], "request_id": str(n)}
        stream = c.stream_infer(requests())
        out["stream"] = [[r.get_response().id, None] if e is None else ["", e.message()] async for r, e in stream]
        out["statistics"] = (await c.get_inference_statistics("scale")).model_stats[0].inference_count
        await c.load_model("other"); out["loaded"] = await c.is_model_ready("other")
        await c.unload_model("other"); out["unloaded"] = await c.is_model_ready("other")
        await c.update_trace_settings(settings={"trace_rate": "7"})
        out["trace"] = (await c.get_trace_settings()).settings["trace_rate"].value[0]
        await c.update_log_settings({"log_warning": False})
        out["log"] = (await c.get_log_settings()).settings["log_warning"].bool_param
        await c.update_log_settings({"log_warning": True})
        region = shm.create_shared_memory_region("r", "/vigil_test_aio", x.nbytes)
        try:
            shm.set_shared_memory_region(region, [x])
            await c.register_system_shared_memory("r", "/vigil_test_aio", x.nbytes)
            out["regions"] = sorted((await c.get_system_shared_memory_status()).regions)
            i.set_shared_memory("r", x.nbytes)
            out["shared"] = (await c.infer("scale", [i])).as_numpy("y").tolist()
            await c.unregister_system_shared_memory("r")
        finally:
            shm.destroy_shared_memory_region(region)
        out["cuda"] = len((await c.get_cuda_shared_memory_status()).regions)
        out["cuda_register"] = await refused(c.register_cuda_shared_memory("r", b"x" * 64, 0, 16))
        await c.unregister_cuda_shared_memory()
        i.set_data_from_numpy(x)
        out["unknown"] = await refused(c.infer("no", [i]))
    functions = {n for n, f in inspect.getmembers(triton.InferenceServerClient, inspect.isfunction) if not n.startswith("_")}
    out["left out"] = sorted(functions - called - {"close", "register_plugin", "unregister_plugin", "plugin"})
    print(json.dumps(out))

asyncio.run(main())
"""


def test_every_function(tmp_path: Path) -> None:
    """Each gives what Triton gives, or refuses by name what is not offered."""
    for name in ("scale", "other"):
        graphs.scale(2.0, tmp_path / "models" / name / "1" / "model.onnx")
    with Product(tmp_path, {"models.control": "explicit", "models.load": "scale", "trace.otlp_endpoint": "127.0.0.1:9"}) as product:
        wait_for(lambda: product.listed("scale")["serving_version"] == 1, 20, "scale serves")
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, f"127.0.0.1:{product.ports['grpc']}"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out.pop("states") == [True, True, True, False]
    unknown = "Request for unknown model: 'no' is not found"
    assert [i for i, _ in out["stream"]] == [str(n) if n != 13 else "" for n in range(20)]
    assert unknown in out.pop("stream")[13][1]
    assert out.pop("unknown") == ["StatusCode.NOT_FOUND", unknown]
    assert out.pop("cuda_register")[0] == "StatusCode.UNIMPLEMENTED"
    assert out.pop("statistics") >= 20
    y = [[0, 2, 4, 6]]
    assert out == {
        "server": "vigil", "model": "x", "config": 32, "index": ["other", "scale"], "y": y, "loaded": True, "unloaded": False,
        "trace": "7", "log": False, "regions": ["r"], "shared": y, "cuda": 0, "left out": [],
    }  # fmt: skip
