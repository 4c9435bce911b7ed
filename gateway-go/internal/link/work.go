package link

import (
	"sync/atomic"
	"time"
)

// work says since when a goroutine of the link has not got on, for whoever supervises
// it. It belongs to one goroutine; anybody may look.
type work struct{ ns atomic.Int64 }

// epoch is where times of work begin.
var epoch = time.Now()

// begin takes the work up anew; idle ends it.
func (w *work) begin() { w.ns.Store(int64(max(1, time.Since(epoch)))) }

func (w *work) idle() { w.ns.Store(0) }

func (w *work) since() time.Time {
	if ns := w.ns.Load(); ns != 0 {
		return epoch.Add(time.Duration(ns))
	}
	return time.Time{}
}

// ReadingSince is since when the frame that came last is being worked on; zero while
// the next one is waited for.
func (c *Client) ReadingSince() time.Time { return c.reading.since() }

// LookedAt is when the sidecar was looked at last; zero while none is connected.
func (c *Client) LookedAt() time.Time { return c.looked.since() }

// ownRead is how long a frame may be worked on until a silence is ours.
const ownRead = 2 * lookGap

// excuse counts a silence as none while our own reader is not back from a frame, as when
// the disk holds a record: the sidecar is not heard then, whatever it says.
func (c *Client) excuse(cn *conn, own *processors, now time.Time) {
	if since := c.reading.since(); !since.IsZero() && now.Sub(since) > ownRead {
		cn.alive()
		own.mark = nil
	}
}
