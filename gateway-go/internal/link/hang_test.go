package link

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestStarved(t *testing.T) {
	type waits map[string]int64
	threads := func(w waits) map[string]thread {
		out := map[string]thread{}
		for name, n := range w {
			out[name] = thread{waited: n}
		}
		return out
	}
	for _, c := range []struct {
		name        string
		before, now waits
		want        bool
	}{
		{"nothing waited", waits{"a": 5}, waits{"a": 5}, false},
		{"half is borne", waits{"a": 0}, waits{"a": 20e6}, false},
		{"more than half", waits{"a": 7}, waits{"a": 20e6 + 8}, true},
		{"one of many", waits{"a": 0, "b": 0}, waits{"a": 0, "b": 30e6}, true},
		{"many a little", waits{"a": 0, "b": 0}, waits{"a": 15e6, "b": 15e6}, false},
		{"a thread that is new", waits{}, waits{"a": 21e6}, true},
		{"a thread that ended", waits{"a": 0}, waits{}, false},
	} {
		if got := starved(threads(c.before), threads(c.now), 40*time.Millisecond); got != c.want {
			t.Errorf("%s: starved = %v, want %v", c.name, got, c.want)
		}
	}
}

// process is a stand-in for a folder of proc with one thread.
type process struct {
	t   *testing.T
	dir string
}

func (p process) is(state string, ranMs, waitedMs int64, faults ...int64) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Join(p.dir, "1"), 0o700); err != nil {
		p.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"schedstat": fmt.Sprintf("%d %d 3\n", ranMs*1e6, waitedMs*1e6), "stat": "1 (a) D b) " + state + " 0 0 0 0 0 0 " + fmt.Sprint(append(faults, 0)[0]) + " 0 1 0\n",
	} {
		if err := os.WriteFile(filepath.Join(p.dir, "1", name), []byte(text), 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p process) watched() *processors {
	return &processors{own: filepath.Join(p.dir, "none"), other: filepath.Join(p.dir, "[0-9]*"), machine: filepath.Join(p.dir, "stat")}
}

// stole tells of processors that were taken away, in all.
func (p process) stole(ticks int64) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, "stat"), fmt.Appendf(nil, "cpu  1 2 3 4 5 6 7 %d 0 0\ncpu0 1 2 3 4 5 6 7 %d 0 0\n", ticks, ticks), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func TestHangs(t *testing.T) {
	const ms, after = time.Millisecond, 75 * time.Millisecond
	type look struct {
		silence     time.Duration
		state       string
		ran, waited int64 // of the one thread, in all, ms
		want        bool
		faults      int64 // pages, in all
	}
	for _, c := range []struct {
		name  string
		looks []look
	}{
		{"it sleeps and says nothing", []look{{10 * ms, "S", 0, 0, false, 0}, {40 * ms, "S", 0, 3, false, 0}, {60 * ms, "S", 0, 3, false, 0}, {80 * ms, "S", 0, 4, true, 0}, {100 * ms, "R", 0, 90, true, 0}, {5 * ms, "S", 0, 90, false, 0}}},
		{"it computes and says nothing", []look{{40 * ms, "R", 0, 0, false, 0}, {80 * ms, "R", 30, 5, true, 0}}},
		{"it wants a processor now and then", []look{{40 * ms, "S", 0, 0, false, 0}, {80 * ms, "S", 0, 30, false, 0}, {200 * ms, "S", 0, 150, false, 0}}},
		{"it gets no processor at all", []look{{40 * ms, "R", 0, 0, false, 0}, {80 * ms, "R", 3, 0, false, 0}, {900 * ms, "R", 3, 0, false, 0}}},
		{"it waits for a device", []look{{40 * ms, "S", 0, 0, false, 0}, {80 * ms, "D", 0, 0, false, 0}, {90 * ms, "S", 0, 0, true, 0}}},
		{"first the one, then the other", []look{{40 * ms, "S", 0, 0, false, 0}, {80 * ms, "S", 0, 30, false, 0}, {110 * ms, "S", 0, 30, true, 0}}},
		{"seen too late to tell at once", []look{{500 * ms, "S", 0, 0, false, 0}, {520 * ms, "S", 0, 0, false, 0}, {530 * ms, "S", 0, 0, true, 0}}},
		{"it is given memory, and then no more", []look{{40 * ms, "R", 0, 0, false, 5}, {80 * ms, "R", 40, 0, false, 13}, {110 * ms, "R", 70, 0, false, 900}, {120 * ms, "R", 80, 0, false, 901}, {140 * ms, "R", 100, 0, true, 907}}},
		{"what was before is another silence", []look{{40 * ms, "S", 0, 0, false, 0}, {10 * ms, "S", 0, 0, false, 0}, {80 * ms, "S", 0, 0, false, 0}, {90 * ms, "S", 0, 0, false, 0}, {110 * ms, "S", 0, 0, true, 0}}},
	} {
		one, start := process{t, t.TempDir()}, time.Now()
		p := one.watched()
		for i, l := range c.looks {
			one.is(l.state, l.ran, l.waited, l.faults)
			if got := p.hangs(l.silence, after, start.Add(l.silence)); got != l.want {
				t.Errorf("%s: look %d: hangs = %v, want %v", c.name, i, got, l.want)
			}
		}
	}
	for name, p := range map[string]*processors{"not counted": (process{t, t.TempDir()}).watched(), "switched off": watched(os.Getpid())} {
		limit := after
		if name == "switched off" {
			limit = 0
		}
		for _, silence := range []time.Duration{40 * ms, 80 * ms, 900 * ms} {
			if p.hangs(silence, limit, time.Now().Add(silence)) {
				t.Errorf("%s: hangs after %v", name, silence)
			}
		}
	}
	if own := watched(os.Getpid()).read(); len(own) == 0 {
		t.Skip("this kernel does not count how long threads wait for processors")
	}
}

// A processor that the machine did not have explains a silence like one that others had.
func TestStolenProcessors(t *testing.T) {
	const ms, after = time.Millisecond, 75 * time.Millisecond
	one, start := process{t, t.TempDir()}, time.Now()
	p := one.watched()
	one.is("R", 0, 0)
	for i, l := range []struct {
		silence time.Duration
		ticks   int64
		want    bool
	}{{40 * ms, 7, false}, {80 * ms, 8, false}, {110 * ms, 9, false}, {160 * ms, 10, true}} { // the last is a fifth
		one.is("R", l.silence.Milliseconds(), 0)
		one.stole(l.ticks)
		if got := p.hangs(l.silence, after, start.Add(l.silence)); got != l.want {
			t.Errorf("look %d: hangs = %v, want %v", i, got, l.want)
		}
	}
}

func TestASilenceThatIsExplainedIsNoHang(t *testing.T) {
	const ms = time.Millisecond
	one := process{t, t.TempDir()}
	one.is("S", 0, 0)
	c := New(Config{HangAfter: 75 * ms, HeartbeatTimeout: time.Second}, nil)
	cn := &conn{pending: map[uint64]*pending{1: {bytes: 30 << 20}, 2: {bytes: 20 << 20}, 3: {bytes: 1 << 30, lane: &lane{}}}}
	own, start := one.watched(), time.Now()
	for _, l := range []struct {
		silence      time.Duration
		stopped      bool
		failed, sure bool
		nothing      bool
	}{
		{silence: 100 * ms},
		{silence: 250 * ms, nothing: true},            // 50 MiB explain 200 ms of it, though their calls have ended
		{silence: 280 * ms, failed: true, sure: true}, // and no more
		{silence: 1001 * ms, failed: true, sure: true},
		{silence: 0},
		{silence: 1001 * ms, failed: true}, // too late to tell why
		{silence: 0},
		{silence: 60 * ms, stopped: true, failed: true, sure: true},
		{silence: 0},
		{silence: 50 * ms, nothing: true},
		{silence: 80 * ms, failed: true, sure: true, nothing: true},
	} {
		if l.nothing {
			clear(cn.pending)
		}
		why, sure := c.judge(cn, l.silence, l.stopped, own, start.Add(l.silence))
		if (why != "") != l.failed || sure != l.sure {
			t.Errorf("silent for %v, stopped %v: %q, sure %v", l.silence, l.stopped, why, sure)
		}
	}
}

func TestAnAnnouncedPauseIsNoSilence(t *testing.T) {
	cn := &conn{lastBeat: time.Now().Add(-2 * time.Second), pause: 1900 * time.Millisecond}
	if s := cn.silence(); s < 90*time.Millisecond || s > 1900*time.Millisecond {
		t.Errorf("silent for %v beyond the pause", s)
	}
	cn.pause = pauseMax
	if s := cn.silence(); s != 0 || cn.judgeLate(time.Millisecond) {
		t.Errorf("silent for %v within the pause", s)
	}
}

// A frame counts until the sidecar is done with it, whatever becomes of its calls.
func TestFramesCountUntilTheirCredit(t *testing.T) {
	cn := &conn{pending: map[uint64]*pending{}, byID: []*lane{{sent: []sentFrame{{bytes: 5}, {bytes: 7}}}, {sent: []sentFrame{{bytes: 1}}}}}
	if n := cn.underWay(); n != 13 {
		t.Errorf("%d bytes, wanted 13", n)
	}
	cn.pending[1] = &pending{bytes: 20}
	if n := cn.underWay(); n != 20 {
		t.Errorf("%d bytes, wanted 20", n)
	}
}

// Where proc has it, it is said that the kernel counts; a process whose threads are not
// there is not counted.
func TestKernelCounts(t *testing.T) {
	if _, err := os.Stat("/proc/self/schedstat"); (err == nil) != KernelCounts() {
		t.Errorf("counts: %v, although %v", KernelCounts(), err)
	}
	if found := (&processors{own: "/nowhere/[0-9]*", other: "/nowhere/[0-9]*"}).read(); len(found) != 0 {
		t.Error(found)
	}
}
