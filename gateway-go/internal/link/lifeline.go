package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lifelinesMax = 4
	// lastWords is how long what a dead sidecar had sent is still read.
	lastWords = 2 * time.Millisecond
	// endWait is how long a dead sidecar's socket may take to close before we knock again.
	endWait = 2 * time.Second
)

// lifelines are FIFOs that threads of the sidecar hold open (docs/link.md): the first
// that closes says that the process ends, before the kernel has taken its memory apart
// and closed its socket.
type lifelines struct {
	files []*os.File
	over  atomic.Bool // one was closed at its other end
	done  sync.WaitGroup
}

// follow opens lifelines in the socket's folder, and ends the reading of raw soon after
// one has ended. One that is missing is not followed: the socket's closing says the same
// later.
func follow(raw net.Conn, folder string, names []string) *lifelines {
	out := &lifelines{}
	for _, name := range names[:min(len(names), lifelinesMax)] {
		f, err := os.OpenFile(filepath.Join(folder, filepath.Base(name)), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
			f.Close()
			continue
		}
		out.files = append(out.files, f)
		out.done.Go(func() {
			var none [1]byte
			// SR-053
			if n, err := f.Read(none[:]); n == 0 && errors.Is(err, io.EOF) {
				out.over.Store(true)
				_ = raw.SetReadDeadline(time.Now().Add(lastWords))
			}
		})
	}
	return out
}

// release closes them and waits until nobody reads them.
func (l *lifelines) release() {
	for _, f := range l.files {
		f.Close()
	}
	l.done.Wait()
}

// awaitEnd waits until a process that ends has closed its files: only then does another
// one listen on its socket.
func (c *Client) awaitEnd(ctx context.Context, pid int) {
	for end := time.Now().Add(endWait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(lookGap / 2) {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if state := stateOf(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || len(threads) <= 1 && (state == 'Z' || state == 'X' || state == 0) {
			return
		}
	}
}
