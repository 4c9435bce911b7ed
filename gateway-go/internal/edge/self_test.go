package edge

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// passing counts checkpoints.
type passing struct {
	mu   sync.Mutex
	seen map[string]int
}

func (p *passing) pass(part, checkpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[part+" "+checkpoint]++
}

func (p *passing) of(name string) int { p.mu.Lock(); defer p.mu.Unlock(); return p.seen[name] }

func selfOf(t *testing.T, native, web net.Listener) *passing {
	t.Helper()
	self, err := NewSelf(native, web, func(passed func(string)) { passed("asked"); passed("answered") })
	if err != nil {
		t.Fatal(err)
	}
	p := &passing{seen: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { self.Run(ctx, p.pass); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Both listeners are asked over sockets, again and again, each by one connection.
func TestTheGatewayAsksItself(t *testing.T) {
	native, err := Listen("127.0.0.1", 0, "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(native) }()
	defer server.Stop()
	web, err := Listen("", 0, "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	var asked sync.Map
	pages := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked.Store(r.Host+r.URL.Path, r.Method) })}
	go func() { _ = pages.Serve(web) }()
	defer pages.Close()
	p := selfOf(t, native, web)
	for _, part := range []string{"edge_native", "edge_web", "router"} {
		eventually(t, part+" is asked and answers", func() bool { return p.of(part+" answered") >= 3 && p.of(part+" asked") >= 3 })
	}
	if method, ok := asked.Load("localhost/grpc.health.v1.Health/Check"); !ok || method != "POST" {
		t.Error("the web listener's health was not asked")
	}
}

// A listener that takes connections and answers nothing gets no second question, so its
// deadline passes; once it answers, it goes on.
func TestAListenerThatAnswersNothingExpires(t *testing.T) {
	native, err := Listen("127.0.0.1", 0, "test", 8)
	if err != nil {
		t.Fatal(err)
	}
	stand := Injectable(native)
	web, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(native) }()
	defer server.Stop()
	p := selfOf(t, native, web)
	eventually(t, "the native listener answers", func() bool { return p.of("edge_native answered") > 0 })
	stood := make(chan struct{})
	before := p.of("edge_native answered")
	go func() { stand(2500 * time.Millisecond); close(stood) }()
	<-stood
	if asked, answered := p.of("edge_native asked"), p.of("edge_native answered"); answered > before+1 || asked > answered+1 {
		t.Errorf("asked %d times, answered %d, %d before it stood still", asked, answered, before)
	}
	if asked, answered := p.of("edge_web asked"), p.of("edge_web answered"); asked != 1 || answered != 0 {
		t.Errorf("the web listener: asked %d times, answered %d", asked, answered)
	}
	eventually(t, "the native listener answers again", func() bool { return p.of("edge_native answered") > before+2 })
}

// Addresses at which no one is reached stand for all of this machine's.
func TestNear(t *testing.T) {
	for given, want := range map[string]string{"0.0.0.0:5": "127.0.0.1:5", "[::]:5": "[::1]:5", "10.1.2.3:5": "10.1.2.3:5"} {
		address, err := net.ResolveTCPAddr("tcp", given)
		if err != nil {
			t.Fatal(err)
		}
		if got := near(address); got != want {
			t.Errorf("%s: %s, expected %s", given, got, want)
		}
	}
}

// A listener whose places others have taken is no fault of it.
func TestAFullListenerIsNoFault(t *testing.T) {
	native, err := Listen("127.0.0.1", 0, "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan net.Conn)
	go func() {
		c, err := native.Accept()
		if err == nil {
			taken <- c
		}
	}()
	other, err := net.Dial("tcp", native.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	defer (<-taken).Close()
	passed := []string{}
	ask := asked(func(context.Context) error { return context.DeadlineExceeded }, native)
	if !ask(context.Background(), func(c string) { passed = append(passed, c) }) || len(passed) != 2 || passed[1] != "answered" {
		t.Error(passed)
	}
	native.Close()
}
