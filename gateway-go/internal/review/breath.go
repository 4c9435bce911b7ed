package review

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyShare: who waits for more than this share of the time is not alone on the machine.
	busyShare = 0.1
	restMax   = 50 * time.Millisecond
	workMin   = 2 * time.Millisecond
)

// breath lets a reading process rest as long as it worked while others want the
// processors: even at the lowest priority its work costs them caches, memory
// bandwidth and the other half of a core. Alone it does not rest. For one goroutine.
type breath struct {
	wall time.Time
	used time.Duration
}

// take is called now and then.
func (b *breath) take() {
	now, used := time.Now(), processTime()
	if b.wall.IsZero() {
		b.wall, b.used = now, used
		return
	}
	passed, worked := now.Sub(b.wall), used-b.used
	if passed < workMin {
		return
	}
	if float64(passed-worked) > busyShare*float64(passed) {
		time.Sleep(min(worked, restMax))
	}
	b.wall, b.used = time.Now(), processTime()
}

func processTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
