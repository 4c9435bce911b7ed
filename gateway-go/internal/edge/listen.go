package edge

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Listen opens a TCP listener that holds at most connectionsMax connections;
// more wait in the kernel's queue. The error says what to do.
func Listen(host string, port int64, key string, connectionsMax int64) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		return nil, fmt.Errorf("%s = %d: %w; give another port, or 0 for a free one", key, port, err)
	}
	return &limited{Listener: l, places: make(chan struct{}, connectionsMax), closed: make(chan struct{})}, nil
}

// Port of a TCP listener.
func Port(l net.Listener) int {
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// limited gives a connection a place until it is closed.
type limited struct {
	net.Listener
	once    sync.Once
	closed  chan struct{}
	places  chan struct{}
	still   *sync.RWMutex // held while nothing is read; nil where that cannot be injected
	perS    int64         // control frames of a connection; 0: any
	hit     func()
	flooded func(text string)
	ledger  *Ledger // nil: memory is not counted
}

// LimitFrames has connections of a listener made by Listen read more slowly when they bring
// more control frames than so many a second, and end when they go on with that; hit is called each
// time one is to wait, flooded before one is ended. Before the first connection.
func LimitFrames(l net.Listener, perS int64, hit func(), flooded func(text string)) {
	if own, ok := l.(*limited); ok {
		own.perS, own.hit, own.flooded = perS, hit, flooded
	}
}

// full says whether a listener made by Listen has no place left.
func full(l net.Listener) bool {
	own, ok := l.(*limited)
	return ok && len(own.places) == cap(own.places)
}

// Injectable lets a listener made by Listen be made to read nothing for a while; what it
// gives does that. Before the first connection.
func Injectable(l net.Listener) func(time.Duration) {
	still := &sync.RWMutex{}
	if own, ok := l.(*limited); ok {
		own.still = still
	}
	return func(d time.Duration) {
		still.Lock()
		defer still.Unlock()
		time.Sleep(d)
	}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	p := &placed{Conn: c, free: func() { <-l.places }, still: l.still, hit: l.hit, flooded: l.flooded, closed: make(chan struct{})}
	if l.perS > 0 {
		p.budget = newFrameBudget(float64(l.perS), time.Now())
	}
	if p.ledger = l.ledger; p.ledger != nil {
		p.streams.streams = map[uint32]*message{}
	}
	return p, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// placed is a connection with its place. What passes is looked at on its way, as HTTP/2:
// Read by one goroutine, Write by one at a time, as its user has to anyway.
type placed struct {
	net.Conn
	once  sync.Once
	free  func()
	still *sync.RWMutex

	in      incoming
	out     scanner
	budget  *frameBudget // nil: not looked at
	wrote   atomic.Int64 // bytes, since budget was paid for them
	hit     func()
	closed  chan struct{}
	flooded func(text string)

	ledger  *Ledger // nil: not counted; the rest is its own
	streams unfinished
	moved   atomic.Int64 // bytes, since the ledger's last look
	held    int64
	stalled int
	gone    bool
}

// address is a connection's, so that whoever serves a call finds the connection.
type address struct {
	net.Addr
	conn *placed
}

func (p *placed) RemoteAddr() net.Addr { return address{p.Conn.RemoteAddr(), p} }

func (p *placed) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if p.still != nil {
		p.still.RLock() // waits while it stands still
		defer p.still.RUnlock()
	}
	if n > 0 && (p.budget != nil || p.ledger != nil) {
		p.came(b[:n])
	}
	return n, err
}

// came looks at what came, and waits as long as the budget of the connection wants.
func (p *placed) came(b []byte) {
	more := int64(0)
	var payload func(uint32, []byte)
	if p.ledger != nil {
		payload = func(stream uint32, b []byte) { more += p.streams.payload(stream, b) }
	}
	p.in.scan(b, func(kind http2.FrameType, flags http2.Flags, length int, stream uint32) {
		if p.budget != nil {
			p.budget.frame(kind, length)
		}
		if p.ledger != nil {
			more += p.streams.came(kind, flags, length, stream)
		}
	}, payload)
	if p.ledger != nil {
		p.moved.Add(int64(len(b)))
		if more != 0 {
			p.ledger.add(p, more)
		}
	}
	if p.budget == nil || p.in.plain {
		return
	}
	p.budget.pay(p.wrote.Swap(0))
	wait := p.budget.wait(time.Now())
	if wait > 0 {
		p.hit()
	}
	for ; wait > 0; wait = p.budget.wait(time.Now()) {
		select {
		case <-p.closed:
			return
		case <-time.After(wait):
		}
		if p.budget.floods(wait, time.Now()) {
			p.flooded("a connection that brings nothing but control frames is ended (limits.control_frames_per_s)")
			_ = p.Close()
			return
		}
	}
}

func (p *placed) Write(b []byte) (int, error) {
	if p.ledger != nil {
		less := int64(0)
		p.out.scan(b, func(kind http2.FrameType, flags http2.Flags, length int, stream uint32) {
			less += p.streams.went(kind, flags, length, stream)
		}, nil)
		if less != 0 {
			p.ledger.add(p, less)
		}
	}
	n, err := p.Conn.Write(b)
	p.wrote.Add(int64(n))
	p.moved.Add(int64(n))
	return n, err
}

func (p *placed) Close() error {
	err := p.Conn.Close()
	p.once.Do(func() {
		close(p.closed)
		if p.ledger != nil {
			p.ledger.forget(p)
		}
		p.free()
	})
	return err
}
