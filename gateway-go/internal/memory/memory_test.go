package memory

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestAvailable reads made-up machines, which the sidecar's reading is held against too.
func TestAvailable(t *testing.T) {
	data, err := os.ReadFile("../../../tests/vectors/memory.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name      string
		Files     map[string]string
		Available int64
		Of        string
	}
	if err := json.Unmarshal(data, &cases); err != nil || len(cases) < 7 {
		t.Fatal(len(cases), "cases:", err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.Files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, of := Available(filepath.Join(root, "proc"), filepath.Join(root, "fs"))
			if got != c.Available || of != c.Of {
				t.Errorf("%d of %q, want %d of %q", got, of, c.Available, c.Of)
			}
		})
	}
}

func TestThisMachineSaysSomething(t *testing.T) {
	if n, of := Available("/proc", "/sys/fs/cgroup"); n <= 0 || of == "" {
		t.Errorf("%d bytes of %q", n, of)
	}
}
