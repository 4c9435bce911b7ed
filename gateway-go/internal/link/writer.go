package link

import (
	"net"
	"sync"

	"google.golang.org/protobuf/proto"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// inlineBytes is the largest frame that a caller writes itself.
const inlineBytes = 16 << 10

// writer orders what goes out: urgent frames first, then pieces of the others
// in turn, so that a large message delays nothing by more than one piece.
type writer struct {
	conn   net.Conn
	mu     sync.Mutex
	wake   *sync.Cond
	urgent [][]byte
	frames []*linkv1.Frame // not encoded yet: whoever sends must not wait for that
	turn   [][]net.Buffers // frames as their remaining pieces
	stream uint64
	// busy: somebody writes, this goroutine or a caller; nobody else may.
	busy   bool
	closed bool
	failed func(error)
}

func newWriter(conn net.Conn, failed func(error)) *writer {
	w := &writer{conn: conn, failed: failed}
	w.wake = sync.NewCond(&w.mu)
	return w
}

// pieces encodes a frame, in chunks when it is large.
func (w *writer) pieces(frame *linkv1.Frame) ([]net.Buffers, error) {
	if proto.Size(frame) <= ChunkBytes {
		whole, err := appendFrame(nil, frame)
		return []net.Buffers{{whole}}, err
	}
	body, err := proto.Marshal(frame)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.stream++
	stream := w.stream
	w.mu.Unlock()
	var out []net.Buffers
	for at := 0; at < len(body); at += ChunkBytes {
		data := body[at:min(at+ChunkBytes, len(body))]
		out = append(out, net.Buffers{chunkHead(stream, len(data), len(body), at+len(data) == len(body)), data})
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
		if !w.busy && !w.closed && len(w.urgent)+len(w.frames)+len(w.turn) == 0 && proto.Size(frame) <= inlineBytes {
			w.busy = true
			w.mu.Unlock()
			return w.writeInline(frame)
		}
		w.frames = append(w.frames, frame)
		w.mu.Unlock()
	}
	w.wake.Signal()
	return nil
}

// writeInline writes a small frame from the caller's own goroutine: waking
// another one costs more than the write.
func (w *writer) writeInline(frame *linkv1.Frame) error {
	piece, err := appendFrame(nil, frame)
	if err == nil {
		_, err = w.conn.Write(piece)
	}
	w.release()
	if err != nil {
		go w.failed(err)
	}
	return nil
}

func (w *writer) next() (net.Buffers, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.closed {
			return nil, false
		}
		if w.busy {
			w.wake.Wait()
			continue
		}
		if len(w.urgent) > 0 {
			piece := w.urgent[0]
			w.urgent = w.urgent[1:]
			w.busy = true
			return net.Buffers{piece}, true
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
			w.busy = true
			return frame[0], true
		}
		w.wake.Wait()
	}
}

// release ends a turn at writing.
func (w *writer) release() {
	w.mu.Lock()
	w.busy = false
	w.mu.Unlock()
	w.wake.Signal()
}

func (w *writer) run() {
	for {
		piece, more := w.next()
		if !more {
			return
		}
		_, err := piece.WriteTo(w.conn)
		w.release()
		if err != nil {
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
