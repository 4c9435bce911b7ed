package edge

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/mem"
)

// ledgered is a connection of a ledger, and what its other end holds.
func ledgered(t *testing.T, l *Ledger) (*placed, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	p := &placed{Conn: near, free: func() {}, closed: make(chan struct{}), ledger: l}
	p.streams.streams = map[uint32]int64{}
	return p, far
}

func ended(p *placed) bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// Above the limit who holds most is ended, and what it held counts no more.
func TestLedgerEndsWhoHoldsMost(t *testing.T) {
	var texts []string
	l := NewLedger(100, func(text string) { texts = append(texts, text) })
	a, _ := ledgered(t, l)
	b, _ := ledgered(t, l)
	l.add(a, 60)
	l.add(b, 40)
	if ended(a) || ended(b) || len(texts) > 0 {
		t.Fatal("ended at the limit", texts)
	}
	l.add(b, 1)
	if !ended(a) || ended(b) || len(texts) != 1 || !strings.Contains(texts[0], "hold 101 bytes, the limit is 100; the connection with most of them, 60,") {
		t.Fatal(ended(a), ended(b), texts)
	}
	l.add(a, 1000) // what is still on its way counts no more
	l.add(a, -60)
	if l.total != 41 || len(texts) != 1 {
		t.Error(l.total, texts)
	}
	_ = b.Close()
	if l.total != 0 || len(l.conns) != 0 {
		t.Error("closed connections hold", l.total)
	}
}

// Who holds something and moves nothing is ended, others are not.
func TestLedgerEndsWhoStalls(t *testing.T) {
	l := NewLedger(1000, func(string) {})
	stalls, _ := ledgered(t, l)
	moves, _ := ledgered(t, l)
	empty, _ := ledgered(t, l)
	l.add(stalls, 10)
	l.add(moves, 10)
	l.add(empty, 10)
	for i := range stallLooks {
		if ended(stalls) {
			t.Fatal("ended after", i)
		}
		moves.moved.Store(stallBytes)
		if i == stallLooks-1 {
			l.add(empty, -10)
		}
		l.look()
	}
	if !ended(stalls) || ended(moves) || ended(empty) {
		t.Error(ended(stalls), ended(moves), ended(empty))
	}
}

func TestUnfinishedMessages(t *testing.T) {
	const end = http2.FlagDataEndStream
	u := unfinished{streams: map[uint32]int64{}}
	for i, c := range []struct {
		server bool
		kind   http2.FrameType
		flags  http2.Flags
		length int
		stream uint32
		want   int64
	}{
		{false, http2.FrameData, 0, 9, 1, 0}, // no such stream
		{false, http2.FrameHeaders, 0, 9, 1, 0},
		{false, http2.FrameData, 0, 100, 1, 100},
		{false, http2.FrameData, 0, 0, 1, 0},
		{false, http2.FrameHeaders, 0, 9, 3, 0},
		{false, http2.FrameData, 0, 7, 3, 7},
		{false, http2.FrameData, 0, 50, 1, 50},
		{false, http2.FrameData, end, 50, 1, -150}, // whole
		{false, http2.FrameData, 0, 50, 1, 0},
		{false, http2.FrameRSTStream, 0, 4, 3, -7}, // taken back
		{false, http2.FrameHeaders, 0, 9, 5, 0},
		{false, http2.FrameData, 0, 5, 5, 5},
		{true, http2.FrameData, end, 5, 5, 0},
		{true, http2.FrameHeaders, 0, 9, 5, 0},
		{true, http2.FrameHeaders, http2.FlagHeadersEndStream, 9, 5, -5}, // the server has answered
		{false, http2.FrameData, 0, 5, 5, 0},
		{false, http2.FramePing, end, 8, 0, 0},
	} {
		tell := u.came
		if c.server {
			tell = u.went
		}
		if got := tell(c.kind, c.flags, c.length, c.stream); got != c.want {
			t.Errorf("%d: %d bytes more, want %d", i, got, c.want)
		}
	}
	if len(u.streams) > 0 {
		t.Error("left:", u.streams)
	}
}

// An answer counts from when it is given to grpc-go until that frees it.
func TestAnswersCountUntilTheyAreTaken(t *testing.T) {
	l := NewLedger(1<<20, func(string) {})
	p, _ := ledgered(t, l)
	var out mem.BufferSlice
	for _, n := range []int{countedBytes - 1, countedBytes, 10_000} {
		data, err := newRelayCodec().Marshal(&frame{make([]byte, n), p})
		if err != nil || data.Len() != n {
			t.Fatal(err, data.Len())
		}
		out = append(out, data...)
	}
	if l.total != countedBytes+10_000 {
		t.Error("held:", l.total)
	}
	out.Free()
	if l.total != 0 {
		t.Error("left:", l.total)
	}
}
