// Command bench is the load generator of `make bench`, and the bare echo that
// the gateway is compared with. It is built by the benchmark only.
//
//	bench echo                              serves; prints its port
//	bench hold TARGET N                     keeps so many connections open until its input ends
//	bench load TARGET METHOD FILE N SECONDS CHECK [RATE [TENANT [DEADLINE_MS]]]   calls; prints JSON
//
// Without RATE each of the N calls the next when it has its answer. With it so many calls
// a second are due whether answers come or not, at most N at once, and times count from
// when a call was due.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

type frame struct{ data []byte }

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(*frame).data)}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	v.(*frame).data = data.Materialize()
	return nil
}

func echo() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.NumStreamWorkers(8),
		grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(4<<20), grpc.MaxRecvMsgSize(1<<30))
	handler := func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &frame{}
		if err := decode(in); err != nil {
			return nil, err
		}
		return in, nil
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "inference.GRPCInferenceService", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "ModelInfer", Handler: handler}},
	}, nil)
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	return s.Serve(l)
}

// result is what one load saw.
type result struct {
	Calls     int     `json:"calls"`
	Failed    int     `json:"failed"`
	Wrong     int     `json:"wrong"`
	PerSecond float64 `json:"per_second"`
	P50Us     float64 `json:"p50_us"`
	P99Us     float64 `json:"p99_us"`
	P999Us    float64 `json:"p999_us"`
	MaxUs     float64 `json:"max_us"`
	FirstText string  `json:"first_error"`
	// Of calls that were answered only.
	GoodPerSecond float64 `json:"good_per_second"`
	GoodP99Us     float64 `json:"good_p99_us"`
}

type load struct {
	target, method string
	message, check []byte
	inFlight       int
	duration       time.Duration
	rate           float64
	tenant         string
	deadline       time.Duration

	start time.Time
	next  atomic.Int64
}

// due gives when the next call begins; false when the load is over.
func (l *load) due() (time.Time, bool) {
	now := time.Now()
	if l.rate > 0 {
		at := l.start.Add(time.Duration(float64(l.next.Add(1)-1) / l.rate * float64(time.Second)))
		if at.Sub(l.start) >= l.duration { // nobody waits for what is not due before the end
			return at, false
		}
		time.Sleep(at.Sub(now))
		now = at
	}
	return now, now.Sub(l.start) < l.duration
}

func (l *load) run() (*result, error) {
	conns := make([]*grpc.ClientConn, min(8, (l.inFlight+7)/8))
	for i := range conns {
		c, err := grpc.NewClient(l.target, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)),
			grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(4<<20))
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns[i] = c
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	out := &result{}
	var took, good []time.Duration
	headers := metadata.MD{}
	if l.tenant != "" {
		headers.Set("vigil-tenant", l.tenant)
	}
	l.start = time.Now()
	for i := range l.inFlight {
		group.Add(1)
		go func() {
			defer group.Done()
			mine := &result{}
			var times, answered []time.Duration
			for {
				at, more := l.due()
				if !more {
					break
				}
				ctx, cancel := context.WithDeadline(metadata.NewOutgoingContext(context.Background(), headers), time.Now().Add(l.deadline))
				reply := &frame{}
				err := conns[i%len(conns)].Invoke(ctx, l.method, &frame{l.message}, reply)
				cancel()
				times = append(times, time.Since(at))
				if err != nil {
					mine.Failed++
					mine.FirstText = err.Error()
				} else if !bytes.Contains(reply.data, l.check) {
					mine.Wrong++
				} else {
					answered = append(answered, times[len(times)-1])
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took, good = append(took, times...), append(good, answered...)
			out.Failed += mine.Failed
			out.Wrong += mine.Wrong
			if mine.FirstText != "" {
				out.FirstText = mine.FirstText
			}
		}()
	}
	group.Wait()
	seconds := time.Since(l.start).Seconds()
	slices.Sort(took)
	slices.Sort(good)
	at := func(q float64) float64 { return float64(took[int(float64(len(took)-1)*q)].Microseconds()) }
	if out.GoodPerSecond = float64(len(good)) / seconds; len(good) > 0 {
		out.GoodP99Us = float64(good[int(float64(len(good)-1)*.99)].Microseconds())
	}
	out.Calls, out.PerSecond = len(took), float64(len(took))/seconds
	out.P50Us, out.P99Us, out.P999Us, out.MaxUs = at(.5), at(.99), at(.999), at(1)
	return out, nil
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "echo" {
		fmt.Fprintln(os.Stderr, echo())
		os.Exit(1)
	}
	if len(os.Args) == 4 && os.Args[1] == "hold" {
		if err := hold(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) < 8 || len(os.Args) > 11 || os.Args[1] != "load" {
		fmt.Fprintln(os.Stderr, "usage: bench echo | bench load TARGET METHOD FILE IN_FLIGHT SECONDS CHECK_HEX [RATE [TENANT [DEADLINE_MS]]]")
		os.Exit(2)
	}
	message, err := os.ReadFile(os.Args[4])
	n, err2 := strconv.Atoi(os.Args[5])
	seconds, err3 := strconv.ParseFloat(os.Args[6], 64)
	check, err4 := hex.DecodeString(os.Args[7])
	rate, err5 := 0.0, error(nil)
	if len(os.Args) > 8 {
		rate, err5 = strconv.ParseFloat(os.Args[8], 64)
	}
	tenant, deadline, err6 := "", 30_000, error(nil)
	if len(os.Args) > 9 {
		tenant = os.Args[9]
	}
	if len(os.Args) > 10 {
		deadline, err6 = strconv.Atoi(os.Args[10])
	}
	for _, e := range []error{err, err2, err3, err4, err5, err6} {
		if e != nil {
			fmt.Fprintln(os.Stderr, e)
			os.Exit(2)
		}
	}
	l := &load{
		target: os.Args[2], method: os.Args[3], message: message, check: check, inFlight: n,
		duration: time.Duration(seconds * float64(time.Second)), rate: rate,
		tenant: tenant, deadline: time.Duration(deadline) * time.Millisecond,
	}
	r, err := l.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
}
