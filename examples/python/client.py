"""One inference with its proof: the answer, the digest of the model that gave it, and its place in the audit log.

python examples/python/client.py 127.0.0.1:8001 scale
"""

import sys

import grpc
import numpy as np
from inference import grpc_service_pb2 as oip

SERVICE = "/inference.GRPCInferenceService/"


def main(address: str, model: str) -> None:
    with grpc.insecure_channel(address) as channel:
        describe = channel.unary_unary(
            SERVICE + "ModelMetadata",
            request_serializer=oip.ModelMetadataRequest.SerializeToString,
            response_deserializer=oip.ModelMetadataResponse.FromString,
        )
        infer = channel.unary_unary(
            SERVICE + "ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        request = oip.ModelInferRequest(model_name=model)
        for tensor in describe(oip.ModelMetadataRequest(name=model), timeout=5).inputs:
            shape = [max(n, 1) for n in tensor.shape]  # -1 is any size
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            request.raw_input_contents.append(np.ones(shape, np.float32).tobytes())
        answer, call = infer.with_call(request, timeout=5)
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            print(tensor.name, np.frombuffer(raw, np.float32).reshape(tuple(tensor.shape)))
        print("version", answer.model_version, "digest", answer.parameters["vigil_model_digest"].string_param)
        trailers = dict(call.trailing_metadata())
        print("record", trailers["vigil-audit-position"], "state", trailers["vigil-safety-state"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
