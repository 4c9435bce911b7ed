package link

import (
	"context"
	"errors"
	"testing"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// A silent sidecar: new calls are refused at once, those under way after the grace; a heartbeat brings it back, late replies are dropped.
func TestSilence(t *testing.T) {
	c, s, h := start(t, Config{HeartbeatInterval: 5 * time.Millisecond, HeartbeatTimeout: 50 * time.Millisecond, CallGrace: 50 * time.Millisecond})
	failed := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{})
		failed <- err
	}()
	late := s.next().GetCalls()
	wait(t, func() bool { return h.get(func(h *heard) bool { return h.silent == 1 }) })
	if _, err := c.Call(context.Background(), "", method, nil, &linkv1.Context{}); !errors.Is(err, ErrSilent) {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, ErrSilent) {
		t.Fatal(err)
	}
	s.answer(late, true)
	s.beat()
	wait(t, c.Connected)
	go func() { s.answer(s.next().GetCalls(), true) }()
	if _, err := c.Call(context.Background(), "", method, []byte("y"), &linkv1.Context{}); err != nil {
		t.Fatal(err)
	}
}

// Calls of a model that something stands in for do not have the grace of a silent sidecar, nor do they wait for a model that rests.
func TestWhatIsStoodInForDoesNotWait(t *testing.T) {
	c, s, h := start(t, Config{HeartbeatInterval: 5 * time.Millisecond, HeartbeatTimeout: 60 * time.Millisecond, CallGrace: time.Hour})
	failed := make(chan error, 4)
	patient := make(chan error, 2)
	call := func(model string) {
		_, err := c.CallOrStandIn(context.Background(), model, method, []byte("x"), &linkv1.Context{})
		failed <- err
	}
	go func() {
		_, err := c.Call(context.Background(), "m", method, []byte("x"), &linkv1.Context{})
		patient <- err
	}()
	kept := s.next().GetCalls()
	go call("m")
	go call("n")
	wait(t, func() bool {
		cn := c.conn.Load()
		cn.mu.Lock()
		defer cn.mu.Unlock()
		return len(cn.pending) == 3
	})
	rests := errors.New("m rests")
	c.Rest("m", rests)
	if err := <-failed; !errors.Is(err, rests) {
		t.Fatal(err)
	}
	wait(t, func() bool { return h.get(func(h *heard) bool { return h.silent == 1 }) })
	if err := <-failed; !errors.Is(err, ErrSilent) {
		t.Fatal(err)
	}
	if _, err := c.Call(context.Background(), "", method, nil, &linkv1.Context{}); !errors.Is(err, ErrSilent) { // new calls never wait
		t.Fatal(err)
	}
	s.beat()
	s.answer(kept, true)
	if err := <-patient; err != nil {
		t.Fatal(err)
	}
}

// A sidecar that says nothing for a moment: what something stands in for does not wait, others do, and its state stays as it is.
func TestLateIsNotSilent(t *testing.T) {
	c, s, h := start(t, Config{HeartbeatInterval: 5 * time.Millisecond, HeartbeatTimeout: time.Hour, CallGrace: time.Hour, StandInAfter: 40 * time.Millisecond})
	call := func(with func(context.Context, string, string, []byte, *linkv1.Context) (*linkv1.Reply, error), out chan error) {
		_, err := with(context.Background(), "m", method, []byte("x"), &linkv1.Context{})
		out <- err
	}
	patient, failed := make(chan error, 1), make(chan error, 1)
	go call(c.Call, patient)
	kept := s.next().GetCalls()
	go call(c.CallOrStandIn, failed)
	if err := <-failed; !errors.Is(err, ErrSilent) {
		t.Fatal(err)
	}
	call(c.CallOrStandIn, failed)
	if err := <-failed; !errors.Is(err, ErrSilent) {
		t.Fatal("a later call waits:", err)
	}
	wait(t, func() bool { return h.get(func(h *heard) bool { return h.late == 1 }) })
	if h.get(func(h *heard) bool { return h.silent > 0 }) || !c.Connected() {
		t.Fatal("told otherwise")
	}
	s.answer(kept, true)
	if err := <-patient; err != nil {
		t.Fatal(err)
	}
}

// A silence is ours while our own reader works on a frame, as when the disk holds a record.
func TestOurOwnReadingIsNoSilence(t *testing.T) {
	c, s, h := start(t, Config{HeartbeatInterval: 5 * time.Millisecond, HeartbeatTimeout: 100 * time.Millisecond, HangAfter: 75 * time.Millisecond, CallGrace: time.Second})
	h.hold = 500 * time.Millisecond
	s.beat("m")
	wait(t, func() bool { return !c.ReadingSince().IsZero() })
	s.beat("m") // it waits in the socket meanwhile
	wait(t, func() bool { return h.get(func(h *heard) bool { return h.beats == 2 }) })
	if h.get(func(h *heard) bool { return h.silent > 0 }) {
		t.Error("the sidecar was called silent while we did not listen")
	}
}
