package edge

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	// stallLook lies between two looks at what connections moved; after stallLooks of them
	// with less than stallBytes each, one that holds memory is ended (Apache's mod_reqtimeout
	// has such a rate, too).
	stallLook  = 5 * time.Second
	stallLooks = 6
	stallBytes = 5 << 10
)

// Ledger counts what the connections of a listener hold in memory where no call is there to
// answer for it: messages that are not whole yet, and answers that are not taken. Above its
// limit the connection that holds most is ended, and so is one that holds something and
// moves next to nothing. Its methods may be called at the same time from anywhere.
type Ledger struct {
	limit  int64
	refuse func(text string)

	mu    sync.Mutex
	total int64
	conns map[*placed]struct{} // that hold something
}

// NewLedger makes one; refuse hears why a connection is ended, before it is.
func NewLedger(limit int64, refuse func(text string)) *Ledger {
	return &Ledger{limit: limit, refuse: refuse, conns: map[*placed]struct{}{}}
}

// LimitMemory has a ledger count the connections of a listener made by Listen. Before the
// first connection.
func (l *Ledger) LimitMemory(listener net.Listener) {
	if own, ok := listener.(*limited); ok {
		own.ledger = l
	}
}

// add counts bytes of a connection, more or less.
func (l *Ledger) add(p *placed, n int64) {
	l.mu.Lock()
	if p.gone {
		l.mu.Unlock()
		return
	}
	p.held += n
	l.total += n
	if p.held > 0 {
		l.conns[p] = struct{}{}
	} else {
		delete(l.conns, p)
		p.stalled = 0
	}
	var worst *placed
	text := ""
	if l.total > l.limit {
		for c := range l.conns {
			if worst == nil || c.held > worst.held {
				worst = c
			}
		}
		text = fmt.Sprintf("unfinished messages and answers that are not taken hold %d bytes, the limit is %d; the connection with most of them, %d, is ended (limits.bytes_in_flight_max)",
			l.total, l.limit, worst.held)
		l.forgotten(worst)
	}
	l.mu.Unlock()
	if worst != nil {
		l.refuse(text)
		_ = worst.Close()
	}
}

// forgotten takes out a connection that ends. The lock is held.
func (l *Ledger) forgotten(p *placed) {
	if !p.gone {
		p.gone = true
		l.total -= p.held
		delete(l.conns, p)
	}
}

func (l *Ledger) forget(p *placed) {
	l.mu.Lock()
	l.forgotten(p)
	l.mu.Unlock()
}

// Watch ends connections that stall, until ctx is done.
func (l *Ledger) Watch(ctx context.Context) {
	tick := time.NewTicker(stallLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.look()
		}
	}
}

// look is one look at what connections moved since the last.
func (l *Ledger) look() {
	stalled := map[*placed]int64{}
	l.mu.Lock()
	for p := range l.conns {
		moved := p.moved.Swap(0)
		if moved >= stallBytes {
			p.stalled = 0
			continue
		}
		if p.stalled++; p.stalled >= stallLooks {
			stalled[p] = p.held
			l.forgotten(p)
		}
	}
	l.mu.Unlock()
	for p, held := range stalled {
		l.refuse(fmt.Sprintf("a connection that holds %d bytes of unfinished messages and answers that are not taken moved less than %d bytes in each %v for %v, and is ended",
			held, stallBytes, stallLook, stallLooks*stallLook))
		_ = p.Close()
	}
}

// unfinished knows the messages of a connection's streams that are not whole yet. Both
// directions of the connection tell it.
type unfinished struct {
	mu      sync.Mutex
	streams map[uint32]*message
}

// message is the one of a stream that is under way: a prefix of 5 bytes, compressed or not and its
// length, and the rest (gRPC over HTTP/2, Length-Prefixed-Message).
type message struct {
	prefix [5]byte
	have   int   // of the prefix
	left   int64 // of the rest
	held   int64
}

// came takes note of a client's frame, and returns how many bytes more are held.
func (u *unfinished) came(kind http2.FrameType, flags http2.Flags, length int, stream uint32) int64 {
	switch kind {
	case http2.FrameData:
		if !flags.Has(http2.FlagDataEndStream) {
			if flags.Has(http2.FlagDataPadded) { // nobody does that; it counts until the stream ends
				return u.grew(stream, int64(length))
			}
			return 0
		}
	case http2.FrameHeaders:
		if !flags.Has(http2.FlagHeadersEndStream) {
			return u.opened(stream)
		}
	case http2.FrameRSTStream:
	default:
		return 0
	}
	return u.ended(stream)
}

// went takes note of the server's frame: a stream that it ends holds nothing.
func (u *unfinished) went(kind http2.FrameType, flags http2.Flags, _ int, stream uint32) int64 {
	if kind == http2.FrameRSTStream || (kind == http2.FrameHeaders && flags.Has(http2.FlagHeadersEndStream)) {
		return u.ended(stream)
	}
	return 0
}

func (u *unfinished) opened(stream uint32) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams[stream] = &message{}
	return 0
}

func (u *unfinished) grew(stream uint32, n int64) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := u.streams[stream]
	if m == nil {
		return 0
	}
	m.held += n
	return n
}

// payload takes note of bytes of a stream's messages, and returns how many more are held: none
// of those that are whole. For a stream that the server has ended, nothing is kept.
func (u *unfinished) payload(stream uint32, b []byte) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := u.streams[stream]
	if m == nil {
		return 0
	}
	before := m.held
	for len(b) > 0 {
		if m.have < len(m.prefix) {
			n := copy(m.prefix[m.have:], b)
			m.have, m.held, b = m.have+n, m.held+int64(n), b[n:]
			if m.have == len(m.prefix) {
				m.left = int64(binary.BigEndian.Uint32(m.prefix[1:]))
			}
		} else {
			n := min(m.left, int64(len(b)))
			m.left, m.held, b = m.left-n, m.held+n, b[n:]
		}
		if m.have == len(m.prefix) && m.left == 0 {
			m.have, m.held = 0, 0
		}
	}
	return m.held - before
}

func (u *unfinished) ended(stream uint32) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := u.streams[stream]
	if m == nil {
		return 0
	}
	delete(u.streams, stream)
	return -m.held
}
