package flow

import (
	"context"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"vigil/gateway/gen/inference"
	auditv1 "vigil/gateway/gen/vigil/audit/v1"
	livev1 "vigil/gateway/gen/vigil/live/v1"
	modelsv1 "vigil/gateway/gen/vigil/models/v1"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"
	safetyv1 "vigil/gateway/gen/vigil/safety/v1"
)

// Method is one method of the contract, as both edges serve it.
type Method struct {
	// Name is "/package.Service/Method".
	Name    string
	Service string
	Short   string
	Desc    protoreflect.MethodDescriptor
	Input   protoreflect.MessageType
	Output  protoreflect.MessageType
	// Control calls change something; they need a loopback listener or a setting.
	Control bool
	// Reads calls read a log; they need a loopback listener or another setting.
	Reads bool
	// model gives model and request id that a message names; nil for none.
	model func(proto.Message) (string, string)
	// local answers in the gateway itself.
	local  func(context.Context, *Service, proto.Message) (proto.Message, error)
	stream func(*Service, *streamCall) error
	// applied does the gateway's part of what the sidecar did.
	applied func(*Service, proto.Message)
}

var appliedHere = map[string]func(*Service, proto.Message){"/inference.GRPCInferenceService/LogSettings": logSettingsApplied}

// ServerStream says whether the method answers with a stream.
func (m *Method) ServerStream() bool {
	return m.Desc.IsStreamingServer() && !m.Desc.IsStreamingClient()
}

// Bidi says whether both sides stream.
func (m *Method) Bidi() bool { return m.Desc.IsStreamingClient() }

var controlMethods = map[string]bool{
	"/vigil.models.v1.ModelsService/ActivateVersion":               true,
	"/vigil.models.v1.ModelsService/ReloadModel":                   true,
	"/inference.GRPCInferenceService/RepositoryModelLoad":          true,
	"/inference.GRPCInferenceService/RepositoryModelUnload":        true,
	"/vigil.audit.v1.AuditService/RotateKey":                       true,
	"/vigil.safety.v1.SafetyService/Reset":                         true,
	"/vigil.safety.v1.SafetyService/Inject":                        true,
	"/inference.GRPCInferenceService/TraceSetting":                 true,
	"/inference.GRPCInferenceService/LogSettings":                  true,
	"/inference.GRPCInferenceService/SystemSharedMemoryRegister":   true,
	"/inference.GRPCInferenceService/SystemSharedMemoryUnregister": true,
	"/inference.GRPCInferenceService/SystemSharedMemoryStatus":     true,
}

const (
	auditService = "/vigil.audit.v1.AuditService/"
	liveMethod   = "/vigil.live.v1.LiveService/Watch"
	sourceMethod = "/vigil.perception.v1.PerceptionService/Watch"
)

var readMethods = map[string]bool{
	auditService + "Search": true, auditService + "Get": true, auditService + "Prove": true, auditService + "VerifyRange": true,
}

// Methods lists every method of the contract's services, in order.
func Methods() []*Method {
	files := []protoreflect.FileDescriptor{
		inference.File_inference_grpc_service_proto, modelsv1.File_vigil_models_v1_models_proto,
		perceptionv1.File_vigil_perception_v1_perception_proto, safetyv1.File_vigil_safety_v1_safety_proto,
		auditv1.File_vigil_audit_v1_service_proto, livev1.File_vigil_live_v1_live_proto,
	}
	var out []*Method
	for _, file := range files {
		services := file.Services()
		for i := range services.Len() {
			methods := services.Get(i).Methods()
			for j := range methods.Len() {
				out = append(out, newMethod(services.Get(i), methods.Get(j)))
			}
		}
	}
	return out
}

func newMethod(s protoreflect.ServiceDescriptor, d protoreflect.MethodDescriptor) *Method {
	name := "/" + string(s.FullName()) + "/" + string(d.Name())
	input, err := protoregistry.GlobalTypes.FindMessageByName(d.Input().FullName())
	if err != nil {
		panic(err) // generated code registers every type it declares
	}
	output, err := protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName())
	if err != nil {
		panic(err)
	}
	return &Method{
		Name: name, Service: string(s.FullName()), Short: string(d.Name()), Desc: d, Input: input, Output: output,
		Control: controlMethods[name], Reads: readMethods[name], model: modelOf(name), local: localAnswers[name], stream: localStreams[name],
		applied: appliedHere[name],
	}
}

func modelOf(name string) func(proto.Message) (string, string) {
	switch name {
	case "/inference.GRPCInferenceService/ModelInfer":
		return func(m proto.Message) (string, string) {
			r := m.(*inference.ModelInferRequest)
			return r.ModelName, r.Id
		}
	case "/vigil.perception.v1.PerceptionService/Detect":
		return func(m proto.Message) (string, string) {
			r := m.(*perceptionv1.DetectRequest)
			return r.Model, r.RequestId
		}
	}
	return nil
}
