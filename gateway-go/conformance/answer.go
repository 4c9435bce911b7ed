//go:build conformance

// Command conformance serves the Connect project's ConformanceService on the gateway's own listeners, for
// tests/conformance/test_connect.py. What it answers is asked for by each request (service.proto of
// connectrpc.com/conformance, whose generated code is made by the test).
package main

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	v1 "vigil/gateway/conformance/gen/connectrpc/conformance/v1"
)

const service = "connectrpc.conformance.v1.ConformanceService"

// exchange is a call as the answers see it, whatever carries it.
type exchange interface {
	// seen gives the headers, and the parameters of a GET.
	seen() (headers, query []*v1.Header)
	// announce has headers and trailers sent in their time.
	announce(headers, trailers []*v1.Header)
	// open sends the headers now.
	open() error
}

// asked is a request that says how to answer it at once.
type asked interface {
	proto.Message
	GetResponseDefinition() *v1.UnaryResponseDefinition
}

// failure is an error that a request asks for.
type failure struct{ asked *v1.Error }

func (f failure) Error() string { return f.asked.GetMessage() }

func (f failure) with(info *v1.ConformancePayload_RequestInfo) failure {
	detail, err := anypb.New(info)
	if err != nil {
		panic(err)
	}
	f.asked.Details = append(f.asked.Details, detail)
	return f
}

func packed(m proto.Message) *anypb.Any {
	out, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return out
}

// observed is what is told back of a call.
func observed(ctx context.Context, x exchange, requests []*anypb.Any) *v1.ConformancePayload_RequestInfo {
	headers, query := x.seen()
	info := &v1.ConformancePayload_RequestInfo{RequestHeaders: headers, Requests: requests}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline).Milliseconds()
		info.TimeoutMs = &left
	}
	if len(query) > 0 {
		info.ConnectGetInfo = &v1.ConformancePayload_ConnectGetInfo{QueryParams: query}
	}
	return info
}

// once answers with one message, or the error asked for.
func once(ctx context.Context, x exchange, d *v1.UnaryResponseDefinition, requests []*anypb.Any) (*v1.ConformancePayload, error) {
	payload := &v1.ConformancePayload{RequestInfo: observed(ctx, x, requests)}
	if d == nil {
		return payload, nil
	}
	x.announce(d.ResponseHeaders, d.ResponseTrailers)
	time.Sleep(time.Duration(d.ResponseDelayMs) * time.Millisecond)
	if d.GetError() != nil {
		return nil, failure{d.GetError()}.with(payload.RequestInfo)
	}
	payload.Data = d.GetResponseData()
	return payload, nil
}

// many is a stream of answers as it was asked for.
type many struct {
	ctx  context.Context
	x    exchange
	d    *v1.StreamResponseDefinition
	send func(*v1.ConformancePayload) error
	sent int
}

// left says whether there is another message to send.
func (m *many) left() bool { return m.sent < len(m.d.GetResponseData()) }

// next sends the next message; info stands in it where it is given.
func (m *many) next(info *v1.ConformancePayload_RequestInfo) error {
	time.Sleep(time.Duration(m.d.ResponseDelayMs) * time.Millisecond)
	payload := &v1.ConformancePayload{Data: m.d.ResponseData[m.sent], RequestInfo: info}
	m.sent++
	return m.send(payload)
}

// finish sends what is left, and ends the call as it was asked.
func (m *many) finish(requests []*anypb.Any) error {
	for m.left() {
		var info *v1.ConformancePayload_RequestInfo
		if m.sent == 0 {
			info = observed(m.ctx, m.x, requests)
		}
		if err := m.next(info); err != nil {
			return err
		}
	}
	if m.d.GetError() == nil {
		return nil
	}
	f := failure{m.d.Error}
	if m.sent == 0 {
		f = f.with(observed(m.ctx, m.x, requests))
	}
	return f
}

// begin announces headers and trailers; with messages to come, the headers leave now.
func (m *many) begin(open bool) error {
	if m.d == nil {
		return nil
	}
	m.x.announce(m.d.ResponseHeaders, m.d.ResponseTrailers)
	if open && m.left() {
		return m.x.open()
	}
	return nil
}

// collect reads a client's stream to its end.
func collect[T asked](receive func() (T, error)) (d *v1.UnaryResponseDefinition, requests []*anypb.Any, err error) {
	for {
		r, err := receive()
		if errors.Is(err, io.EOF) {
			return d, requests, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if len(requests) == 0 {
			d = r.GetResponseDefinition()
		}
		requests = append(requests, packed(r))
	}
}

// converse answers a stream in both directions: message by message, or when the client has said all.
func converse(ctx context.Context, x exchange, receive func() (*v1.BidiStreamRequest, error), send func(*v1.ConformancePayload) error) error {
	m := &many{ctx: ctx, x: x, send: send}
	var requests []*anypb.Any
	first, full := true, false
	for {
		r, err := receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		requests = append(requests, packed(r))
		if first {
			first, full, m.d = false, r.FullDuplex, r.ResponseDefinition
			if err := m.begin(full); err != nil {
				return err
			}
		}
		if !full {
			continue
		}
		if !m.left() {
			break
		}
		info := &v1.ConformancePayload_RequestInfo{Requests: requests}
		if m.sent == 0 {
			info = observed(ctx, x, requests)
		}
		if err := m.next(info); err != nil {
			return err
		}
		requests = nil
	}
	if !full && m.left() {
		if err := x.open(); err != nil {
			return err
		}
	}
	return m.finish(requests)
}
