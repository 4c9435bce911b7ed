package flow

import (
	"strings"
	"testing"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/link"
)

// What a heartbeat says of the sidecar's parts, and what is missing, is told; what
// lasts has the sidecar condemned.
func TestSupervisionOfTheSidecar(t *testing.T) {
	s := &Service{limits: Limits{SupervisionTimeout: 50 * time.Millisecond, RestartAfter: 50 * time.Millisecond}, boot: "a"}
	s.link = link.New(link.Config{}, nil)
	say := func(cycles uint64, status linkv1.Supervision_Status, expired ...string) string {
		return s.supervise(&linkv1.Supervision{Cycles: cycles, Status: status, Expired: expired})
	}
	if text := say(1, linkv1.Supervision_STATUS_OK); text != "" {
		t.Fatal(text)
	}
	if text := say(2, linkv1.Supervision_STATUS_FAILED, "x"); text != "" {
		t.Fatal("what is borne was told: ", text)
	}
	if text := say(3, linkv1.Supervision_STATUS_EXPIRED, "registry: gone"); !strings.Contains(text, "registry: gone") {
		t.Fatal(text)
	}
	wait := func() { // heartbeats go on coming, with nothing new in them
		for range 8 {
			time.Sleep(8 * time.Millisecond)
			say(3, linkv1.Supervision_STATUS_OK)
		}
	}
	wait()
	for name, report := range map[string]*linkv1.Supervision{"missing": nil, "the same again": {Cycles: 3, Status: linkv1.Supervision_STATUS_OK}} {
		if text := s.supervise(report); !strings.Contains(text, "stands still") {
			t.Errorf("%s: %q", name, text)
		}
	}
	if s.link.Condemned() != "" {
		t.Fatal("condemned too early")
	}
	wait()
	if s.supervise(nil); !strings.Contains(s.link.Condemned(), "stands still") {
		t.Fatal("not condemned")
	}
	time.Sleep(100 * time.Millisecond)
	if text := say(3, linkv1.Supervision_STATUS_OK); text != "" {
		t.Fatal("the gateway's own pause was called the sidecar's: ", text)
	}
	s.boot = "b" // another run has its own count
	if text := say(1, linkv1.Supervision_STATUS_OK); text != "" {
		t.Fatal(text)
	}
	if text := say(2, linkv1.Supervision_STATUS_STOPPED, "run/m: late"); !strings.Contains(text, "run/m: late") || !strings.Contains(s.link.Condemned(), "run/m: late") {
		t.Fatal(text, s.link.Condemned())
	}
}
