package auditlog

import (
	"context"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	clockPoll    = 5 * time.Second
	clockAnswer  = time.Second
	unknownError = ^uint64(0)

	clockKernel, clockChrony, clockPtp4l           = 1, 2, 3
	clockUnknown, clockSynchronised, clockFreeRuns = 0, 1, 2
)

// ClockStatus is an immutable snapshot of what is known of the wall clock. Source
// and Status are as in records; the bound of the error is all ones when unknown.
type ClockStatus struct {
	Source, Status uint8
	UncertaintyNs  uint64
}

// ClockOptions say who is asked about the clock: auto, kernel, chrony or ptp4l;
// where chronyd answers (host:port, empty for its usual places), and ptp4l's socket.
type ClockOptions struct{ Source, ChronyAt, Ptp4lSocket string }

type clockSource struct {
	command []string
	parse   func(string) *ClockStatus
}

// Clock asks the daemon that disciplines the clock, every five seconds
// beside the writer. With auto the first of ptp4l and chrony that answers is taken,
// and nil when none does; a source that was named and is silent is of unknown status.
type Clock struct {
	sources []clockSource
	silent  *ClockStatus
	latest  atomic.Pointer[ClockStatus]
	stop    chan struct{}
	scratch string
}

// NewClock asks once, and then goes on until Close.
func NewClock(o ClockOptions) *Clock {
	d := &Clock{stop: make(chan struct{})}
	if o.Source == "" || o.Source == "kernel" {
		return d
	}
	has := func(program string) bool { _, err := exec.LookPath(program); return err == nil }
	_, err := os.Stat(o.Ptp4lSocket)
	if (o.Source == "ptp4l" || o.Source == "auto" && err == nil) && has("pmc") {
		if d.scratch, err = os.MkdirTemp("", "vigil-clock-"); err == nil {
			own := filepath.Join(d.scratch, "pmc")
			d.sources = append(d.sources, clockSource{[]string{"pmc", "-u", "-b", "0", "-i", own, "-s", o.Ptp4lSocket, "GET PORT_DATA_SET"}, parsePtp4l})
		}
	}
	if (o.Source == "chrony" || o.Source == "auto") && has("chronyc") {
		command := []string{"chronyc", "-n"}
		if host, port, err := net.SplitHostPort(o.ChronyAt); err == nil {
			command = append(command, "-h", host, "-p", port)
		}
		d.sources = append(d.sources, clockSource{append(command, "-c", "tracking"), parseChrony})
	}
	if number := slices.Index(clockSources[:], o.Source); number > 0 {
		d.silent = &ClockStatus{uint8(number), clockUnknown, unknownError}
	}
	d.latest.Store(d.silent)
	if len(d.sources) > 0 {
		d.latest.Store(d.ask())
		go d.run()
	}
	return d
}

// Status is what is known now: the daemon's word, else the kernel's.
func (d *Clock) Status() ClockStatus {
	if latest := d.latest.Load(); latest != nil {
		return *latest
	}
	return kernelClock()
}

// Close ends the asking.
func (d *Clock) Close() {
	close(d.stop)
	if d.scratch != "" {
		_ = os.RemoveAll(d.scratch)
	}
}

func (d *Clock) run() {
	tick := time.NewTicker(clockPoll)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
			d.latest.Store(d.ask())
		}
	}
}

func (d *Clock) ask() *ClockStatus {
	for _, source := range d.sources {
		ctx, cancel := context.WithTimeout(context.Background(), clockAnswer)
		out, err := exec.CommandContext(ctx, source.command[0], source.command[1:]...).Output()
		cancel()
		if err != nil {
			continue
		}
		if status := source.parse(string(out)); status != nil {
			return status
		}
	}
	return d.silent
}

// parseChrony reads `chronyc -c tracking`. The bound is |system time| + root
// dispersion + root delay / 2 (chronyc(1)). Reference ids of a chronyd without a
// source are 00000000, and 7F7F0101 for its own clock.
func parseChrony(text string) *ClockStatus {
	fields := strings.Split(strings.TrimSpace(text), ",")
	if len(fields) < 14 {
		return nil
	}
	var seconds [3]float64
	for i, at := range []int{4, 10, 11} {
		value, err := strconv.ParseFloat(fields[at], 64)
		if err != nil {
			return nil
		}
		seconds[i] = value
	}
	if fields[13] == "Not synchronised" || fields[0] == "00000000" || fields[0] == "7F7F0101" {
		return &ClockStatus{clockChrony, clockFreeRuns, unknownError}
	}
	bound := math.Abs(seconds[0]) + seconds[2] + seconds[1]/2
	return &ClockStatus{clockChrony, clockSynchronised, uint64(math.Ceil(bound * 1e9))}
}

var portState = regexp.MustCompile(`(?m)^\s*portState\s+(\S+)`)

// parsePtp4l reads `pmc 'GET PORT_DATA_SET'`: synchronised while a port is SLAVE.
// The bound stays unknown: ptp4l knows how well it follows its master, not how
// well the system clock follows the clock of the network card.
func parsePtp4l(text string) *ClockStatus {
	states := portState.FindAllStringSubmatch(text, -1)
	if states == nil {
		return nil
	}
	for _, s := range states {
		if s[1] == "SLAVE" {
			return &ClockStatus{clockPtp4l, clockSynchronised, unknownError}
		}
	}
	return &ClockStatus{clockPtp4l, clockFreeRuns, unknownError}
}
