package link

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/fair"
)

// flowKey is where a context has the flow of its call.
type flowKey struct{}

// WithFlow has the calls of a context wait for their turn in a flow.
func WithFlow(ctx context.Context, f *fair.Flow) context.Context {
	return context.WithValue(ctx, flowKey{}, f)
}

func flowOf(ctx context.Context) *fair.Flow {
	if f, ok := ctx.Value(flowKey{}).(*fair.Flow); ok {
		return f
	}
	return anybody
}

// MakeRoom ends the call that would come last of the flow that has most waiting for its share, when
// that is more than this flow has; false when there is none.
func (c *Client) MakeRoom(f *fair.Flow) bool {
	cn := c.conn.Load()
	return cn != nil && cn.makeRoom(f)
}

func (c *Client) start(model, method string, message []byte, call *linkv1.Context, p *pending) (*conn, uint64, error) {
	cn := c.conn.Load()
	if cn == nil {
		return nil, 0, ErrDown
	}
	index, known := cn.methods[method]
	if !known {
		return nil, 0, fmt.Errorf("%w for %s", ErrDown, method)
	}
	if !utf8.ValidString(model) || !utf8.ValidString(call.GetTenant()) { // a frame that cannot be encoded would end the link for all
		return nil, 0, errors.New("model or tenant is not UTF-8")
	}
	id, err := cn.submit(model, &linkv1.Call{Method: index, Message: message, Context: call}, p)
	return cn, id, err
}

// Call carries one unary call. When ctx ends first, the sidecar is told and
// ctx's error returned; ErrDown and ErrSilent come at once when the sidecar goes.
func (c *Client) Call(ctx context.Context, model, method string, message []byte, call *linkv1.Context) (*linkv1.Reply, error) {
	return c.call(ctx, model, method, message, call, false)
}

// CallOrStandIn is Call for a model that something stands in for: it does not wait
// for a sidecar that is silent, or for a model that rests.
func (c *Client) CallOrStandIn(ctx context.Context, model, method string, message []byte, call *linkv1.Context) (*linkv1.Reply, error) {
	return c.call(ctx, model, method, message, call, true)
}

func (c *Client) call(
	ctx context.Context, model, method string, message []byte, call *linkv1.Context, standIn bool,
) (*linkv1.Reply, error) {
	p := &pending{results: make(chan result, 1), model: model, standIn: standIn, flow: flowOf(ctx)}
	p.item.Deadline, _ = ctx.Deadline()
	cn, id, err := c.start(model, method, message, call, p)
	if err != nil {
		return nil, errors.Join(err, ErrNotSent)
	}
	select {
	case r := <-p.results:
		return r.reply, r.err
	case <-ctx.Done():
		cn.forget(id)
		return nil, ctx.Err()
	}
}

// Stream carries a server stream: each reply is given to send, the final one
// is returned.
func (c *Client) Stream(ctx context.Context, method string, message []byte, call *linkv1.Context, send func(*linkv1.Reply) error) (*linkv1.Reply, error) {
	p := &pending{results: make(chan result, streamQueueMax), failed: make(chan error, 1), flow: flowOf(ctx)}
	cn, id, err := c.start("", method, message, call, p)
	if err != nil {
		return nil, err
	}
	for taken := uint32(0); ; {
		select {
		case r := <-p.results:
			if !r.reply.More {
				return r.reply, nil
			}
			if err := send(r.reply); err != nil {
				cn.forget(id)
				return nil, err
			}
			if taken++; taken == streamCredit/2 { // a slow reader gives none: the sidecar then drops what is old, and says so
				_ = cn.w.send(&linkv1.Frame{Body: &linkv1.Frame_StreamCredit{StreamCredit: &linkv1.StreamCredit{Id: id, Count: taken}}}, true)
				taken = 0
			}
		case err := <-p.failed:
			return nil, err
		case <-ctx.Done():
			cn.forget(id)
			return nil, ctx.Err()
		}
	}
}

// Waiting is how many calls wait for their turn.
func (c *Client) Waiting() int {
	cn := c.conn.Load()
	if cn == nil {
		return 0
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	n := 0
	for _, l := range cn.lanes {
		n += l.queue.Len()
	}
	return n
}

// Serves says whether the connected sidecar serves a method.
func (c *Client) Serves(method string) bool {
	cn := c.conn.Load()
	if cn == nil {
		return false
	}
	_, known := cn.methods[method]
	return known
}
