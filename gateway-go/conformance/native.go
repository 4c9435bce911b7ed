//go:build conformance

package main

import (
	"context"
	"errors"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	v1 "vigil/gateway/conformance/gen/connectrpc/conformance/v1"
)

// native is a call on the native listener.
type native struct {
	ctx    context.Context
	stream grpc.ServerStream
}

func (n native) seen() (headers, query []*v1.Header) {
	md, _ := metadata.FromIncomingContext(n.ctx)
	for name, values := range md {
		headers = append(headers, &v1.Header{Name: name, Value: values})
	}
	return headers, nil
}

func pairs(headers []*v1.Header) metadata.MD {
	md := metadata.MD{}
	for _, h := range headers {
		md.Append(h.Name, h.Value...)
	}
	return md
}

func (n native) announce(headers, trailers []*v1.Header) {
	if n.stream != nil {
		_ = n.stream.SetHeader(pairs(headers))
		n.stream.SetTrailer(pairs(trailers))
		return
	}
	_ = grpc.SetHeader(n.ctx, pairs(headers))
	_ = grpc.SetTrailer(n.ctx, pairs(trailers))
}

func (n native) open() error { return n.stream.SendHeader(nil) }

// inGRPC turns an error that was asked for into a status.
func inGRPC(err error) error {
	var f failure
	if !errors.As(err, &f) {
		return err
	}
	return status.FromProto(&rpcstatus.Status{Code: int32(f.asked.Code), Message: f.asked.GetMessage(), Details: f.asked.Details}).Err()
}

func nativeUnary[T any, R any, P interface {
	*T
	asked
}](answer func(*v1.ConformancePayload) *R) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		request := P(new(T))
		if err := decode(request); err != nil {
			return nil, err
		}
		payload, err := once(ctx, native{ctx: ctx}, request.GetResponseDefinition(), []*anypb.Any{packed(request)})
		if err != nil {
			return nil, inGRPC(err)
		}
		return answer(payload), nil
	}
}

// description is the service as grpc-go registers it.
var description = &grpc.ServiceDesc{
	ServiceName: service, HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		{MethodName: "Unary", Handler: nativeUnary[v1.UnaryRequest](func(p *v1.ConformancePayload) *v1.UnaryResponse { return &v1.UnaryResponse{Payload: p} })},
		{MethodName: "IdempotentUnary", Handler: nativeUnary[v1.IdempotentUnaryRequest](func(p *v1.ConformancePayload) *v1.IdempotentUnaryResponse {
			return &v1.IdempotentUnaryResponse{Payload: p}
		})},
	},
	Streams: []grpc.StreamDesc{
		{StreamName: "ServerStream", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			r := new(v1.ServerStreamRequest)
			if err := s.RecvMsg(r); err != nil {
				return err
			}
			m := &many{ctx: s.Context(), x: native{s.Context(), s}, d: r.ResponseDefinition, send: func(p *v1.ConformancePayload) error {
				return s.SendMsg(&v1.ServerStreamResponse{Payload: p})
			}}
			if err := m.begin(true); err != nil {
				return err
			}
			return inGRPC(m.finish([]*anypb.Any{packed(r)}))
		}},
		{StreamName: "ClientStream", ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			d, requests, err := collect(func() (*v1.ClientStreamRequest, error) {
				r := new(v1.ClientStreamRequest)
				return r, s.RecvMsg(r)
			})
			if err != nil {
				return err
			}
			payload, err := once(s.Context(), native{s.Context(), s}, d, requests)
			if err != nil {
				return inGRPC(err)
			}
			return s.SendMsg(&v1.ClientStreamResponse{Payload: payload})
		}},
		{StreamName: "BidiStream", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			return inGRPC(converse(s.Context(), native{s.Context(), s}, func() (*v1.BidiStreamRequest, error) {
				r := new(v1.BidiStreamRequest)
				return r, s.RecvMsg(r)
			}, func(p *v1.ConformancePayload) error { return s.SendMsg(&v1.BidiStreamResponse{Payload: p}) }))
		}},
	},
}
