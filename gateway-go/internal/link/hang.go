package link

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// thread is what the kernel counts of one: how long it ran, and how long it waited for a
// processor before it ran, in ns (proc's schedstat); of the other process's also how many
// pages of memory it was given (proc's stat: minor and major faults).
type thread struct{ ran, waited, faults int64 }

// faultsOfWork is how many pages in one look say that memory is being filled: a copy of a
// large message under the interpreter's lock is silent, and takes as long as the kernel
// needs for fresh pages. What hangs is given none.
const faultsOfWork = 8

// processors counts how long the threads of this process and of another wanted for a
// processor. That explains a silence, and so does a wait for a device; a process that says
// nothing although its threads run, or wait for each other, hangs.
type processors struct {
	own, other string // patterns of folders, one for each thread
	machine    string // proc's stat
	mark       map[string]thread
	stolen     time.Duration // of the machine's processors, until mark
	marked     time.Time
	allowed    time.Duration // what messages under way explain of this silence
	hung       bool
}

// watched gives the processors of this process and of the one with this id.
func watched(pid int) *processors {
	return &processors{own: "/proc/self/task/[0-9]*", other: fmt.Sprintf("/proc/%d/task/[0-9]*", pid), machine: "/proc/stat"}
}

// read gives what is counted, by folder; nothing where the kernel does not count.
func (p *processors) read() map[string]thread {
	out := map[string]thread{}
	for _, pattern := range []string{p.own, p.other} {
		folders, _ := filepath.Glob(pattern) // the only error is a bad pattern
		for _, folder := range folders {
			data, err := os.ReadFile(folder + "/schedstat")
			if err != nil {
				continue // it ended meanwhile
			}
			fields := bytes.Fields(data)
			if len(fields) != 3 {
				continue
			}
			ran, err1 := strconv.ParseInt(string(fields[0]), 10, 64)
			waited, err2 := strconv.ParseInt(string(fields[1]), 10, 64)
			if err1 == nil && err2 == nil {
				t := thread{ran: ran, waited: waited}
				if pattern == p.other {
					t.faults = faultsOf(folder + "/stat")
				}
				out[folder] = t
			}
		}
	}
	return out
}

// KernelCounts says whether the kernel tells what hangs are told by (CONFIG_SCHED_INFO).
func KernelCounts() bool {
	own := &processors{own: "/proc/self/task/[0-9]*", other: "/proc/self/task/[0-9]*"}
	return len(own.read()) > 0
}

// hangs says whether a silence is longer than after, and no want of processors. It is
// called again and again while a silence lasts, and looks from half of after on, for at
// least a third of it: meanwhile no thread may have waited for more than half of the time,
// and at the end none of the other's may wait. Once it hangs, it does until something
// comes. False where the kernel does not count, or does not let us see.
func (p *processors) hangs(silence, after time.Duration, now time.Time) bool {
	switch {
	case after <= 0 || silence < after/2:
		p.mark, p.hung = nil, false
	case p.mark == nil:
		p.look(now, p.read())
	case !p.hung && silence > after && now.Sub(p.marked) >= after/3:
		found, lasted := p.read(), now.Sub(p.marked)
		if filled(p.mark, found) || 4*(p.stolenUntilNow()-p.stolen) >= lasted {
			p.look(now, found) // anew from here
			break
		}
		// SR-050
		p.hung = p.seen(p.mark) && p.seen(found) && !starved(p.mark, found, lasted) && !p.waits(found, lasted)
	}
	return p.hung
}

// look begins to look.
func (p *processors) look(now time.Time, found map[string]thread) {
	p.mark, p.marked, p.stolen = found, now, p.stolenUntilNow()
}

// tick is the unit of times in proc's stat (USER_HZ of every Linux that Go knows).
const tick = 10 * time.Millisecond

// stolenUntilNow is how long processors of this machine were taken away from it by what it is a
// guest of (proc's stat, steal): meanwhile a thread seems to run, and does not.
func (p *processors) stolenUntilNow() time.Duration {
	data, err := os.ReadFile(p.machine)
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Fields(line) // cpu, user, nice, system, idle, iowait, irq, softirq, steal
	if len(fields) < 9 {
		return 0
	}
	ticks, err := strconv.ParseInt(string(fields[8]), 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(ticks) * tick
}

// seen says whether a thread of the other is among these.
func (p *processors) seen(threads map[string]thread) bool {
	for folder := range threads {
		if ok, _ := filepath.Match(p.other, folder); ok {
			return true
		}
	}
	return false
}

// starved says whether a thread waited for a processor more than half of this time.
func starved(before, now map[string]thread, lasted time.Duration) bool {
	for folder, t := range now {
		if 2*(t.waited-before[folder].waited) > lasted.Nanoseconds() {
			return true
		}
	}
	return false
}

// filled says whether the other's threads were given memory between two looks.
func filled(before, now map[string]thread) bool {
	pages := int64(0)
	for folder, t := range now {
		if old, ok := before[folder]; ok {
			pages += t.faults - old.faults
		}
	}
	return pages >= faultsOfWork
}

// faultsOf reads how many pages a thread was given, from its stat in proc; 0 where it cannot
// be read.
func faultsOf(path string) int64 {
	fields := fieldsOf(path)
	if len(fields) < 10 {
		return 0
	}
	minor, err1 := strconv.ParseInt(string(fields[7]), 10, 64)
	major, err2 := strconv.ParseInt(string(fields[9]), 10, 64)
	if err1 != nil || err2 != nil {
		return 0
	}
	return minor + major
}

// waits says whether a thread of the other waits right now: for a device or for memory
// (state D), or for a processor. A wait for that is counted only when it ends; until then
// the thread is ready (state R), and has not run for most of the time.
func (p *processors) waits(now map[string]thread, lasted time.Duration) bool {
	for folder, t := range now {
		if ok, _ := filepath.Match(p.other, folder); !ok {
			continue // ours runs: it is asking
		}
		state := stateOf(folder + "/stat")
		if state == 'D' || (state == 'R' && 2*(t.ran-p.mark[folder].ran) < lasted.Nanoseconds()) {
			return true
		}
	}
	return false
}

// largeMessage is how long the sidecar may let nothing else run for each MiB of the calls
// under way: it copies, hashes and encodes messages under the interpreter's lock.
const largeMessage = 4 * time.Millisecond

// pauseMax bounds the silence that a sidecar may announce.
const pauseMax = 5 * time.Second

// underWay is how many bytes of messages the sidecar may be at: those of calls that were
// sent and not answered, or, as calls end early, of frames that it was not done with.
func (c *conn) underWay() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls, frames := 0, 0
	for _, p := range c.pending {
		if p.lane == nil {
			calls += p.bytes
		}
	}
	for _, l := range c.byID {
		for _, frame := range l.sent {
			frames += frame.bytes
		}
	}
	return max(calls, frames)
}

// judge says why a sidecar that is silent for so long is failed, empty when it is not, and
// whether that is sure: then calls under way do not wait for it.
func (c *Client) judge(cn *conn, silence time.Duration, stopped bool, own *processors, now time.Time) (why string, sure bool) {
	if silence < c.config.HangAfter/2 {
		own.allowed = 0
	} else { // the most of one silence: calls end early, and their messages are still worked on
		own.allowed = max(own.allowed, time.Duration(cn.underWay())*largeMessage/(1<<20))
	}
	hung := own.hangs(silence-own.allowed, c.config.HangAfter, now)
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
