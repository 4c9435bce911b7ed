"""The model as Triton's Python backend runs it: rows of all requests together, by ONNX Runtime with Vigil's options."""

import os

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args):  # type: ignore[no-untyped-def]
        """Load the graph."""
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["PEER_" + args["model_name"].upper()], options, providers=["CPUExecutionProvider"])

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """Answer a batch."""
        rows = [pb.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        together = self.session.run(None, {"x": np.concatenate(rows) if len(rows) > 1 else rows[0]})[0]
        out, at = [], 0
        for x in rows:
            out.append(pb.InferenceResponse([pb.Tensor("y", together[at : at + len(x)])]))
            at += len(x)
        return out
