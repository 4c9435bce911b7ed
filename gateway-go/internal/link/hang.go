package link

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// processors counts how long the threads of some processes waited for a processor
// (proc's schedstat, second field, ns). Such a wait explains a silence, and so does one
// for a device; a process that says nothing although its threads run, or wait for each
// other, hangs.
type processors struct {
	tasks []string // patterns of files, one for each thread
	stats string   // likewise: what the other's threads do (proc_pid_stat(5))
	mark  map[string]int64
	at    time.Duration
	hung  bool
}

// watched gives the processors of this process and of the one with this id.
func watched(pid int) *processors {
	other := fmt.Sprintf("/proc/%d/task/[0-9]*/", pid)
	return &processors{tasks: []string{"/proc/self/task/[0-9]*/schedstat", other + "schedstat"}, stats: other + "stat"}
}

// read gives the waiting of each thread; none where the kernel does not count it.
func (p *processors) read() map[string]int64 {
	out := map[string]int64{}
	for _, pattern := range p.tasks {
		paths, _ := filepath.Glob(pattern) // the only error is a bad pattern
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				continue // it ended meanwhile
			}
			if fields := bytes.Fields(data); len(fields) == 3 {
				if n, err := strconv.ParseInt(string(fields[1]), 10, 64); err == nil {
					out[path] = n
				}
			}
		}
	}
	return out
}

// hangs says whether a silence is longer than after, and no want of processors. It is
// called again and again while a silence lasts, and looks from half of after on: for
// the rest of the silence no thread may have waited for more than half, and at its end
// none of the other's may wait for a device. Once it hangs, it does until something
// comes. False where the kernel does not count.
func (p *processors) hangs(silence, after time.Duration) bool {
	switch {
	case after <= 0 || silence < after/2:
		p.mark, p.hung = nil, false
	case p.mark == nil:
		p.mark, p.at = p.read(), silence
	case !p.hung && silence > after && len(p.mark) > 0:
		// SR-050
		p.hung = !starved(p.mark, p.read(), silence-p.at) && !p.blocked()
	}
	return p.hung
}

// blocked says whether a thread of the other waits for a device, or for memory (state D).
func (p *processors) blocked() bool {
	paths, _ := filepath.Glob(p.stats) // the only error is a bad pattern
	for _, path := range paths {
		if stateOf(path) == 'D' {
			return true
		}
	}
	return false
}

// starved says whether a thread waited for a processor more than half of this time.
func starved(before, after map[string]int64, lasted time.Duration) bool {
	for path, n := range after {
		if 2*(n-before[path]) > lasted.Nanoseconds() {
			return true
		}
	}
	return false
}

// largeMessage is how long the sidecar may let nothing else run for each MiB of the calls
// under way: it copies, hashes and encodes messages under the interpreter's lock.
const largeMessage = 2 * time.Millisecond

// pauseMax bounds the silence that a sidecar may announce.
const pauseMax = 5 * time.Second

// judge says why a sidecar that is silent for so long is failed, empty when it is not, and
// whether that is sure: then calls under way do not wait for it.
func (c *Client) judge(cn *conn, silence time.Duration, stopped bool, own *processors) (why string, sure bool) {
	beyond := silence
	if silence > c.config.HangAfter/2 {
		beyond -= time.Duration(cn.underWay()) * largeMessage / (1 << 20)
	}
	hung := own.hangs(beyond, c.config.HangAfter)
	lasted := silence.Round(time.Millisecond).String()
	switch {
	case stopped:
		return "the sidecar's process is stopped (by a signal or a debugger)", true
	case hung:
		return "no heartbeat for " + lasted + ", and nothing waited for a processor", true
	case silence > c.config.HeartbeatTimeout:
		return "no heartbeat for " + lasted, false
	}
	return "", false
}
