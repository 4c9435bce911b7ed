package flow

import (
	"math"
	"sync/atomic"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/fair"
)

// refusalLines is how many refusals a second have a line in the log.
const refusalLines = 10

// enter takes a place for a call of this size and flow, or says which limit is hit.
func (s *Service) enter(c *call, flow *fair.Flow, size int64) *CallError {
	s.running.Add(1) // before the question, so that draining waits for whoever passes it
	err := s.inTime(c, flow)
	if err == nil {
		err = s.admit(flow, size)
	}
	if err != nil {
		s.running.Done()
		return err
	}
	flow.Held.Add(1)
	return nil
}

// beyond is the part of limits.calls_in_flight_max that flows without a call may have beyond it: an eighth.
const beyond = 8

// inTime takes a token of the flow for a call of a model.
func (s *Service) inTime(c *call, flow *fair.Flow) *CallError {
	if c.method.model == nil {
		return nil
	}
	wait, ok := flow.Take(time.Now())
	if ok {
		return nil
	}
	err := limitError("flow.rules", "calls of this flow come faster than %g a second", flow.Rate())
	err.RetryAfter = wait
	return err
}

func (s *Service) admit(flow *fair.Flow, size int64) *CallError {
	if s.draining.Load() {
		return errDraining
	}
	if size > s.limits.MessageBytesMax {
		return limitError("limits.message_bytes_max", "the message has %d bytes, the limit is %d", size, s.limits.MessageBytesMax)
	}
	// Bytes first: nobody loses a place to a call that has no room.
	if !within(&s.bytes, size, s.limits.BytesInFlightMax) {
		return limitError("limits.bytes_in_flight_max", "%d bytes are in flight, and the call has %d; the limit is %d", s.bytes.Load(), size, s.limits.BytesInFlightMax)
	}
	err := s.fits(size)
	if err == nil && !within(&s.calls, 1, s.limits.CallsInFlightMax) {
		if s.link != nil && s.link.MakeRoom(flow) {
			s.calls.Add(1) // whose place it gets leaves in a moment
			return nil
		}
		// Where nobody waits all places may be in frames that have left; a flow without a call gets one all the same.
		if flow != nil && flow.Held.Load() == 0 && within(&s.calls, 1, s.limits.CallsInFlightMax+s.limits.CallsInFlightMax/beyond) {
			return nil
		}
		err = limitError("limits.calls_in_flight_max", "%d calls are in flight", s.limits.CallsInFlightMax)
	}
	if err != nil {
		s.bytes.Add(-size)
	}
	return err
}

// What a byte of a request may take at the sidecar: as it is read, in its frame, as the message, in its batch, in the
// model's answer with what its allocator rounds up, and in the answer as it is encoded. With less than fitsFrom in flight nothing is asked.
const sidecarCopies, fitsFrom = 8, 1 << 20

// fits refuses what the sidecar, by its last heartbeat, has no memory for beside all that is under way.
// SR-058
func (s *Service) fits(size int64) *CallError {
	free := s.memoryFree.Load()
	if n := s.bytes.Load(); n >= fitsFrom && free != nil && n > *free/sidecarCopies {
		return limitError("limits.memory_reserve_bytes",
			"%d bytes are in flight with the call's %d, each of which may take %d at the sidecar; it may take %d more", n, size, sidecarCopies, *free)
	}
	return nil
}

// within adds to a counter unless that would pass the limit: who is refused must not even for a
// moment look like one that was admitted.
func within(counter *atomic.Int64, n, limit int64) bool {
	for {
		old := counter.Load()
		if old+n > limit {
			return false
		}
		if counter.CompareAndSwap(old, old+n) {
			return true
		}
	}
}

// enterStream takes a place for a stream and its request, for as long as it lasts.
func (s *Service) enterStream(size int64) *CallError {
	if size > s.limits.MessageBytesMax {
		return limitError("limits.message_bytes_max", "the message has %d bytes, the limit is %d", size, s.limits.MessageBytesMax)
	}
	if n := s.watchers.Add(1); n > s.limits.WatchersMax {
		s.watchers.Add(-1)
		return limitError("limits.watchers_max", "%d streams are open", s.limits.WatchersMax)
	}
	if n := s.bytes.Add(size); n > s.limits.BytesInFlightMax {
		s.watchers.Add(-1)
		s.bytes.Add(-size)
		return limitError("limits.bytes_in_flight_max", "%d bytes are in flight", n-size)
	}
	return nil
}

// turnDown refuses a call that got no place: recorded and counted like any other.
func (s *Service) turnDown(c *call, err *CallError) *Answer {
	span := s.tracer.Start(&c.caller.Trace, c.method.Name)
	answer := s.refuse(c, err)
	s.finish(c, err.Code, answer)
	span.End(err.Code.String(), c.model, c.version)
	return answer
}

// TakeUnread counts bytes of a message that is still being read; false when
// there are too many. FreeUnread gives them back.
func (s *Service) TakeUnread(n int64) bool { return s.unread.Add(n) <= s.limits.BytesInFlightMax }

// FreeUnread gives back what TakeUnread took.
func (s *Service) FreeUnread(n int64) { s.unread.Add(-n) }

func (s *Service) leave(flow *fair.Flow, size int64) {
	flow.Held.Add(-1)
	s.calls.Add(-1)
	s.bytes.Add(-size)
	s.running.Done()
}

// InFlight is the number of unary calls under way.
func (s *Service) InFlight() int64 { return s.calls.Load() }

// noteMemory keeps what a heartbeat says of the sidecar's memory; nil while it says nothing.
func (s *Service) noteMemory(h *linkv1.Heartbeat) {
	if h.MemoryFree == nil {
		s.memoryFree.Store(nil)
		return
	}
	free := int64(min(*h.MemoryFree, math.MaxInt64))
	s.memoryFree.Store(&free)
}
