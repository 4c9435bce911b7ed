package flow

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	livev1 "vigil/gateway/gen/vigil/live/v1"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"

	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
)

// streamCall is a server stream on its way.
type streamCall struct {
	ctx     context.Context
	request proto.Message
	caller  *Caller
	send    func([]byte) error
}

// Stream carries a server stream; send is called with each message in order.
func (s *Service) Stream(ctx context.Context, m *Method, caller *Caller, message []byte, send func([]byte) error) (*Answer, *CallError) {
	c := &call{method: m, caller: caller, start: time.Now()}
	size := int64(len(message))
	if err := s.enterStream(size); err != nil {
		return s.turnDown(c, err), err
	}
	defer func() { s.watchers.Add(-1); s.bytes.Add(-size) }()
	answer, err := s.stream(ctx, c, message, send)
	if err != nil {
		e := mapError(err)
		if answer == nil {
			answer = s.refuse(c, e)
		}
		s.finish(c, e.Code, answer)
		return answer, e
	}
	s.finish(c, codes.OK, answer)
	return answer, nil
}

func (s *Service) stream(ctx context.Context, c *call, message []byte, send func([]byte) error) (*Answer, error) {
	if s.draining.Load() {
		return nil, errDraining
	}
	if err := c.forbidden(); err != nil {
		return nil, err
	}
	request, err := rules.Decode(c.method.Input, message)
	if err != nil {
		return nil, err
	}
	if wantsFrames(request) && !c.caller.Frames {
		return nil, &CallError{Code: codes.PermissionDenied, Event: events.ControlForbidden, Reason: "FRAMES_FORBIDDEN",
			Text: "pictures are given on loopback listeners only (setting perception.frames_remote)"}
	}
	local := c.method.stream
	if local == nil && c.method.Name == sourceMethod && wantsFrames(request) {
		local = (*Service).watchPictures
	}
	if local != nil {
		err := local(s, &streamCall{ctx, request, c.caller, send})
		if err != nil && ctx.Err() == nil { // who went away was refused nothing
			return nil, err
		}
		return &Answer{SafetyState: s.Whole()}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.drained, cancel)
	defer stop()
	reply, err := s.link.Stream(ctx, c.method.Name, message, c.context(ctx), func(r *linkv1.Reply) error { return send(r.Message) })
	if err != nil && s.draining.Load() {
		return nil, errDraining
	}
	if err != nil {
		return nil, err
	}
	return s.fromReply(reply)
}

// wantsFrames says whether a stream is to carry pictures.
func wantsFrames(request proto.Message) bool {
	switch r := request.(type) {
	case *perceptionv1.WatchRequest:
		return r.Frames
	case *livev1.WatchRequest:
		return slices.ContainsFunc(r.Sources, func(w *livev1.WatchedSource) bool { return w.Frames })
	}
	return false
}
