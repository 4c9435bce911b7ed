package flow

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
	"vigil/gateway/internal/fair"
)

// A large call is refused, with the figures, when all that is in flight could take more at the sidecar
// than that has by its last heartbeat; a small one never, and none while nothing is known.
func TestLargeCallsNeedTheSidecarsMemory(t *testing.T) {
	s := &Service{limits: Limits{CallsInFlightMax: 9, BytesInFlightMax: 1 << 40, MessageBytesMax: 1 << 40}}
	free := uint64(sidecarCopies * 10 << 20)
	enough := func(size int64) *CallError {
		err := s.admit(nil, size)
		if err == nil {
			s.calls.Add(-1)
			s.bytes.Add(-size)
		}
		if s.calls.Load() != 0 || s.bytes.Load() != 0 {
			t.Fatalf("%d calls and %d bytes stay", s.calls.Load(), s.bytes.Load())
		}
		return err
	}
	if err := enough(1 << 30); err != nil {
		t.Error("refused before anything is known:", err.Text)
	}
	s.noteMemory(&linkv1.Heartbeat{MemoryFree: &free})
	if err := enough(10 << 20); err != nil {
		t.Error("what fits just so is refused:", err.Text)
	}
	err := enough(10<<20 + 1)
	if err == nil || err.Code != codes.ResourceExhausted || !strings.Contains(err.Text, "limits.memory_reserve_bytes") || !strings.Contains(err.Text, "10485761") {
		t.Errorf("one byte more: %+v", err)
	}
	free = 0
	s.noteMemory(&linkv1.Heartbeat{MemoryFree: &free})
	if err := enough(fitsFrom - 1); err != nil {
		t.Error("a small call is refused:", err.Text)
	}
	s.bytes.Store(fitsFrom) // of small calls, each
	if err := s.admit(nil, 1); err == nil {
		t.Error("many small calls take what large ones may not")
	}
	s.bytes.Store(0)
	s.noteMemory(&linkv1.Heartbeat{})
	if err := enough(1 << 30); err != nil {
		t.Error("refused although nothing is known any more:", err.Text)
	}
}

// A flow that holds no call gets a place beyond the limit, one; all of them together an eighth, and who has calls none.
func TestAFlowWithoutACallHasAPlace(t *testing.T) {
	s := &Service{limits: Limits{CallsInFlightMax: 16, BytesInFlightMax: 100, MessageBytesMax: 100}}
	table := fair.NewTable(nil, 100)
	flow := func(tenant string) *fair.Flow { return table.Flow("s", tenant, "", time.Now()) }
	held := flow("greedy")
	held.Held.Store(16)
	s.calls.Store(16)
	if err := s.admit(held, 1); err == nil {
		t.Error("who has all places gets another")
	}
	for _, tenant := range []string{"a", "b"} {
		if err := s.admit(flow(tenant), 1); err != nil {
			t.Error(tenant, "has no call, and gets no place:", err.Text)
		}
	}
	if err := s.admit(flow("c"), 1); err == nil {
		t.Error("more than an eighth beyond the limit")
	}
	if n := s.bytes.Load(); n != 2 {
		t.Errorf("%d bytes are taken for 2", n)
	}
}
