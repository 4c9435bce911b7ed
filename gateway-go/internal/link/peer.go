package link

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a Unix socket, as the kernel names it.
// The handle is the process's own (pidfd): another one that later gets its number
// is never meant.
type peer struct {
	process *os.Process
	pid     int
}

func peerOf(raw net.Conn) (*peer, error) {
	u, ok := raw.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a Unix socket")
	}
	control, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var failed error
	if err := control.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	process, err := os.FindProcess(int(cred.Pid))
	if err != nil {
		return nil, err
	}
	return &peer{process, int(cred.Pid)}, nil
}

func (p *peer) kill() error { return p.process.Signal(unix.SIGKILL) }

func (p *peer) release() { _ = p.process.Release() }
