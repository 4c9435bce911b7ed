package link

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// holding makes a FIFO beside a socket and holds it, as a sidecar does.
func holding(t *testing.T, folder, name string) *os.File {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f := must(os.OpenFile(path, os.O_RDWR, 0))
	t.Cleanup(func() { f.Close() })
	return f
}

func startHeld(t *testing.T, folder string, lifelines ...string) (*Client, *sidecar, *heard) {
	t.Helper()
	config := Config{Socket: filepath.Join(folder, "sidecar.sock")}
	return startWith(t, config, &linkv1.Welcome{ProtocolVersion: ProtocolVersion, Methods: []string{method}, Lifelines: lifelines})
}

// Either of two lifelines ends the calls, though the socket stays open: what a killed
// process's files do while the kernel frees its memory.
func TestALifelineThatEndsFailsCallsAtOnce(t *testing.T) {
	for ended := range 2 {
		folder := t.TempDir()
		lines := []*os.File{holding(t, folder, "life0"), holding(t, folder, "life1")}
		c, s, h := startHeld(t, folder, "life0", "life1")
		waiting := make(chan error, 1)
		go func() {
			_, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{})
			waiting <- err
		}()
		if s.next().GetCalls() == nil {
			t.Fatal("no call came")
		}
		lines[ended].Close()
		select {
		case err := <-waiting:
			if err == nil {
				t.Error("a call was answered by nobody")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a call waits for a process that ended")
		}
		wait(t, func() bool {
			return h.get(func(h *heard) bool {
				return len(h.down) == 1 && h.down[0] == "the sidecar's process ended" && !h.damage
			})
		})
	}
}

// What a dead sidecar had answered is still read.
func TestLastWordsAreRead(t *testing.T) {
	folder := t.TempDir()
	line := holding(t, folder, "life0")
	c, s, _ := startHeld(t, folder, "life0")
	answered := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), "", method, []byte("x"), &linkv1.Context{})
		answered <- err
	}()
	s.answer(s.next().GetCalls(), true)
	line.Close()
	if err := <-answered; err != nil {
		t.Errorf("an answer that was sent was lost: %v", err)
	}
}

// Names that lead elsewhere, are missing or are no FIFO are not followed, and the link works.
func TestOnlyFIFOsBesideTheSocketAreFollowed(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	held := holding(t, outside, "life0")
	if err := os.Symlink(held.Name(), filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	one, two := net.Pipe()
	defer one.Close()
	defer two.Close()
	lines := follow(one, folder, []string{"missing", "file", "link", held.Name()})
	defer lines.release()
	if len(lines.files) != 0 {
		t.Errorf("%d followed", len(lines.files))
	}
}
