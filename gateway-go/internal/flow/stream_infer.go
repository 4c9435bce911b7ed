package flow

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
)

const (
	// StreamInferMethod is the one stream that takes many requests.
	StreamInferMethod = "/inference.GRPCInferenceService/ModelStreamInfer"
	// streamInferAhead is how many requests of a stream may be under way, or answered and
	// not read.
	streamInferAhead = 64
	// streamInferFirst is how many are, before any is answered.
	streamInferFirst = 4
	inferResponse    = protowire.Number(2) // ModelStreamInferResponse.infer_response
)

var inferMethod = sync.OnceValue(func() *Method {
	all := Methods()
	return all[slices.IndexFunc(all, func(m *Method) bool { return m.Name == "/inference.GRPCInferenceService/ModelInfer" })]
})

// StreamInfer answers the requests of a stream as calls of their own, each with its own
// record, in the order in which they came. What fails is told within the stream, which
// goes on. It ends when receive says so: io.EOF, or an error, which is the caller's to
// tell.
func (s *Service) StreamInfer(
	ctx context.Context, m *Method, caller *Caller, receive func() ([]byte, error), send func([]byte) error,
) (*Answer, *CallError) {
	c := &call{method: m, caller: caller, start: time.Now()}
	if err := s.enterStream(0); err != nil {
		return s.turnDown(c, err), err
	}
	defer s.watchers.Add(-1)
	err := s.streamInfer(ctx, caller, receive, send)
	if err != nil && ctx.Err() == nil { // who went away was refused nothing
		e := mapError(err)
		return s.turnDown(c, e), e
	}
	answer := &Answer{SafetyState: s.Whole()}
	s.finish(c, 0, answer)
	return answer, nil
}

func (s *Service) streamInfer(ctx context.Context, caller *Caller, receive func() ([]byte, error), send func([]byte) error) error {
	if s.draining.Load() {
		return errDraining
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	held := newHeld(s)
	defer held.close()
	places := make(chan chan []byte, streamInferAhead)
	go s.takeRequests(ctx, caller, receive, places, held)
	next := func(place chan []byte) error {
		answer := <-place
		defer held.sent(len(answer))
		return send(answer)
	}
	for {
		select {
		case place, more := <-places:
			if !more {
				return nil
			}
			if err := next(place); err != nil {
				return err
			}
		case <-s.drained.Done():
			return answerTaken(places, next)
		}
	}
}

// held counts the answers of a stream that are not sent yet among the bytes in flight: a
// slow reader must not pile them up.
type held struct {
	service            *Service
	mu                 sync.Mutex
	changed            *sync.Cond
	bytes, largest     int64
	underWay, answered int64
	closed             bool
}

func newHeld(s *Service) *held {
	h := &held{service: s}
	h.changed = sync.NewCond(&h.mu)
	return h
}

// admit waits until another request may be taken; false when the stream is over. At
// first few are taken, until it is known how large answers are; together they may be as
// large as one message.
func (h *held) admit() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.closed && h.underWay > 0 &&
		(h.underWay >= min(streamInferAhead, streamInferFirst+h.answered) || (h.underWay+1)*h.largest > h.service.limits.MessageBytesMax) {
		h.changed.Wait()
	}
	h.underWay++
	return !h.closed
}

// add counts an answer.
func (h *held) add(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.largest = max(h.largest, int64(n))
	if !h.closed {
		h.bytes += int64(n)
		h.service.bytes.Add(int64(n))
	}
}

// sent makes room for another.
func (h *held) sent(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.underWay--
	h.answered++
	h.bytes -= int64(n)
	h.service.bytes.Add(-int64(n))
	h.changed.Broadcast()
}

// close gives back what will not be sent any more, and ends the waiting.
func (h *held) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.service.bytes.Add(-h.bytes)
	h.changed.Broadcast()
}

// answerTaken answers what was taken before the gateway began to drain.
func answerTaken(places chan chan []byte, next func(chan []byte) error) error {
	for {
		select {
		case place, more := <-places:
			if !more {
				return nil
			}
			if err := next(place); err != nil {
				return err
			}
		default:
			return errDraining
		}
	}
}

// takeRequests takes requests as long as there is a place for their answers.
func (s *Service) takeRequests(ctx context.Context, caller *Caller, receive func() ([]byte, error), places chan<- chan []byte, held *held) {
	defer close(places)
	for held.admit() {
		message, err := receive()
		if err != nil {
			return
		}
		place := make(chan []byte, 1)
		select {
		case places <- place:
		case <-ctx.Done():
			return
		}
		go func() {
			answer := s.streamed(ctx, caller, message)
			held.add(len(answer))
			place <- answer
		}()
	}
}

// streamed is the answer to one request of a stream, in its envelope.
func (s *Service) streamed(ctx context.Context, caller *Caller, message []byte) []byte {
	own := *caller
	answer, failed := s.Unary(ctx, inferMethod(), &own, message)
	beside := map[string]*inference.InferParameter{
		"triton_final_response": {ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: true}},
		"vigil_safety_state":    {ParameterChoice: &inference.InferParameter_StringParam{StringParam: answer.SafetyState}},
	}
	if answer.AuditPosition != "" {
		beside["vigil_audit_position"] = &inference.InferParameter{ParameterChoice: &inference.InferParameter_StringParam{StringParam: answer.AuditPosition}}
	}
	if failed != nil {
		request := &inference.ModelInferRequest{}
		_ = proto.Unmarshal(message, request) // one that cannot be read has no id
		refusal, _ := proto.Marshal(&inference.ModelStreamInferResponse{
			ErrorMessage: strings.ToValidUTF8(failed.Text, "?"), InferResponse: &inference.ModelInferResponse{Id: request.Id, Parameters: beside},
		})
		return refusal
	}
	// A message may come in pieces: the answer stays as it is, and what stands beside it follows.
	more, _ := proto.Marshal(&inference.ModelInferResponse{Parameters: beside})
	out := make([]byte, 0, len(answer.Message)+len(more)+16)
	out = protowire.AppendTag(out, inferResponse, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(len(answer.Message)+len(more)))
	return append(append(out, answer.Message...), more...)
}

// Ended says whether an error of receive is the orderly end of a stream.
func Ended(err error) bool { return err == nil || errors.Is(err, io.EOF) }
