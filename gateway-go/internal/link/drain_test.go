package link

import (
	"context"
	"errors"
	"testing"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// A sidecar that drains gets no new calls, and hears when the last unary call has
// its reply, although calls wait in the gateway's lane and a stream goes on.
func TestDrain(t *testing.T) {
	c, s, _ := start(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cn := c.conn.Load()
	locked := func(f func() bool) func() bool {
		return func() bool { cn.mu.Lock(); defer cn.mu.Unlock(); return f() }
	}
	go func() { _, _ = c.Stream(ctx, method, nil, &linkv1.Context{}, func(*linkv1.Reply) error { return nil }) }()
	lane := s.next().GetCalls().Lane
	s.send(&linkv1.Frame{Body: &linkv1.Frame_Replies{Replies: &linkv1.Replies{Credits: []uint32{lane}}}})
	answers := make(chan error, 2)
	ask := func() {
		_, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{})
		answers <- err
	}
	go ask()
	first := s.next().GetCalls()
	go ask() // waits in the lane
	wait(t, locked(func() bool { return len(cn.pending) == 3 }))
	s.send(&linkv1.Frame{Body: &linkv1.Frame_Drain{Drain: &linkv1.Drain{}}})
	wait(t, locked(func() bool { return cn.draining }))
	if _, err := c.Call(ctx, "", method, []byte("late"), &linkv1.Context{}); !errors.Is(err, ErrDown) || !errors.Is(err, ErrNotSent) {
		t.Fatal(err)
	}
	s.answer(first, true)
	s.answer(s.next().GetCalls(), true)
	for s.next().GetDrained() == nil {
	}
	for range 2 {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
}
