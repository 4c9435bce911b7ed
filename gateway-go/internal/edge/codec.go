// Package edge is the gateway's two listeners: native gRPC (grpc-go), and the
// web listener (gRPC-Web, Connect, health, reflection) on net/http. Both call
// one flow.Service.
package edge

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // compressed clients need it registered
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// frame is a message as it came, or as it goes.
type frame struct{ data []byte }

// relayCodec hands frames through and leaves every other message to the
// registered proto codec (health, reflection).
type relayCodec struct{ typed encoding.CodecV2 }

func newRelayCodec() relayCodec { return relayCodec{encoding.GetCodecV2("proto")} }

func (c relayCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
	}
	return c.typed.Marshal(v)
}

func (c relayCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.data = data.Materialize()
		return nil
	}
	return c.typed.Unmarshal(data, v)
}

func (relayCodec) Name() string { return "proto" }
