package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/flow"
	"vigil/gateway/internal/rest"
)

const (
	inferenceService = "/inference.GRPCInferenceService/"
	// smallBody bounds requests that hold no tensors.
	smallBody = 1 << 20
)

// restful is the Open Inference Protocol's REST form, on the services of the gRPC one.
type restful struct {
	*web
	methods map[string]*flow.Method
}

// routes adds the paths. Each is answered by the method that gRPC has for it, so that
// limits, rules, records and states are the same.
func (w *web) routes(mux *http.ServeMux) {
	s := &restful{w, map[string]*flow.Method{}}
	for _, m := range flow.Methods() {
		s.methods[m.Name] = m
	}
	mux.HandleFunc("GET /v2/health/live", s.live)
	mux.HandleFunc("GET /v2/health/ready", s.ready)
	for _, root := range []string{"/v2", "/v2/{$}"} {
		mux.HandleFunc("GET "+root, s.server)
	}
	for _, model := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		mux.HandleFunc("GET "+model, s.model)
		mux.HandleFunc("GET "+model+"/ready", s.modelReady)
		mux.HandleFunc("POST "+model+"/infer", s.infer)
		mux.HandleFunc("GET "+model+"/config", s.modelConfig)
		mux.HandleFunc("GET "+model+"/stats", s.statistics)
	}
	mux.HandleFunc("GET /v2/models/stats", s.statistics)
	mux.HandleFunc("POST /v2/repository/index", s.index)
	mux.HandleFunc("POST /v2/repository/models/{model}/load", s.load)
	mux.HandleFunc("POST /v2/repository/models/{model}/unload", s.unload)
	s.sharedMemory(mux)
	s.settings(mux)
	mux.HandleFunc("/v2/", func(rw http.ResponseWriter, r *http.Request) {
		writeError(rw, http.StatusNotFound, r.Method+" "+r.URL.Path+" is not a path of the Open Inference Protocol")
	})
}

// call answers by a gRPC method; nil when the caller has the error already.
func (s *restful) call(rw http.ResponseWriter, r *http.Request, name string, request proto.Message) *flow.Answer {
	reached(r.Context())
	caller := s.caller(r.Context(), r.Header)
	rw.Header().Set(TraceHeader, caller.Trace.ID())
	data, err := proto.Marshal(request)
	if err != nil { // only text that is not UTF-8
		s.refuse(rw, r, http.StatusBadRequest, err)
		return nil
	}
	answer, failed := s.service.Unary(r.Context(), s.methods[inferenceService+name], caller, data)
	setMeta(rw.Header(), answer)
	if failed != nil {
		if failed.Code == codes.ResourceExhausted || failed.Code == codes.Unavailable {
			rw.Header().Set("Retry-After", "1")
		}
		writeError(rw, httpStatus(failed.Code), failed.Text)
		return nil
	}
	return answer
}

// ask is call with the answer decoded; false when the caller has the error already.
func (s *restful) ask(rw http.ResponseWriter, r *http.Request, name string, request, response proto.Message) bool {
	answer := s.call(rw, r, name, request)
	if answer == nil {
		return false
	}
	if err := proto.Unmarshal(answer.Message, response); err != nil {
		writeError(rw, http.StatusInternalServerError, "the answer cannot be read")
		return false
	}
	return true
}

// refuse answers a request that has no gRPC form, and leaves its record.
func (s *restful) refuse(rw http.ResponseWriter, r *http.Request, status int, err error) {
	code, event := codes.InvalidArgument, uint32(events.ContractViolation)
	switch {
	case r.Context().Err() != nil:
		code, event, status = codes.Canceled, events.Cancelled, statusClientClosedRequest
	case status == http.StatusTooManyRequests:
		rw.Header().Set("Retry-After", "1")
		code, event = codes.ResourceExhausted, events.LimitHit
	case status == http.StatusRequestEntityTooLarge:
		code, event = codes.ResourceExhausted, events.LimitHit
	}
	reached(r.Context())
	s.turnAway(rw, r, event, code, err.Error())
	writeError(rw, status, err.Error())
}

// httpStatus is the status for a gRPC code, as Triton maps its own.
func httpStatus(code codes.Code) int {
	switch code {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists, codes.Aborted:
		return http.StatusConflict
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case codes.Canceled:
		return statusClientClosedRequest
	}
	return http.StatusInternalServerError
}

func writeJSON(rw http.ResponseWriter, status int, value any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	encoder := json.NewEncoder(rw)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // whoever went away needs no answer
}

func writeError(rw http.ResponseWriter, status int, text string) {
	writeJSON(rw, status, map[string]string{"error": text})
}

func writeProto(rw http.ResponseWriter, m proto.Message) { writeJSON(rw, http.StatusOK, rest.Plain(m)) }

// whether answers with 200 or 400, as Triton does, and with the words that KServe's client
// reads.
func whether(rw http.ResponseWriter, what string, yes bool) {
	status := http.StatusOK
	if !yes {
		status = http.StatusBadRequest
	}
	writeJSON(rw, status, map[string]bool{what: yes})
}

func (s *restful) live(rw http.ResponseWriter, r *http.Request) {
	response := &inference.ServerLiveResponse{}
	if s.ask(rw, r, "ServerLive", &inference.ServerLiveRequest{}, response) {
		whether(rw, "live", response.Live)
	}
}

func (s *restful) ready(rw http.ResponseWriter, r *http.Request) {
	response := &inference.ServerReadyResponse{}
	if s.ask(rw, r, "ServerReady", &inference.ServerReadyRequest{}, response) {
		whether(rw, "ready", response.Ready)
	}
}

func (s *restful) modelReady(rw http.ResponseWriter, r *http.Request) {
	response := &inference.ModelReadyResponse{}
	if s.ask(rw, r, "ModelReady", &inference.ModelReadyRequest{Name: r.PathValue("model"), Version: r.PathValue("version")}, response) {
		whether(rw, "ready", response.Ready)
	}
}

func (s *restful) server(rw http.ResponseWriter, r *http.Request) {
	m := &inference.ServerMetadataResponse{}
	if s.ask(rw, r, "ServerMetadata", &inference.ServerMetadataRequest{}, m) {
		writeJSON(rw, http.StatusOK, struct {
			Name       string   `json:"name"`
			Version    string   `json:"version"`
			Extensions []string `json:"extensions"`
		}{m.Name, m.Version, append([]string{}, m.Extensions...)})
	}
}

type tensorMetadata struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

func tensors(given []*inference.ModelMetadataResponse_TensorMetadata) []tensorMetadata {
	out := []tensorMetadata{}
	for _, t := range given {
		out = append(out, tensorMetadata{t.Name, t.Datatype, append([]int64{}, t.Shape...)})
	}
	return out
}

func (s *restful) model(rw http.ResponseWriter, r *http.Request) {
	m := &inference.ModelMetadataResponse{}
	request := &inference.ModelMetadataRequest{Name: r.PathValue("model"), Version: r.PathValue("version")}
	if s.ask(rw, r, "ModelMetadata", request, m) {
		writeJSON(rw, http.StatusOK, struct {
			Name     string           `json:"name"`
			Versions []string         `json:"versions"`
			Platform string           `json:"platform"`
			Inputs   []tensorMetadata `json:"inputs"`
			Outputs  []tensorMetadata `json:"outputs"`
		}{m.Name, append([]string{}, m.Versions...), m.Platform, tensors(m.Inputs), tensors(m.Outputs)})
	}
}

func (s *restful) modelConfig(rw http.ResponseWriter, r *http.Request) {
	m := &inference.ModelConfigResponse{}
	request := &inference.ModelConfigRequest{Name: r.PathValue("model"), Version: r.PathValue("version")}
	if s.ask(rw, r, "ModelConfig", request, m) {
		writeProto(rw, m.Config)
	}
}

func (s *restful) statistics(rw http.ResponseWriter, r *http.Request) {
	m := &inference.ModelStatisticsResponse{}
	request := &inference.ModelStatisticsRequest{Name: r.PathValue("model"), Version: r.PathValue("version")}
	if s.ask(rw, r, "ModelStatistics", request, m) {
		writeProto(rw, m)
	}
}

type modelIndex struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	State   string `json:"state,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

func (s *restful) index(rw http.ResponseWriter, r *http.Request) {
	var asked struct {
		Ready bool `json:"ready"`
	}
	if !s.smallJSON(rw, r, &asked) {
		return
	}
	m := &inference.RepositoryIndexResponse{}
	if s.ask(rw, r, "RepositoryIndex", &inference.RepositoryIndexRequest{Ready: asked.Ready}, m) {
		out := []modelIndex{}
		for _, x := range m.Models {
			out = append(out, modelIndex{x.Name, x.Version, x.State, x.Reason})
		}
		writeJSON(rw, http.StatusOK, out)
	}
}

func (s *restful) load(rw http.ResponseWriter, r *http.Request) {
	s.change(rw, r, func(given map[string]*inference.ModelRepositoryParameter) bool {
		request := &inference.RepositoryModelLoadRequest{ModelName: r.PathValue("model"), Parameters: given}
		return s.ask(rw, r, "RepositoryModelLoad", request, &inference.RepositoryModelLoadResponse{})
	})
}

func (s *restful) unload(rw http.ResponseWriter, r *http.Request) {
	s.change(rw, r, func(given map[string]*inference.ModelRepositoryParameter) bool {
		request := &inference.RepositoryModelUnloadRequest{ModelName: r.PathValue("model"), Parameters: given}
		return s.ask(rw, r, "RepositoryModelUnload", request, &inference.RepositoryModelUnloadResponse{})
	})
}

// change reads a body that may hold files, and answers when they did what it says.
func (s *restful) change(rw http.ResponseWriter, r *http.Request, do func(map[string]*inference.ModelRepositoryParameter) bool) {
	data, done, err := s.body(rw, r)
	defer done()
	if err != nil {
		s.refuse(rw, r, bodyStatus(err), err)
		return
	}
	given, err := rest.RepositoryParameters(data)
	if err != nil {
		s.refuse(rw, r, http.StatusBadRequest, err)
		return
	}
	if do(given) {
		writeJSON(rw, http.StatusOK, struct{}{})
	}
}

// smallJSON reads a body without tensors, which may be empty.
func (s *restful) smallJSON(rw http.ResponseWriter, r *http.Request, into any) bool {
	data, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, smallBody))
	if err == nil && len(bytes.TrimSpace(data)) > 0 {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		s.refuse(rw, r, bodyStatus(err), fmt.Errorf("the request's JSON: %w", err))
	}
	return err == nil
}

// sharedMemory adds the paths of system shared memory; CUDA's answer what the service
// says of it.
func (s *restful) sharedMemory(mux *http.ServeMux) {
	const system, cuda = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
	for _, path := range []string{system + "/status", system + "/region/{region}/status"} {
		mux.HandleFunc("GET "+path, s.regionStatus)
	}
	mux.HandleFunc("POST "+system+"/region/{region}/register", s.regionRegister)
	for _, path := range []string{system + "/unregister", system + "/region/{region}/unregister"} {
		mux.HandleFunc("POST "+path, func(rw http.ResponseWriter, r *http.Request) {
			request := &inference.SystemSharedMemoryUnregisterRequest{Name: r.PathValue("region")}
			s.ask(rw, r, "SystemSharedMemoryUnregister", request, &inference.SystemSharedMemoryUnregisterResponse{})
		})
	}
	for _, path := range []string{cuda + "/status", cuda + "/region/{region}/status"} {
		mux.HandleFunc("GET "+path, func(rw http.ResponseWriter, r *http.Request) {
			if s.ask(rw, r, "CudaSharedMemoryStatus", &inference.CudaSharedMemoryStatusRequest{}, &inference.CudaSharedMemoryStatusResponse{}) {
				writeJSON(rw, http.StatusOK, []regionForm{})
			}
		})
	}
	mux.HandleFunc("POST "+cuda+"/region/{region}/register", func(rw http.ResponseWriter, r *http.Request) {
		s.ask(rw, r, "CudaSharedMemoryRegister", &inference.CudaSharedMemoryRegisterRequest{}, &inference.CudaSharedMemoryRegisterResponse{})
	})
	for _, path := range []string{cuda + "/unregister", cuda + "/region/{region}/unregister"} {
		mux.HandleFunc("POST "+path, func(rw http.ResponseWriter, r *http.Request) {
			s.ask(rw, r, "CudaSharedMemoryUnregister", &inference.CudaSharedMemoryUnregisterRequest{}, &inference.CudaSharedMemoryUnregisterResponse{})
		})
	}
}

type regionForm struct {
	Name   string `json:"name"`
	Key    string `json:"key"`
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"byte_size"`
}

func (s *restful) regionStatus(rw http.ResponseWriter, r *http.Request) {
	m := &inference.SystemSharedMemoryStatusResponse{}
	if s.ask(rw, r, "SystemSharedMemoryStatus", &inference.SystemSharedMemoryStatusRequest{Name: r.PathValue("region")}, m) {
		out := []regionForm{}
		for _, name := range slices.Sorted(maps.Keys(m.Regions)) {
			x := m.Regions[name]
			out = append(out, regionForm{x.Name, x.Key, x.Offset, x.ByteSize})
		}
		writeJSON(rw, http.StatusOK, out)
	}
}

func (s *restful) regionRegister(rw http.ResponseWriter, r *http.Request) {
	var asked regionForm
	if !s.smallJSON(rw, r, &asked) {
		return
	}
	request := &inference.SystemSharedMemoryRegisterRequest{
		Name: r.PathValue("region"), Key: asked.Key, Offset: asked.Offset, ByteSize: asked.Size,
	}
	s.ask(rw, r, "SystemSharedMemoryRegister", request, &inference.SystemSharedMemoryRegisterResponse{})
}
