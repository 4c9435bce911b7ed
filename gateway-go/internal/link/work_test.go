package link

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

// What waits in the socket was said in time: that nobody read it yet is no silence of the sidecar's.
func TestWhatNobodyReadIsNoSilence(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	c, own := New(Config{}, nil), &processors{mark: map[string]thread{}}
	cn := &conn{net: ours}
	silent := func(before time.Duration) bool {
		cn.lastBeat = time.Now().Add(-before)
		c.excuse(cn, own, time.Now())
		return cn.silence() >= before
	}
	if !silent(time.Second) || own.mark == nil {
		t.Error("nothing waits, and the silence is excused")
	}
	if _, err := other.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if silent(time.Second) || own.mark != nil {
		t.Error("3 bytes wait, and the silence counts")
	}
	if !silent(time.Millisecond) {
		t.Error("what came just now is looked at")
	}
	if _, err := io.ReadFull(ours, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if !silent(time.Second) {
		t.Error("all was read, and the silence is excused")
	}
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	cn.net = server
	if !silent(time.Second) {
		t.Error("who cannot say what waits excuses nothing")
	}
}

// Before its first heartbeat a sidecar is starting; from then on only what it announces counts.
func TestAFirstHeartbeatHasTime(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	cn := newConn(near, &linkv1.Welcome{}, 1, 0)
	cn.lastBeat = time.Now().Add(-firstBeat / 2)
	if s := cn.silence(); s != 0 {
		t.Error("silent for", s)
	}
	beat := &linkv1.Heartbeat{Count: 1}
	beat.Crc = heartbeatCRC(beat)
	if err := cn.heartbeat(beat); err != nil {
		t.Fatal(err)
	}
	cn.lastBeat = time.Now().Add(-firstBeat / 2)
	if s := cn.silence(); s < firstBeat/2 {
		t.Error("silent for", s)
	}
}
