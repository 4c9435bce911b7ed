package link

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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
// the disk holds a record, or has not come round to what waits in the socket, as when this
// process is flooded: the sidecar is not heard then, whatever it says.
func (c *Client) excuse(cn *conn, own *processors, now time.Time) {
	since := c.reading.since()
	if (!since.IsZero() && now.Sub(since) > ownRead) || (cn.silence() > ownRead && unread(cn.net) > 0) {
		cn.alive()
		own.mark = nil
	}
}

// unread is how many bytes the kernel holds that nobody read yet; 0 where it does not say.
func unread(c net.Conn) (n int) {
	raw, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return 0
	}
	_ = control.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}
