package link

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/fair"
)

// flows are those of tenants without rules.
func flows(names ...string) []*fair.Flow {
	table := fair.NewTable(nil, 100)
	var out []*fair.Flow
	for _, name := range names {
		out = append(out, table.Flow("", name, "", time.Time{}))
	}
	return out
}

// waiting lets calls of a flow wait in a connection that sends nothing.
func waiting(t *testing.T, c *conn, f *fair.Flow, n int, deadline time.Time) []*pending {
	t.Helper()
	var out []*pending
	for range n {
		p := &pending{results: make(chan result, 1), flow: f}
		p.item.Deadline = deadline
		if _, _, err := c.queue("m", &linkv1.Call{Message: []byte(f.Name())}, p); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func still() *conn {
	return &conn{
		callMax: 64, pending: map[uint64]*pending{}, lanes: map[string]*lane{}, models: map[string]bool{"m": true},
	}
}

// Where several flows wait, a frame holds calls of each in turn, and not more than a few; one flow
// alone fills it.
func TestFramesAreShared(t *testing.T) {
	f := flows("a", "b")
	for others, want := range map[int]int{0: 64, 3: readyCalls} {
		c := still()
		waiting(t, c, f[0], 1, time.Time{}) // goes at once
		waiting(t, c, f[0], 15, time.Time{})
		waiting(t, c, f[1], others, time.Time{})
		waiting(t, c, f[0], 100, time.Time{})
		l := c.lanes["m"]
		for len(l.sent) > 1 {
			l.worked(time.Now())
		}
		if others == 0 && !l.mixed.IsZero() {
			t.Error("one flow alone is mixed")
		}
		frame := c.take(l)
		byFlow := map[string]int{}
		for _, call := range frame.GetCalls().Calls {
			byFlow[string(call.Message)]++
		}
		if n := len(frame.GetCalls().Calls); n != want {
			t.Errorf("%d others: %d calls in a frame, wanted %d: %v", others, n, want, byFlow)
		}
	}
}

// Who asks now and then finds the turns shared, though none of its calls waited when a frame was formed.
func TestSeldomCallersShareTurns(t *testing.T) {
	f := flows("often", "seldom")
	for _, others := range []int{0, 1} {
		c := still()
		waiting(t, c, f[0], 1, time.Time{})
		waiting(t, c, f[1], others, time.Time{})
		waiting(t, c, f[0], 1, time.Time{})
		l := c.lanes["m"]
		for len(l.sent) > 0 {
			l.worked(time.Now())
			c.take(l)
		}
		waiting(t, c, f[0], 1, time.Time{}) // outstanding
		waiting(t, c, f[0], 15, time.Time{})
		waiting(t, c, f[0], 100, time.Time{})
		for len(l.sent) > 0 {
			l.worked(time.Now())
		}
		if n, want := len(c.take(l).GetCalls().Calls), map[int]int{0: 64, 1: readyCalls}[others]; n != want {
			t.Errorf("%d others: %d calls leave, wanted %d", others, n, want)
		}
	}
}

// Of a slow model, what waits of several flows does not leave ahead of its time.
func TestNothingLeavesAheadOfItsTurn(t *testing.T) {
	f := flows("a", "b")
	for pace, want := range map[time.Duration]int{100 * time.Microsecond: 2, 200 * time.Microsecond: 1} {
		c := still()
		c.lanes["m"] = &lane{model: "m"}
		c.lanes["m"].pace.add(10, 10*pace, true)
		c.byID = []*lane{c.lanes["m"]}
		waiting(t, c, f[0], 9, time.Time{})
		waiting(t, c, f[1], 60, time.Time{})
		if n := len(c.lanes["m"].sent); n != want {
			t.Errorf("pace %v: %d frames left, wanted %d", pace, n, want)
		}
	}
}

// What would not get its turn in time is refused with figures, once the pace is known from frames
// that were loaded; who finds nobody waiting is always taken.
func TestLateCallsAreRefused(t *testing.T) {
	f, now := flows("a", "b"), time.Now()
	c := still()
	l := &lane{model: "m"}
	c.lanes["m"], c.byID = l, []*lane{l}
	l.sent = []sentFrame{{calls: 1}}
	l.since = now.Add(-time.Hour)
	l.worked(now)
	if l.pace.each() != 0 {
		t.Fatal("one call alone says nothing of the pace:", l.pace.each())
	}
	l.sent, l.since = []sentFrame{{calls: 20, loaded: true}}, now.Add(-200*time.Millisecond)
	l.worked(now)
	if got := time.Duration(l.pace.each()); got.Round(time.Millisecond) != 10*time.Millisecond {
		t.Fatal("pace", got)
	}
	l.sent, l.since = []sentFrame{{calls: 20}, {calls: 20}}, time.Now()
	ask := func(flow *fair.Flow, left time.Duration) error {
		p := &pending{results: make(chan result, 1), flow: flow}
		if left != 0 {
			p.item.Deadline = time.Now().Add(left)
		}
		_, _, err := c.queue("m", &linkv1.Call{}, p)
		return err
	}
	if err := ask(f[0], time.Millisecond); err != nil {
		t.Error("nobody waits, and it is refused:", err)
	}
	for range 59 {
		l.queue.Push(f[0], &fair.Item[*linkv1.Call]{Value: &linkv1.Call{}, Cost: 1, Deadline: time.Now().Add(100 * time.Millisecond)})
	}
	var late *LateError
	if err := ask(f[0], 500*time.Millisecond); !errors.As(err, &late) || late.Ahead != 100 || late.Wait.Round(time.Millisecond) != time.Second {
		t.Error("100 before it, at 100 a second:", err)
	} else if !strings.Contains(err.Error(), "100 calls are before this one, at 100 a second: about 1s") {
		t.Error(err)
	}
	if late == nil || late.Needed.Round(time.Millisecond) != 1515*time.Millisecond {
		t.Error("its deadline is the reason:", late)
	}
	if err := ask(f[0], 1400*time.Millisecond); !errors.As(err, &late) {
		t.Error("there is time by the pace, and none if it is uneven:", err)
	}
	if err := ask(f[0], 1600*time.Millisecond); err != nil {
		t.Error("there is time enough:", err)
	}
	if err := ask(f[1], 700*time.Millisecond); err != nil {
		t.Error("another flow has its turn sooner:", err)
	}
	if err := ask(f[0], 0); err != nil {
		t.Error("no deadline, no limit:", err)
	}
	c.waitMax = 500 * time.Millisecond
	if err := ask(f[0], 0); !errors.As(err, &late) || late.Needed != 0 {
		t.Error("longer than is allowed:", err)
	}
}

// What was worked on already is not waited for again, and of a flow's own calls only those that are due before.
func TestWaitKnowsWhatIsDoneAndWhatIsDue(t *testing.T) {
	f, now := flows("a"), time.Now()
	c := still()
	l := &lane{model: "m"}
	c.lanes["m"], c.byID = l, []*lane{l}
	l.pace.add(4, 4*time.Second, true)
	l.sent, l.since = []sentFrame{{calls: 4}}, now.Add(-3900*time.Millisecond)
	waiting(t, c, f[0], 1, time.Time{})
	ask := func(left time.Duration) error {
		p := &pending{results: make(chan result, 1), flow: f[0]}
		p.item.Deadline = time.Now().Add(left)
		_, _, err := c.queue("m", &linkv1.Call{}, p)
		return err
	}
	if err := ask(3500 * time.Millisecond); err != nil {
		t.Error("a tenth of a second and two calls:", err)
	}
	waiting(t, c, f[0], 10, time.Time{})
	if err := ask(5500 * time.Millisecond); err != nil {
		t.Error("11 without a deadline are not before it:", err)
	}
	if err := ask(3600 * time.Millisecond); err != nil {
		t.Error("one is due before it:", err)
	}
	var late *LateError
	if err := ask(4000 * time.Millisecond); !errors.As(err, &late) {
		t.Error("two are due before it:", err)
	}
}

// One slow frame does not make a lane refuse for ever: faster ones that were not loaded mend the pace.
func TestAPaceThatWasSlowOnceMends(t *testing.T) {
	p := pace{}
	p.add(20, 20*time.Second, true)
	p.add(1, time.Second+time.Millisecond, false)
	if p.each() != 1e9 {
		t.Fatal("a single call that is no faster says nothing:", p.each())
	}
	for range 200 {
		p.add(1, 10*time.Millisecond, false)
	}
	if each := time.Duration(p.each()); each > 100*time.Millisecond {
		t.Error(each)
	}
}

// A call gets the place of one of a flow that has more waiting, and of nobody else.
func TestRoomIsMadeByWhoHasMost(t *testing.T) {
	f := flows("many", "few", "none")
	c := still()
	waiting(t, c, f[0], 1, time.Time{})
	many := waiting(t, c, f[0], 5, time.Time{})
	few := waiting(t, c, f[1], 2, time.Time{})
	if c.makeRoom(f[0]) {
		t.Error("made room for who has most")
	}
	for i := range 2 {
		if !c.makeRoom(f[1]) {
			t.Fatal("no room for who has less", i)
		}
	}
	if c.makeRoom(f[1]) {
		t.Error("3 are not more than 2 and one more")
	}
	for i, p := range many {
		select {
		case r := <-p.results:
			if !errors.Is(r.err, ErrCrowded) || !errors.Is(r.err, ErrNotSent) || i < 3 {
				t.Error(i, r.err)
			}
		default:
			if i >= 3 {
				t.Error("the last ones go first; kept", i)
			}
		}
	}
	for _, p := range few {
		if len(p.results) > 0 {
			t.Error("lost its place")
		}
	}
	if n := c.lanes["m"].queue.Len(); n != 5 || len(c.pending) != 6 {
		t.Error(n, "wait,", len(c.pending), "pending")
	}
}

// The flow of a call comes with its context.
func TestFlowOfAContext(t *testing.T) {
	f := flows("a")[0]
	if got := flowOf(WithFlow(context.Background(), f)); got != f {
		t.Error(got)
	}
	if got := flowOf(context.Background()); got != anybody {
		t.Error(got)
	}
}
