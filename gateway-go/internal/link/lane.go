package link

import (
	"errors"
	"fmt"
	"slices"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/fair"
)

// readyCalls is how many calls, gathered while a lane's frame is worked on, leave
// as a second frame, so that the sidecar finds it when it is done. Fewer stay:
// batches that grow are worth more than a short wait. Where calls of several flows wait, a
// frame takes no more than these, and fewer of a slow model, so that nobody waits long for those of others.
const readyCalls = 16

// aheadMax is how long a second frame may take, so that calls of several flows leave for it before
// the sidecar is done with the first: what left has had its turn.
const aheadMax = 2 * time.Millisecond

// mixedFor is how long a lane is one of several flows after calls of several came: one that asks now
// and then is seldom there when a frame is formed, and would find all that waited gone ahead.
const mixedFor = time.Second

// costBytes of a message cost as much as a call does anyway.
const costBytes = 16 << 10

// lane keeps one frame outstanding, or two under much load; calls gather meanwhile.
type lane struct {
	id    uint32
	model string
	queue fair.Queue[*linkv1.Call]
	sent  []sentFrame // that are outstanding
	since time.Time   // when the sidecar turned to the first of them
	pace  pace
	last  *fair.Flow // of the call that came last
	mixed time.Time  // when a call came of another flow than the one before
}

// sentFrame is one that is outstanding. Loaded: calls waited, so that its time says what the
// sidecar can do.
type sentFrame struct {
	bytes, calls int
	loaded       bool
}

// anybody is the flow of calls that have none of their own.
var anybody = fair.NewTable(nil, 1).Flow("", "", "", time.Time{})

// uneven is how much longer than by its pace a lane may take, and a call still be answered before its
// deadline. Without it the calls that wait under overload are those that have just time enough, and
// half of them are computed and then too late.
const uneven = 1.5

// LateError says that a call would not get its turn in time.
type LateError struct {
	Wait  time.Duration // until its turn, about
	Left  time.Duration // until its deadline, or the longest wait that is allowed
	Ahead int           // calls that get theirs before
	PerS  float64       // calls that the sidecar works off, a second
	// Needed until its answer, should the pace be uneven: where its deadline would be missed, and not the longest wait.
	Needed time.Duration
}

func (e *LateError) Error() string {
	text := fmt.Sprintf("%d calls are before this one, at %.4g a second: about %v, ", e.Ahead, e.PerS, e.Wait.Round(time.Millisecond))
	if e.Needed != 0 {
		text += fmt.Sprintf("%v until its answer if they are uneven, ", e.Needed.Round(time.Millisecond))
	}
	return text + fmt.Sprintf("and it has %v", e.Left.Round(time.Millisecond))
}

// ErrCrowded says that a call lost its place to one of another flow that has fewer.
var ErrCrowded = errors.New("the place went to a call of another flow, which has fewer waiting")

// wait is how long a call of this flow would wait for its turn, about, and behind how many: those that
// get theirs before in the queue, and those of frames that left, less what was worked on already.
func (l *lane) wait(before int, now time.Time) (time.Duration, int) {
	ahead := before
	for _, frame := range l.sent {
		ahead += frame.calls
	}
	each := l.pace.each()
	worked := 0.0
	if len(l.sent) > 0 {
		worked = min(float64(now.Sub(l.since)), float64(l.sent[0].calls)*each)
	}
	return time.Duration(max(0, float64(ahead)*each-worked)), ahead
}

// late says why a call is not worth queueing; nil when it is. What finds nobody waiting is
// always taken.
func (l *lane) late(p *pending, waitMax time.Duration, now time.Time) *LateError {
	if l.pace.each() == 0 || l.queue.Len() == 0 {
		return nil
	}
	late := l.tooLate(p, l.queue.Ahead(p.flow), waitMax, now)
	if late != nil && !p.item.Deadline.IsZero() { // of its own flow only what is due no later comes before it
		late = l.tooLate(p, l.queue.AheadOf(p.flow, p.item.Deadline), waitMax, now)
	}
	return late
}

func (l *lane) tooLate(p *pending, before int, waitMax time.Duration, now time.Time) *LateError {
	wait, ahead := l.wait(before, now)
	each := l.pace.each()
	late := &LateError{Wait: wait, Left: waitMax, Ahead: ahead, PerS: 1e9 / each}
	if !p.item.Deadline.IsZero() {
		left := p.item.Deadline.Sub(now)
		if needed := time.Duration((float64(wait) + each) * uneven); needed > left && (waitMax == 0 || left <= waitMax || wait <= waitMax) {
			late.Left, late.Needed = left, needed
			return late
		}
	}
	if waitMax != 0 && wait > waitMax {
		return late
	}
	return nil
}

// worked notes that the sidecar is done with the first frame.
func (l *lane) worked(now time.Time) {
	first := l.sent[0]
	l.pace.add(first.calls, now.Sub(l.since), first.loaded)
	l.sent = slices.Delete(l.sent, 0, 1)
	l.since = now
}

// submit queues a call and returns its id.
func (c *conn) submit(model string, call *linkv1.Call, p *pending) (uint64, error) {
	c.mu.Lock()
	id, frame, err := c.queue(model, call, p)
	c.mu.Unlock()
	if frame != nil {
		return id, c.w.send(frame, false)
	}
	return id, err
}

// queue is submit with the lock held; it gives the frame that is to be sent now.
func (c *conn) queue(model string, call *linkv1.Call, p *pending) (uint64, *linkv1.Frame, error) {
	switch {
	case c.closed != nil || c.draining:
		return 0, nil, ErrDown
	case c.silent || (c.late && p.standIn):
		return 0, nil, ErrSilent
	case c.held != nil:
		return 0, nil, c.held
	}
	if !c.models[model] {
		model = ""
	}
	l := c.lanes[model]
	if l == nil {
		l = &lane{id: uint32(len(c.byID)), model: model}
		c.lanes[model] = l
		c.byID = append(c.byID, l)
	}
	if late := l.late(p, c.waitMax, time.Now()); late != nil {
		return 0, nil, late
	}
	c.nextID++
	call.Id = c.nextID
	call.Crc = callCRC(call.Message, call.Id, call.Method)
	p.bytes = len(call.Message)
	p.item.Value, p.item.Cost = call, 1+float64(p.bytes)/costBytes
	p.lane = l
	c.pending[call.Id] = p
	if l.last != p.flow && l.last != nil {
		l.mixed = time.Now()
	}
	l.last = p.flow
	l.queue.Push(p.flow, &p.item)
	return call.Id, c.take(l), nil
}

// take forms the lane's next frame if it may send one. The lock is held.
func (c *conn) take(l *lane) *linkv1.Frame {
	if len(l.sent) > 1 || (len(l.sent) == 1 && l.queue.Len() < readyCalls) || l.queue.Len() == 0 {
		return nil
	}
	most := min(c.callMax, l.pace.alone(c.callMax))
	if l.queue.Flows() > 1 || time.Since(l.mixed) < mixedFor {
		if len(l.sent) == 1 && time.Duration(readyCalls*l.pace.each()) > aheadMax {
			return nil
		}
		most = min(most, l.pace.shared())
	}
	calls := make([]*linkv1.Call, 0, min(l.queue.Len(), most))
	size := 0
	for len(calls) < most {
		item := l.queue.Peek()
		if item == nil || (len(calls) > 0 && size+len(item.Value.Message) > frameBytesWanted) {
			break
		}
		call := l.queue.Pop().Value
		c.pending[call.Id].lane = nil
		calls = append(calls, call)
		size += len(call.Message)
	}
	if len(l.sent) == 0 {
		l.since = time.Now()
	}
	l.sent = append(l.sent, sentFrame{size, len(calls), len(calls) >= readyCalls || l.queue.Len() > 0})
	return &linkv1.Frame{Body: &linkv1.Frame_Calls{Calls: &linkv1.Calls{Lane: l.id, Calls: calls, Model: l.model}}}
}

// makeRoom ends the call that would come last of the flow that has most waiting for its share,
// when that is more than this flow has; false when there is none.
func (c *conn) makeRoom(f *fair.Flow) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := 0
	var longest *fair.Flow
	var last *fair.Item[*linkv1.Call]
	most := 0
	for _, l := range c.byID {
		own += l.queue.Of(f)
		if flow, item := l.queue.Longest(); flow != nil && flow != f && flow.Priority >= f.Priority {
			if n := l.queue.Of(flow); longest == nil || n*longest.Share > most*flow.Share {
				longest, last, most = flow, item, n
			}
		}
	}
	if longest == nil || most*f.Share <= (own+1)*longest.Share {
		return false
	}
	id := last.Value.Id
	p := c.pending[id]
	c.drop(id, p)
	p.fail(errors.Join(ErrCrowded, ErrNotSent))
	return true
}
