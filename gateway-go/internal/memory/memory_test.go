package memory

import (
	"os"
	"path/filepath"
	"testing"
)

// write makes files under a folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const machine = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\n"

func TestAvailable(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
		of    string
	}{
		"nothing can be read": {map[string]string{}, 0, ""},
		"no group":            {map[string]string{"proc/meminfo": machine}, 600 << 10, "the machine"},
		"no limit": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/a\n", "fs/a/memory.max": "max\n", "fs/a/memory.current": "7\n",
		}, 600 << 10, "the machine"},
		"v2, what files hold can be dropped": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/a\n",
			"fs/a/memory.max": "100000\n", "fs/a/memory.current": "90000\n", "fs/a/memory.stat": "anon 1\ninactive_file 500\n",
		}, 10500, "the control group"},
		"v2, an outer group is tighter": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/a/b\n", "fs/a/b/memory.max": "100000\n", "fs/a/b/memory.current": "10\n",
			"fs/a/memory.max": "50000\n", "fs/a/memory.current": "49000\n",
		}, 1000, "the control group"},
		"v1, path of the host": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "3:cpu:/x\n4:memory:/host/only\n",
			"fs/memory/memory.limit_in_bytes": "80000\n", "fs/memory/memory.usage_in_bytes": "90000\n",
		}, 0, "the control group"},
		"v1 without a limit": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "4:memory:/\n",
			"fs/memory/memory.limit_in_bytes": "9223372036854771712\n", "fs/memory/memory.usage_in_bytes": "5\n",
		}, 600 << 10, "the machine"},
	} {
		t.Run(name, func(t *testing.T) {
			root := write(t, c.files)
			got, of := Available(filepath.Join(root, "proc"), filepath.Join(root, "fs"))
			if got != c.want || of != c.of {
				t.Errorf("%d of %q, want %d of %q", got, of, c.want, c.of)
			}
		})
	}
}

func TestThisMachineSaysSomething(t *testing.T) {
	if n, of := Available("/proc", "/sys/fs/cgroup"); n <= 0 || of == "" {
		t.Errorf("%d bytes of %q", n, of)
	}
}
