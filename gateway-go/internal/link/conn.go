package link

import (
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/fair"
)

// ErrDown says that the link ended while a call was under way, or is down.
var ErrDown = errors.New("the sidecar is not connected")

// ErrSilent says that the sidecar sent no heartbeat in time.
var ErrSilent = errors.New("the sidecar is silent")

// LogError says that the sidecar's log cannot be written, so that no answer will come.
type LogError struct{ Reason string }

func (e *LogError) Error() string { return "the sidecar's log: " + e.Reason }

// ErrNotSent says, beside its cause, that the sidecar did not get the call.
var ErrNotSent = errors.New("not sent")

// ErrSlowReader says that a stream's reader fell too far behind.
var ErrSlowReader = errors.New("the reader of the stream is too slow")

const (
	streamQueueMax = 256
	// streamCredit is how many messages of a stream may be under way unread.
	streamCredit = 64
	// frameBytesWanted bounds a frame of several calls; one call may be larger.
	frameBytesWanted = 8 << 20
)

// result is one thing that a call waits for: a reply, or its failure.
type result struct {
	reply *linkv1.Reply
	err   error
}

// pending is a call that waits for its replies. A unary call's channel has one
// place, for its one reply or failure; whichever comes first is what it gets.
type pending struct {
	results chan result
	failed  chan error // of a stream, which may have a full queue of replies
	model   string
	bytes   int   // of its message
	standIn bool  // something stands in for the model
	lane    *lane // where it waits; nil once a frame took it
	item    fair.Item[*linkv1.Call]
	flow    *fair.Flow
}

func (p *pending) fail(err error) {
	if p.failed == nil {
		select {
		case p.results <- result{err: err}:
		default:
		}
		return
	}
	select {
	case p.failed <- err:
	default:
	}
}

// conn is one connection. Invariant: a call is in pending from being queued
// until its final reply, its failure or its cancellation.
type conn struct {
	net     net.Conn
	welcome *linkv1.Welcome
	methods map[string]uint32
	w       *writer
	callMax int
	waitMax time.Duration // how long a call may have to wait for its turn; 0: any

	mu       sync.Mutex
	closed   error
	silent   bool
	pause    time.Duration // the sidecar said that it may be silent for so long
	late     bool          // calls that something stands in for do not wait
	held     error         // why new calls are refused although the sidecar lives
	nextID   uint64
	pending  map[uint64]*pending
	lanes    map[string]*lane
	byID     []*lane
	models   map[string]bool
	lastBeat time.Time
	heard    uint64 // count of the last heartbeat; of the reading goroutine
	beats    uint64
	// draining: the sidecar is about to stop; drained: it heard that nothing waits for it.
	draining, drained bool
}

// firstBeat is how long a sidecar that has just greeted may be silent before its first heartbeat:
// it is starting, and may be at its first session under the interpreter's lock.
const firstBeat = 300 * time.Millisecond

func newConn(c net.Conn, welcome *linkv1.Welcome, callMax int, waitMax time.Duration) *conn {
	out := &conn{
		net: c, welcome: welcome, methods: map[string]uint32{}, callMax: callMax, waitMax: waitMax, pending: map[uint64]*pending{},
		lanes: map[string]*lane{}, models: map[string]bool{}, lastBeat: time.Now(),
		pause: firstBeat,
	}
	for i, name := range welcome.Methods {
		out.methods[name] = uint32(i)
	}
	out.w = newWriter(c, out.fail)
	return out
}

// fail ends the connection and every call on it, at once.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.closed != nil {
		c.mu.Unlock()
		return
	}
	c.closed = err
	waiting := c.pending
	c.pending = map[uint64]*pending{}
	c.mu.Unlock()
	c.w.close()
	c.net.Close()
	for _, p := range waiting {
		// SR-017
		p.fail(ErrDown)
	}
}

// setSilent makes new calls fail at once until the next sign of life.
func (c *conn) setSilent() {
	c.mu.Lock()
	c.silent = true
	c.mu.Unlock()
}

// drop takes a call out, also from a lane where it waits. The lock is held.
func (c *conn) drop(id uint64, p *pending) {
	delete(c.pending, id)
	if p.lane != nil {
		p.lane.queue.Remove(&p.item)
		p.lane = nil
	}
}

// judgeLate looks whether the sidecar says nothing for so long that calls which something
// stands in for have a better answer than waiting; true when that is new.
func (c *conn) judgeLate(after time.Duration) bool {
	c.mu.Lock()
	late := time.Since(c.lastBeat)-c.pause > after
	fresh := late && !c.late
	c.late = late
	c.mu.Unlock()
	if fresh {
		c.failThose(ErrSilent, func(p *pending) bool { return p.standIn })
	}
	return fresh
}

// failCalls ends every call but keeps the connection: a silent sidecar may
// come back, its late replies are dropped.
func (c *conn) failCalls(err error) {
	c.failThose(err, func(*pending) bool { return true })
}

// failThose ends the calls that are chosen.
func (c *conn) failThose(err error, chosen func(*pending) bool) {
	var failed []*pending
	c.mu.Lock()
	for id, p := range c.pending {
		if chosen(p) {
			failed = append(failed, p)
			c.drop(id, p)
		}
	}
	c.mu.Unlock()
	for _, p := range failed {
		p.fail(err)
	}
	c.settle()
}

// hold ends every call and refuses new ones until it is called without a reason.
func (c *conn) hold(reason string) {
	c.mu.Lock()
	held := c.held != nil
	c.held = nil
	if reason != "" {
		c.held = &LogError{reason}
	}
	err := c.held
	c.mu.Unlock()
	if err != nil && !held {
		c.failCalls(err)
	}
}

// forget withdraws a call whose caller has gone.
func (c *conn) forget(id uint64) {
	c.mu.Lock()
	p, known := c.pending[id]
	if known {
		c.drop(id, p)
	}
	c.mu.Unlock()
	if known {
		_ = c.w.send(&linkv1.Frame{Body: &linkv1.Frame_Cancel{Cancel: &linkv1.Cancel{Ids: []uint64{id}}}}, true)
		c.settle()
	}
}

// replies hands out answers and uses the credit that came with them.
func (c *conn) replies(in *linkv1.Replies) error {
	type delivery struct {
		p *pending
		r *linkv1.Reply
	}
	deliveries := make([]delivery, 0, len(in.Replies))
	for _, r := range in.Replies {
		// SR-015
		if r.Crc != callCRC(r.Message, r.Id, r.Code) {
			return damaged("reply %d does not match its CRC-32C", r.Id)
		}
	}
	var frames []*linkv1.Frame
	c.mu.Lock()
	for _, r := range in.Replies {
		p := c.pending[r.Id]
		if p == nil {
			continue // cancelled, or of a time when the sidecar was silent
		}
		if !r.More {
			delete(c.pending, r.Id)
		}
		deliveries = append(deliveries, delivery{p, r})
	}
	for _, id := range in.Credits {
		if int(id) >= len(c.byID) {
			c.mu.Unlock()
			return damaged("credit for lane %d, which was never used", id)
		}
		l := c.byID[id]
		if len(l.sent) == 0 {
			c.mu.Unlock()
			return damaged("credit for lane %d, which has nothing outstanding", id)
		}
		l.worked(time.Now())
		if frame := c.take(l); frame != nil {
			frames = append(frames, frame)
		}
	}
	c.mu.Unlock()
	for _, frame := range frames {
		if err := c.w.send(frame, false); err != nil {
			return err
		}
	}
	for _, d := range deliveries {
		select {
		case d.p.results <- result{reply: d.r}:
		default:
			d.p.fail(ErrSlowReader)
			c.forget(d.r.Id)
		}
	}
	c.settle()
	return nil
}

// heartbeat notes a sign of life. One that is changed, lost, repeated or out of
// order is damage.
func (c *conn) heartbeat(h *linkv1.Heartbeat) error {
	if h.Crc != heartbeatCRC(h) {
		return damaged("heartbeat does not match its CRC-32C")
	}
	// SR-016
	if c.heard > 0 && h.Count != c.heard+1 {
		return damaged("heartbeat %d came after %d", h.Count, c.heard)
	}
	c.heard = h.Count
	c.mu.Lock()
	c.lastBeat = time.Now()
	c.pause = min(time.Duration(h.PauseMs)*time.Millisecond, pauseMax)
	c.silent = false
	if len(h.Models) != len(c.models) || slices.ContainsFunc(h.Models, func(m string) bool { return !c.models[m] }) {
		c.models = map[string]bool{}
		for _, m := range h.Models {
			c.models[m] = true
		}
	}
	c.mu.Unlock()
	return nil
}

// alive notes that something came: a sidecar that sends is not silent.
func (c *conn) alive() {
	c.mu.Lock()
	c.lastBeat, c.late = time.Now(), false
	c.mu.Unlock()
}

// silence is how long nothing came, beyond what was announced.
func (c *conn) silence() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, time.Since(c.lastBeat)-c.pause)
}
