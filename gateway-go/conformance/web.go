//go:build conformance

package main

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/anypb"

	v1 "vigil/gateway/conformance/gen/connectrpc/conformance/v1"
)

// onWeb is a call on the web listener.
type onWeb struct {
	request, header, trailer http.Header
	query                    map[string][]string
	flush                    func() error
}

func listed(values map[string][]string) (out []*v1.Header) {
	for name, v := range values {
		out = append(out, &v1.Header{Name: name, Value: v})
	}
	return out
}

func (w onWeb) seen() (headers, query []*v1.Header) { return listed(w.request), listed(w.query) }

func fill(into http.Header, headers []*v1.Header) {
	for _, h := range headers {
		for _, v := range h.Value {
			into.Add(h.Name, v)
		}
	}
}

func (w onWeb) announce(headers, trailers []*v1.Header) {
	fill(w.header, headers)
	fill(w.trailer, trailers)
}

func (w onWeb) open() error { return w.flush() }

// inConnect turns an error that was asked for into connect-go's.
func inConnect(err error) error {
	var f failure
	if !errors.As(err, &f) {
		return err
	}
	out := connect.NewError(connect.Code(f.asked.Code), errors.New(f.asked.GetMessage()))
	for _, d := range f.asked.Details {
		detail, err := connect.NewErrorDetail(d)
		if err != nil {
			return err
		}
		out.AddDetail(detail)
	}
	return out
}

// singly answers a call with one answer; with an error its headers and trailers go with that.
func singly[R any](ctx context.Context, w onWeb, d *v1.UnaryResponseDefinition, requests []*anypb.Any, answer func(*v1.ConformancePayload) *R) (*connect.Response[R], error) {
	out := connect.NewResponse(new(R))
	w.header, w.trailer = out.Header(), out.Trailer()
	payload, err := once(ctx, w, d, requests)
	if err == nil {
		filled := connect.NewResponse(answer(payload))
		fill(filled.Header(), listed(w.header))
		fill(filled.Trailer(), listed(w.trailer))
		return filled, nil
	}
	err = inConnect(err)
	var failed *connect.Error
	if errors.As(err, &failed) {
		info, ok := connect.CallInfoForHandlerContext(ctx)
		if !ok {
			return nil, err
		}
		fill(info.ResponseHeader(), listed(w.header))
		fill(info.ResponseTrailer(), listed(w.trailer))
	}
	return nil, err
}

func webUnary[T any, R any, P interface {
	*T
	asked
}](answer func(*v1.ConformancePayload) *R) func(context.Context, *connect.Request[T]) (*connect.Response[R], error) {
	return func(ctx context.Context, r *connect.Request[T]) (*connect.Response[R], error) {
		request := P(r.Msg)
		w := onWeb{request: r.Header(), query: r.Peer().Query}
		return singly(ctx, w, request.GetResponseDefinition(), []*anypb.Any{packed(request)}, answer)
	}
}

// handler serves the service as connect-go does.
func handler(options ...connect.HandlerOption) http.Handler {
	mux := http.NewServeMux()
	path := func(method string) string { return "/" + service + "/" + method }
	mux.Handle(path("Unary"), connect.NewUnaryHandler(path("Unary"), webUnary[v1.UnaryRequest](
		func(p *v1.ConformancePayload) *v1.UnaryResponse { return &v1.UnaryResponse{Payload: p} }), options...))
	mux.Handle(path("IdempotentUnary"), connect.NewUnaryHandler(path("IdempotentUnary"), webUnary[v1.IdempotentUnaryRequest](
		func(p *v1.ConformancePayload) *v1.IdempotentUnaryResponse {
			return &v1.IdempotentUnaryResponse{Payload: p}
		}),
		append(options, connect.WithIdempotency(connect.IdempotencyNoSideEffects))...))
	mux.Handle(path("Unimplemented"), connect.NewUnaryHandler(path("Unimplemented"),
		func(context.Context, *connect.Request[v1.UnimplementedRequest]) (*connect.Response[v1.UnimplementedResponse], error) {
			return nil, connect.NewError(connect.CodeUnimplemented, errors.New("not implemented"))
		}, options...))
	mux.Handle(path("ServerStream"), connect.NewServerStreamHandler(path("ServerStream"),
		func(ctx context.Context, r *connect.Request[v1.ServerStreamRequest], s *connect.ServerStream[v1.ServerStreamResponse]) error {
			w := onWeb{r.Header(), s.ResponseHeader(), s.ResponseTrailer(), r.Peer().Query, func() error { return s.Send(nil) }}
			m := &many{ctx: ctx, x: w, d: r.Msg.ResponseDefinition, send: func(p *v1.ConformancePayload) error {
				return s.Send(&v1.ServerStreamResponse{Payload: p})
			}}
			if err := m.begin(true); err != nil {
				return err
			}
			return inConnect(m.finish([]*anypb.Any{packed(r.Msg)}))
		}, options...))
	mux.Handle(path("ClientStream"), connect.NewClientStreamHandler(path("ClientStream"),
		func(ctx context.Context, s *connect.ClientStream[v1.ClientStreamRequest]) (*connect.Response[v1.ClientStreamResponse], error) {
			d, requests, err := collect(func() (*v1.ClientStreamRequest, error) { return received(s) })
			if err != nil {
				return nil, err
			}
			w := onWeb{request: s.RequestHeader(), query: s.Peer().Query}
			return singly(ctx, w, d, requests, func(p *v1.ConformancePayload) *v1.ClientStreamResponse { return &v1.ClientStreamResponse{Payload: p} })
		}, options...))
	mux.Handle(path("BidiStream"), connect.NewBidiStreamHandler(path("BidiStream"),
		func(ctx context.Context, s *connect.BidiStream[v1.BidiStreamRequest, v1.BidiStreamResponse]) error {
			w := onWeb{s.RequestHeader(), s.ResponseHeader(), s.ResponseTrailer(), s.Peer().Query, func() error { return s.Send(nil) }}
			return inConnect(converse(ctx, w, s.Receive, func(p *v1.ConformancePayload) error { return s.Send(&v1.BidiStreamResponse{Payload: p}) }))
		}, options...))
	return mux
}
