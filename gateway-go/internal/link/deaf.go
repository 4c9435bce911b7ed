package link

import (
	"errors"
	"net"
	"time"
)

// deafTo has a sidecar killed that listens and answers no greeting for as long as a
// silent one would have been borne: nobody else watches it before the handshake.
func (c *Client) deafTo(other *peer, err error) {
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		c.deaf = time.Time{}
		return
	}
	if c.deaf.IsZero() || c.deafPid != other.pid {
		c.deaf, c.deafPid = time.Now().Add(-greetTimeout), other.pid
	}
	if lasted := time.Since(c.deaf); c.config.RestartAfter > 0 && lasted > c.config.HeartbeatTimeout+c.config.RestartAfter {
		c.deaf = time.Time{}
		c.observer.LinkHung(other.pid, "it answered no greeting for "+lasted.Round(time.Millisecond).String())
		_ = other.kill()
	}
}

// greetTimeout is how long a sidecar may take to answer a greeting.
const greetTimeout = 2 * time.Second
