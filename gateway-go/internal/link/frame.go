// Package link is the gateway's end of the link to a sidecar: frames of many
// calls on one Unix socket, a lane with credit for each model, heartbeats both
// ways (docs/link.md).
package link

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// Limits of the wire format.
const (
	ProtocolVersion = 4
	ChunkBytes      = 256 << 10
	headerBytes     = 12
	chunkStreamsMax = 4096
)

var (
	magic      = []byte("VGL1")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// DamageError says that bytes on the link are not what was sent. The link must
// be closed and opened anew.
type DamageError struct{ Reason string }

func (e *DamageError) Error() string { return "link damaged: " + e.Reason }

func damaged(format string, args ...any) error {
	return &DamageError{fmt.Sprintf(format, args...)}
}

// callCRC is the CRC-32C over a message, then its call id and its method or code.
func callCRC(message []byte, id uint64, number uint32) uint32 {
	var tail [12]byte
	binary.LittleEndian.PutUint64(tail[:], id)
	binary.LittleEndian.PutUint32(tail[8:], number)
	return crc32.Update(crc32.Update(0, castagnoli, message), castagnoli, tail[:])
}

// heartbeatCRC covers count, monotonic time, readiness, and supervision's status
// and cycles.
func heartbeatCRC(h *linkv1.Heartbeat) uint32 {
	var b [30]byte
	binary.LittleEndian.PutUint64(b[:], h.Count)
	binary.LittleEndian.PutUint64(b[8:], h.MonotonicNs)
	if h.Ready {
		b[16] = 1
	}
	b[17] = byte(h.Supervision.GetStatus())
	binary.LittleEndian.PutUint64(b[18:], h.Supervision.GetCycles())
	binary.LittleEndian.PutUint32(b[26:], h.PauseMs)
	return crc32.Checksum(b[:], castagnoli)
}

// appendFrame appends a frame with its header.
func appendFrame(dst []byte, frame *linkv1.Frame) ([]byte, error) {
	at := len(dst)
	dst = append(dst, make([]byte, headerBytes)...)
	dst, err := proto.MarshalOptions{}.MarshalAppend(dst, frame)
	if err != nil {
		return nil, err
	}
	head := dst[at:]
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[4:], uint32(len(dst)-at-headerBytes))
	binary.LittleEndian.PutUint32(head[8:], crc32.Checksum(head[:8], castagnoli))
	return dst, nil
}

// frameReader reads frames and puts chunks together. One goroutine reads.
type frameReader struct {
	in     *bufio.Reader
	max    int
	buffer []byte
	chunks map[uint64]*joined
	// reserved are bytes that chunks said would come.
	reserved int
}

// joined is a frame in pieces so far. What it says of its size is believed, and its place taken at once, up to the
// size of one frame over all that are under way; the others grow with what comes.
type joined struct {
	data     []byte
	size     uint64
	reserved int
}

func newFrameReader(in io.Reader, bytesMax int) *frameReader {
	return &frameReader{in: bufio.NewReaderSize(in, 512<<10), max: bytesMax, chunks: map[uint64]*joined{}}
}

// read gives the next whole frame; io.EOF at the end of the link.
func (r *frameReader) read() (*linkv1.Frame, error) {
	for {
		body, err := r.one()
		if err != nil {
			return nil, err
		}
		chunk, err := chunkOf(body)
		if err != nil {
			return nil, err
		}
		if chunk == nil {
			return parse(body)
		}
		if whole, err := r.join(chunk); whole != nil || err != nil {
			return whole, err
		}
	}
}

// chunk is a linkv1.Chunk whose data lies where it was received.
type chunk struct {
	stream, size uint64
	data         []byte
	last         bool
}

var errChunk = damaged("frame is not a vigil.link.v1.Frame")

// chunkOf reads a body that is one chunk; nil for any other.
func chunkOf(body []byte) (*chunk, error) {
	number, kind, n := protowire.ConsumeTag(body)
	if n < 0 || number != chunkField || kind != protowire.BytesType {
		return nil, nil
	}
	inner, used := protowire.ConsumeBytes(body[n:])
	if used < 0 || n+used != len(body) {
		return nil, errChunk
	}
	c := &chunk{}
	for len(inner) > 0 {
		number, kind, n := protowire.ConsumeTag(inner)
		if n < 0 {
			return nil, errChunk
		}
		inner = inner[n:]
		var value uint64
		switch {
		case kind == protowire.VarintType:
			value, n = protowire.ConsumeVarint(inner)
		case kind == protowire.BytesType && number == 2:
			c.data, n = protowire.ConsumeBytes(inner)
		default:
			return nil, errChunk
		}
		if n < 0 {
			return nil, errChunk
		}
		inner = inner[n:]
		switch number {
		case 1:
			c.stream = value
		case 3:
			c.last = value != 0
		case 4:
			c.size = value
		}
	}
	return c, nil
}

// chunkField is the number of Frame.chunk.
const chunkField = 9

// chunkHead is what stands before a chunk's data, with the frame's header.
func chunkHead(stream uint64, data, whole int, last bool) []byte {
	inner := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), stream)
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 3, protowire.VarintType), protowire.EncodeBool(last))
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 4, protowire.VarintType), uint64(whole))
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 2, protowire.BytesType), uint64(data))
	head := append(make([]byte, 0, headerBytes+len(inner)+12), magic...)
	head = append(head, make([]byte, headerBytes-len(magic))...)
	head = protowire.AppendVarint(protowire.AppendTag(head, chunkField, protowire.BytesType), uint64(len(inner)+data))
	head = append(head, inner...)
	binary.LittleEndian.PutUint32(head[4:], uint32(len(head)-headerBytes+data))
	binary.LittleEndian.PutUint32(head[8:], crc32.Checksum(head[:8], castagnoli))
	return head
}

// one gives the body of the next frame, valid until the next call.
func (r *frameReader) one() ([]byte, error) {
	var head [headerBytes]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			return nil, damaged("the link ended within a frame")
		}
		return nil, err
	}
	if !bytes.Equal(head[:4], magic) {
		return nil, damaged("frame starts with %q, expected %q", head[:4], magic)
	}
	if binary.LittleEndian.Uint32(head[8:]) != crc32.Checksum(head[:8], castagnoli) {
		return nil, damaged("frame header is damaged")
	}
	size := int(binary.LittleEndian.Uint32(head[4:]))
	if size > 2*ChunkBytes && size > r.max {
		return nil, damaged("frame of %d bytes, the limit is %d", size, r.max)
	}
	if cap(r.buffer) < size {
		r.buffer = make([]byte, size)
	}
	body := r.buffer[:size]
	if _, err := io.ReadFull(r.in, body); err != nil {
		return nil, damaged("the link ended within a frame")
	}
	return body, nil
}

func parse(body []byte) (*linkv1.Frame, error) {
	frame := &linkv1.Frame{}
	if err := proto.Unmarshal(body, frame); err != nil {
		return nil, damaged("frame is not a vigil.link.v1.Frame")
	}
	if frame.Body == nil {
		return nil, damaged("frame has no body")
	}
	return frame, nil
}

func (r *frameReader) join(c *chunk) (*linkv1.Frame, error) {
	whole := r.chunks[c.stream]
	if whole == nil {
		if len(r.chunks) >= chunkStreamsMax {
			return nil, damaged("more than %d frames in pieces", chunkStreamsMax)
		}
		if c.size > uint64(r.max) {
			return nil, damaged("frame in pieces is above %d bytes", r.max)
		}
		whole = &joined{size: c.size}
		if r.reserved+int(c.size) <= r.max {
			whole.reserved = int(c.size)
			whole.data = make([]byte, 0, c.size)
		}
		r.reserved += whole.reserved
		r.chunks[c.stream] = whole
	}
	if uint64(len(whole.data)+len(c.data)) > whole.size {
		return nil, damaged("frame in pieces is above the %d bytes that it said", whole.size)
	}
	whole.data = append(whole.data, c.data...)
	if !c.last {
		return nil, nil
	}
	delete(r.chunks, c.stream)
	r.reserved -= whole.reserved
	if uint64(len(whole.data)) != whole.size {
		return nil, damaged("frame in pieces has %d bytes, it said %d", len(whole.data), whole.size)
	}
	return parse(whole.data)
}
