package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vigil/gateway/gen/contract"
	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// Config of a link.
type Config struct {
	Socket            string
	Instance          string
	FrameBytesMax     int
	HeartbeatInterval time.Duration
	HeartbeatTimeout  time.Duration
	// CallGrace is how much longer calls under way may wait for a silent sidecar.
	CallGrace time.Duration
	// RestartAfter is how much longer a silent sidecar may live before it is killed,
	// so that its supervisor starts another; 0 leaves it alone.
	RestartAfter time.Duration
	LaneCallsMax int
	WaitMax      time.Duration // a call that would wait longer for its turn gets a LateError; 0: any
	// HangAfter is how long a sidecar may say nothing although neither side wants for
	// processors; 0: for HeartbeatTimeout, as one that may only be busy.
	HangAfter time.Duration
	// StandInAfter is how long calls that something stands in for wait for a sidecar
	// that says nothing; 0: as long as any.
	StandInAfter time.Duration
}

// Observer hears of the link. Its methods are called from the link's own
// goroutines and must not block.
type Observer interface {
	// LinkUp: a sidecar answered the handshake.
	LinkUp(welcome *linkv1.Welcome)
	// LinkDown: the link ended; damage says whether bytes were damaged.
	LinkDown(reason string, damage bool)
	// LinkSilent: no heartbeat came in time, or the process hangs or is stopped; new
	// calls are refused from now on.
	LinkSilent(why string)
	// LinkLate: nothing came for StandInAfter; calls that something stands in for are
	// failed until something does.
	LinkLate(silence time.Duration)
	// LinkHung: the sidecar, silent or condemned, is killed now.
	LinkHung(pid int, why string)
	// LinkLadders: what stands in for models.
	LinkLadders(l *linkv1.Ladders)
	// LinkHeartbeat: a sound heartbeat came.
	LinkHeartbeat(h *linkv1.Heartbeat)
	// Checkpoint gives our own log's latest checkpoint, for the sidecar.
	Checkpoint() []byte
}

// Client keeps one link open and carries calls over it. Call and Stream may be
// used at the same time from anywhere.
type Client struct {
	config    Config
	observer  Observer
	conn      atomic.Pointer[conn]
	condemned atomic.Pointer[string]
	other     atomic.Pointer[peer]
	up        bool      // of Run: the handshake of the present link was done
	deaf      time.Time // of Run: since when the sidecar that listens answers no greeting
	deafPid   int       // which one that is
	ending    int       // of Run: the process that a lifeline said is ending; 0 for none
	reading   work      // of a frame
	looked    work      // of beat
}

// New makes a client; Run connects it.
func New(config Config, observer Observer) *Client {
	return &Client{config: config, observer: observer}
}

// Run connects, and connects again whenever the link ends, until ctx is done.
func (c *Client) Run(ctx context.Context) {
	const waitMin, waitMax = 5 * time.Millisecond, 200 * time.Millisecond
	wait, last := waitMin, ""
	for ctx.Err() == nil {
		started := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		var damage *DamageError
		// What was up is told each time; that nobody listens, or greets well, once.
		if reason := err.Error(); c.up || reason != last {
			c.observer.LinkDown(reason, errors.As(err, &damage))
			last = reason
		}
		c.up = false
		if c.ending != 0 {
			c.awaitEnd(ctx, c.ending)
			c.ending = 0
		}
		if time.Since(started) > time.Second {
			wait = waitMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(wait*2, waitMax)
	}
}

func (c *Client) once(ctx context.Context) error {
	raw, err := dial(ctx, c.config.Socket)
	if err != nil {
		c.deaf = time.Time{} // whoever listens next is another one
		return err
	}
	defer raw.Close()
	if u, ok := raw.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(1 << 20)
	}
	other, err := peerOf(raw)
	if err != nil {
		return fmt.Errorf("the sidecar's process: %w", err)
	}
	defer other.release()
	c.other.Store(other)
	reader := newFrameReader(raw, c.config.FrameBytesMax)
	welcome, err := c.greet(raw, reader)
	if err != nil {
		c.deafTo(other, err)
		return err
	}
	c.deaf = time.Time{}
	cn := newConn(raw, welcome, c.config.LaneCallsMax, c.config.WaitMax)
	defer cn.fail(ErrDown)
	stop := context.AfterFunc(ctx, func() { cn.fail(ErrDown) })
	defer stop()
	go cn.w.run()
	c.condemned.Store(nil)
	c.up = true
	c.observer.LinkUp(welcome)
	c.conn.Store(cn)
	defer c.conn.CompareAndSwap(cn, nil)
	beating, cancel := context.WithCancel(ctx)
	defer cancel()
	go c.beat(beating, cn, other)
	lines := follow(raw, filepath.Dir(c.config.Socket), welcome.Lifelines)
	defer lines.release()
	err = c.readAll(cn, reader)
	if lines.over.Load() {
		c.ending = other.pid
		return errors.New("the sidecar's process ended")
	}
	return err
}

// dial connects by way of the open folder: a socket's path has at most 107
// bytes, a folder's may have more.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	folder, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, errors.New("no sidecar listens: there is no run folder yet")
	}
	defer folder.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(socket))
	raw, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, errors.New("no sidecar listens on " + filepath.Base(socket))
	}
	return raw, nil
}

func (c *Client) greet(raw net.Conn, reader *frameReader) (*linkv1.Welcome, error) {
	hello := &linkv1.Hello{
		ProtocolVersion: ProtocolVersion, ContractDigest: contract.Digest, Instance: c.config.Instance,
		FrameBytesMax: uint32(c.config.FrameBytesMax), HeartbeatIntervalMs: uint32(c.config.HeartbeatInterval.Milliseconds()),
	}
	data, err := appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Hello{Hello: hello}})
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(greetTimeout))
	if _, err := raw.Write(data); err != nil {
		return nil, err
	}
	frame, err := reader.read()
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	_ = raw.SetDeadline(time.Time{})
	switch body := frame.Body.(type) {
	case *linkv1.Frame_Welcome:
		if v := body.Welcome.ProtocolVersion; v != ProtocolVersion {
			return nil, fmt.Errorf("the sidecar speaks link version %d, this gateway %d", v, ProtocolVersion)
		}
		return body.Welcome, nil
	case *linkv1.Frame_Reject:
		return nil, fmt.Errorf("the sidecar refused the link: %s", body.Reject.Reason)
	}
	return nil, damaged("the sidecar answered hello with %T", frame.Body)
}

func (c *Client) readAll(cn *conn, reader *frameReader) error {
	defer c.reading.idle()
	for {
		c.reading.idle()
		frame, err := reader.read()
		c.reading.begin()
		if err != nil {
			var damage *DamageError
			if errors.As(err, &damage) {
				return err
			}
			return errors.New("the sidecar closed the link") // end, reset or our own close: no address in the text
		}
		cn.alive()
		switch body := frame.Body.(type) {
		case *linkv1.Frame_Replies:
			if err := cn.replies(body.Replies); err != nil {
				return err
			}
		case *linkv1.Frame_Heartbeat:
			if err := cn.heartbeat(body.Heartbeat); err != nil {
				return err
			}
			c.observer.LinkHeartbeat(body.Heartbeat)
		case *linkv1.Frame_Ladders:
			c.observer.LinkLadders(body.Ladders)
		case *linkv1.Frame_Drain:
			cn.drain()
		case *linkv1.Frame_Reject:
			return errors.New("the sidecar ended the link: " + body.Reject.Reason)
		default:
			return damaged("unexpected frame %T", frame.Body)
		}
	}
}

// lookGap lies between two looks at how long the sidecar is silent, and at its process.
const lookGap = 10 * time.Millisecond

const (
	// ownPause between two looks means that this process, or the machine, stood still.
	ownPause = 250 * time.Millisecond
	// ownLate between two looks means that a silence may be ours.
	ownLate = 40 * time.Millisecond
	// stoppedFor is how long a process has to stand still to be called stopped: tools
	// that look into one stop it for a moment.
	stoppedFor = 45 * time.Millisecond
)

// beat sends heartbeats and watches for the sidecar's. A silent sidecar may only be
// busy, so calls under way get CallGrace more; one whose process is stopped, or runs
// and says nothing, is not.
func (c *Client) beat(ctx context.Context, cn *conn, other *peer) {
	tick := time.NewTicker(min(lookGap, c.config.HeartbeatInterval))
	defer tick.Stop()
	defer c.looked.idle()
	var since, next, stands time.Time // since when it is silent; when to send; since when its process stands still
	last := time.Now()
	var failed, killed bool
	sent, own := "", watched(other.pid)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.looked.begin()
		now := time.Now()
		if now.Sub(last) > ownPause { // we stood still ourselves: what we did not hear meanwhile says nothing
			cn.alive()
			since, stands, failed = time.Time{}, time.Time{}, false
		}
		if now.Sub(last) > ownLate {
			own.mark = nil
		}
		c.excuse(cn, own, now)
		last = now
		if !now.Before(next) {
			next = now.Add(c.config.HeartbeatInterval)
			sent = c.sendBeat(cn, sent)
		}
		if !other.stopped() {
			stands = time.Time{}
		} else if stands.IsZero() {
			stands = now
		}
		silence := cn.silence()
		why, sure := c.judge(cn, silence, !stands.IsZero() && now.Sub(stands) >= stoppedFor, own, now)
		if why == "" {
			since, failed = time.Time{}, false
		} else {
			// SR-018
			cn.setSilent()
			if since.IsZero() {
				since = now
				cn.failThose(ErrSilent, func(p *pending) bool { return p.standIn }) // they have something better to do than wait
				c.observer.LinkSilent(why)
			}
		}
		if c.config.StandInAfter > 0 && cn.judgeLate(c.config.StandInAfter) && why == "" {
			c.observer.LinkLate(silence)
		}
		lasted := now.Sub(since)
		if !since.IsZero() && !failed && (sure || lasted > c.config.CallGrace) {
			failed = true
			cn.failCalls(ErrSilent)
		}
		end := c.condemned.Load()
		if c.config.RestartAfter > 0 && !since.IsZero() && lasted > c.config.RestartAfter {
			text := "silent for " + silence.Round(time.Millisecond).String()
			end = &text
		}
		if end != nil && !killed {
			killed = true
			c.observer.LinkHung(other.pid, *end)
			// SR-039
			_ = other.kill() // it may have ended by itself: then the link ends too
		}
	}
}

// sendBeat sends a heartbeat, with our log's checkpoint when it is another than the
// one sent before, and returns the one sent last.
func (c *Client) sendBeat(cn *conn, sent string) string {
	var mono unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
	cn.beats++
	h := &linkv1.Heartbeat{Count: cn.beats, MonotonicNs: uint64(mono.Nano()), Ready: true}
	h.Crc = heartbeatCRC(h)
	if note := c.observer.Checkpoint(); string(note) != sent {
		h.Checkpoint, sent = note, string(note)
	}
	_ = cn.w.send(&linkv1.Frame{Body: &linkv1.Frame_Heartbeat{Heartbeat: h}}, true)
	return sent
}

// Condemn has the connected sidecar killed at the next heartbeat, so that its
// supervisor starts another.
func (c *Client) Condemn(why string) { c.condemned.Store(&why) }

// Signal sends a signal to the sidecar that is, or was last, connected.
func (c *Client) Signal(which unix.Signal) error {
	if other := c.other.Load(); other != nil {
		return other.signal(which)
	}
	return ErrDown
}

// Condemned says why the sidecar is to be killed; empty when it is not.
func (c *Client) Condemned() string {
	if why := c.condemned.Load(); why != nil {
		return *why
	}
	return ""
}

// Connected says whether a sidecar is there and heard.
func (c *Client) Connected() bool {
	cn := c.conn.Load()
	if cn == nil {
		return false
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.closed == nil && !cn.silent
}

// Rest ends the calls under way of a model that stopped answering, those that
// something stands in for.
func (c *Client) Rest(model string, why error) {
	if cn := c.conn.Load(); cn != nil {
		// SR-026
		cn.failThose(why, func(p *pending) bool { return p.standIn && p.model == model })
	}
}

// HoldCalls ends the calls under way and refuses new ones for a reason that the
// sidecar told, until it is empty.
func (c *Client) HoldCalls(reason string) {
	if cn := c.conn.Load(); cn != nil {
		cn.hold(reason)
	}
}
