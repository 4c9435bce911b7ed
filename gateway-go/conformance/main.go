//go:build conformance

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "vigil/gateway/conformance/gen/connectrpc/conformance/v1"
	"vigil/gateway/internal/edge"
	"vigil/gateway/internal/flow"
	"vigil/gateway/internal/safety"
	"vigil/gateway/internal/settings"
	"vigil/gateway/internal/telemetry"
)

// received gives the next message of a client's stream.
func received(s *connect.ClientStream[v1.ClientStreamRequest]) (*v1.ClientStreamRequest, error) {
	if s.Receive() {
		return proto.CloneOf(s.Msg()), nil // the stream reuses its message
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

func read(into proto.Message) error {
	var size uint32
	if err := binary.Read(os.Stdin, binary.BigEndian, &size); err != nil {
		return err
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(os.Stdin, data); err != nil {
		return err
	}
	return proto.Unmarshal(data, into)
}

func write(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return err
}

// product is the gateway's service without a sidecar and a log: what is not the ConformanceService is refused by it.
func product(limits edge.Limits) (*flow.Service, *telemetry.Tracer, error) {
	tracer, err := telemetry.NewTracer(context.Background(), "", 0)
	if err != nil {
		return nil, nil, err
	}
	folder, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return nil, nil, err
	}
	defaults, err := settings.Load("", nil, nil)
	if err != nil {
		return nil, nil, err
	}
	parameters := defaults.SafetyParameters()
	parameters["restarts_max"], parameters["restarts_window_ms"] = 5, 60_000
	out, err := flow.New(
		flow.Limits{MessageBytesMax: int64(limits.MessageBytesMax), CallsInFlightMax: 1024, BytesInFlightMax: 1 << 30, WatchersMax: 256, WatchQueueMax: 64},
		parameters, safety.OpenLatch(filepath.Join(folder, "stops.json")), safety.OpenTally(filepath.Join(folder, "counts.json")),
		nil, telemetry.NewMetrics(), tracer, telemetry.NewLog(os.Stderr, "error"))
	return out, tracer, err
}

// run serves until it is told to end: native alone, or the web listener.
func run(onNative bool) error {
	request := &v1.ServerCompatRequest{}
	if err := read(request); err != nil {
		return err
	}
	limit := int(request.MessageReceiveLimit)
	limits := edge.Limits{
		MessageBytesMax: 64 << 20, StreamsPerConnectionMax: 1024, HeaderBytesMax: 16 << 10, ConnectionIdle: time.Minute, KeepaliveMin: 10 * time.Second,
	}
	if limit > 0 && onNative {
		limits.MessageBytesMax = limit / 2 // the listener reads twice what it takes
	}
	listener, err := edge.Listen("127.0.0.1", 0, "conformance", 1000)
	if err != nil {
		return err
	}
	gateway, tracer, err := product(limits)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	if onNative {
		server := edge.NewNative(gateway, tracer, limits)
		server.RegisterService(description, nil)
		go func() { ended <- server.Serve(listener) }()
	} else {
		var options []connect.HandlerOption
		if limit > 0 {
			options = append(options, connect.WithReadMaxBytes(limit))
		}
		server := edge.NewWebServer(edge.NewWeb(gateway, tracer, edge.WebConfig{Limits: limits}, handler(options...)), limits)
		go func() { ended <- server.Serve(listener) }()
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := write(&v1.ServerCompatResponse{Host: "127.0.0.1", Port: uint32(port)}); err != nil {
		return err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, os.Interrupt)
	select {
	case <-told:
		return nil
	case err := <-ended:
		return err
	}
}

func main() {
	if len(os.Args) != 2 || (os.Args[1] != "native" && os.Args[1] != "web") {
		fmt.Fprintln(os.Stderr, "usage: conformance native|web")
		os.Exit(2)
	}
	if err := run(os.Args[1] == "native"); err != nil {
		log.Fatal(err)
	}
}
