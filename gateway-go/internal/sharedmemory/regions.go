// Package sharedmemory keeps the regions of POSIX shared memory that callers registered
// (Triton's system shared memory extension), and copies tensors out of and into them.
// Regions are read and written by system calls, never mapped: one that its owner cuts
// short gives an error rather than a signal, and what was copied no longer changes.
package sharedmemory

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Folder is where Linux keeps POSIX shared memory (shm_overview(7)).
const Folder = "/dev/shm"

// Region is what was registered: bytes Offset to Offset+Size of a shared memory object.
type Region struct {
	Name, Key    string
	Offset, Size uint64
}

// Reasons why a region cannot be used.
var (
	ErrExists   = errors.New("is registered already")
	ErrUnknown  = errors.New("unable to find the shared memory region")
	ErrTooMany  = errors.New("too many shared memory regions are registered")
	ErrNotOpen  = errors.New("unable to open the shared memory")
	ErrForeign  = errors.New("the shared memory belongs to another user")
	ErrOutside  = errors.New("invalid offset and byte size for the shared memory region")
	ErrTooSmall = errors.New("the shared memory is too small")
)

// keys are names of shared memory objects: shm_open(3) makes one folder of them.
var keys = regexp.MustCompile(`^/?[A-Za-z0-9_.-]{1,255}$`)

// open is a region whose object stays open until it is unregistered and unused.
type open struct {
	Region
	file *os.File
	uses sync.WaitGroup
}

// Options of Regions.
type Options struct {
	// Folder of the objects, and how many regions there may be.
	Folder string
	Most   int
	// AnyOwner also takes objects of other users than the one this process runs as.
	AnyOwner bool
	// KeyPrefix is what the names of objects must begin with.
	KeyPrefix string
}

// Regions keeps regions by name. All methods may be called at the same time.
type Regions struct {
	options Options
	mu      sync.Mutex
	byName  map[string]*open
}

// New keeps regions.
func New(options Options) *Regions { return &Regions{options: options, byName: map[string]*open{}} }

// Register opens a region. The object must exist, be an ordinary one of the user that
// this process runs as, and hold the bytes.
func (r *Regions) Register(region Region) error {
	if !keys.MatchString(region.Key) {
		return fmt.Errorf("%w: key %q is not a name of 1 to 255 letters, digits, '_', '-' and '.'", ErrNotOpen, region.Key)
	}
	object := strings.TrimPrefix(region.Key, "/")
	if strings.HasPrefix(object, "sem.") || !strings.HasPrefix(object, r.options.KeyPrefix) {
		return fmt.Errorf("%w: key %q is a semaphore, or does not begin with %q (shared_memory.key_prefix)", ErrForeign, region.Key, r.options.KeyPrefix)
	}
	if region.Size == 0 || region.Offset > math.MaxInt64 || region.Size > math.MaxInt64-region.Offset {
		return fmt.Errorf("%w '%s': offset %d, byte size %d", ErrOutside, region.Name, region.Offset, region.Size)
	}
	file, err := os.OpenFile(filepath.Join(r.options.Folder, object), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%w region: '%s'", ErrNotOpen, region.Name)
	}
	if err := r.suits(file, region); err != nil {
		file.Close()
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.byName[region.Name]
	switch {
	case known:
		err = fmt.Errorf("shared memory region '%s' %w", region.Name, ErrExists)
	case len(r.byName) >= r.options.Most:
		err = fmt.Errorf("%w: %d", ErrTooMany, r.options.Most)
	default:
		r.byName[region.Name] = &open{Region: region, file: file}
		return nil
	}
	file.Close()
	return err
}

func (r *Regions) suits(file *os.File, region Region) error {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%w region: '%s'", ErrNotOpen, region.Name)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("%w region: '%s'", ErrNotOpen, region.Name)
	}
	if !r.options.AnyOwner && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%w (shared_memory.any_owner): '%s'", ErrForeign, region.Name)
	}
	if uint64(info.Size()) < region.Offset+region.Size {
		return fmt.Errorf("%w: region '%s' ends at byte %d, the object has %d", ErrTooSmall, region.Name, region.Offset+region.Size, info.Size())
	}
	return nil
}

// Unregister forgets a region, or all with an empty name; what uses one at the moment
// ends well. Unknown names are no error.
func (r *Regions) Unregister(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, o := range r.byName {
		if name == "" || n == name {
			delete(r.byName, n)
			go func() { o.uses.Wait(); o.file.Close() }()
		}
	}
}

// Status gives one region, or all with an empty name.
func (r *Regions) Status(name string) ([]Region, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Region
	for n, o := range r.byName {
		if name == "" || n == name {
			out = append(out, o.Region)
		}
	}
	if name != "" && len(out) == 0 {
		return nil, fmt.Errorf("%w: '%s'", ErrUnknown, name)
	}
	return out, nil
}

// use gives a region for as long as done was not called, and the place in its object of
// size bytes from offset on.
func (r *Regions) use(name string, offset, size uint64) (o *open, at int64, done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o = r.byName[name]
	if o == nil {
		return nil, 0, nil, fmt.Errorf("%w: '%s'", ErrUnknown, name)
	}
	if size > o.Size || offset > o.Size-size {
		return nil, 0, nil, fmt.Errorf("%w '%s': offset %d, byte size %d, the region has %d bytes", ErrOutside, name, offset, size, o.Size)
	}
	o.uses.Add(1)
	return o, int64(o.Offset + offset), o.uses.Done, nil
}

// Check says why bytes of a region cannot be used.
func (r *Regions) Check(name string, offset, size uint64) error {
	_, _, done, err := r.use(name, offset, size)
	if err == nil {
		done()
	}
	return err
}

// Read copies bytes out of a region.
func (r *Regions) Read(name string, offset, size uint64) ([]byte, error) {
	o, at, done, err := r.use(name, offset, size)
	if err != nil {
		return nil, err
	}
	defer done()
	data := make([]byte, size)
	if _, err := o.file.ReadAt(data, at); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: region '%s' was cut short since it was registered", ErrTooSmall, name)
		}
		return nil, fmt.Errorf("%w region: '%s'", ErrNotOpen, name)
	}
	return data, nil
}

// Write copies data into a region, which is given as size bytes from offset on. An object
// that was cut short is not made longer.
func (r *Regions) Write(name string, offset, size uint64, data []byte) error {
	o, at, done, err := r.use(name, offset, size)
	if err != nil {
		return err
	}
	defer done()
	info, err := o.file.Stat()
	if err != nil || info.Size() < at+int64(len(data)) {
		return fmt.Errorf("%w: region '%s' was cut short since it was registered", ErrTooSmall, name)
	}
	if _, err := o.file.WriteAt(data, at); err != nil {
		return fmt.Errorf("%w region: '%s'", ErrNotOpen, name)
	}
	return nil
}
