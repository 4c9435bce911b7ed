package link

import (
	"math/rand/v2"
	"testing"
	"time"
)

// How many calls a shared frame takes, by what frames take: own + each * calls, with some noise.
func TestSharedFrames(t *testing.T) {
	const us = time.Microsecond
	for _, c := range []struct {
		name        string
		own, each   time.Duration
		least, most int
	}{
		{"light calls: all that leave together", 100 * us, 100 * us, readyCalls, readyCalls},
		{"slow calls: one", 1000 * us, 30_000 * us, 1, 1},
		{"two milliseconds: two or three", 100 * us, 2000 * us, 2, 3},
		{"batches cost as much as one call: all", 10_000 * us, 10 * us, readyCalls, readyCalls},
		{"own cost is spread over enough calls", 5000 * us, 2000 * us, 8, 12},
	} {
		var p pace
		r := rand.New(rand.NewPCG(1, 2))
		for range 100 {
			k := 1 + r.IntN(16)
			took := float64(c.own+time.Duration(k)*c.each) * (0.95 + 0.1*r.Float64())
			p.add(k, time.Duration(took), true)
		}
		alone := 64
		if c.most < readyCalls {
			alone = aloneTimes * p.share
		}
		if got := p.alone(64); got != alone {
			t.Errorf("%s: %d calls for one flow, wanted %d", c.name, got, alone)
		}
		if got := p.shared(); got < c.least || got > c.most {
			t.Errorf("%s: %d calls, wanted %d to %d", c.name, got, c.least, c.most)
		}
	}
	var p pace
	if p.shared() != readyCalls || p.each() != 0 {
		t.Error("nothing is known, and", p.shared(), p.each())
	}
	for range 50 {
		p.add(4, time.Second, true)
	}
	if p.shared() != readyCalls {
		t.Error("frames that are all alike say nothing of one call:", p.shared())
	}
	if each := time.Duration(p.each()).Round(time.Millisecond); each != 250*time.Millisecond {
		t.Error("but of the pace:", each)
	}
}

// Now and then a shared frame is larger, so that a model that came to batch is noticed.
func TestSharedFramesTryMore(t *testing.T) {
	var p pace
	p.add(1, 30*time.Millisecond, true)
	p.add(4, 120*time.Millisecond, true)
	sizes := map[int]int{}
	for range 2 * tryMore {
		sizes[p.shared()]++
	}
	if sizes[1] != 2*tryMore-2 || sizes[2] != 2 {
		t.Error(sizes)
	}
}
