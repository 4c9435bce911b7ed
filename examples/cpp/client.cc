// One inference with its proof: the answer, the digest of the model that gave it, and its place in the audit log.
//
//   build/cpp/client 127.0.0.1:8001 scale
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "inference/grpc_service.grpc.pb.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: client HOST:PORT MODEL\n";
    return 2;
  }
  auto stub = inference::GRPCInferenceService::NewStub(grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));

  const std::vector<float> ones(4, 1.0f);
  inference::ModelInferRequest request;
  request.set_model_name(argv[2]);
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype("FP32");
  input->add_shape(1);
  input->add_shape(4);
  request.add_raw_input_contents(ones.data(), ones.size() * sizeof(float));

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  inference::ModelInferResponse answer;
  if (grpc::Status status = stub->ModelInfer(&context, request, &answer); !status.ok()) {
    std::cerr << status.error_code() << ": " << status.error_message() << "\n";
    return 1;
  }
  for (int i = 0; i < answer.outputs_size(); i++) {
    const std::string& raw = answer.raw_output_contents(i);
    std::vector<float> values(raw.size() / sizeof(float));
    std::memcpy(values.data(), raw.data(), values.size() * sizeof(float));
    std::cout << answer.outputs(i).name();
    for (float value : values) std::cout << " " << value;
    std::cout << "\n";
  }
  auto told = [&](const char* name) {
    auto found = context.GetServerTrailingMetadata().find(name);
    return found == context.GetServerTrailingMetadata().end() ? std::string() : std::string(found->second.data(), found->second.size());
  };
  std::cout << "version " << answer.model_version() << " digest " << answer.parameters().at("vigil_model_digest").string_param() << "\n";
  std::cout << "record " << told("vigil-audit-position") << " state " << told("vigil-safety-state") << "\n";
}
