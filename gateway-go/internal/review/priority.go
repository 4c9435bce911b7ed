package review

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	lowest = 19
	// ioprio_set(2): who is a thread, class idle in the top three bits.
	ioprioWhoProcess = 1
	ioprioIdle       = 3 << 13
)

// dataBytesMax is as much memory as a reading process may have.
const dataBytesMax = 1 << 30

// LimitMemory makes this process the one that ends when memory is short: by a
// limit of its own, and first where the kernel has to choose.
func LimitMemory() {
	_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: dataBytesMax, Max: dataBytesMax})
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
}

// LowestPriority puts every thread of this process behind all others, for the
// processors (SCHED_IDLE gives way the moment anybody else can run) and for the
// disk; threads made later inherit it. Linux keeps both
// per thread. Where the kernel does not allow it, nothing changes.
func LowestPriority() {
	done := map[int]bool{}
	for found := true; found; {
		found = false
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, e := range entries {
			thread, err := strconv.Atoi(e.Name())
			if err != nil || done[thread] {
				continue
			}
			done[thread], found = true, true
			_ = unix.Setpriority(unix.PRIO_PROCESS, thread, lowest)
			_ = unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE, Nice: lowest}, 0)
			_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(thread), ioprioIdle)
		}
	}
}
