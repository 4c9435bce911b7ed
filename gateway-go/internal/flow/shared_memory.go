package flow

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
	"vigil/gateway/internal/sharedmemory"
)

// Parameters of tensors that lie in shared memory (Triton's system shared memory
// extension).
const (
	regionParameter = "shared_memory_region"
	offsetParameter = "shared_memory_offset"
	sizeParameter   = "shared_memory_byte_size"
)

// place is where a tensor lies.
type place struct {
	region       string
	offset, size uint64
}

func sharedError(err error, field string) *CallError {
	e := &CallError{
		Code: codes.InvalidArgument, Event: events.SemanticViolation, Reason: "SEMANTIC_VIOLATION", Text: err.Error(),
		Violations: []rules.Violation{{Field: field, Description: err.Error()}},
	}
	switch {
	case errors.Is(err, sharedmemory.ErrUnknown):
		e.Code = codes.NotFound
	case errors.Is(err, sharedmemory.ErrExists):
		e.Code = codes.AlreadyExists
	case errors.Is(err, sharedmemory.ErrForeign):
		e.Code = codes.PermissionDenied
	case errors.Is(err, sharedmemory.ErrTooMany):
		return limitError("limits.shared_memory_regions_max", "%s", err)
	}
	return e
}

func registerRegion(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	r := m.(*inference.SystemSharedMemoryRegisterRequest)
	if err := s.regions.Register(sharedmemory.Region{Name: r.Name, Key: r.Key, Offset: r.Offset, Size: r.ByteSize}); err != nil {
		return nil, sharedError(err, "key")
	}
	return &inference.SystemSharedMemoryRegisterResponse{}, nil
}

func unregisterRegion(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	s.regions.Unregister(m.(*inference.SystemSharedMemoryUnregisterRequest).Name)
	return &inference.SystemSharedMemoryUnregisterResponse{}, nil
}

func regionStatus(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	found, err := s.regions.Status(m.(*inference.SystemSharedMemoryStatusRequest).Name)
	if err != nil {
		return nil, sharedError(err, "name")
	}
	out := &inference.SystemSharedMemoryStatusResponse{Regions: map[string]*inference.SystemSharedMemoryStatusResponse_RegionStatus{}}
	for _, r := range found {
		out.Regions[r.Name] = &inference.SystemSharedMemoryStatusResponse_RegionStatus{Name: r.Name, Key: r.Key, Offset: r.Offset, ByteSize: r.Size}
	}
	return out, nil
}

// takePlace takes the place out of a tensor's parameters; nil when it lies in no shared
// memory.
func takePlace(parameters map[string]*inference.InferParameter, field string) (*place, error) {
	region := parameters[regionParameter]
	if region == nil {
		return nil, nil
	}
	p := &place{region: region.GetStringParam()}
	for name, into := range map[string]*uint64{offsetParameter: &p.offset, sizeParameter: &p.size} {
		switch value := parameters[name].GetParameterChoice().(type) {
		case nil:
		case *inference.InferParameter_Uint64Param:
			*into = value.Uint64Param
		case *inference.InferParameter_Int64Param:
			if value.Int64Param < 0 {
				return nil, violation(field+".parameters."+name, fmt.Sprintf("is %d, must not be negative", value.Int64Param))
			}
			*into = uint64(value.Int64Param)
		default:
			return nil, violation(field+".parameters."+name, "is not a whole number")
		}
		delete(parameters, name)
	}
	if p.region == "" {
		return nil, violation(field+".parameters."+regionParameter, "is not a name")
	}
	delete(parameters, regionParameter)
	return p, nil
}

// shared is a call some of whose tensors lie in shared memory.
type shared struct {
	service *Service
	outputs map[string]*place
	bytes   int64 // that were copied, counted among those in flight
}

// done gives the bytes back.
func (x *shared) done() {
	if x != nil {
		x.service.bytes.Add(-x.bytes)
	}
}

// usesRegions says whether a request has tensors in shared memory.
func usesRegions(r *inference.ModelInferRequest) bool {
	return slices.ContainsFunc(r.Inputs, func(t *inference.ModelInferRequest_InferInputTensor) bool {
		return t.Parameters[regionParameter] != nil
	}) ||
		slices.ContainsFunc(r.Outputs, func(t *inference.ModelInferRequest_InferRequestedOutputTensor) bool {
			return t.Parameters[regionParameter] != nil
		})
}

// fromRegions makes of a request with tensors in shared memory one that holds them: the
// bytes are copied once, so that what is hashed, checked and computed is the same. It
// gives what the answer's outputs need; nil for a request that has none there.
func (s *Service) fromRegions(c *call, request proto.Message, message []byte) (proto.Message, []byte, *shared, error) {
	r, ok := request.(*inference.ModelInferRequest)
	if !ok || !usesRegions(r) {
		return request, message, nil, nil
	}
	if !c.caller.Control {
		return nil, nil, nil, &CallError{Code: codes.PermissionDenied, Event: events.ControlForbidden, Reason: "CONTROL_FORBIDDEN",
			Text: "shared memory is used on loopback listeners only (setting control.allow_remote)"}
	}
	out := &shared{service: s, outputs: map[string]*place{}}
	if err := out.take(r); err != nil {
		out.done()
		return nil, nil, nil, err
	}
	whole, err := proto.Marshal(r)
	if err != nil {
		out.done()
		return nil, nil, nil, err
	}
	return r, whole, out, nil
}

// take puts the bytes of inputs into the request, and notes where outputs go.
func (x *shared) take(r *inference.ModelInferRequest) error {
	places := make([]*place, len(r.Inputs))
	var err error
	for i, t := range r.Inputs {
		field := fmt.Sprintf("inputs[%d]", i)
		if places[i], err = takePlace(t.Parameters, field); err != nil {
			return err
		}
		if places[i] == nil {
			continue
		}
		if t.Contents != nil {
			return violation(field, "has contents although it lies in shared memory")
		}
		if most := x.service.limits.MessageBytesMax; places[i].size > uint64(most) || x.bytes+int64(places[i].size) > most {
			return limitError("limits.message_bytes_max", "the inputs up to %s have more than %d bytes in shared memory", field, most)
		}
		x.bytes += int64(places[i].size)
		x.service.bytes.Add(int64(places[i].size))
	}
	if n := x.service.bytes.Load(); n > x.service.limits.BytesInFlightMax {
		return limitError("limits.bytes_in_flight_max", "%d bytes are in flight", n-x.bytes)
	}
	if err := x.service.fits(x.bytes); err != nil {
		return err
	}
	if slices.ContainsFunc(places, func(p *place) bool { return p != nil }) {
		if err := x.read(r, places); err != nil {
			return err
		}
	}
	for i, t := range r.Outputs {
		p, err := takePlace(t.Parameters, fmt.Sprintf("outputs[%d]", i))
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		if err := x.service.regions.Check(p.region, p.offset, p.size); err != nil {
			return sharedError(err, fmt.Sprintf("outputs[%d]", i))
		}
		x.outputs[t.Name] = p
	}
	return nil
}

// read copies each input that has a place, between the raw contents of the others.
func (x *shared) read(r *inference.ModelInferRequest, places []*place) error {
	given, raw := r.RawInputContents, make([][]byte, 0, len(places))
	for i, p := range places {
		field := fmt.Sprintf("inputs[%d]", i)
		switch {
		case p != nil:
			data, err := x.service.regions.Read(p.region, p.offset, p.size)
			if err != nil {
				return sharedError(err, field)
			}
			raw = append(raw, data)
		case len(given) == 0:
			return violation(field, "has neither raw contents nor a place in shared memory; typed ones cannot stand beside inputs there")
		default:
			raw, given = append(raw, given[0]), given[1:]
		}
	}
	if len(given) > 0 {
		return violation("raw_input_contents", fmt.Sprintf("has %d more than there are inputs outside shared memory", len(given)))
	}
	r.RawInputContents = raw
	return nil
}

// toRegions writes outputs where the caller wants them; the answer then names the
// places and holds no bytes of them. When that fails the caller gets no answer, though
// the sidecar has a record of one.
func (x *shared) toRegions(c *call, answer *Answer, err error) (*Answer, error) {
	if err != nil || x == nil || len(x.outputs) == 0 {
		return answer, err
	}
	c.handedOver = answer.Quality == "" // else something here answered in the model's place
	m := &inference.ModelInferResponse{}
	if err := proto.Unmarshal(answer.Message, m); err != nil {
		return nil, err
	}
	for i, t := range m.Outputs {
		p := x.outputs[t.Name]
		if p == nil || i >= len(m.RawOutputContents) {
			continue
		}
		raw := m.RawOutputContents[i]
		if uint64(len(raw)) > p.size {
			return nil, violation("outputs."+t.Name+".parameters."+sizeParameter, fmt.Sprintf("is %d, the output has %d bytes", p.size, len(raw)))
		}
		if err := x.service.regions.Write(p.region, p.offset, p.size, raw); err != nil {
			return nil, sharedError(err, "outputs."+t.Name)
		}
		if t.Parameters == nil {
			t.Parameters = map[string]*inference.InferParameter{}
		}
		t.Parameters[regionParameter] = &inference.InferParameter{ParameterChoice: &inference.InferParameter_StringParam{StringParam: p.region}}
		t.Parameters[offsetParameter] = &inference.InferParameter{ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: int64(p.offset)}}
		t.Parameters[sizeParameter] = &inference.InferParameter{ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: int64(len(raw))}}
		m.RawOutputContents[i] = nil
	}
	if answer.Message, err = proto.Marshal(m); err != nil {
		return nil, err
	}
	return answer, nil
}
