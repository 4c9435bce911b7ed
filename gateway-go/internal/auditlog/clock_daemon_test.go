package auditlog

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What daemons print is read as the shared vectors say; the sidecar reads the same.
func TestDaemonsWords(t *testing.T) {
	data, err := os.ReadFile("../../../tests/vectors/clock.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors map[string]json.RawMessage
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	for name, parse := range map[string]func(string) *ClockStatus{"chrony": parseChrony, "ptp4l": parsePtp4l} {
		var cases [][2]json.RawMessage
		if err := json.Unmarshal(vectors[name], &cases); err != nil || len(cases) < 5 {
			t.Fatal(cases, err)
		}
		for _, c := range cases {
			var text string
			var want []*uint64
			if err := json.Unmarshal(c[0], &text); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(c[1], &want); err != nil {
				t.Fatal(err)
			}
			got := parse(text)
			if want == nil {
				if got != nil {
					t.Errorf("%q: %+v, want nothing", text, got)
				}
				continue
			}
			status := ClockStatus{uint8(*want[0]), uint8(*want[1]), unknownError}
			if want[2] != nil {
				status.UncertaintyNs = *want[2]
			}
			if got == nil || *got != status {
				t.Errorf("%q: %+v, want %+v", text, got, status)
			}
		}
	}
}

// A named daemon that is silent, hangs or is not installed makes the status
// unknown; with auto the kernel is asked then. Nobody waits for it longer than its limit.
func TestSilentDaemons(t *testing.T) {
	folder := t.TempDir()
	t.Setenv("PATH", folder)
	check := func(source string, want func(ClockStatus) bool) {
		t.Helper()
		began := time.Now()
		c := NewClock(ClockOptions{Source: source, Ptp4lSocket: folder})
		defer c.Close()
		if got := c.Status(); !want(got) || time.Since(began) > 20*clockAnswer {
			t.Errorf("%s: %+v after %v", source, got, time.Since(began))
		}
	}
	kernel := func(s ClockStatus) bool { return s.Source <= clockKernel }
	silent := func(number uint8) func(ClockStatus) bool {
		return func(s ClockStatus) bool { return s == ClockStatus{number, clockUnknown, unknownError} }
	}
	all := func() {
		t.Helper()
		check("auto", kernel)
		check("kernel", kernel)
		check("chrony", silent(clockChrony))
		check("ptp4l", silent(clockPtp4l))
	}
	all() // not installed
	for _, script := range []string{"echo; exit 1", "echo nonsense", "exec /bin/sleep 60"} {
		for _, program := range []string{"chronyc", "pmc"} {
			if err := os.WriteFile(filepath.Join(folder, program), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		all()
	}
}
