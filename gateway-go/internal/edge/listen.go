package edge

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
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
	once   sync.Once
	closed chan struct{}
	places chan struct{}
	still  *sync.RWMutex // held while nothing is read; nil where that cannot be injected
	perS   int64         // control frames of a connection; 0: any
	hit    func()
}

// LimitFrames has connections of a listener made by Listen read more slowly when they bring
// more control frames than so many a second; hit is called each time one is to wait. Before the
// first connection.
func LimitFrames(l net.Listener, perS int64, hit func()) {
	if own, ok := l.(*limited); ok {
		own.perS, own.hit = perS, hit
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
	p := &placed{Conn: c, free: func() { <-l.places }, still: l.still, hit: l.hit, closed: make(chan struct{})}
	if l.perS > 0 {
		p.budget = newFrameBudget(float64(l.perS), time.Now())
	}
	return p, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type placed struct {
	net.Conn
	once  sync.Once
	free  func()
	still *sync.RWMutex

	budget *frameBudget // nil: not looked at
	wrote  atomic.Int64 // bytes, since budget was paid for them
	hit    func()
	closed chan struct{}
}

func (p *placed) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if p.still != nil {
		p.still.RLock() // waits while it stands still
		defer p.still.RUnlock()
	}
	if p.budget != nil && n > 0 {
		p.budget.pay(p.wrote.Swap(0))
		p.slow(b[:n])
	}
	return n, err
}

func (p *placed) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	p.wrote.Add(int64(n))
	return n, err
}

// slow waits as long as the budget of the connection wants, once it has seen what came.
func (p *placed) slow(b []byte) {
	wait := p.budget.read(b, time.Now())
	if wait > 0 {
		p.hit()
	}
	for wait > 0 {
		select {
		case <-p.closed:
			return
		case <-time.After(wait):
		}
		wait = p.budget.read(nil, time.Now())
	}
}

func (p *placed) Close() error {
	err := p.Conn.Close()
	p.once.Do(func() { close(p.closed); p.free() })
	return err
}
