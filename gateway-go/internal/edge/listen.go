package edge

import (
	"fmt"
	"net"
	"sync"
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
	return &placed{Conn: c, free: func() { <-l.places }, still: l.still}, nil
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
}

func (p *placed) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if p.still != nil {
		p.still.RLock() // waits while it stands still
		defer p.still.RUnlock()
	}
	return n, err
}

func (p *placed) Close() error {
	err := p.Conn.Close()
	p.once.Do(p.free)
	return err
}
