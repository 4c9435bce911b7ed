// Command vigil-gateway is Vigil's only door: native gRPC, gRPC-Web and
// Connect in front of a sidecar.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"vigil/gateway/internal/memory"
	"vigil/gateway/internal/review"
	"vigil/gateway/internal/settings"
)

// gcPercent trades some memory for fewer collections; GOGC in the environment wins.
const gcPercent = 400

// limitMemory has the collector work more often, instead of gcPercent, above what the limits let
// requests and answers take, with their copies; GOMEMLIMIT in the environment wins.
func limitMemory(s *settings.Settings) {
	const own, copies = 256 << 20, 2
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(own + copies*s.LimitsBytesInFlightMax + s.LadderBytesMax)
	}
}

// fitMemory lowers limits.bytes_in_flight_max to what there is memory for. A byte of a request may stand in
// memory six times: as received and unfinished, as the message, as the frame of the link, and at the sidecar as
// received, as its batch, and as the answer.
func fitMemory(s *settings.Settings) {
	const copies = 6
	available, of := memory.Available("/proc", "/sys/fs/cgroup")
	available -= s.LimitsMemoryReserveBytes
	if of == "" || (s.LimitsMemoryBytesMax > 0 && s.LimitsMemoryBytesMax < available) {
		available, of = s.LimitsMemoryBytesMax, "limits.memory_bytes_max"
	}
	if available == 0 {
		return
	}
	most := max(s.LimitsMessageBytesMax, available/copies, least)
	if most < s.LimitsBytesInFlightMax {
		fmt.Fprintf(os.Stderr, "vigil-gateway: limits.bytes_in_flight_max is lowered from %d to %d: %d bytes may be taken of %s\n",
			s.LimitsBytesInFlightMax, most, available, of)
		s.LimitsBytesInFlightMax = most
	}
}

// least is the smallest that limits.bytes_in_flight_max may be (settings.yaml).
const least = 1 << 20

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if len(os.Args) == 2 && os.Args[1] == readLog {
		os.Exit(read())
	}
	if len(os.Args) > 1 && os.Args[1] == simulating {
		os.Exit(simulate(os.Args[2:], os.Stdin, os.Stdout))
	}
	os.Exit(run(os.Args[1:]))
}

// readLog as the only argument makes this program read a log for a gateway.
const readLog = "read-log"

func read() int {
	review.LowestPriority()
	review.LimitMemory()
	if err := review.Serve(os.Stdin, os.Stdout, func() { os.Exit(1) }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// overrides collects --set KEY=VALUE.
type overrides map[string]string

func (o overrides) String() string { return "" }

func (o overrides) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("needs KEY=VALUE")
	}
	o[key] = value
	return nil
}

func run(args []string) int {
	flags := flag.NewFlagSet("vigil-gateway", flag.ContinueOnError)
	config := flags.String("config", "", "settings `FILE` (vigil.toml)")
	set := overrides{}
	flags.Var(set, "set", "set one key: `KEY=VALUE`")
	host := flags.String("host", "", "address of all listeners (listen.host)")
	named := map[string]*string{"listen.host": host}
	for _, s := range settings.Table() {
		if s.Flag != "" {
			named[s.Key] = flags.String(s.Flag, "", s.Doc+" ("+s.Key+")")
		}
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vigil-gateway: unexpected argument %q; see --help\n", flags.Arg(0))
		return 2
	}
	for key, value := range named {
		if *value != "" {
			set[key] = *value
		}
	}
	if *config == "" {
		if _, err := os.Stat("vigil.toml"); err == nil {
			*config = "vigil.toml"
		}
	}
	s, err := settings.Load(*config, os.Environ(), set)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 2
	}
	if _, err := fairness(s); err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 2
	}
	fitMemory(s)
	limitMemory(s)
	if err := serve(s); err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 1
	}
	return 0
}
