package safety

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

const latchBytesMax = 1 << 20

// Stop is why a subject is stopped, and since when.
type Stop struct {
	Reason  string `json:"reason"`
	SinceUs int64  `json:"since_us"`
}

type latchForm struct {
	Version int             `json:"version"`
	Stops   map[string]Stop `json:"stops"`
}

// LatchFile keeps latched subjects over restarts, in one small JSON file that is
// replaced as a whole and forced to disk. All methods may be called at the same time.
type LatchFile struct {
	// Unreadable says why what was kept is unknown: then everything is stopped.
	Unreadable string

	path string
	mu   sync.Mutex
	form latchForm
	// dirty: the file does not say what form says.
	dirty bool
}

// OpenLatch reads what was kept; a file that is not there means no stop.
func OpenLatch(path string) *LatchFile {
	l := &LatchFile{path: path, form: latchForm{1, map[string]Stop{}}}
	form, err := readLatch(path)
	switch {
	case err == nil && form.Version == 1 && form.Stops != nil:
		l.form = form
	case err == nil:
		l.Unreadable = fmt.Sprintf("%s is not of version 1: what it kept is unknown", path)
	case !errors.Is(err, fs.ErrNotExist):
		l.Unreadable = fmt.Sprintf("%s cannot be read (%v): what it kept is unknown", path, err)
	}
	return l
}

func readLatch(path string) (form latchForm, err error) {
	f, err := os.Open(path)
	if err != nil {
		return form, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, latchBytesMax))
	if err != nil {
		return form, err
	}
	return form, json.Unmarshal(data, &form)
}

// Stops are those that were kept.
func (l *LatchFile) Stops() map[string]Stop {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]Stop{}
	for subject, stop := range l.form.Stops {
		out[subject] = stop
	}
	return out
}

// Assume takes a stop for kept, without writing it.
func (l *LatchFile) Assume(subject string, stop Stop) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.form.Stops[subject] = stop
}

// Retry writes what could not be written before.
func (l *LatchFile) Retry() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dirty {
		return nil
	}
	return l.write()
}

// Keep remembers a stop. On error it is not sure to outlive a restart.
func (l *LatchFile) Keep(subject string, stop Stop) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.form.Stops[subject] = stop
	return l.write()
}

// Drop forgets a stop. On error it may come back with the next start.
func (l *LatchFile) Drop(subject string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.form.Stops, subject)
	l.Unreadable = ""
	return l.write()
}

func (l *LatchFile) write() error {
	l.dirty = true
	data, err := json.MarshalIndent(l.form, "", " ")
	if err != nil {
		return err
	}
	folder := filepath.Dir(l.path)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	partial := l.path + ".partial"
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(partial, l.path); err != nil {
		return err
	}
	d, err := os.Open(folder)
	if err != nil {
		return err
	}
	err = errors.Join(d.Sync(), d.Close())
	l.dirty = err != nil
	return err
}
