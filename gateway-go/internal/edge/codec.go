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

// frame is a message as it came, or as it goes; then conn, where it is known, holds it until
// it is taken.
type frame struct {
	data []byte
	conn *placed
}

// Get is not used.
func (p *placed) Get(length int) *[]byte { data := make([]byte, length); return &data }

// Put hears that an answer was taken, or will not be any more.
func (p *placed) Put(data *[]byte) { p.ledger.add(p, -int64(len(*data))) }

// countedBytes is from how many bytes on answers are counted; grpc-go pools no smaller buffers
// (mem.IsBelowBufferPoolingThreshold).
const countedBytes = 2 << 10

// relayCodec hands frames through and leaves every other message to the
// registered proto codec (health, reflection).
type relayCodec struct{ typed encoding.CodecV2 }

func newRelayCodec() relayCodec { return relayCodec{encoding.GetCodecV2("proto")} }

func (c relayCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		if f.conn == nil || f.conn.ledger == nil || len(f.data) < countedBytes {
			return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
		}
		f.conn.ledger.add(f.conn, int64(len(f.data)))
		return mem.BufferSlice{mem.NewBuffer(&f.data, f.conn)}, nil
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
