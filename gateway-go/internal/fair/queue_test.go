package fair

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var start = time.Unix(1_000_000, 0)

func flow(share, priority int) *Flow {
	return &Flow{rule: &Rule{Share: share, Priority: priority}, Share: share, Priority: priority}
}

type waiting struct {
	flow     *Flow
	n        int
	deadline time.Time
}

// Whatever comes and goes: each item is given once or removed, in the order of priorities, and
// within a flow by deadline and then by arrival; Peek says what Pop gives; counts are right.
func TestQueueKeepsWhatWaits(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		var flows []*Flow
		for range 1 + r.IntN(5) {
			flows = append(flows, flow(1+r.IntN(4), 1+r.IntN(2)))
		}
		var q Queue[waiting]
		var held []*Item[waiting]
		for n := range 400 {
			switch k := r.IntN(10); {
			case k < 5:
				w := waiting{flow: flows[r.IntN(len(flows))], n: n}
				if r.IntN(2) == 0 {
					w.deadline = start.Add(time.Duration(r.IntN(5)) * time.Second)
				}
				item := &Item[waiting]{Value: w, Deadline: w.deadline, Cost: float64(r.IntN(3))}
				held = append(held, item)
				q.Push(w.flow, item)
			case k < 6 && len(held) > 0:
				i := r.IntN(len(held))
				q.Remove(held[i])
				q.Remove(held[i]) // again does nothing
				held = slices.Delete(held, i, i+1)
			default:
				next := q.Peek()
				if item := q.Pop(); item != next || (item == nil) != (len(held) == 0) {
					t.Fatalf("seed %d: popped %v after peeking at %v, %d wait", seed, item, next, len(held))
				}
				if next == nil {
					continue
				}
				for _, other := range held {
					a, b := next.Value, other.Value
					if b.flow.Priority < a.flow.Priority {
						t.Fatalf("seed %d: priority %d before %d", seed, a.flow.Priority, b.flow.Priority)
					}
					if a.flow == b.flow && a.n != b.n && before(b, a) {
						t.Fatalf("seed %d: %v before %v", seed, a, b)
					}
				}
				held = slices.DeleteFunc(held, func(i *Item[waiting]) bool { return i == next })
			}
			counts := map[*Flow]int{}
			for _, item := range held {
				counts[item.Value.flow]++
			}
			if q.Len() != len(held) || q.Flows() != len(counts) {
				t.Fatalf("seed %d: %d items of %d flows, wanted %d of %d", seed, q.Len(), q.Flows(), len(held), len(counts))
			}
			for f, n := range counts {
				if q.Of(f) != n {
					t.Fatalf("seed %d: %d of a flow, wanted %d", seed, q.Of(f), n)
				}
			}
		}
	}
}

// before says whether a goes before b of the same flow.
func before(a, b waiting) bool {
	if a.deadline.IsZero() != b.deadline.IsZero() {
		return b.deadline.IsZero()
	}
	if c := a.deadline.Compare(b.deadline); c != 0 {
		return c < 0
	}
	return a.n < b.n
}

// While flows wait, each gets its share of the cost, to within one item of the largest cost for each.
func TestSharesOfTheCost(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		var q Queue[*Flow]
		var flows []*Flow
		shares := 0
		const costMax = 5
		for range 2 + r.IntN(4) {
			f := flow(1+r.IntN(9), 5)
			flows, shares = append(flows, f), shares+f.Share
		}
		got := map[*Flow]float64{}
		total := 0.0
		for range 3000 {
			for _, f := range flows {
				for q.Of(f) < 3 {
					q.Push(f, &Item[*Flow]{Value: f, Cost: 1 + float64(r.IntN(costMax))})
				}
			}
			item := q.Pop()
			got[item.Value] += item.Cost
			total += item.Cost
		}
		for _, f := range flows {
			want := total * float64(f.Share) / float64(shares)
			if d := got[f] - want; d > 2*costMax*float64(len(flows)+f.Share) || -d > 2*costMax*float64(len(flows)+f.Share) {
				t.Errorf("seed %d: share %d of %d got %.0f, wanted %.0f", seed, f.Share, shares, got[f], want)
			}
		}
	}
}

// Who did not wait for long gets no more than its turn when it comes back, and gets that at once.
func TestReturningFlowWaitsForNobodysPast(t *testing.T) {
	var q Queue[*Flow]
	busy, seldom := flow(1, 5), flow(1, 5)
	for range 1000 {
		q.Push(busy, &Item[*Flow]{Value: busy})
		q.Push(busy, &Item[*Flow]{Value: busy})
		q.Pop()
	}
	for range 10 {
		q.Push(seldom, &Item[*Flow]{Value: seldom})
	}
	first := 0
	for i := range 10 {
		if q.Pop().Value == seldom {
			first++
			if i > 1 && first == 1 {
				t.Error("the first turn came late:", i)
			}
		}
	}
	if first < 4 || first > 6 {
		t.Errorf("%d of 10 turns", first)
	}
}

// Ahead is what really goes before a call that comes now, to within one call of each flow.
func TestAhead(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var q Queue[int]
		flows := []*Flow{flow(1, 5), flow(1, 5), flow(2, 5), flow(1, 3), flow(1, 7)}
		for range r.IntN(60) {
			q.Push(flows[r.IntN(len(flows))], &Item[int]{Value: 1, Cost: 1})
		}
		for range r.IntN(10) {
			q.Pop()
		}
		f := flows[r.IntN(2)]
		guess, real := q.Ahead(f), 0
		q.Push(f, &Item[int]{Value: 2, Cost: 1})
		for q.Pop().Value != 2 {
			real++
		}
		if d := guess - real; d > 4 || d < -4 {
			t.Errorf("seed %d: guessed %d, was %d", seed, guess, real)
		}
	}
}

func TestLongest(t *testing.T) {
	var q Queue[int]
	if f, item := q.Longest(); f != nil || item != nil {
		t.Error("nothing waits, and", f, item)
	}
	a, b := flow(1, 5), flow(4, 5)
	for i := range 3 {
		q.Push(a, &Item[int]{Value: i, Deadline: start.Add(time.Duration(i%2) * time.Second)})
	}
	for i := range 11 {
		q.Push(b, &Item[int]{Value: 100 + i})
	}
	if f, item := q.Longest(); f != a || item.Value != 1 {
		t.Error("3 for a share of 1 are more than 11 for 4; last is the latest deadline:", f, item)
	}
	q.Push(b, &Item[int]{Value: 200})
	q.Push(b, &Item[int]{Value: 201, Deadline: start})
	if f, item := q.Longest(); f != b || item.Value != 200 {
		t.Error("13 for a share of 4 are more; last is who came last without a deadline:", f, item)
	}
}
