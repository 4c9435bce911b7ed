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

	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// Limits of the wire format.
const (
	ProtocolVersion = 3
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
	chunks map[uint64][]byte
}

func newFrameReader(in io.Reader, bytesMax int) *frameReader {
	return &frameReader{in: bufio.NewReaderSize(in, 512<<10), max: bytesMax, chunks: map[uint64][]byte{}}
}

// read gives the next whole frame; io.EOF at the end of the link.
func (r *frameReader) read() (*linkv1.Frame, error) {
	for {
		frame, err := r.one()
		if err != nil {
			return nil, err
		}
		chunk := frame.GetChunk()
		if chunk == nil {
			return frame, nil
		}
		if whole, err := r.join(chunk); whole != nil || err != nil {
			return whole, err
		}
	}
}

func (r *frameReader) one() (*linkv1.Frame, error) {
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
	return parse(body)
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

func (r *frameReader) join(c *linkv1.Chunk) (*linkv1.Frame, error) {
	if _, known := r.chunks[c.Stream]; !known && len(r.chunks) >= chunkStreamsMax {
		return nil, damaged("more than %d frames in pieces", chunkStreamsMax)
	}
	whole := append(r.chunks[c.Stream], c.Data...)
	if len(whole) > r.max {
		return nil, damaged("frame in pieces is above %d bytes", r.max)
	}
	if !c.Last {
		r.chunks[c.Stream] = whole
		return nil, nil
	}
	delete(r.chunks, c.Stream)
	return parse(whole)
}
