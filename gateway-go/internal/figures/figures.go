// Package figures counts calls by model for whoever looks at them each second. It costs a
// call next to nothing, and nothing at all while nobody looks.
package figures

import (
	"cmp"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ModelsMax is how many models are told of by name; the others count in the sum only.
const ModelsMax = 64

const (
	parts   = 16 // a bucket is no wider than this part of its values
	shift   = 4  // log2 of parts
	octaves = 32 // latencies from 2^36 µs count as that
	buckets = (octaves + 1) * parts
)

// bucketOf a latency in microseconds: exact below parts, then parts buckets for each octave.
func bucketOf(us uint64) int {
	if us < parts {
		return int(us)
	}
	octave := bits.Len64(us) - shift - 1
	if octave >= octaves {
		return buckets - 1
	}
	return (octave+1)*parts + int(us>>octave) - parts
}

// upperOf is the largest latency of a bucket.
func upperOf(bucket int) uint64 {
	if bucket < parts {
		return uint64(bucket)
	}
	octave := bucket/parts - 1
	return uint64(bucket%parts+parts+1)<<octave - 1
}

// Outcome of a call.
type Outcome int

// Answered by the model, by what stands in for it, or with an error.
const (
	Answered Outcome = iota
	Degraded
	Failed
)

// model counts the calls of one model.
type model struct {
	outcomes      [3]atomic.Uint64
	batches, rows atomic.Uint64
	longest       atomic.Uint64
	times         [buckets]atomic.Uint32
}

// Table counts by model. Its methods may be called at the same time, Take by one at a time.
type Table struct {
	watched atomic.Bool
	models  sync.Map // name to *model
	known   atomic.Int64
	rest    model // of models beyond ModelsMax, and of none
}

// Watch begins to count from nothing, or ends it.
func (t *Table) Watch(on bool) {
	if on {
		t.Take()
	}
	t.watched.Store(on)
}

// Call counts one that is over. rows is the number of rows of its batch; 0: unknown.
func (t *Table) Call(name string, outcome Outcome, took time.Duration, rows uint32) {
	if !t.watched.Load() {
		return
	}
	m := t.of(name)
	m.outcomes[outcome].Add(1)
	if us := uint64(max(0, took.Microseconds())); outcome == Answered { // a refusal is quick, and says nothing of answers
		m.times[bucketOf(us)].Add(1)
		for old := m.longest.Load(); us > old && !m.longest.CompareAndSwap(old, us); old = m.longest.Load() {
		}
	}
	if rows > 0 {
		m.batches.Add(1)
		m.rows.Add(uint64(rows))
	}
}

func (t *Table) of(name string) *model {
	if m, ok := t.models.Load(name); ok {
		return m.(*model)
	}
	if name == "" || t.known.Load() >= ModelsMax {
		return &t.rest
	}
	m, known := t.models.LoadOrStore(name, &model{})
	if !known {
		t.known.Add(1)
	}
	return m.(*model)
}

// Figures are what was counted of one model, or of all (Model is empty). Times are µs, of the model's
// own answers: upper bounds that are exact to one part in 16.
type Figures struct {
	Model                     string
	Answers, Degraded, Errors uint64
	P50, P90, P99, Max        uint64
	BatchRows                 float64
}

// Take gives what was counted since the last time: of all first, then of each model that
// had calls, by name.
func (t *Table) Take() []Figures {
	sum := &counted{}
	var out []Figures
	take := func(name string, m *model) {
		own := &counted{}
		own.take(m)
		if own.calls() > 0 && name != "" {
			out = append(out, own.figures(name))
		}
		sum.add(own)
	}
	t.models.Range(func(name, m any) bool {
		take(name.(string), m.(*model))
		return true
	})
	take("", &t.rest)
	slices.SortFunc(out, func(a, b Figures) int { return cmp.Compare(a.Model, b.Model) })
	return slices.Insert(out, 0, sum.figures(""))
}

// counted is a model's counts at rest.
type counted struct {
	outcomes               [3]uint64
	batches, rows, longest uint64
	times                  [buckets]uint64
}

func (c *counted) take(m *model) {
	for i := range m.outcomes {
		c.outcomes[i] = m.outcomes[i].Swap(0)
	}
	c.batches, c.rows, c.longest = m.batches.Swap(0), m.rows.Swap(0), m.longest.Swap(0)
	if c.calls() == 0 {
		return
	}
	for i := range m.times {
		if m.times[i].Load() != 0 {
			c.times[i] = uint64(m.times[i].Swap(0))
		}
	}
}

func (c *counted) add(o *counted) {
	for i := range c.outcomes {
		c.outcomes[i] += o.outcomes[i]
	}
	c.batches, c.rows, c.longest = c.batches+o.batches, c.rows+o.rows, max(c.longest, o.longest)
	for i := range c.times {
		c.times[i] += o.times[i]
	}
}

func (c *counted) calls() uint64 {
	return c.outcomes[Answered] + c.outcomes[Degraded] + c.outcomes[Failed]
}

func (c *counted) figures(name string) Figures {
	f := Figures{
		Model: name, Answers: c.outcomes[Answered], Degraded: c.outcomes[Degraded], Errors: c.outcomes[Failed],
		P50: c.percentile(0.5), P90: c.percentile(0.9), P99: c.percentile(0.99), Max: c.longest,
	}
	if c.batches > 0 {
		f.BatchRows = float64(c.rows) / float64(c.batches)
	}
	return f
}

// percentile is the nearest rank's bucket; what a call adds while it is taken may be missing in
// one of the two.
func (c *counted) percentile(p float64) uint64 {
	total := uint64(0)
	for _, n := range c.times {
		total += n
	}
	rank := uint64(p*float64(total) + 0.999999)
	seen := uint64(0)
	for i, n := range c.times {
		seen += n
		if n > 0 && seen >= rank {
			return min(upperOf(i), c.longest)
		}
	}
	return 0
}
