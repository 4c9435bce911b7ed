package edge

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// seen are frames as a scanner tells of them.
func seen(out *[]string) func(http2.FrameType, http2.Flags, int, uint32) {
	return func(kind http2.FrameType, flags http2.Flags, length int, stream uint32) {
		*out = append(*out, fmt.Sprintf("%v %d %d %d", kind, flags, length, stream))
	}
}

// However the bytes are cut, the frames are those that net/http2 wrote.
func TestScannerFindsFrames(t *testing.T) {
	var wire bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&wire, nil)
	f.AllowIllegalWrites = true
	for _, err := range []error{
		f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20}),
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("abc"), EndHeaders: true}),
		f.WriteData(1, false, make([]byte, 70_000)), f.WriteData(1, true, nil), f.WriteRSTStream(1<<31-1, http2.ErrCodeCancel), f.WritePing(false, [8]byte{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"SETTINGS 0 6 0", "HEADERS 4 3 1", "DATA 0 70000 1", "DATA 1 0 1", "RST_STREAM 0 4 2147483647", "PING 0 8 0"}
	for size := 1; size < 100; size++ {
		var got []string
		var in incoming
		payload := map[uint32]int{}
		for piece := range slices.Chunk(wire.Bytes(), size) {
			in.scan(piece, seen(&got), func(stream uint32, b []byte) { payload[stream] += len(b) })
		}
		if !slices.Equal(got, want) || in.plain || len(payload) != 1 || payload[1] != 70_000 {
			t.Fatalf("in pieces of %d: %q", size, got)
		}
	}
	var got []string
	var in incoming
	for _, piece := range []string{"PRI * HT", "TP/1.1\r\n", string(wire.Bytes()[24:])} {
		in.scan([]byte(piece), seen(&got), nil)
	}
	if len(got) > 0 || !in.plain {
		t.Errorf("what is no HTTP/2 had frames: %q", got)
	}
}

func TestFrameBudget(t *testing.T) {
	start := time.Unix(0, 0)
	spend := func(f *frameBudget, n int, kind http2.FrameType, length int) *frameBudget {
		for range n {
			f.frame(kind, length)
		}
		return f
	}
	fresh := func() *frameBudget { return newFrameBudget(100, start) }
	for _, c := range []struct {
		name string
		f    *frameBudget
		want time.Duration
	}{
		{"as many as are saved", spend(fresh(), 100, http2.FramePing, 8), 0},
		{"two more", spend(fresh(), 102, http2.FramePing, 8), 20 * time.Millisecond},
		{"many more wait in steps", spend(fresh(), 1000, http2.FrameSettings, 0), delayMax},
		{"data is free", spend(fresh(), 1000, http2.FrameData, smallData), 0},
		{"empty data is not", spend(fresh(), 202, http2.FrameData, 0), 10 * time.Millisecond},
		{"calls are free", spend(spend(spend(fresh(), 1000, http2.FrameHeaders, 50), 50, http2.FrameHeaders, 1), 200, http2.FrameData, 5), 0},
		{"calls that are taken back are not", spend(spend(fresh(), 1000, http2.FrameHeaders, 50), 17, http2.FrameRSTStream, 4), 20 * time.Millisecond},
	} {
		if got := c.f.wait(start).Round(time.Millisecond); got != c.want {
			t.Errorf("%s: waits %v, want %v", c.name, got, c.want)
		}
	}
	f := spend(fresh(), 150, http2.FramePing, 8)
	if f.wait(start.Add(400*time.Millisecond)) == 0 || f.wait(start.Add(500*time.Millisecond)) != 0 {
		t.Errorf("half a second pays for 50, not for more: %v", f.tokens)
	}
	f = spend(fresh(), 150, http2.FrameWindowUpdate, 4)
	if f.pay(40 * bytesForOne); f.wait(start).Round(time.Millisecond) != delayMax {
		t.Errorf("bytes of answers pay for 40: %v", f.tokens)
	}
	if f.pay(1 << 40); f.wait(start) != 0 || f.tokens > 100 {
		t.Errorf("no more than a second is saved: %v", f.tokens)
	}
}

func TestWhoOnlyWaitsFloods(t *testing.T) {
	f, now := newFrameBudget(1, time.Unix(0, 0)), time.Unix(0, 0)
	for range 300 { // half of the time
		now = now.Add(100 * time.Millisecond)
		if f.floods(50*time.Millisecond, now) {
			t.Fatal("half of the time is no flood")
		}
	}
	for i := range 200 {
		now = now.Add(50 * time.Millisecond)
		if f.floods(50*time.Millisecond, now) {
			if i < 70 {
				t.Fatalf("ended after %d waits", i)
			}
			return
		}
	}
	t.Fatal("was never ended")
}
