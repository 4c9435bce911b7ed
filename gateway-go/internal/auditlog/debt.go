package auditlog

import (
	"fmt"
	"strings"
	"time"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// count says how often something happened, and between which times.
type count struct {
	n           uint64
	first, last time.Time
}

func (c *count) add(n uint64) {
	now := time.Now()
	if c.n == 0 {
		c.first = now
	}
	c.n, c.last = c.n+n, now
}

func (c *count) merge(earlier count) {
	if earlier.n == 0 {
		return
	}
	if c.n == 0 {
		c.last = earlier.last
	}
	c.n, c.first = c.n+earlier.n, earlier.first
}

// debt is what the log has still to be told.
type debt struct {
	answers, refusals, events uint64
	span                      count
	cause                     string
	standing                  []string
	stands                    uint32
}

func (d *debt) of(kind uint16) *uint64 {
	switch kind {
	case layout.KindAnswer:
		return &d.answers
	case layout.KindRefusal:
		return &d.refusals
	}
	return &d.events
}

// settle writes what is owed.
func (r *Recorder) settle() error {
	r.mu.Lock()
	owed := r.owed
	r.owed = debt{}
	r.mu.Unlock()
	if owed.span.n == 0 && owed.stands == 0 {
		return nil
	}
	var err error
	if owed.span.n > 0 {
		payload := r.o.Describe(owed.cause, map[string]string{
			"answers": fmt.Sprint(owed.answers), "refusals": fmt.Sprint(owed.refusals), "events": fmt.Sprint(owed.events),
			"first_ns": fmt.Sprint(owed.span.first.UnixNano()), "last_ns": fmt.Sprint(owed.span.last.UnixNano()), "policy": string(r.Policy),
		})
		var sequence uint64
		if sequence, err = r.Writer.Append(counted(events.Unlogged, &owed.span, 0, payload)); err == nil || sequence != 0 {
			owed.answers, owed.refusals, owed.events, owed.span = 0, 0, 0, count{}
		}
	}
	for err == nil && len(owed.standing) > 0 {
		some := owed.standing[:min(rangesMax, len(owed.standing))]
		e := &Entry{
			Kind: layout.KindSystem, EventID: events.Undelivered, StatusCode: unavailable, BatchSize: uint32(len(some)),
			Payload: r.o.Describe("the callers of these records were told that the log failed (UNAVAILABLE)", map[string]string{"sequences": strings.Join(some, ",")}),
		}
		if _, err = r.Writer.Append(e); err == nil {
			owed.standing, owed.stands = owed.standing[len(some):], owed.stands-uint32(len(some))
		}
	}
	if err != nil {
		r.oweAgain(&owed)
	}
	return err
}

func (r *Recorder) oweAgain(d *debt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owed.answers, r.owed.refusals, r.owed.events = r.owed.answers+d.answers, r.owed.refusals+d.refusals, r.owed.events+d.events
	r.owed.span.merge(d.span)
	if r.owed.cause == "" {
		r.owed.cause = d.cause
	}
	r.owed.standing, r.owed.stands = append(d.standing, r.owed.standing...), r.owed.stands+d.stands
}

func counted(event uint32, c *count, code uint32, payload []byte) *Entry {
	return &Entry{
		Kind: layout.KindSystem, EventID: event, StatusCode: code, LatencyNs: uint64(max(0, c.last.Sub(c.first))),
		BatchSize: uint32(min(c.n, 1<<32-1)), Payload: payload,
	}
}

// take says whether a refusal gets a record of its own; else it is counted.
func (r *Recorder) take(e *Entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tokens < 1 {
		now := time.Now()
		r.tokens = min(r.rate, r.tokens+now.Sub(r.refilled).Seconds()*r.rate)
		r.refilled = now
	}
	if r.tokens >= 1 {
		r.tokens--
		return true
	}
	key := kindOfRefusal{e.EventID, e.StatusCode}
	if r.aggregates[key] == nil {
		r.aggregates[key] = &count{}
	}
	r.aggregates[key].add(1)
	return false
}

// flush writes the counts of refusals.
func (r *Recorder) flush() {
	r.mu.Lock()
	found := r.aggregates
	r.aggregates = map[kindOfRefusal]*count{}
	r.mu.Unlock()
	for key, c := range found {
		payload := r.o.Describe(events.Names[key.event], map[string]string{
			"event": fmt.Sprintf("DIA-%d", key.event), "first_ns": fmt.Sprint(c.first.UnixNano()), "last_ns": fmt.Sprint(c.last.UnixNano()),
		})
		if _, _, err := r.write([]*Entry{counted(events.RefusalsAggregated, c, key.code, payload)}); err == nil {
			continue
		}
		r.mu.Lock()
		if later := r.aggregates[key]; later != nil {
			later.merge(*c)
		} else {
			r.aggregates[key] = c
		}
		r.mu.Unlock()
	}
}
