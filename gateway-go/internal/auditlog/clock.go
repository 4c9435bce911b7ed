package auditlog

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

const (
	stepNs = 50_000_000
	// slewDivisor: daemons slew a clock by less than a tenth (chrony by 83,333
	// ppm at most): more is a step.
	slewDivisor = 10
)

var (
	clockStatuses = [...]string{"unknown", "synchronised", "free-running"}
	clockSources  = [...]string{"unknown", "kernel", "chrony", "ptp4l"}
)

// clockWatch notices steps of the wall clock and changes of its status.
type clockWatch struct {
	timeNs, monoNs int64
	source, status uint8
	began          bool
}

// look gives the step since the last look in ns (0 without one), and words for a
// change of status (empty without one). A step is a jump of the wall clock
// against the monotonic one by more than 50 ms and a tenth of the time between.
func (c *clockWatch) look(timeNs, monoNs int64, source, status uint8) (stepped int64, words string) {
	if c.began {
		passed := monoNs - c.monoNs
		jump := timeNs - c.timeNs - passed
		if limit := stepNs + passed/slewDivisor; jump > limit || -jump > limit {
			stepped = jump
		}
		if source != c.source || status != c.status {
			words = fmt.Sprintf("%s (%s), now %s (%s)", clockStatuses[c.status], clockSources[c.source], clockStatuses[status], clockSources[source])
		}
	}
	*c = clockWatch{timeNs, monoNs, source, status, true}
	return stepped, words
}

// stampNow reads the clocks, and gives records of what happened to them since.
func (w *Writer) stampNow() []*Entry {
	now := w.o.Now()
	var mono unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
	w.s.timeNs, w.s.monoNs = uint64(now.UnixNano()), uint64(mono.Nano())
	if mono.Nano()-w.clockAt >= int64(time.Second) {
		w.clockAt = mono.Nano()
		clock := w.o.Clock()
		w.s.source, w.s.status, w.s.uncertaintyNs = clock.Source, clock.Status, clock.UncertaintyNs
	}
	stepped, words := w.watch.look(now.UnixNano(), mono.Nano(), w.s.source, w.s.status)
	var found []*Entry
	if stepped != 0 {
		payload := w.o.Describe("the wall clock was stepped", map[string]string{"step_ns": fmt.Sprint(stepped)})
		found = append(found, &Entry{Kind: layout.KindSystem, EventID: events.ClockStepped, Payload: payload})
	}
	if words != "" {
		found = append(found, &Entry{Kind: layout.KindSystem, EventID: events.ClockStatusChanged, Payload: w.o.Describe(words, nil)})
	}
	return found
}

// kernelClock is what adjtimex(2) says.
func kernelClock() ClockStatus {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		return ClockStatus{0, clockUnknown, unknownError}
	}
	if tx.Status&unix.STA_UNSYNC != 0 {
		return ClockStatus{clockKernel, clockFreeRuns, unknownError}
	}
	return ClockStatus{clockKernel, clockSynchronised, uint64(tx.Maxerror) * 1000}
}
