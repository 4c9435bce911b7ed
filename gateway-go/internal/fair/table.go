package fair

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Flow is calls that share a bucket and a place in queues.
type Flow struct {
	name     name
	rule     *Rule
	bucket   *rate.Limiter // nil: any rate
	used     time.Time
	Share    int
	Priority int
	// Held is how many calls of the flow are in flight; its user counts.
	Held atomic.Int64
}

// name tells flows apart: the number of the rule, and what the rule keeps apart.
type name struct {
	rule int
	key  [3]string
}

// Table finds the flow of a call. Its methods may be called at the same time.
type Table struct {
	rules []Rule
	most  int
	plain *Flow // of calls without tenant and class, where there are no rules

	mu    sync.Mutex
	flows map[name]*Flow
}

// byDefault keeps tenants and classes apart.
var byDefault = Rule{Tenant: "*", Class: "*", Share: 1, Priority: PriorityDefault}

// NewTable makes a table of at most so many flows.
func NewTable(rules []Rule, most int) *Table {
	t := &Table{rules: append(append([]Rule(nil), rules...), byDefault), most: most, flows: map[name]*Flow{}}
	if len(rules) == 0 {
		t.plain = t.made(name{}, time.Time{})
	}
	return t
}

// Flow is the flow of a call. When there are too many, the one that was not used longest is
// forgotten, with its bucket.
func (t *Table) Flow(service, tenant, class string, now time.Time) *Flow {
	if t.plain != nil && tenant == "" && class == "" {
		return t.plain
	}
	var id name
	for i := range t.rules {
		if key, ok := t.rules[i].match(service, tenant, class); ok {
			id = name{i, key}
			break
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.flows[id]
	if f == nil {
		if len(t.flows) >= t.most {
			t.forgetOne()
		}
		f = t.made(id, now)
		t.flows[id] = f
	}
	f.used = now
	return f
}

func (t *Table) made(id name, now time.Time) *Flow {
	r := &t.rules[id.rule]
	f := &Flow{name: id, rule: r, Share: r.Share, Priority: r.Priority, used: now}
	if r.Rate > 0 {
		f.bucket = rate.NewLimiter(rate.Limit(r.Rate), int(max(1, r.Burst)))
	}
	return f
}

// forgetOne makes room. The lock is held.
func (t *Table) forgetOne() {
	var oldest *Flow
	for _, f := range t.flows {
		if oldest == nil || f.used.Before(oldest.used) {
			oldest = f
		}
	}
	delete(t.flows, oldest.name)
}

// Take takes a token. Without one it says how long until there is one.
func (f *Flow) Take(now time.Time) (wait time.Duration, ok bool) {
	if f.bucket == nil || f.bucket.AllowN(now, 1) {
		return 0, true
	}
	lacks := 1 - f.bucket.TokensAt(now)
	return max(time.Millisecond, time.Duration(lacks/float64(f.bucket.Limit())*float64(time.Second))), false
}

// Rate is the calls a second of the flow's rule, 0 for any.
func (f *Flow) Rate() float64 { return f.rule.Rate }

// Name is the flow's tenant and class, as far as its rule keeps them apart.
func (f *Flow) Name() string { return strings.Trim(strings.Join(f.name.key[:], " "), " ") }
