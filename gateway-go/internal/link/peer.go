package link

import (
	"bytes"
	"errors"
	"fmt"
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
	stat    string
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
	return &peer{process, int(cred.Pid), fmt.Sprintf("/proc/%d/stat", cred.Pid)}, nil
}

// stopped says whether the process stands still: stopped by a signal or a debugger
// (proc_pid_stat(5), state T or t). A busy one never does.
func (p *peer) stopped() bool {
	state := stateOf(p.stat)
	return state == 'T' || state == 't'
}

// stateOf gives the state in a stat file of proc, 0 when there is none.
func stateOf(path string) byte {
	if fields := fieldsOf(path); len(fields) > 0 {
		return fields[0][0]
	}
	return 0
}

// fieldsOf are the fields of a stat in proc behind the name, the state first; none where it
// cannot be read.
func fieldsOf(path string) [][]byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) // its name may hold anything
}

func (p *peer) kill() error { return p.process.Signal(unix.SIGKILL) }

func (p *peer) signal(which unix.Signal) error { return p.process.Signal(which) }

func (p *peer) release() { _ = p.process.Release() }
