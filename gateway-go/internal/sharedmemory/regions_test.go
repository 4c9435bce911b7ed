package sharedmemory

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func object(t *testing.T, folder, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadAndWrite(t *testing.T) {
	folder := t.TempDir()
	path := object(t, folder, "x", []byte("0123456789"))
	r := New(Options{Folder: folder, Most: 2, AnyOwner: false})
	if err := r.Register(Region{"a", "/x", 2, 6}); err != nil {
		t.Fatal(err)
	}
	if data, err := r.Read("a", 1, 3); err != nil || string(data) != "345" {
		t.Errorf("%q, %v", data, err)
	}
	if err := r.Write("a", 2, 4, []byte("xyz")); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile(path); string(data) != "0123xyz789" {
		t.Errorf("%q", data)
	}
	if found, err := r.Status(""); err != nil || len(found) != 1 || found[0] != (Region{"a", "/x", 2, 6}) {
		t.Errorf("%v, %v", found, err)
	}
	r.Unregister("nobody")
	r.Unregister("a")
	if _, err := r.Read("a", 0, 1); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	folder := t.TempDir()
	path := object(t, folder, "x", make([]byte, 10))
	object(t, filepath.Dir(folder), "outside", make([]byte, 10))
	if err := os.Symlink(path, filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := New(Options{Folder: folder, Most: 2, AnyOwner: false})
	if err := r.Register(Region{"a", "x", 0, 10}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		region Region
		want   error
	}{
		{Region{"b", "nothing", 0, 1}, ErrNotOpen}, {Region{"b", "../outside", 0, 1}, ErrNotOpen}, {Region{"b", "/a/b", 0, 1}, ErrNotOpen},
		{Region{"b", "", 0, 1}, ErrNotOpen}, {Region{"b", "..", 0, 1}, ErrNotOpen}, {Region{"b", "x\n", 0, 1}, ErrNotOpen},
		{Region{"b", strings.Repeat("k", 256), 0, 1}, ErrNotOpen}, {Region{"b", "link", 0, 1}, ErrNotOpen}, {Region{"b", "folder", 0, 1}, ErrNotOpen},
		{Region{"b", "x", 0, 11}, ErrTooSmall}, {Region{"b", "x", 10, 1}, ErrTooSmall}, {Region{"b", "x", 0, 0}, ErrOutside},
		{Region{"b", "x", math.MaxUint64, 2}, ErrOutside}, {Region{"b", "x", 5, math.MaxUint64}, ErrOutside}, {Region{"b", "x", math.MaxInt64, 1}, ErrOutside},
		{Region{"b", "/sem.x", 0, 1}, ErrForeign}, {Region{"b", "sem.x", 0, 1}, ErrForeign}, {Region{"a", "x", 0, 1}, ErrExists},
	} {
		if err := r.Register(c.region); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, expected %v", c.region, err, c.want)
		}
	}
	for _, place := range [][2]uint64{{0, 11}, {10, 1}, {math.MaxUint64, 2}, {2, math.MaxUint64}, {11, 0}} {
		if _, err := r.Read("a", place[0], place[1]); !errors.Is(err, ErrOutside) {
			t.Errorf("%v: %v", place, err)
		}
	}
	if err := r.Register(Region{"b", "x", 0, 1}); err != nil {
		t.Fatal(err)
	}
	if err := r.Register(Region{"c", "x", 0, 1}); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
	if err := New(Options{Folder: folder, Most: 1, KeyPrefix: "vigil_"}).Register(Region{"b", "/x", 0, 1}); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	if os.Geteuid() == 0 {
		foreign := object(t, folder, "foreign", make([]byte, 10))
		if err := os.Chown(foreign, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if err := New(Options{Folder: folder, Most: 2, AnyOwner: false}).Register(Region{"f", "foreign", 0, 1}); !errors.Is(err, ErrForeign) {
			t.Error(err)
		}
		any := New(Options{Folder: folder, Most: 2, AnyOwner: true})
		if err := any.Register(Region{"f", "foreign", 0, 1}); err != nil {
			t.Error(err)
		}
		any.Unregister("")
	}
	r.Unregister("")
	if found, _ := r.Status(""); len(found) != 0 {
		t.Error(found)
	}
}

// An object that its owner cuts short gives an error, and is not made longer.
func TestAnObjectThatIsCutShort(t *testing.T) {
	folder := t.TempDir()
	path := object(t, folder, "x", make([]byte, 10))
	r := New(Options{Folder: folder, Most: 2, AnyOwner: false})
	if err := r.Register(Region{"a", "x", 0, 10}); err != nil {
		t.Fatal(err)
	}
	defer r.Unregister("")
	if err := os.Truncate(path, 4); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read("a", 0, 10); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
	if err := r.Write("a", 2, 8, make([]byte, 8)); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
	if info, _ := os.Stat(path); info.Size() != 4 {
		t.Error("the object became longer")
	}
}

// Uses and changes of regions from many sides keep to themselves; what is in use when it
// is unregistered is read to its end.
func TestFromManySides(t *testing.T) {
	folder := t.TempDir()
	object(t, folder, "x", bytes.Repeat([]byte{7}, 1<<16))
	r := New(Options{Folder: folder, Most: 64, AnyOwner: false})
	var all sync.WaitGroup
	for i := range 8 {
		name := string(rune('a' + i))
		all.Go(func() {
			for range 200 {
				if err := r.Register(Region{name, "x", 0, 1 << 16}); err != nil {
					t.Error(err)
				}
				if data, err := r.Read(name, 0, 1<<16); err != nil || data[1<<16-1] != 7 {
					t.Error(err)
				}
				r.Unregister(name)
			}
		})
		all.Go(func() {
			for range 200 {
				if data, err := r.Read(name, 0, 1<<16); err == nil && data[0] != 7 {
					t.Error("bytes of something else")
				}
			}
		})
	}
	all.Wait()
}
