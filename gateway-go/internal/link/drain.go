package link

import linkv1 "vigil/gateway/gen/vigil/link/v1"

// drain makes the sidecar get no new calls: it is about to stop, and waits to
// hear that the last one's reply came.
func (c *conn) drain() {
	c.mu.Lock()
	c.draining = true
	c.mu.Unlock()
	c.settle()
}

// settle tells a sidecar that is about to stop, once, when no unary call waits
// for it any more. Streams do not end by themselves and are not waited for.
func (c *conn) settle() {
	c.mu.Lock()
	tell := c.draining && !c.drained
	if tell {
		for _, p := range c.pending {
			tell = tell && p.failed != nil
		}
	}
	c.drained = c.drained || tell
	c.mu.Unlock()
	if tell {
		_ = c.w.send(&linkv1.Frame{Body: &linkv1.Frame_Drained{Drained: &linkv1.Drained{}}}, true)
	}
}
