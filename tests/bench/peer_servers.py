"""Other servers, each in its own environment, on the same graphs: started, waited for, measured, ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from tests.harness.environments import environment
from tests.harness.product import VIGIL

__all__ = ["MLServer", "Server", "Triton", "Vigil"]

_MODELS = Path(__file__).parent / "peer_models"
_READY_S = 120.0


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _tree(pid: int) -> list[int]:
    found = [pid]
    for at in found:
        for task in Path(f"/proc/{at}/task").glob("*/children"):
            found += [int(c) for c in task.read_text().split()]
    return found


class Server:
    """A running server. ``start_s`` is how long it took from the command to its readiness."""

    name = ""

    def __init__(self, command: Sequence[str], http: int, grpc: int, folder: Path, more: dict[str, str]) -> None:
        self.grpc, self._http = grpc, http
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        start = time.monotonic()
        with self._log.open("wb") as log:
            environment = {k: v for k, v in os.environ.items() if not k.startswith("VIGIL_")} | more
            self._process = subprocess.Popen(
                list(command), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() - start > _READY_S:
                self.stop()
                raise RuntimeError(f"{self.name} did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.01)
        self.start_s = time.monotonic() - start

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/v2/health/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def cpu_s(self) -> float:
        """Processor time of all its processes."""
        total = 0
        for pid in _tree(self._process.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Memory of all its processes; what they share counts once."""
        total = 0
        for pid in _tree(self._process.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def stop(self) -> None:
        """End it and all its processes."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(15)


class Vigil(Server):
    """This product, with everything on."""

    name = "Vigil"

    def __init__(self, folder: Path, graphs: dict[str, Path], settings: dict[str, str], batch: int | None = None) -> None:
        """``batch`` is max_batch_size of every model; None leaves it to Vigil."""
        shutil.rmtree(folder, ignore_errors=True)
        for name, graph in graphs.items():
            (folder / "models" / name / "1").mkdir(parents=True)
            shutil.copy(graph, folder / "models" / name / "1" / "model.onnx")
            if batch is not None:
                (folder / "models" / name / "config.pbtxt").write_text(f"max_batch_size: {batch}\n")
        http, grpc = free_ports(2)
        command = [*VIGIL, "up", "--models", str(folder / "models"), "--data-dir", str(folder / "var")]
        command += [f"--http-port={http}", f"--grpc-port={grpc}", "--metrics-port=0", "--sidecar-grpc-port=0", "--sidecar-metrics-port=0"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        super().__init__(command, http, grpc, folder, {})


class Triton(Server):
    """Triton's C++ server with its Python backend, as nvidia-pytriton brings it."""

    name = "Triton"
    requirements = ("nvidia-pytriton==0.7.0", "numpy<2", f"onnxruntime=={ort.__version__}")  # with NumPy 2 its answers are empty

    def __init__(self, folder: Path, graphs: dict[str, Path], shapes: dict[str, str], instances: int, delay_us: int, pool: int) -> None:
        packages = environment("triton", self.requirements)
        server = packages / "pytriton" / "tritonserver"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(server / "backends" / "python", folder / "backends" / "python")
        for file in (server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}").iterdir():
            shutil.copy(file, folder / "backends" / "python" / file.name)
        for name in graphs:
            model = folder / "models" / name
            (model / "1").mkdir(parents=True)
            shutil.copy(_MODELS / "triton_model.py", model / "1" / "model.py")
            (model / "config.pbtxt").write_text(
                f'backend: "python"\nmax_batch_size: 256\ninput {{ name: "x" data_type: TYPE_FP32 dims: {shapes[name]} }}\n'
                f'output {{ name: "y" data_type: TYPE_FP32 dims: [-1] }}\ninstance_group {{ kind: KIND_CPU count: {instances} }}\n'
                f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
            )
        http, grpc = free_ports(2)
        command = [
            str(server / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}",
            f"--http-port={http}", f"--grpc-port={grpc}", "--allow-metrics=false", "--grpc-address=127.0.0.1", "--http-address=127.0.0.1",
            f"--grpc-infer-allocation-pool-size={pool}",
        ]  # fmt: skip
        # Its embedded Python takes the packages of the first python in PATH.
        more = {
            "PATH": f"{packages.parents[2] / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(packages),
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        } | {f"PEER_{n.upper()}": str(g) for n, g in graphs.items()}
        super().__init__(command, http, grpc, folder, more)


class MLServer(Server):
    """MLServer, as itself, with adaptive batching where it is told so."""

    name = "MLServer"
    requirements = ("mlserver==1.7.1", f"onnxruntime=={ort.__version__}")

    def __init__(self, folder: Path, graphs: dict[str, Path], batch: int) -> None:
        packages = environment("mlserver", self.requirements)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "scale").mkdir(parents=True)
        http, grpc, metrics = free_ports(3)
        shutil.copy(_MODELS / "mlserver_model.py", folder / "scale" / "peer.py")
        settings = {"name": "scale", "implementation": "peer.Scale", "max_batch_size": batch, "max_batch_time": 0.001 if batch else 0}
        (folder / "scale" / "model-settings.json").write_text(json.dumps(settings))
        (folder / "settings.json").write_text(json.dumps({
            "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False,
        }))  # fmt: skip
        more = {"PYTHONPATH": str(folder / "scale"), "PEER_SCALE": str(graphs["scale"])}
        super().__init__([str(packages.parents[2] / "bin" / "mlserver"), "start", str(folder)], http, grpc, folder, more)
