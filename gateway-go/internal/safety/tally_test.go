package safety

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	path := filepath.Join(t.TempDir(), "safety", "counts.json")
	first := OpenTally(path)
	for range 3 {
		if err := first.Count(CountRestarted, "sidecar"); err != nil {
			t.Fatal(err)
		}
	}
	if second := OpenTally(path); second.Of(CountRestarted, "sidecar") != 3 || second.Of(CountExpired, "sidecar") != 0 || second.Problem() != "" {
		t.Errorf("got %v, %s", second.All(), second.Problem())
	}
	for _, content := range []string{"", "{", "[]", "{}", `{"version": 2, "counts": {}}`, `{"version": 1, "counts": {"a": -1}}`, "\xff"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		broken := OpenTally(path)
		if !strings.Contains(broken.Problem(), "cannot be read") {
			t.Errorf("%q was taken: %v", content, broken.All())
		}
		if err := broken.Count(CountDegraded, "sidecar"); err != nil || OpenTally(path).Of(CountDegraded, "sidecar") != 1 {
			t.Errorf("after %q: %v", content, err)
		}
		if kept, err := os.ReadFile(path + ".unreadable"); err != nil || string(kept) != content {
			t.Errorf("%q was not put aside: %q, %v", content, kept, err)
		}
	}
}
