package edge

import (
	"bytes"
	"time"

	"golang.org/x/net/http2"
)

// What control frames cost and what pays for them. A call pays for the window updates of its
// answer, and so do the bytes of answers; a call that is taken back costs more than it paid.
const (
	frameCost   = 1.0
	resetCost   = 3.0
	callPays    = 2.0
	bytesForOne = 4 << 10
	// dataPays is how long a frame of data has to be, so that it is no control frame.
	dataPays = 1 << 10
	// delayMax bounds one wait, so that a connection can be closed.
	delayMax = 50 * time.Millisecond
	// frameHeader is its length (RFC 9113, 4.1): length 3, type 1, flags 1, stream 4.
	frameHeader = 9
)

// frameBudget counts the control frames of one HTTP/2 connection as its bytes pass, and says how
// long to wait until more is read: frames that carry no call cost the server as much as calls, and
// nothing else limits them. It belongs to the connection's reading goroutine. A connection that
// does not begin with HTTP/2's preface is not looked at.
type frameBudget struct {
	perS   float64 // tokens a second; also the most that are saved
	tokens float64
	filled time.Time
	plain  bool
	prefix int // bytes of the preface that were seen
	header [frameHeader]byte
	have   int // bytes of the header that were seen
	skip   int // bytes of the payload that are still to come
}

func newFrameBudget(perS float64, now time.Time) *frameBudget {
	return &frameBudget{perS: perS, tokens: perS, filled: now}
}

// pay takes note of bytes that went out: their receiver answers them with window updates.
func (f *frameBudget) pay(n int64) { f.tokens = min(f.tokens+float64(n)/bytesForOne, f.perS) }

// read takes note of bytes that came, and returns how long to wait.
func (f *frameBudget) read(b []byte, now time.Time) time.Duration {
	if f.plain {
		return 0
	}
	if f.prefix < len(http2.ClientPreface) {
		n := min(len(b), len(http2.ClientPreface)-f.prefix)
		if !bytes.Equal(b[:n], []byte(http2.ClientPreface[f.prefix:f.prefix+n])) {
			f.plain = true
			return 0
		}
		f.prefix, b = f.prefix+n, b[n:]
	}
	for len(b) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(b))
			f.skip, b = f.skip-n, b[n:]
			continue
		}
		n := copy(f.header[f.have:], b)
		f.have, b = f.have+n, b[n:]
		if f.have == frameHeader {
			f.have = 0
			f.skip = int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
			f.tokens -= cost(http2.FrameType(f.header[3]), f.skip)
		}
	}
	if f.tokens >= 0 {
		f.tokens = min(f.tokens, f.perS)
		return 0
	}
	f.tokens = min(f.tokens+now.Sub(f.filled).Seconds()*f.perS, f.perS)
	f.filled = now
	if f.tokens >= 0 {
		return 0
	}
	return min(time.Duration(-f.tokens/f.perS*float64(time.Second)), delayMax)
}

// cost of a frame; negative where it pays.
func cost(kind http2.FrameType, length int) float64 {
	switch kind {
	case http2.FrameHeaders:
		return -callPays
	case http2.FrameData:
		if length >= dataPays {
			return -1
		}
		return 0.5 // a small message is one of these, and its headers paid for it
	case http2.FrameRSTStream:
		return resetCost
	}
	return frameCost
}
