package auditlog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// In place of a sequence: the entry has no record, or is part of a count.
const (
	Unlogged   uint64 = 0
	Aggregated        = ^uint64(0)
)

const (
	jobsMax     = 4096
	groupMax    = 64
	lookGap     = 400 * time.Millisecond
	flushGap    = time.Second
	closeWait   = 5 * time.Second
	rotateWait  = 10 * time.Second
	rangesMax   = 32
	unavailable = 14 // google.rpc.Code
)

// Policy says what callers get while the log cannot be written (audit.on_failure).
type Policy string

// Refuse answers no call, Degrade answers and is Degraded, Continue answers and counts only.
const (
	Refuse   Policy = "refuse"
	Degrade  Policy = "degrade"
	Continue Policy = "continue"
)

const (
	waiting int32 = iota
	taken
	abandoned
	done
)

type job struct {
	entry    *Entry
	state    atomic.Int32
	sequence uint64
	err      error
	ready    chan struct{}
}

type kindOfRefusal struct{ event, code uint32 }

// Recorder stands between callers and their log: one goroutine writes, nobody
// waits for a disk longer than the limit, and what got no record is counted and
// stated by the first record afterwards. All methods may be called at the same
// time from anywhere.
type Recorder struct {
	*Writer
	Policy  Policy
	limit   time.Duration
	jobs    chan *job
	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once
	failure atomic.Pointer[string]
	// began: when the goroutine's present write began (Unix nanoseconds), 0 without one.
	began    atomic.Int64
	unlogged atomic.Int64

	mu         sync.Mutex
	owed       debt
	rate       float64
	tokens     float64
	refilled   time.Time
	aggregates map[kindOfRefusal]*count

	group    []*job
	anchorMu sync.Mutex
	anchored string
}

// NewRecorder starts a log's recorder. Limit is how long a disk may hold one
// write, refusalsPerSecond how many refusals get a record of their own.
func NewRecorder(w *Writer, policy Policy, limit time.Duration, refusalsPerSecond int64) *Recorder {
	r := &Recorder{
		Writer: w, Policy: policy, limit: limit, jobs: make(chan *job, jobsMax), stop: make(chan struct{}), stopped: make(chan struct{}),
		rate: float64(refusalsPerSecond), tokens: float64(refusalsPerSecond), refilled: time.Now(), aggregates: map[kindOfRefusal]*count{},
	}
	go r.run()
	return r
}

// Failure says why nothing can be recorded at present; empty when all is well.
func (r *Recorder) Failure() string {
	if text := r.failure.Load(); text != nil {
		return *text
	}
	for _, began := range []int64{r.began.Load(), r.Writer.syncBegan.Load()} {
		if held := time.Since(time.Unix(0, began)); began != 0 && held > r.limit {
			return r.hangText(held)
		}
	}
	return ""
}

func (r *Recorder) hangText(held time.Duration) string {
	return fmt.Sprintf("the disk hangs: it has held a write for %.1f s (audit.write_timeout_ms)", held.Seconds())
}

// UnloggedTotal is how many entries got no record since the start.
func (r *Recorder) UnloggedTotal() int64 { return r.unlogged.Load() }

// Position is LOG/BOOT/SEQ of a record of this run; "unlogged" or "aggregated" in
// place of SEQ for what has none.
func (r *Recorder) Position(sequence uint64) string {
	switch sequence {
	case Unlogged:
		return fmt.Sprintf("%s/%s/unlogged", r.o.Log, r.Boot())
	case Aggregated:
		return fmt.Sprintf("%s/%s/aggregated", r.o.Log, r.Boot())
	}
	return r.Writer.Position(sequence)
}

// Append records an entry and returns its sequence, Unlogged or Aggregated. The
// error is ErrFailed with its cause: the entry has no record, and is counted.
func (r *Recorder) Append(e *Entry) (uint64, error) {
	if e.Kind == layout.KindRefusal && !r.take(e) {
		return Aggregated, nil
	}
	if began := r.began.Load(); began != 0 && time.Since(time.Unix(0, began)) > r.limit {
		return r.without(e, errors.New(r.hangText(time.Since(time.Unix(0, began)))))
	}
	j := &job{entry: e, ready: make(chan struct{})}
	select {
	case r.jobs <- j:
	case <-r.stop:
		return Unlogged, errClosed
	default:
		return r.without(e, fmt.Errorf("%d records wait to be written", jobsMax))
	}
	timer := time.NewTimer(r.limit)
	defer timer.Stop()
	select {
	case <-j.ready:
	case <-r.stopped:
		select { // it may have been the last one written
		case <-j.ready:
		default:
			return Unlogged, errClosed
		}
	case <-timer.C:
		if j.state.CompareAndSwap(waiting, abandoned) || j.state.CompareAndSwap(taken, abandoned) {
			return r.without(e, errors.New(r.hangText(r.limit)))
		}
		<-j.ready
	}
	if j.err != nil && !errors.Is(j.err, errClosed) {
		return r.without(e, j.err)
	}
	return j.sequence, j.err
}

// without counts an entry that gets no record.
func (r *Recorder) without(e *Entry, cause error) (uint64, error) {
	r.mu.Lock()
	kind := e.Kind
	if kind == layout.KindAnswer && r.Policy == Refuse {
		kind = layout.KindRefusal // what its caller gets
	}
	*r.owed.of(kind)++
	r.owed.span.add(1)
	r.owed.cause = cause.Error()
	r.mu.Unlock()
	r.unlogged.Add(1)
	return Unlogged, errors.Join(ErrFailed, cause)
}

// run is the goroutine that writes.
func (r *Recorder) run() {
	defer close(r.stopped)
	tick := time.NewTicker(lookGap)
	defer tick.Stop()
	var flushed time.Time
	for {
		select {
		case j := <-r.jobs:
			r.work(r.gather(j))
		case <-tick.C:
			r.look()
			if time.Since(flushed) >= flushGap {
				flushed = time.Now()
				r.flush()
			}
		case <-r.stop:
			for {
				select {
				case j := <-r.jobs:
					r.work(r.gather(j))
				default:
					r.flush()
					r.settle()
					return
				}
			}
		}
	}
}

// gather takes what waits together with a first job.
func (r *Recorder) gather(first *job) []*job {
	r.group = append(r.group[:0], first)
	for len(r.group) < groupMax {
		select {
		case j := <-r.jobs:
			r.group = append(r.group, j)
		default:
			return r.group
		}
	}
	return r.group
}

// work writes jobs together: one write, and where that is promised one force, for all.
func (r *Recorder) work(jobs []*job) {
	jobs = slices.DeleteFunc(jobs, func(j *job) bool { return !j.state.CompareAndSwap(waiting, taken) })
	if len(jobs) == 0 {
		return
	}
	entries := make([]*Entry, len(jobs))
	for i, j := range jobs {
		entries[i] = j.entry
	}
	first, stand, err := r.write(entries)
	for i, j := range jobs {
		if j.err = err; i < stand {
			j.sequence, j.err = first+uint64(i), nil
		}
		r.done(j)
	}
}

func (r *Recorder) done(j *job) {
	if !j.state.CompareAndSwap(taken, done) && j.err == nil { // given up by its caller, but it stands after all
		r.mu.Lock()
		if kind := j.entry.Kind; kind == layout.KindAnswer && r.Policy == Refuse {
			r.stands(j.sequence)
		} else if r.owed.span.n > 0 {
			*r.owed.of(kind)--
			r.owed.span.n--
			r.unlogged.Add(-1)
		}
		r.mu.Unlock()
	}
	close(j.ready)
}

// stands notes a record that stands although its caller was told that the log failed.
func (r *Recorder) stands(sequence uint64) {
	r.owed.standing, r.owed.stands = append(r.owed.standing, fmt.Sprintf("%d-%d", sequence, sequence)), r.owed.stands+1
}

// write puts entries into the log, before them what is owed. It returns the
// sequence of the first, and of how many the callers may be told that they stand.
func (r *Recorder) write(entries []*Entry) (first uint64, stand int, err error) {
	r.began.Store(time.Now().UnixNano())
	defer r.began.Store(0)
	if err = r.settle(); err == nil {
		first, stand, err = r.AppendAll(entries)
	}
	if err == nil {
		r.failure.Store(nil)
		return first, stand, nil
	}
	if stand == len(entries) { // they stand, but were not forced to disk
		r.mu.Lock()
		for i, e := range entries {
			if e.Kind == layout.KindAnswer {
				r.stands(first + uint64(i))
			}
		}
		r.mu.Unlock()
		stand = 0
	}
	text := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", ": "), ErrFailed.Error()+": ")
	r.failure.Store(&text)
	return first, stand, err
}

// look notices a deleted or replaced file while nothing is written, and tries a
// log that failed again.
func (r *Recorder) look() {
	r.began.Store(time.Now().UnixNano())
	err := r.Writer.look()
	r.began.Store(0)
	if err != nil {
		text := err.Error()
		r.failure.Store(&text)
		return
	}
	if r.failure.Load() != nil {
		payload := r.o.Describe("the log can be written again", nil)
		_, _, _ = r.write([]*Entry{{Kind: layout.KindSystem, EventID: events.LogRecovered, Payload: payload}})
	}
}

// Anchor puts the other log's latest checkpoint into this one, once.
func (r *Recorder) Anchor(note []byte) error {
	r.anchorMu.Lock()
	defer r.anchorMu.Unlock()
	if len(note) == 0 || len(note) > NoteBytesMax || string(note) == r.anchored || r.Failure() != "" {
		return nil
	}
	_, err := r.Append(&Entry{Kind: layout.KindAnchor, EventID: events.Anchored, Payload: note})
	if err == nil { // else the next heartbeat brings it again
		r.anchored = string(note)
	}
	return err
}

// RotateKey takes a new signing key and returns its verifier key.
func (r *Recorder) RotateKey() (string, error) {
	if failure := r.Failure(); failure != "" {
		return "", errors.Join(ErrFailed, errors.New(failure))
	}
	return r.Writer.RotateKey()
}

// Close writes what is owed and closes the log; a disk that hangs is waited for
// five seconds.
func (r *Recorder) Close() error {
	r.once.Do(func() { close(r.stop) })
	closed := make(chan error, 1)
	go func() { <-r.stopped; closed <- r.Writer.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeWait):
		return errors.New("the audit log was not closed: the disk hangs")
	}
}
