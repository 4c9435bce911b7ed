"""ONNX Runtime sessions: providers in order with a logged fallback, contract, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from vigil_sidecar.engine.arena import prepare, session_options
from vigil_sidecar.engine.contract import Contract, TensorSpec
from vigil_sidecar.engine.datatypes import ORT_TO_OIP
from vigil_sidecar.engine.memory import is_out_of_memory, lacking
from vigil_sidecar.errors import CandidateRefused

__all__ = ["Session", "choose_providers"]

Array = np.ndarray[Any, Any]
PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider", "cann": "CANNExecutionProvider",
}  # fmt: skip


def choose_providers(wanted: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Providers to use in order (CPU always last), and each one passed over with its reason."""
    available, chosen, passed = set(ort.get_available_providers()), [], []
    for name in wanted:
        full = PROVIDER_NAMES.get(name.lower())
        if full is None:
            passed.append((name, f"unknown provider; known are {', '.join(PROVIDER_NAMES)}"))
        elif full not in available:
            passed.append((name, f"{full} is not in this build of ONNX Runtime"))
        elif full not in chosen:
            chosen.append(full)
    if "CPUExecutionProvider" not in chosen:
        chosen.append("CPUExecutionProvider")
    return chosen, passed


def _spec(node: Any) -> TensorSpec:
    datatype = ORT_TO_OIP.get(node.type)
    if datatype is None:
        raise CandidateRefused(f"'{node.name}' has the type {node.type}, which cannot be served")
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape)
    return TensorSpec(node.name, datatype, shape)


class Session:
    """One loaded graph. ``run`` may be called from several threads at once."""

    def __init__(self, path: str, providers: Sequence[str] = ("cpu",), intra_op_threads: int = 0) -> None:
        """Load the graph from ``path``.

        Raises:
            CandidateRefused: ONNX Runtime cannot load it; the text is its reason.
        """
        chosen, self.fallbacks = choose_providers(providers)
        try:
            prepare()
            options = session_options()
            options.intra_op_num_threads = intra_op_threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session: Any = ort.InferenceSession(path, options, providers=chosen)
        except Exception as error:  # every failure of the native loader, whatever its class, is the candidate's
            if is_out_of_memory(error):
                raise CandidateRefused(f"it does not fit into memory: {lacking(error)} was asked for while it was loaded") from None
            text = str(error).replace(path, "model.onnx").split("\n")[0][:400]
            raise CandidateRefused(f"ONNX Runtime cannot load it: {text}") from None
        # The Python wrapper's checks (names that are missing) are made before a call comes here; they are a third of a small run.
        native = getattr(self._session, "_sess", None)
        self._run: Any = native.run if native is not None else self._session.run
        self.providers: list[str] = self._session.get_providers()
        self.contract = Contract(tuple(_spec(n) for n in self._session.get_inputs()), tuple(_spec(n) for n in self._session.get_outputs()))
        self.output_names = [o.name for o in self.contract.outputs]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Outputs in the order asked for (all when None). Releases the interpreter lock while computing."""
        arrays: list[Array] = self._run(outputs or self.output_names, feeds, None)
        return arrays

    def close(self) -> None:
        """Free the graph; ``run`` must not be called any more."""
        self._session = self._run = None
