package edge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	// selfGap lies between two questions of the gateway to itself; selfWait is how long
	// one is waited for before it is asked anew, which is longer than its deadline.
	selfGap  = 500 * time.Millisecond
	selfWait = 8 * time.Second
)

// SelfPlaces is how many places a listener has beside those of limits.connections_max,
// for the connections that the gateway and its supervisor keep.
const SelfPlaces = 2

// Self is the gateway as its own caller, by the ways that callers come.
type Self struct {
	native *grpc.ClientConn
	web    *http.Client
	url    string
	parts  []selfPart
}

type selfPart struct {
	name string
	ask  func(ctx context.Context, passed func(checkpoint string)) bool
}

// NewSelf makes it for both listeners; canary goes the way of a call behind them.
// Nothing connects before Run.
func NewSelf(native, web net.Listener, canary func(passed func(checkpoint string))) (*Self, error) {
	s := &Self{url: "http://" + near(web.Addr()) + "/grpc.health.v1.Health/Check"}
	again := backoff.Config{BaseDelay: selfGap / 2, Multiplier: 1, MaxDelay: selfGap}
	var err error
	if s.native, err = grpc.NewClient("passthrough:///"+near(native.Addr()), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(), grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: time.Second})); err != nil {
		return nil, err
	}
	s.web = &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	s.parts = []selfPart{
		{"edge_native", asked(s.askNative, native)}, {"edge_web", asked(s.askWeb, web)},
		{"router", func(_ context.Context, passed func(string)) bool { canary(passed); return true }},
	}
	return s, nil
}

// Parts are the names of what is asked, as supervision has them.
func (s *Self) Parts() []string {
	var out []string
	for _, p := range s.parts {
		out = append(out, p.name)
	}
	return out
}

// near is an address of this machine at which a listener is reached.
func near(listens net.Addr) string {
	a, ok := listens.(*net.TCPAddr)
	if !ok || !a.IP.IsUnspecified() {
		return listens.String()
	}
	host := "127.0.0.1"
	if a.IP.To4() == nil {
		host = "::1"
	}
	return net.JoinHostPort(host, fmt.Sprint(a.Port))
}

// asked is a question with checkpoints before it and after its answer. A listener whose
// places are all taken does what it should: that it takes nobody else is an answer.
func asked(question func(context.Context) error, listens net.Listener) func(context.Context, func(string)) bool {
	waiting := false // a question that got no answer is asked again: it is the same one
	return func(ctx context.Context, passed func(string)) bool {
		if !waiting {
			passed("asked")
		}
		waiting = question(ctx) != nil && !full(listens)
		if !waiting {
			passed("answered")
		}
		return !waiting
	}
}

// Run asks until ctx is done; passed hears of each checkpoint of a part.
func (s *Self) Run(ctx context.Context, passed func(part, checkpoint string)) {
	var all sync.WaitGroup
	for _, part := range s.parts {
		all.Go(func() {
			for ctx.Err() == nil {
				limited, cancel := context.WithTimeout(ctx, selfWait)
				part.ask(limited, func(checkpoint string) {
					if ctx.Err() == nil {
						passed(part.name, checkpoint)
					}
				})
				cancel()
				select {
				case <-ctx.Done():
				case <-time.After(selfGap):
				}
			}
		})
	}
	all.Wait()
	_ = s.native.Close()
	s.web.CloseIdleConnections()
}

func (s *Self) askNative(ctx context.Context) error {
	_, err := healthpb.NewHealthClient(s.native).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func (s *Self) askWeb(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	request.Host = "localhost" // which is served whatever the listener's address
	request.Header.Set("Content-Type", "application/json")
	answer, err := s.web.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(answer.Body, 4096)) // any answer is one
	return err
}
