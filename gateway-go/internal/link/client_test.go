package link

import (
	"bufio"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const method = "/test.Service/Call"

// sidecar is the other end, made by hand: it answers as the test tells it.
type sidecar struct {
	t        *testing.T
	listener net.Listener
	conn     net.Conn
	reader   *frameReader
	mu       sync.Mutex
	beats    uint64
}

type heard struct {
	mu     sync.Mutex
	down   []string
	damage bool
	silent int
	late   int
	beats  int
	hold   time.Duration // how long a heartbeat is worked on
}

func (h *heard) LinkUp(*linkv1.Welcome) {}
func (h *heard) Checkpoint() []byte     { return nil }
func (h *heard) LinkDown(reason string, damage bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down, h.damage = append(h.down, reason), h.damage || damage
}
func (h *heard) LinkSilent(string)           { h.mu.Lock(); h.silent++; h.mu.Unlock() }
func (h *heard) LinkHung(int, string)        {}
func (h *heard) LinkLadders(*linkv1.Ladders) {}
func (h *heard) LinkLate(time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.late++
}
func (h *heard) LinkHeartbeat(*linkv1.Heartbeat) {
	h.mu.Lock()
	h.beats++
	h.mu.Unlock()
	time.Sleep(h.hold)
}
func (h *heard) get(f func(*heard) bool) bool { h.mu.Lock(); defer h.mu.Unlock(); return f(h) }
func (s *sidecar) send(frame *linkv1.Frame)   { s.sendRaw(must(appendFrame(nil, frame))) }
func (s *sidecar) sendRaw(data []byte)        { s.mu.Lock(); defer s.mu.Unlock(); _, _ = s.conn.Write(data) }
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func start(t *testing.T, config Config) (*Client, *sidecar, *heard) {
	t.Helper()
	config.Socket = filepath.Join(t.TempDir(), "sidecar.sock")
	return startWith(t, config, &linkv1.Welcome{ProtocolVersion: ProtocolVersion, Methods: []string{method}})
}

func startWith(t *testing.T, config Config, welcome *linkv1.Welcome) (*Client, *sidecar, *heard) {
	t.Helper()
	if config.HeartbeatInterval == 0 {
		config.HeartbeatInterval, config.HeartbeatTimeout, config.CallGrace = 5*time.Millisecond, 10*time.Second, time.Second
	}
	config.FrameBytesMax, config.LaneCallsMax = 64<<20, 8
	l, err := net.Listen("unix", config.Socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{}
	c := New(config, h)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	s := &sidecar{t: t, listener: l}
	s.accept(welcome)
	wait(t, c.Connected)
	t.Cleanup(func() { cancel(); l.Close(); s.conn.Close(); <-done })
	return c, s, h
}

func (s *sidecar) accept(w *linkv1.Welcome) {
	s.conn = must(s.listener.Accept())
	s.reader = &frameReader{in: bufio.NewReader(s.conn), max: 64 << 20, chunks: map[uint64]*joined{}}
	if must(s.reader.read()).GetHello() == nil {
		s.t.Error("no hello")
	}
	s.send(&linkv1.Frame{Body: &linkv1.Frame_Welcome{Welcome: w}})
}

// next gives the next frame that is no heartbeat.
func (s *sidecar) next() *linkv1.Frame {
	for {
		frame, err := s.reader.read()
		if err != nil {
			return nil
		}
		if frame.GetHeartbeat() == nil {
			return frame
		}
	}
}

func reply(id uint64, message []byte) *linkv1.Reply {
	return &linkv1.Reply{Id: id, Message: message, Crc: callCRC(message, id, 0)}
}

func (s *sidecar) answer(calls *linkv1.Calls, credit bool) {
	out := &linkv1.Replies{}
	for _, c := range calls.Calls {
		if c.Crc != callCRC(c.Message, c.Id, c.Method) {
			s.t.Errorf("call %d has a wrong CRC", c.Id)
		}
		out.Replies = append(out.Replies, reply(c.Id, c.Message))
	}
	if credit {
		out.Credits = []uint32{calls.Lane}
	}
	s.send(&linkv1.Frame{Body: &linkv1.Frame_Replies{Replies: out}})
}

func (s *sidecar) beat(models ...string) {
	s.beats++
	h := &linkv1.Heartbeat{Count: s.beats, Ready: true, Models: models}
	h.Crc = heartbeatCRC(h)
	s.send(&linkv1.Frame{Body: &linkv1.Frame_Heartbeat{Heartbeat: h}})
}

func wait(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within ten seconds")
		}
	}
}

// Calls that arrive while a lane's frame is worked on leave together as the next frame, bounded by its limit.
func TestLaneGathersWhileBusy(t *testing.T) {
	c, s, _ := start(t, Config{})
	s.beat("m")
	wait(t, func() bool { cn := c.conn.Load(); cn.mu.Lock(); defer cn.mu.Unlock(); return cn.models["m"] })
	var group sync.WaitGroup
	call := func(text string) {
		group.Add(1)
		go func() {
			defer group.Done()
			r, err := c.Call(context.Background(), "m", method, []byte(text), &linkv1.Context{})
			if err != nil || string(r.Message) != text {
				t.Errorf("%q: %v %v", text, r, err)
			}
		}()
	}
	call("first")
	first := s.next().GetCalls()
	for range 12 {
		call("later")
	}
	wait(t, func() bool {
		cn := c.conn.Load()
		cn.mu.Lock()
		defer cn.mu.Unlock()
		return cn.lanes["m"].queue.Len() == 12
	})
	s.answer(first, true)
	sizes := []int{}
	for seen := 0; seen < 12; {
		calls := s.next().GetCalls()
		sizes = append(sizes, len(calls.Calls))
		seen += len(calls.Calls)
		s.answer(calls, true)
	}
	group.Wait()
	if first.Model != "m" || len(first.Calls) != 1 || len(sizes) != 2 || sizes[0] != 8 {
		t.Fatalf("model %q, then frames of %v", first.Model, sizes)
	}
}

// When enough calls wait for a full frame, a second one leaves before the first is worked off, and no third.
func TestSecondFrameUnderLoad(t *testing.T) {
	c, s, _ := start(t, Config{})
	var group sync.WaitGroup
	call := func() {
		group.Add(1)
		go func() {
			defer group.Done()
			if _, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{}); err != nil {
				t.Error(err)
			}
		}()
	}
	queued := func(n int) {
		wait(t, func() bool {
			cn := c.conn.Load()
			cn.mu.Lock()
			defer cn.mu.Unlock()
			return cn.lanes[""].queue.Len() == n
		})
	}
	call()
	first := s.next().GetCalls()
	for range readyCalls + 20 {
		call()
	}
	second := s.next().GetCalls() // before any credit
	queued(readyCalls + 20 - len(second.Calls))
	for range 2 * readyCalls {
		call()
	}
	queued(3*readyCalls + 20 - len(second.Calls))
	s.answer(second, true)
	s.answer(first, true)
	for done := 1 + len(second.Calls); done < 1+3*readyCalls+20; {
		calls := s.next().GetCalls()
		done += len(calls.Calls)
		s.answer(calls, true)
	}
	group.Wait()
}

// A closed link fails every call at once; the client connects again by itself.
func TestClosedLinkFailsCallsAtOnce(t *testing.T) {
	c, s, h := start(t, Config{})
	failed := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{})
		failed <- err
	}()
	s.next()
	s.conn.Close()
	if err := <-failed; !errors.Is(err, ErrDown) {
		t.Fatal(err)
	}
	for times := 1; times < 4; times++ { // each is told, however soon it comes after the last
		wait(t, func() bool { return h.get(func(h *heard) bool { return len(h.down) == times }) })
		s.accept(&linkv1.Welcome{ProtocolVersion: ProtocolVersion, Methods: []string{method}})
		wait(t, c.Connected)
		s.conn.Close()
	}
}

// A caller that goes away withdraws its call: the sidecar is told, and a call still queued is never sent.
func TestCancel(t *testing.T) {
	c, s, _ := start(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 2)
	call := func(ctx context.Context) {
		_, err := c.Call(ctx, "", method, []byte("x"), &linkv1.Context{})
		failed <- err
	}
	go call(ctx)
	sent := s.next().GetCalls()
	go call(ctx)
	wait(t, func() bool {
		cn := c.conn.Load()
		cn.mu.Lock()
		defer cn.mu.Unlock()
		return cn.lanes[""].queue.Len() == 1
	})
	cancel()
	for range 2 {
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	cancelled := map[uint64]bool{}
	for range 2 {
		for _, id := range s.next().GetCancel().GetIds() {
			cancelled[id] = true
		}
	}
	if !cancelled[sent.Calls[0].Id] {
		t.Fatal("the sidecar was not told")
	}
	s.answer(sent, true)
	go func() { _, _ = c.Call(context.Background(), "", method, []byte("z"), &linkv1.Context{}) }()
	next := s.next().GetCalls()
	if len(next.Calls) != 1 || string(next.Calls[0].Message) != "z" {
		t.Fatalf("sent %v", next.Calls)
	}
	s.answer(next, true)
}

// A message larger than a piece arrives whole while small ones pass it.
func TestPieces(t *testing.T) {
	c, s, _ := start(t, Config{})
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * 7)
	}
	done := make(chan error, 1)
	go func() {
		r, err := c.Call(context.Background(), "", method, big, &linkv1.Context{})
		if err == nil && !proto.Equal(&linkv1.Chunk{Data: r.Message}, &linkv1.Chunk{Data: big}) {
			err = errors.New("the bytes differ")
		}
		done <- err
	}()
	s.answer(s.next().GetCalls(), true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Damage in any form ends the link with that reason, and no call hangs.
func TestDamage(t *testing.T) {
	for name, data := range map[string]func() []byte{
		"magic":  func() []byte { return []byte("HTTP/1.1 200 OK\r\n\r\n") },
		"header": func() []byte { d := must(appendFrame(nil, &linkv1.Frame{})); d[9] ^= 1; return d },
		"body":   func() []byte { return append(must(appendFrame(nil, &linkv1.Frame{})), 0)[:12] },
		"reply": func() []byte {
			r := &linkv1.Replies{Replies: []*linkv1.Reply{{Id: 1, Message: []byte("x"), Crc: 5}}}
			return must(appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Replies{Replies: r}}))
		},
		"credit": func() []byte {
			r := &linkv1.Replies{Credits: []uint32{99}}
			return must(appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Replies{Replies: r}}))
		},
		"surplus credit": func() []byte {
			r := &linkv1.Replies{Credits: []uint32{0, 0}}
			return must(appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Replies{Replies: r}}))
		},
		"heartbeat lost": func() []byte {
			var out []byte
			for _, n := range []uint64{1, 3} {
				h := &linkv1.Heartbeat{Count: n}
				h.Crc = heartbeatCRC(h)
				out = append(out, must(appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Heartbeat{Heartbeat: h}}))...)
			}
			return out
		},
		"heartbeat": func() []byte {
			return must(appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Heartbeat{Heartbeat: &linkv1.Heartbeat{Count: 1, Crc: 9}}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, s, h := start(t, Config{})
			failed := make(chan error, 1)
			go func() {
				_, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{})
				failed <- err
			}()
			s.next()
			s.sendRaw(data())
			if err := <-failed; !errors.Is(err, ErrDown) {
				t.Fatal(err)
			}
			wait(t, func() bool { return h.get(func(h *heard) bool { return h.damage }) })
		})
	}
}

// A stream whose reader takes nothing is ended, and holds nobody else up.
func TestSlowStreamReader(t *testing.T) {
	c, s, _ := start(t, Config{})
	release := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := c.Stream(context.Background(), method, nil, &linkv1.Context{}, func(*linkv1.Reply) error { <-release; return nil })
		ended <- err
	}()
	id := s.next().GetCalls().Calls[0].Id
	credits := []uint32{0}
	for range streamQueueMax + 10 {
		r := reply(id, []byte("x"))
		r.More = true
		s.send(&linkv1.Frame{Body: &linkv1.Frame_Replies{Replies: &linkv1.Replies{Replies: []*linkv1.Reply{r}, Credits: credits}}})
		credits = nil
	}
	if s.next().GetCancel() == nil {
		t.Fatal("the sidecar was not told")
	}
	close(release)
	if err := <-ended; !errors.Is(err, ErrSlowReader) {
		t.Fatal(err)
	}
}
