package link

import (
	"net"
	"sync"

	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// writer orders what goes out: urgent frames first, then pieces of the others
// in turn, so that a large message delays nothing by more than one piece.
type writer struct {
	conn   net.Conn
	mu     sync.Mutex
	wake   *sync.Cond
	urgent [][]byte
	frames []*linkv1.Frame // not encoded yet: whoever sends must not wait for that
	turn   [][][]byte      // frames as their remaining pieces
	stream uint64
	closed bool
	failed func(error)
}

func newWriter(conn net.Conn, failed func(error)) *writer {
	w := &writer{conn: conn, failed: failed}
	w.wake = sync.NewCond(&w.mu)
	return w
}

// pieces encodes a frame, in chunks when it is large.
func (w *writer) pieces(frame *linkv1.Frame) ([][]byte, error) {
	if proto.Size(frame) <= ChunkBytes {
		whole, err := appendFrame(nil, frame)
		return [][]byte{whole}, err
	}
	body, err := proto.Marshal(frame)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.stream++
	stream := w.stream
	w.mu.Unlock()
	var out [][]byte
	for at := 0; at < len(body); at += ChunkBytes {
		end := min(at+ChunkBytes, len(body))
		chunk := &linkv1.Chunk{Stream: stream, Data: body[at:end], Last: end == len(body)}
		piece, err := appendFrame(nil, &linkv1.Frame{Body: &linkv1.Frame_Chunk{Chunk: chunk}})
		if err != nil {
			return nil, err
		}
		out = append(out, piece)
	}
	return out, nil
}

func (w *writer) send(frame *linkv1.Frame, urgent bool) error {
	if urgent {
		whole, err := appendFrame(nil, frame)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.urgent = append(w.urgent, whole)
		w.mu.Unlock()
	} else {
		w.mu.Lock()
		w.frames = append(w.frames, frame)
		w.mu.Unlock()
	}
	w.wake.Signal()
	return nil
}

func (w *writer) next() ([]byte, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.closed {
			return nil, false
		}
		if len(w.urgent) > 0 {
			piece := w.urgent[0]
			w.urgent = w.urgent[1:]
			return piece, true
		}
		if len(w.frames) > 0 {
			frame := w.frames[0]
			w.frames = w.frames[1:]
			w.mu.Unlock()
			pieces, err := w.pieces(frame)
			w.mu.Lock()
			if err != nil {
				go w.failed(err)
				return nil, false
			}
			w.turn = append(w.turn, pieces)
			continue
		}
		if len(w.turn) > 0 {
			frame := w.turn[0]
			w.turn = w.turn[1:]
			if len(frame) > 1 {
				w.turn = append(w.turn, frame[1:])
			}
			return frame[0], true
		}
		w.wake.Wait()
	}
}

func (w *writer) run() {
	for {
		piece, more := w.next()
		if !more {
			return
		}
		if _, err := w.conn.Write(piece); err != nil {
			w.failed(err)
			return
		}
	}
}

func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wake.Broadcast()
}
