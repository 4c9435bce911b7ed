package link

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestStarved(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after map[string]int64
		want          bool
	}{
		{"nothing waited", map[string]int64{"a": 5}, map[string]int64{"a": 5}, false},
		{"half is borne", map[string]int64{"a": 0}, map[string]int64{"a": 20e6}, false},
		{"more than half", map[string]int64{"a": 7}, map[string]int64{"a": 20e6 + 8}, true},
		{"one of many", map[string]int64{"a": 0, "b": 0}, map[string]int64{"a": 0, "b": 30e6}, true},
		{"many a little", map[string]int64{"a": 0, "b": 0}, map[string]int64{"a": 15e6, "b": 15e6}, false},
		{"a thread that is new", map[string]int64{}, map[string]int64{"a": 21e6}, true},
		{"a thread that ended", map[string]int64{"a": 0}, map[string]int64{}, false},
	} {
		if got := starved(c.before, c.after, 40*time.Millisecond); got != c.want {
			t.Errorf("%s: starved = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestHangs(t *testing.T) {
	const ms, after = time.Millisecond, 75 * time.Millisecond
	type look struct {
		silence time.Duration
		waited  int64 // of the one thread, in all, ms
		want    bool
	}
	for _, c := range []struct {
		name  string
		looks []look
	}{
		{"it runs and says nothing", []look{{10 * ms, 0, false}, {40 * ms, 3, false}, {60 * ms, 3, false}, {80 * ms, 4, true}, {100 * ms, 90, true}, {5 * ms, 90, false}}},
		{"it wants a processor", []look{{40 * ms, 0, false}, {80 * ms, 30, false}, {200 * ms, 150, false}}},
		{"first the one, then the other", []look{{40 * ms, 0, false}, {80 * ms, 30, false}, {110 * ms, 30, true}}},
		{"seen too late to tell", []look{{500 * ms, 0, false}, {520 * ms, 0, true}}},
		{"what was before is another silence", []look{{40 * ms, 0, false}, {10 * ms, 0, false}, {80 * ms, 0, false}, {90 * ms, 0, true}}},
	} {
		dir := t.TempDir()
		p := &processors{tasks: []string{filepath.Join(dir, "[0-9]*", "schedstat")}}
		if err := os.Mkdir(filepath.Join(dir, "1"), 0o700); err != nil {
			t.Fatal(err)
		}
		for i, l := range c.looks {
			line := fmt.Sprintf("12 %d 3\n", l.waited*1e6)
			if err := os.WriteFile(filepath.Join(dir, "1", "schedstat"), []byte(line), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := p.hangs(l.silence, after); got != l.want {
				t.Errorf("%s: look %d: hangs = %v, want %v", c.name, i, got, l.want)
			}
		}
	}
	for name, p := range map[string]*processors{
		"not counted": {tasks: []string{filepath.Join(t.TempDir(), "none")}}, "switched off": watched(os.Getpid()),
	} {
		limit := after
		if name == "switched off" {
			limit = 0
		}
		for _, silence := range []time.Duration{40 * ms, 80 * ms, 900 * ms} {
			if p.hangs(silence, limit) {
				t.Errorf("%s: hangs after %v", name, silence)
			}
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"1": "1 (a) b) S 0 0", "2": "2 (D) R 0"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &processors{stats: filepath.Join(dir, "[0-9]")}
	if p.blocked() {
		t.Error("a thread that sleeps, or runs, waits for no device")
	}
	if err := os.WriteFile(filepath.Join(dir, "3"), []byte("3 (x) D 0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !p.blocked() {
		t.Error("a thread in state D waits for a device")
	}
	if own := watched(os.Getpid()).read(); len(own) == 0 {
		t.Skip("this kernel does not count how long threads wait for processors")
	}
}

func TestASilenceThatIsExplainedIsNoHang(t *testing.T) {
	const ms = time.Millisecond
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "1"), []byte("12 0 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := New(Config{HangAfter: 75 * ms, HeartbeatTimeout: time.Second}, nil)
	cn := &conn{pending: map[uint64]*pending{1: {bytes: 60 << 20}, 2: {bytes: 40 << 20}}}
	own := &processors{tasks: []string{filepath.Join(dir, "[0-9]")}}
	for _, l := range []struct {
		silence      time.Duration
		stopped      bool
		failed, sure bool
		nothing      bool
	}{
		{silence: 100 * ms},
		{silence: 250 * ms},                           // 100 MiB explain 200 ms of it
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
		why, sure := c.judge(cn, l.silence, l.stopped, own)
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
