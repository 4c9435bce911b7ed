package auditlog

import (
	"errors"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// Append writes one record and returns its sequence. The error is ErrFailed
// with its cause; the caller must refuse. With an error and a sequence the
// record stands, but could not be forced to disk.
func (w *Writer) Append(e *Entry) (uint64, error) {
	first, stand, err := w.AppendAll([]*Entry{e})
	if stand == 0 {
		return 0, err
	}
	return first, err
}

// AppendAll writes records with one write, and, where that is promised, forces
// them to disk together. It returns the sequence of the first, and how many of
// them stand: with an error fewer than all when the rest could not be written, or
// all when they could not be forced to disk.
func (w *Writer) AppendAll(entries []*Entry) (first uint64, stand int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.appendAll(entries)
}

// appendAll is AppendAll for whoever holds the lock.
func (w *Writer) appendAll(entries []*Entry) (first uint64, stand int, err error) {
	last := entries[len(entries)-1]
	if w.closed || (w.closing && last.Kind != layout.KindCheckpoint) {
		return 0, 0, errClosed
	}
	w.closing = w.closing || entries[0].EventID == events.LogClosed
	if err := w.checkPlace(); err != nil {
		return 0, 0, errors.Join(ErrFailed, err)
	}
	if w.syncError != nil {
		if err := w.forceAgain(); err != nil {
			return 0, 0, errors.Join(ErrFailed, err)
		}
		w.syncError = nil
	}
	happened := append(w.late, w.stampNow()...)
	w.late = nil
	if last.Kind == layout.KindKey { // nothing comes between it and the checkpoint before (sealer.handOver)
		happened, w.late = nil, happened
	}
	first = w.next + uint64(len(happened))
	if err = w.write(append(happened, entries...)); err != nil {
		err = errors.Join(ErrFailed, err)
	}
	if w.next > first {
		stand = int(w.next - first)
	}
	if err := w.follow(entries[:stand]); err != nil {
		w.syncError = err
		return first, stand, errors.Join(ErrFailed, err)
	}
	return first, stand, err
}

// follow does what records that stand call for: a checkpoint, or forcing them to disk.
func (w *Writer) follow(entries []*Entry) error {
	atOnce, changed := w.o.Durability == "power", false
	for _, e := range entries {
		atOnce = atOnce || (w.o.Durability == "interval" && forced(e.Kind))
		changed = changed || e.Kind == layout.KindState
	}
	if len(entries) == 0 {
		return nil
	}
	if w.seal != nil && (w.next-w.sealedAt >= w.o.CheckpointRecords || changed) {
		w.sealedAt = w.next
		w.seal.wake()
	}
	if atOnce {
		return w.o.Disk.Datasync(w.f)
	}
	if w.o.Durability == "interval" {
		select {
		case w.dirty <- struct{}{}:
		default:
		}
	}
	return nil
}

// write puts records at the end of the log, in as few writes as there are
// segments. After an error those of a segment that was full before stand.
func (w *Writer) write(entries []*Entry) error {
	w.buffer, w.leaves = w.buffer[:0], w.leaves[:0]
	leaf := w.leaf
	for _, e := range entries {
		at := len(w.buffer)
		w.buffer = encode(w.buffer, e, &w.s, w.next+uint64(len(w.leaves)), &leaf)
		if w.offset+int64(len(w.buffer)) > w.size {
			w.buffer = w.buffer[:at]
			if err := w.flush(); err != nil {
				return err
			}
			if err := w.newSegment(); err != nil {
				return err
			}
			at, w.buffer = 0, encode(w.buffer[:0], e, &w.s, w.next, &w.leaf)
		}
		leaf = leafHash(w.buffer[at:])
		w.leaves = append(w.leaves, leaf)
	}
	return w.flush()
}

// flush writes what is encoded. On error nothing advances.
func (w *Writer) flush() error {
	if len(w.leaves) == 0 {
		return nil
	}
	if err := w.o.Disk.WriteAt(w.f, w.buffer, w.offset); err != nil {
		return err
	}
	w.offset += int64(len(w.buffer))
	for _, leaf := range w.leaves {
		w.tree.append(leaf)
	}
	w.leaf = w.leaves[len(w.leaves)-1]
	w.next += uint64(len(w.leaves))
	w.buffer, w.leaves = w.buffer[:0], w.leaves[:0]
	return nil
}
