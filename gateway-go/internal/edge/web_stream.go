package edge

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc/codes"

	"vigil/gateway/internal/events"
	"vigil/gateway/internal/flow"
)

// countedBody takes the bytes that it reads from the service's budget until the
// request is over, so that unfinished messages count too.
type countedBody struct {
	io.ReadCloser
	service *flow.Service
	mu      sync.Mutex
	taken   int64
	closed  bool
}

type bodyKey struct{}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return n, err
	}
	b.taken += int64(n)
	if !b.service.TakeUnread(int64(n)) {
		return 0, errTooManyBytes
	}
	return n, err
}

// free gives back what was read so far, since it is no unfinished request any more.
func (b *countedBody) free() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.service.FreeUnread(b.taken)
	b.taken = 0
}

// close frees for good: whoever still reads counts nothing.
func (b *countedBody) close() {
	b.free()
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
}

// bidi is the handler of the stream that takes many requests.
func (w *web) bidi(m *flow.Method) func(context.Context, *connect.BidiStream[raw, raw]) error {
	return func(ctx context.Context, stream *connect.BidiStream[raw, raw]) error {
		reached(ctx)
		caller := w.caller(ctx, stream.RequestHeader())
		body, _ := ctx.Value(bodyKey{}).(*countedBody)
		var broken atomic.Pointer[connect.Error]
		receive := func() ([]byte, error) {
			message, err := stream.Receive()
			if body != nil {
				body.free()
			}
			if err != nil {
				var told *connect.Error
				if !errors.Is(err, io.EOF) && errors.As(err, &told) && told.Code() != connect.CodeCanceled {
					broken.Store(told)
				}
				return nil, err
			}
			return message.data, nil
		}
		stream.ResponseHeader().Set(TraceHeader, caller.Trace.ID())
		answer, callErr := w.service.StreamInfer(ctx, m, caller, receive, func(data []byte) error {
			if rw, ok := ctx.Value(watchKey{}).(*watchedWriter); ok { // a reader that does not read ends its stream
				controller := http.NewResponseController(rw)
				_ = controller.SetWriteDeadline(time.Now().Add(slowReader))
				defer func() { _ = controller.SetWriteDeadline(time.Time{}) }() // a stream may rest as long as it likes
			}
			return stream.Send(&raw{m.Desc.Output(), data})
		})
		if callErr != nil {
			return connectError(callErr.Status(caller.Trace.ID()), caller.Trace.ID(), answer)
		}
		if err := broken.Load(); err != nil { // a message that could not be read
			text := "refused by the web transport: " + err.Message()
			answer.AuditPosition = w.service.TurnAway(m.Name, events.TransportRefused, codes.Code(err.Code()), text, &caller.Trace)
			setMeta(err.Meta(), answer)
			return err
		}
		setMeta(stream.ResponseTrailer(), answer)
		return nil
	}
}
