package edge

import (
	"encoding/binary"
	"net"
	"slices"
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
	p.streams.streams = map[uint32]*message{}
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

// A message is held from its first byte until its last, however it is cut; streams that go on
// hold nothing of what was whole, and those that ended nothing at all.
func TestUnfinishedMessages(t *testing.T) {
	u := unfinished{streams: map[uint32]*message{}}
	held := int64(0)
	frame := func(server bool, kind http2.FrameType, flags http2.Flags, length int, stream uint32) {
		if server {
			held += u.went(kind, flags, length, stream)
		} else {
			held += u.came(kind, flags, length, stream)
		}
	}
	bytesOf := func(sizes ...int) (out []byte) {
		for _, n := range sizes {
			out = append(binary.BigEndian.AppendUint32(append(out, 0), uint32(n)), make([]byte, n)...)
		}
		return out
	}
	wire := bytesOf(100, 0, 1, 70_000, 5)
	for size := 1; size < 300; size += 7 {
		frame(false, http2.FrameHeaders, 0, 9, 1)
		most := int64(0)
		for piece := range slices.Chunk(wire, size) {
			held += u.payload(1, piece)
			most = max(most, held)
		}
		if held != 0 || most < 70_000-300 || most > 70_005 {
			t.Fatalf("in pieces of %d: %d held, %d at most", size, held, most)
		}
	}
	held += u.payload(1, bytesOf(1000)[:900])
	held += u.payload(9, bytesOf(1000)[:900]) // no such stream
	frame(false, http2.FrameHeaders, 0, 9, 3)
	held += u.payload(3, make([]byte, 3))
	frame(false, http2.FrameData, http2.FlagDataPadded, 50, 3)
	if held != 900+3+50 {
		t.Fatal("held:", held)
	}
	frame(false, http2.FramePing, http2.FlagDataEndStream, 8, 0)
	frame(false, http2.FrameData, 0, 100, 1) // its payload counts, not its header
	frame(true, http2.FrameData, http2.FlagDataEndStream, 5, 1)
	frame(true, http2.FrameHeaders, 0, 9, 1)
	if held != 953 {
		t.Fatal("held:", held)
	}
	frame(true, http2.FrameHeaders, http2.FlagHeadersEndStream, 9, 1) // the server has answered
	held += u.payload(1, make([]byte, 10))
	if held != 53 {
		t.Fatal("held:", held)
	}
	frame(false, http2.FrameRSTStream, 0, 4, 3)
	frame(false, http2.FrameHeaders, 0, 9, 5)
	held += u.payload(5, make([]byte, 4))
	frame(false, http2.FrameData, http2.FlagDataEndStream, 1, 5)
	frame(false, http2.FrameHeaders, http2.FlagHeadersEndStream, 9, 7)
	if held != 0 || len(u.streams) > 0 {
		t.Error("held:", held, "left:", u.streams)
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
