package edge

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

// frameHeader is its length (RFC 9113, 4.1): length 3, type 1, flags 1, stream 4.
const frameHeader = 9

// scanner finds the headers of HTTP/2 frames in bytes that pass in pieces.
type scanner struct {
	header [frameHeader]byte
	have   int // bytes of the header that were seen
	skip   int // bytes of the payload that are still to come
	stream uint32
	data   bool // the payload is one of DATA, without padding
}

// scan gives each header that is complete to seen: type, flags, length of the payload, stream; and
// what carries messages to payload, where that is given.
func (s *scanner) scan(b []byte, seen func(http2.FrameType, http2.Flags, int, uint32), payload func(uint32, []byte)) {
	for len(b) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(b))
			if s.data && payload != nil {
				payload(s.stream, b[:n])
			}
			s.skip, b = s.skip-n, b[n:]
			continue
		}
		n := copy(s.header[s.have:], b)
		s.have, b = s.have+n, b[n:]
		if s.have == frameHeader {
			s.have = 0
			s.skip = int(s.header[0])<<16 | int(s.header[1])<<8 | int(s.header[2])
			kind, flags := http2.FrameType(s.header[3]), http2.Flags(s.header[4])
			s.stream = binary.BigEndian.Uint32(s.header[5:]) & (1<<31 - 1)
			s.data = kind == http2.FrameData && !flags.Has(http2.FlagDataPadded)
			seen(kind, flags, s.skip, s.stream)
		}
	}
}

// incoming scans what a client sends, behind the preface. What does not begin with that is
// no HTTP/2, and is not looked at.
type incoming struct {
	scanner
	plain  bool
	prefix int // bytes of the preface that were seen
}

func (s *incoming) scan(b []byte, seen func(http2.FrameType, http2.Flags, int, uint32), payload func(uint32, []byte)) {
	if s.prefix < len(http2.ClientPreface) && !s.plain {
		n := min(len(b), len(http2.ClientPreface)-s.prefix)
		s.plain = !bytes.Equal(b[:n], []byte(http2.ClientPreface[s.prefix:s.prefix+n]))
		s.prefix, b = s.prefix+n, b[n:]
	}
	if !s.plain {
		s.scanner.scan(b, seen, payload)
	}
}

// What control frames cost and what pays for them. A call pays for the window updates of its
// answer, and so do the bytes of answers; a call that is taken back costs more than it paid.
const (
	frameCost   = 1.0
	resetCost   = 6.0
	callPays    = 2.0
	bytesForOne = 4 << 10
	// smallData is how long a frame of data has to be, so that it costs nothing.
	smallData = 64
	// delayMax bounds one wait, so that a connection can be closed.
	delayMax = 50 * time.Millisecond
	// floodLook is how long a connection is looked at until it is ended because it had to wait
	// for floodWait of that.
	floodLook = 5 * time.Second
	floodWait = 4 * time.Second
)

// frameBudget says how long to wait until more of a connection is read: frames that carry no
// call cost the server as much as calls, and nothing else limits them. It belongs to the
// connection's reading goroutine.
type frameBudget struct {
	perS   float64 // tokens a second; also the most that are saved
	tokens float64
	filled time.Time
	begun  time.Time     // of this look
	waited time.Duration // in it
}

func newFrameBudget(perS float64, now time.Time) *frameBudget {
	return &frameBudget{perS: perS, tokens: perS, filled: now, begun: now}
}

// pay takes note of bytes that went out: their receiver answers them with window updates.
func (f *frameBudget) pay(n int64) { f.tokens = min(f.tokens+float64(n)/bytesForOne, f.perS) }

// frame takes note of one that came.
func (f *frameBudget) frame(kind http2.FrameType, length int) {
	switch kind {
	case http2.FrameHeaders:
		f.tokens = min(f.tokens+callPays, f.perS)
	case http2.FrameData:
		if length < smallData {
			f.tokens -= frameCost / 2 // a call without content has one, and its headers paid for it
		}
	case http2.FrameRSTStream:
		f.tokens -= resetCost
	default:
		f.tokens -= frameCost
	}
}

// floods takes note of a wait, and says whether the connection does nothing but that.
func (f *frameBudget) floods(waited time.Duration, now time.Time) bool {
	if now.Sub(f.begun) > floodLook {
		f.begun, f.waited = now, 0
	}
	f.waited += waited
	return f.waited >= floodWait
}

// wait is how long not to read.
func (f *frameBudget) wait(now time.Time) time.Duration {
	if f.tokens >= 0 {
		return 0
	}
	f.tokens = min(f.tokens+now.Sub(f.filled).Seconds()*f.perS, f.perS)
	f.filled = now
	return min(max(0, time.Duration(-f.tokens/f.perS*float64(time.Second))), delayMax)
}
