package auditlog

import (
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is the operations by which a log changes its files: the seam at which
// tests fail, record and cut them off. All methods may be called at the same time.
type Disk interface {
	// Open opens a file for reading and writing; with create a new, empty one.
	Open(path string, create bool) (*os.File, error)
	// Allocate makes room, so that later writes need none.
	Allocate(f *os.File, size int64) error
	WriteAt(f *os.File, data []byte, offset int64) error
	// Datasync forces the file's data to disk; Sync its size too.
	Datasync(f *os.File) error
	Sync(f *os.File) error
	Rename(from, to string) error
	Remove(path string) error
	// SyncFolder forces the folder's entries to disk.
	SyncFolder(path string) error
}

// realDisk is the file system.
type realDisk struct{}

func (realDisk) Open(path string, create bool) (*os.File, error) {
	flags, mode := os.O_RDWR, fs.FileMode(0)
	if create {
		flags, mode = os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640
	}
	return os.OpenFile(path, flags, mode)
}

func (realDisk) Allocate(f *os.File, size int64) error {
	return unix.Fallocate(int(f.Fd()), 0, 0, size)
}

func (realDisk) WriteAt(f *os.File, data []byte, offset int64) error {
	_, err := f.WriteAt(data, offset)
	return err
}

func (realDisk) Datasync(f *os.File) error    { return unix.Fdatasync(int(f.Fd())) }
func (realDisk) Sync(f *os.File) error        { return f.Sync() }
func (realDisk) Rename(from, to string) error { return os.Rename(from, to) }
func (realDisk) Remove(path string) error     { return os.Remove(path) }
func (realDisk) SyncFolder(path string) error { return syncFolder(path) }

// RealDisk is the file system itself, for those who wrap it.
var RealDisk Disk = realDisk{}

// duplicate gives a second descriptor of a file, which may be forced to disk
// while the first is closed.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// fill puts the real world in where nothing else is given.
func (o *Options) fill() {
	if o.Disk == nil {
		o.Disk = RealDisk
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Clock == nil {
		o.Clock = kernelClock
	}
}
