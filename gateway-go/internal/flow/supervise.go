package flow

import (
	"strings"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// supervised is what the sidecar last said of its own parts. It belongs to the
// link's reading goroutine.
type supervised struct {
	cycles   uint64
	advanced time.Time
	looked   time.Time
	boot     string
}

// supervise judges what a heartbeat says of the sidecar's parts, and tells what is
// wrong. What is missing, or stands still, counts as expired; what stays so for too
// long has the sidecar replaced.
func (s *Service) supervise(report *linkv1.Supervision) string {
	now := time.Now()
	if s.seen.boot != s.boot {
		s.seen = supervised{advanced: now, boot: s.boot}
	}
	if now.Sub(s.seen.looked) > s.limits.SupervisionTimeout/2 { // we stood still ourselves, or nothing came: that is for others to judge
		s.seen.advanced = now
	}
	s.seen.looked = now
	if report.GetCycles() > s.seen.cycles {
		s.seen.cycles, s.seen.advanced = report.GetCycles(), now
	}
	expired := clip(strings.Join(report.GetExpired(), "; "), 512)
	switch stands := now.Sub(s.seen.advanced); {
	case report.GetStatus() == linkv1.Supervision_STATUS_STOPPED:
		s.condemn("its supervision stopped: " + expired)
		return "supervision stopped: " + expired
	// SR-019
	case stands > s.limits.SupervisionTimeout:
		text := "the sidecar's supervision stands still since " + stands.Round(time.Millisecond).String()
		if s.limits.RestartAfter > 0 && stands > s.limits.SupervisionTimeout+s.limits.RestartAfter {
			s.condemn(text)
		}
		return text
	case report.GetStatus() == linkv1.Supervision_STATUS_EXPIRED:
		return "supervision expired: " + expired
	}
	return ""
}

func (s *Service) condemn(why string) {
	if s.limits.RestartAfter > 0 {
		s.link.Condemn(why)
	}
}
