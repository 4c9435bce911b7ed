package figures

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBucketsAreInOrderAndNoWiderThanOneSixteenth(t *testing.T) {
	before := -1
	for us := uint64(0); us < 1<<20; us++ {
		b := bucketOf(us)
		if b != before && b != before+1 {
			t.Fatalf("%d µs is in bucket %d, the one before in %d", us, b, before)
		}
		before = b
		if upper := upperOf(b); upper < us || float64(upper-us) > float64(us)/parts {
			t.Fatalf("%d µs is told as %d", us, upper)
		}
	}
	for _, us := range []uint64{1 << 35, 1 << 36, 1 << 50, 1<<64 - 1} {
		if b := bucketOf(us); b < 0 || b >= buckets {
			t.Fatalf("%d µs is in bucket %d of %d", us, b, buckets)
		}
	}
}

func TestPercentilesAreThoseOfTheCalls(t *testing.T) {
	table := &Table{}
	table.Watch(true)
	var all []uint64
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		us := uint64(random.ExpFloat64() * 3000)
		all = append(all, us)
		table.Call("a", Answered, time.Duration(us)*time.Microsecond, 4)
	}
	table.Call("b", Failed, time.Second, 0)
	table.Call("b", Degraded, 0, 0)
	slices.Sort(all)
	got := table.Take()
	if len(got) != 3 || got[0].Model != "" || got[1].Model != "a" || got[2].Model != "b" {
		t.Fatalf("figures of %v", got)
	}
	if got[0].Answers != 5000 || got[0].Errors != 1 || got[0].Degraded != 1 || got[0].Max != got[1].Max || got[2].P50 != 0 || got[2].Max != 0 {
		t.Errorf("of all: %+v", got[0])
	}
	for _, x := range []struct {
		p   float64
		got uint64
	}{{0.5, got[1].P50}, {0.9, got[1].P90}, {0.99, got[1].P99}} {
		want := all[int(x.p*5000+0.999999)-1]
		if x.got < want || float64(x.got) > float64(want)*(1+1.0/parts)+1 {
			t.Errorf("percentile %v is %d, want %d", x.p, x.got, want)
		}
	}
	if got[1].BatchRows != 4 || got[1].Max != all[len(all)-1] {
		t.Errorf("of a: %+v", got[1])
	}
	if again := table.Take(); len(again) != 1 || again[0] != (Figures{}) {
		t.Errorf("taken twice: %v", again)
	}
}

func TestNothingIsCountedWhileNobodyLooks(t *testing.T) {
	table := &Table{}
	table.Call("a", Answered, time.Millisecond, 1)
	table.Watch(true)
	if got := table.Take(); len(got) != 1 || got[0].Answers != 0 {
		t.Errorf("before anybody looked: %v", got)
	}
	table.Call("a", Answered, time.Millisecond, 1)
	table.Watch(false)
	table.Call("a", Answered, time.Millisecond, 1)
	table.Watch(true)
	if got := table.Take(); got[0].Answers != 0 {
		t.Errorf("counted from nothing, and got %v", got)
	}
}

func TestModelsBeyondTheLimitCountInTheSumAndNoCallIsLost(t *testing.T) {
	table := &Table{}
	table.Watch(true)
	var callers sync.WaitGroup
	for g := range 4 {
		callers.Go(func() {
			for i := range 1000 {
				table.Call(string(rune('A'+(i+g)%100))+"x", Answered, time.Millisecond, 0)
			}
		})
	}
	callers.Wait()
	got := table.Take()
	if len(got) > ModelsMax+5 || len(got) < ModelsMax {
		t.Errorf("%d models are told of", len(got)-1)
	}
	if got[0].Answers != 4000 {
		t.Errorf("%d calls of 4000", got[0].Answers)
	}
}
