package flow

// enter takes a place for a call of this size, or says which limit is hit.
func (s *Service) enter(size int64) *CallError {
	s.running.Add(1) // before the question, so that draining waits for whoever passes it
	if err := s.admit(size); err != nil {
		s.running.Done()
		return err
	}
	return nil
}

func (s *Service) admit(size int64) *CallError {
	if s.draining.Load() {
		return errDraining
	}
	if size > s.limits.MessageBytesMax {
		return limitError("limits.message_bytes_max", "the message has %d bytes, the limit is %d", size, s.limits.MessageBytesMax)
	}
	if n := s.calls.Add(1); n > s.limits.CallsInFlightMax {
		s.calls.Add(-1)
		return limitError("limits.calls_in_flight_max", "%d calls are in flight", s.limits.CallsInFlightMax)
	}
	if n := s.bytes.Add(size); n > s.limits.BytesInFlightMax {
		s.calls.Add(-1)
		s.bytes.Add(-size)
		return limitError("limits.bytes_in_flight_max", "%d bytes are in flight", n-size)
	}
	return nil
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
	answer := s.refuse(c, err)
	s.finish(c, err.Code, answer)
	return answer
}

// TakeUnread counts bytes of a message that is still being read; false when
// there are too many. FreeUnread gives them back.
func (s *Service) TakeUnread(n int64) bool { return s.unread.Add(n) <= s.limits.BytesInFlightMax }

// FreeUnread gives back what TakeUnread took.
func (s *Service) FreeUnread(n int64) { s.unread.Add(-n) }

func (s *Service) leave(size int64) {
	s.calls.Add(-1)
	s.bytes.Add(-size)
	s.running.Done()
}
