package flow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	livev1 "vigil/gateway/gen/vigil/live/v1"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"
)

// askAgain is how long it waits before a source is asked for again that a sidecar gave which
// is no longer there.
const askAgain = 200 * time.Millisecond

// How many sources are asked for at once, for all screens together and for those of one tenant: each may
// hold a few pictures.
const sourcesMax, tenantSourcesMax = 256, 48

const (
	outputField  = protowire.Number(4) // livev1.WatchResponse.output
	droppedField = protowire.Number(2) // perceptionv1.WatchResponse.dropped
)

// sourceKey is a source of one tenant, with or without its pictures.
type sourceKey struct {
	tenant, source string
	frames         bool
}

// outputs asks the sidecar for a source's outputs once, however many screens show it.
type outputs struct {
	mu      sync.Mutex
	streams map[sourceKey]*sourceStream
}

type sourceStream struct {
	cancel   context.CancelFunc
	watchers []*shown
}

// shown are the outputs that one screen follows: the latest of each source, so that a slow
// screen shows what is, and holds up nobody.
type shown struct {
	outputs *outputs
	keys    []sourceKey
	news    chan struct{}

	mu      sync.Mutex
	waiting map[sourceKey]*waitingOutput
}

type waitingOutput struct {
	watched []byte // a perceptionv1.WatchResponse
	ended   string
	missed  uint64 // that gave way to this one
}

// follow asks for sources; end must be called.
func (o *outputs) follow(s *Service, tenant string, sources []*livev1.WatchedSource) *shown {
	w := &shown{outputs: o, news: make(chan struct{}, 1), waiting: map[sourceKey]*waitingOutput{}}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.streams == nil {
		o.streams = map[sourceKey]*sourceStream{}
	}
	for _, asked := range sources {
		key := sourceKey{tenant, asked.SourceId, asked.Frames}
		if slices.Contains(w.keys, key) {
			continue
		}
		w.keys = append(w.keys, key)
		stream := o.streams[key]
		if why := o.full(key); stream == nil && why != "" {
			w.put(key, waitingOutput{ended: why})
			continue
		}
		if stream == nil {
			ctx, cancel := context.WithCancel(s.drained)
			stream = &sourceStream{cancel: cancel}
			o.streams[key] = stream
			go o.run(ctx, s, key, stream)
		}
		stream.watchers = append(stream.watchers, w)
	}
	return w
}

// full says why a source cannot be asked for now; the lock is held.
func (o *outputs) full(key sourceKey) string {
	if len(o.streams) >= sourcesMax {
		return fmt.Sprintf("%d sources are watched already, the limit is %d", len(o.streams), sourcesMax)
	}
	own := 0
	for other := range o.streams {
		if other.tenant == key.tenant {
			own++
		}
	}
	if own >= tenantSourcesMax {
		return fmt.Sprintf("%d sources of this tenant are watched already, the limit is %d", own, tenantSourcesMax)
	}
	return ""
}

// end takes the screen away, and ends the streams that nobody follows any more.
func (w *shown) end() {
	o := w.outputs
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range w.keys {
		stream := o.streams[key]
		if stream == nil {
			continue
		}
		stream.watchers = slices.DeleteFunc(stream.watchers, func(x *shown) bool { return x == w })
		if len(stream.watchers) == 0 {
			stream.cancel()
			delete(o.streams, key)
		}
	}
}

// watchPictures is PerceptionService.Watch with pictures: the latest output is sent, what a slow
// reader missed is counted.
func (s *Service) watchPictures(c *streamCall) error {
	request := c.request.(*perceptionv1.WatchRequest)
	w := s.live.outputs.follow(s, c.caller.Tenant, []*livev1.WatchedSource{{SourceId: request.SourceId, Frames: true}})
	defer w.end()
	for {
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-s.drained.Done():
			return errDraining
		case <-w.news:
		}
		_, x := w.pop()
		if x == nil {
			continue
		}
		if x.ended != "" {
			return limitError("limits.watchers_max", "%s", x.ended)
		}
		if err := c.send(x.output()); err != nil {
			return err
		}
	}
}

// next gives one of what waits, as a message of LiveService.Watch; nil when there is none.
func (w *shown) next() []byte {
	key, x := w.pop()
	if x == nil {
		return nil
	}
	return x.message(key.source)
}

func (w *shown) pop() (sourceKey, *waitingOutput) {
	w.mu.Lock()
	var key sourceKey
	var x *waitingOutput
	for key, x = range w.waiting {
		delete(w.waiting, key)
		break
	}
	more := len(w.waiting) > 0
	w.mu.Unlock()
	if more {
		w.wake()
	}
	return key, x
}

func (w *shown) wake() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// output is what came. What gave way to it is added to what the sidecar dropped: of a number
// that a message has twice, the last counts.
func (x *waitingOutput) output() []byte {
	if x.missed == 0 {
		return x.watched
	}
	watched := protowire.AppendTag(slices.Clip(x.watched), droppedField, protowire.VarintType)
	return protowire.AppendVarint(watched, x.missed+droppedOf(x.watched))
}

// message is a WatchResponse of LiveService with it.
func (x *waitingOutput) message(source string) []byte {
	var inner []byte
	inner = protowire.AppendTag(inner, 1, protowire.BytesType)
	inner = protowire.AppendString(inner, source)
	if x.watched != nil {
		inner = protowire.AppendTag(inner, 2, protowire.BytesType)
		inner = protowire.AppendBytes(inner, x.output())
	}
	if x.ended != "" {
		inner = protowire.AppendTag(inner, 3, protowire.BytesType)
		inner = protowire.AppendString(inner, x.ended)
	}
	out := protowire.AppendTag(make([]byte, 0, len(inner)+8), outputField, protowire.BytesType)
	return protowire.AppendBytes(out, inner)
}

// droppedOf reads that number without decoding the rest.
func droppedOf(watched []byte) (n uint64) {
	for len(watched) > 0 {
		number, kind, size := protowire.ConsumeTag(watched)
		if size < 0 {
			return n
		}
		watched = watched[size:]
		if number == droppedField && kind == protowire.VarintType {
			n, _ = protowire.ConsumeVarint(watched)
		}
		if size = protowire.ConsumeFieldValue(number, kind, watched); size < 0 {
			return n
		}
		watched = watched[size:]
	}
	return n
}

func (w *shown) put(key sourceKey, x waitingOutput) {
	w.mu.Lock()
	if old := w.waiting[key]; old != nil && old.watched != nil {
		x.missed = old.missed + 1 + droppedOf(old.watched)
	}
	w.waiting[key] = &x
	w.mu.Unlock()
	w.wake()
}

// stoodIn shows what answered in place of a model to those who follow the source: the sidecar, which
// tells them of its own answers, knows nothing of it. message is a DetectResponse, whose output has the
// number that a WatchResponse's has.
func (o *outputs) stoodIn(tenant string, r *perceptionv1.DetectRequest, message []byte, limits FrameLimits) {
	for _, frames := range []bool{false, true} {
		key := sourceKey{tenant, r.SourceId, frames}
		o.mu.Lock()
		stream := o.streams[key]
		o.mu.Unlock()
		if stream == nil {
			continue
		}
		watched := message
		if frames && limits.hold(r, message) {
			picture, err := proto.Marshal(&perceptionv1.WatchResponse{Frame: r.Frame})
			if err != nil {
				continue
			}
			watched = append(slices.Clip(message), picture...)
		}
		o.give(key, stream, waitingOutput{watched: watched})
	}
}

// FrameLimits are those of pictures that watchers get: bytes, pixels a side, pixels.
type FrameLimits struct{ Bytes, Side, Pixels int64 }

// hold says whether a picture that no sidecar has looked at is within the limits; the answer to it has its size.
func (l FrameLimits) hold(r *perceptionv1.DetectRequest, message []byte) bool {
	answer := &perceptionv1.DetectResponse{}
	if int64(proto.Size(r.Frame)) > l.Bytes || proto.Unmarshal(message, answer) != nil {
		return false
	}
	w, h := int64(answer.Output.GetFrameWidth()), int64(answer.Output.GetFrameHeight())
	return 0 < w && w <= l.Side && 0 < h && h <= l.Side && w*h <= l.Pixels
}

// run asks the sidecar for a source until nobody wants it; a sidecar that is gone is waited for.
func (o *outputs) run(ctx context.Context, s *Service, key sourceKey, stream *sourceStream) {
	message, err := proto.Marshal(&perceptionv1.WatchRequest{SourceId: key.source, Frames: key.frames})
	for err == nil {
		reply, gone := s.link.Stream(ctx, sourceMethod, message, &linkv1.Context{Tenant: key.tenant}, func(r *linkv1.Reply) error {
			o.give(key, stream, waitingOutput{watched: r.Message})
			return nil
		})
		if gone == nil && reply.Code != 0 && codes.Code(reply.Code) != codes.Unavailable {
			err = errors.New(reply.Text)
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(askAgain):
		}
	}
	o.mu.Lock()
	watchers := slices.Clone(stream.watchers)
	if o.streams[key] == stream { // whoever asks from now on begins anew
		delete(o.streams, key)
	}
	o.mu.Unlock()
	for _, w := range watchers {
		w.put(key, waitingOutput{ended: clip(err.Error(), 256)})
	}
}

func (o *outputs) give(key sourceKey, stream *sourceStream, x waitingOutput) {
	o.mu.Lock()
	watchers := slices.Clone(stream.watchers)
	o.mu.Unlock()
	for _, w := range watchers {
		w.put(key, x)
	}
}
