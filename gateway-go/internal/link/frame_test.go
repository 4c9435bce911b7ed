package link

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// piece is a frame with one chunk of n bytes.
func piece(stream uint64, n int, last bool, whole int) []byte {
	return append(chunkHead(stream, n, whole, last), make([]byte, n)...)
}

// What is written by hand is the message, byte for byte of its meaning.
func TestChunkHead(t *testing.T) {
	for _, last := range []bool{false, true} {
		for _, n := range []int{1, 127, 128, 70_000, ChunkBytes} {
			data := bytes.Repeat([]byte{7}, n)
			whole := append(chunkHead(9, n, 5<<20, last), data...)
			frame := &linkv1.Frame{}
			if err := proto.Unmarshal(whole[headerBytes:], frame); err != nil {
				t.Fatal(err)
			}
			want := &linkv1.Chunk{Stream: 9, Data: data, Last: last, Size: 5 << 20}
			if !proto.Equal(frame.GetChunk(), want) {
				t.Fatalf("%d bytes, last %v: %v", n, last, frame.GetChunk())
			}
		}
	}
}

// Pieces that do not add up to what they said are damage, and no place is taken for more than the limit.
// Python runs the same table.
func TestPiecesThatDoNotAddUp(t *testing.T) {
	var table struct {
		Limit int
		Cases []struct {
			Name, Text string
			Pieces     []struct {
				Bytes, Size int
				Last        bool
			}
		}
	}
	if err := json.Unmarshal(must(os.ReadFile("../../../tests/vectors/pieces.json")), &table); err != nil || len(table.Cases) == 0 {
		t.Fatal(err)
	}
	for _, c := range table.Cases {
		var data []byte
		for _, p := range c.Pieces {
			data = append(data, piece(1, p.Bytes, p.Last, p.Size)...)
		}
		_, err := newFrameReader(bytes.NewReader(data), table.Limit).read()
		if err == nil || !strings.Contains(err.Error(), c.Text) {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}

// Many first pieces that say much take place for one frame only; all of them come whole nevertheless.
func TestWhatIsSaidIsBelievedOnce(t *testing.T) {
	r := newFrameReader(nil, 1<<20)
	inner := must(proto.Marshal(&linkv1.Frame{Body: &linkv1.Frame_Reject{Reject: &linkv1.Reject{Reason: strings.Repeat("x", 700_000)}}}))
	size := uint64(len(inner))
	for stream := range uint64(50) {
		if _, err := r.join(&chunk{stream: stream, size: size, data: inner[:10]}); err != nil {
			t.Fatal(err)
		}
	}
	taken := 0
	for _, c := range r.chunks {
		taken += cap(c.data)
	}
	if taken > 1<<20 {
		t.Fatalf("%d bytes for 500 that came", taken)
	}
	for stream := range uint64(50) {
		frame, err := r.join(&chunk{stream: stream, size: size, data: inner[10:], last: true})
		if err != nil || len(frame.GetReject().GetReason()) != 700_000 {
			t.Fatal(err)
		}
	}
	if r.reserved != 0 || len(r.chunks) != 0 {
		t.Error("left:", r.reserved, len(r.chunks))
	}
}

// Whatever the bytes of a chunk become, reading gives a frame or an error.
func TestDamagedChunks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	inner := must(proto.Marshal(&linkv1.Frame{Body: &linkv1.Frame_Drain{Drain: &linkv1.Drain{}}}))
	good := append(chunkHead(3, len(inner), len(inner), true), inner...)
	if frame, err := newFrameReader(bytes.NewReader(good), 1<<20).read(); err != nil || frame.GetDrain() == nil {
		t.Fatalf("%v, %v", frame, err)
	}
	for range 20_000 {
		body := bytes.Clone(good[headerBytes:])
		for range 1 + random.IntN(3) {
			body[random.IntN(len(body))] = byte(random.IntN(256))
		}
		r := newFrameReader(nil, 1<<20)
		c, err := chunkOf(body)
		if err != nil || c == nil {
			continue
		}
		if frame, err := r.join(c); err == nil && frame == nil && len(r.chunks) == 0 {
			t.Fatalf("%x gave neither a frame nor an error, and is not waited for", body)
		}
	}
}
