"""The model as MLServer runs it: a custom runtime on ONNX Runtime with Vigil's options."""

import os

import onnxruntime as ort
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceResponse  # type: ignore[import-not-found]


class Scale(MLModel):  # type: ignore[misc]
    """What MLServer looks for."""

    async def load(self):  # type: ignore[no-untyped-def]
        """Load the graph."""
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["PEER_SCALE"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):  # type: ignore[no-untyped-def]
        """Answer a request, or the requests that adaptive batching put together."""
        y = self.session.run(None, {"x": NumpyCodec.decode_input(payload.inputs[0])})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
