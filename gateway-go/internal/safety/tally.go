package safety

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// What is counted of a subject.
const (
	CountDegraded  = "degraded"
	CountStopped   = "stopped"
	CountRestarted = "restarted"
	CountExpired   = "expired"
)

const tallyNamesMax = 4096

type tallyForm struct {
	Version int               `json:"version"`
	Counts  map[string]uint64 `json:"counts"`
}

// Tally keeps counters over restarts, in one small JSON file that is replaced as a whole
// at each count (vigil_safety/tally.py has the same). It is not forced to disk: a power
// cut may lose the last counts, which stand in the audit log too. All methods may be
// called at the same time.
type Tally struct {
	path    string
	mu      sync.Mutex
	form    tallyForm
	problem string
	// dirty: something is not written yet; saving: somebody writes.
	dirty, saving atomic.Bool
}

// OpenTally reads what was counted. A file that cannot be read is put aside.
func OpenTally(path string) *Tally {
	t := &Tally{path: path, form: tallyForm{1, map[string]uint64{}}}
	form, err := readTally(path)
	switch {
	case err == nil:
		t.form = form
	case !errors.Is(err, fs.ErrNotExist):
		t.problem = fmt.Sprintf("%s cannot be read (%v); counting starts anew", path, err)
		_ = os.Rename(path, path+".unreadable")
	}
	return t
}

func readTally(path string) (form tallyForm, err error) {
	f, err := os.Open(path)
	if err != nil {
		return form, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, latchBytesMax))
	if err != nil {
		return form, err
	}
	if err = json.Unmarshal(data, &form); err == nil && (form.Version != 1 || form.Counts == nil) {
		err = errors.New("not of version 1")
	}
	return form, err
}

// Count counts once more and saves; the error says why that may not outlive a restart.
func (t *Tally) Count(what, subject string) error {
	t.Add(what, subject)
	return t.Save()
}

// Add counts once more, in memory: it waits for no disk.
func (t *Tally) Add(what, subject string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := what + " " + subject
	if _, known := t.form.Counts[name]; known || len(t.form.Counts) < tallyNamesMax {
		t.form.Counts[name]++
		t.dirty.Store(true)
	}
}

// Save writes what was counted, unless somebody else is at it: then they write it too.
func (t *Tally) Save() error {
	var err error
	for t.dirty.Load() && t.saving.CompareAndSwap(false, true) {
		for t.dirty.Swap(false) {
			err = t.write()
		}
		t.saving.Store(false)
	}
	return err
}

func (t *Tally) write() error {
	t.mu.Lock()
	data, err := json.MarshalIndent(t.form, "", " ")
	t.mu.Unlock()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(t.path), 0o750)
	}
	if err == nil {
		err = os.WriteFile(t.path+".partial", data, 0o640)
	}
	if err == nil {
		err = os.Rename(t.path+".partial", t.path)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problem = ""
	if err != nil {
		t.problem = err.Error()
	}
	return err
}

// Of is how often that was.
func (t *Tally) Of(what, subject string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.form.Counts[what+" "+subject]
}

// All is a copy of all counts.
func (t *Tally) All() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.form.Counts)
}

// Problem says what is wrong with the file; empty when nothing is.
func (t *Tally) Problem() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.problem
}
