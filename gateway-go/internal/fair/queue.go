package fair

import (
	"cmp"
	"container/heap"
	"time"
)

// Item is something that waits. Its fields are not changed while it does.
type Item[T any] struct {
	Value    T
	Deadline time.Time // zero: none
	Cost     float64   // at least 1
	line     *line[T]
	order    uint64
	at       int
}

// line is what waits of one flow: the earliest deadline first, and what has none in the order in
// which it came, behind.
type line[T any] struct {
	flow  *Flow
	items []*Item[T]
	pass  float64 // virtual time at which the flow has its next turn
}

func (l *line[T]) Len() int { return len(l.items) }
func (l *line[T]) Less(i, j int) bool {
	a, b := l.items[i], l.items[j]
	if a.Deadline.IsZero() != b.Deadline.IsZero() {
		return b.Deadline.IsZero()
	}
	return cmp.Or(a.Deadline.Compare(b.Deadline), cmp.Compare(a.order, b.order)) < 0
}
func (l *line[T]) Swap(i, j int) {
	l.items[i], l.items[j] = l.items[j], l.items[i]
	l.items[i].at, l.items[j].at = i, j
}
func (l *line[T]) Push(x any) {
	item := x.(*Item[T])
	item.at = len(l.items)
	l.items = append(l.items, item)
}
func (l *line[T]) Pop() any {
	last := len(l.items) - 1
	item := l.items[last]
	l.items[last] = nil
	l.items = l.items[:last]
	return item
}

// Queue gives turns: to the lowest priority number first; among flows of one priority by start-time
// fair queueing (stride scheduling, Waldspurger 1995), so that each that waits gets its share of the
// cost; within a flow to the earliest deadline. It belongs to one user at a time.
type Queue[T any] struct {
	lines map[*Flow]*line[T] // those with items
	n     int
	order uint64
	// clock is the virtual time of each priority: a flow that comes back does not get what it did
	// not ask for meanwhile.
	clock [PriorityLast + 1]float64
}

// Len is how many items wait.
func (q *Queue[T]) Len() int { return q.n }

// Flows is how many flows wait.
func (q *Queue[T]) Flows() int { return len(q.lines) }

// Of is how many items of a flow wait.
func (q *Queue[T]) Of(f *Flow) int {
	if l := q.lines[f]; l != nil {
		return len(l.items)
	}
	return 0
}

// Push lets an item wait.
func (q *Queue[T]) Push(f *Flow, item *Item[T]) {
	if q.lines == nil {
		q.lines = map[*Flow]*line[T]{}
	}
	l := q.lines[f]
	if l == nil {
		l = &line[T]{flow: f, pass: q.clock[f.Priority]}
		q.lines[f] = l
	}
	q.order++
	item.line, item.order = l, q.order
	heap.Push(l, item)
	q.n++
}

// next is the line that has its turn; nil when nothing waits.
func (q *Queue[T]) next() *line[T] {
	var best *line[T]
	for _, l := range q.lines {
		if best == nil || cmp.Or(cmp.Compare(l.flow.Priority, best.flow.Priority), cmp.Compare(l.pass, best.pass),
			cmp.Compare(l.items[0].order, best.items[0].order)) < 0 {
			best = l
		}
	}
	return best
}

// Peek is the item that Pop gives; nil when nothing waits.
func (q *Queue[T]) Peek() *Item[T] {
	if l := q.next(); l != nil {
		return l.items[0]
	}
	return nil
}

// Pop takes out the item whose turn it is; nil when nothing waits.
func (q *Queue[T]) Pop() *Item[T] {
	l := q.next()
	if l == nil {
		return nil
	}
	q.clock[l.flow.Priority] = l.pass
	item := l.items[0]
	l.pass += max(1, item.Cost) / float64(l.flow.Share)
	q.Remove(item)
	return item
}

// Remove takes an item out that waits no longer.
func (q *Queue[T]) Remove(item *Item[T]) {
	l := item.line
	if l == nil {
		return
	}
	heap.Remove(l, item.at)
	item.line = nil
	if q.n--; len(l.items) == 0 {
		if l.pass > q.clock[l.flow.Priority] && len(q.lines) == 1 {
			q.clock[l.flow.Priority] = l.pass
		}
		delete(q.lines, l.flow)
	}
}

// Ahead is about how many items get their turn before one that comes now for this flow, and is due last.
func (q *Queue[T]) Ahead(f *Flow) int { return q.ahead(f, q.Of(f)) }

// AheadOf is Ahead for one with a deadline: of its own flow only what is due no later comes before it.
// It looks at each item of the flow.
func (q *Queue[T]) AheadOf(f *Flow, deadline time.Time) int {
	own := 0
	if l := q.lines[f]; l != nil {
		for _, item := range l.items {
			if !item.Deadline.IsZero() && !item.Deadline.After(deadline) {
				own++
			}
		}
	}
	return q.ahead(f, own)
}

func (q *Queue[T]) ahead(f *Flow, own int) int {
	if len(q.lines) == 0 {
		return 0
	}
	before := 0
	for _, l := range q.lines {
		switch {
		case l.flow.Priority < f.Priority:
			before += len(l.items)
		case l.flow.Priority == f.Priority && l.flow != f:
			before += min(len(l.items), (own+1)*l.flow.Share/f.Share) // their turns while ours has own + 1
		}
	}
	return own + before
}

// Longest is the flow of which most waits for its share, and its item that would come last.
func (q *Queue[T]) Longest() (*Flow, *Item[T]) {
	var longest *line[T]
	for _, l := range q.lines {
		if longest == nil || len(l.items)*longest.flow.Share > len(longest.items)*l.flow.Share {
			longest = l
		}
	}
	if longest == nil {
		return nil, nil
	}
	last := 0
	for i := range longest.items {
		if longest.Less(last, i) {
			last = i
		}
	}
	return longest.flow, longest.items[last]
}
