// Command crashtool is the Go writer's half of the crash tests: it records the
// operations of a log's life, and opens logs that a power cut left. Built by
// tests/fault/test_crash.py only.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/auditlog"
	"vigil/gateway/internal/events"
)

const segmentBytes = 12 << 10

type op struct {
	Kind   string `json:"kind"`
	Inode  uint64 `json:"inode"`
	Name   string `json:"name"`
	Target string `json:"target"`
	Offset int64  `json:"offset"`
	Data   []byte `json:"data"`
}

// recorder is the file system, with every change written down; forcing at the
// place skip is left out of what is written down.
type recorder struct {
	auditlog.Disk
	mu     sync.Mutex
	ops    []op
	places map[string]bool
	skip   string
	// before is called before each change when it is set.
	before func()
}

func inode(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		panic(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func (r *recorder) add(o op) {
	if r.before != nil {
		r.before()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

func (r *recorder) force(o op) {
	pc, file, _, _ := runtime.Caller(2)
	name := runtime.FuncForPC(pc).Name()
	place := filepath.Base(file) + ":" + name[strings.LastIndex(name, ".")+1:] + ":" + o.Kind
	r.mu.Lock()
	r.places[place] = true
	r.mu.Unlock()
	if place != r.skip {
		r.add(o)
	}
}

func (r *recorder) Open(path string, create bool) (*os.File, error) {
	f, err := r.Disk.Open(path, create)
	if err == nil && create {
		r.add(op{Kind: "create", Inode: inode(f), Name: filepath.Base(path)})
	}
	return f, err
}

func (r *recorder) Allocate(f *os.File, size int64) error {
	r.add(op{Kind: "allocate", Inode: inode(f), Offset: size})
	return r.Disk.Allocate(f, size)
}

func (r *recorder) WriteAt(f *os.File, data []byte, offset int64) error {
	r.add(op{Kind: "write", Inode: inode(f), Offset: offset, Data: append([]byte(nil), data...)})
	return r.Disk.WriteAt(f, data, offset)
}

func (r *recorder) Datasync(f *os.File) error {
	err := r.Disk.Datasync(f)
	r.force(op{Kind: "force", Inode: inode(f)})
	return err
}

func (r *recorder) Sync(f *os.File) error {
	err := r.Disk.Sync(f)
	r.force(op{Kind: "force", Inode: inode(f)})
	return err
}

func (r *recorder) Rename(from, to string) error {
	err := r.Disk.Rename(from, to)
	r.add(op{Kind: "rename", Name: filepath.Base(from), Target: filepath.Base(to)})
	return err
}

func (r *recorder) Remove(path string) error {
	err := r.Disk.Remove(path)
	if err == nil {
		r.add(op{Kind: "unlink", Name: filepath.Base(path)})
	}
	return err
}

func (r *recorder) SyncFolder(path string) error {
	err := r.Disk.SyncFolder(path)
	r.force(op{Kind: "folder"})
	return err
}

type promise struct {
	Done     int    `json:"done"`
	Sequence uint64 `json:"sequence"`
	Leaf     []byte `json:"leaf"`
	Note     []byte `json:"note"`
	Closed   bool   `json:"closed"`
}

type keys struct {
	Done  int               `json:"done"`
	Files map[string][]byte `json:"files"`
}

// life is what is recorded of one.
type life struct {
	Ops      []op      `json:"ops"`
	Promises []promise `json:"promises"`
	Keys     []keys    `json:"keys"`
	FirstKey string    `json:"first_key"`
	Places   []string  `json:"places"`
	Kept     []promise `json:"kept"`

	bytesMax           int64
	folder, durability string
	disk               *recorder
	random             *rand.Rand
	w                  *auditlog.Writer
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "crashtool:", err)
		os.Exit(1)
	}
}

func options(folder, durability string, disk auditlog.Disk, bytesMax int64) auditlog.Options {
	return auditlog.Options{
		Retention: auditlog.Retention{BytesMax: bytesMax, KeptBytesMax: 1 << 20, Manual: true}, Report: func(err error) { check(err) },
		Folder: filepath.Join(folder, "log"), Log: "gateway", Durability: durability, SyncInterval: time.Hour, SegmentBytes: segmentBytes,
		KeyFolder: filepath.Join(folder, "keys"), CheckpointRecords: 1 << 30, CheckpointInterval: time.Hour, Disk: disk,
		Describe: func(text string, _ map[string]string) []byte { return []byte(text) },
	}
}

func (l *life) keepKeys() {
	found := map[string][]byte{}
	entries, err := os.ReadDir(filepath.Join(l.folder, "keys"))
	check(err)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(l.folder, "keys", e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // the sealer renamed it meanwhile
			l.keepKeys()
			return
		}
		check(err)
		found[e.Name()] = data
	}
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	if n := len(l.Keys); n > 0 && reflect.DeepEqual(l.Keys[n-1].Files, found) {
		return
	}
	l.Keys = append(l.Keys, keys{len(l.disk.ops), found})
}

func (l *life) done() int { l.disk.mu.Lock(); defer l.disk.mu.Unlock(); return len(l.disk.ops) }

func (l *life) open() {
	var err error
	l.w, err = auditlog.Open(options(l.folder, l.durability, l.disk, l.bytesMax))
	check(err)
	time.Sleep(150 * time.Millisecond) // the first checkpoint is made by itself
}

func (l *life) append(count int, kind uint16) {
	for range count {
		payload := make([]byte, l.random.Intn(60))
		l.random.Read(payload)
		event := events.LimitHit
		if kind == layout.KindState {
			event = events.StateChanged
		}
		sequence, err := l.w.Append(&auditlog.Entry{Kind: kind, EventID: event, Payload: payload})
		check(err)
		if kind == layout.KindState {
			l.Kept = append(l.Kept, promise{Done: l.done(), Sequence: sequence})
		}
		if l.durability == "power" {
			l.Promises = append(l.Promises, promise{Done: l.done(), Sequence: sequence, Leaf: l.leaf(sequence)})
		}
	}
}

// leaf reads a record's leaf hash back: pruning may take the record away later.
func (l *life) leaf(sequence uint64) []byte {
	var leaf []byte
	_, err := audit.Read(filepath.Join(l.folder, "log"), func(r *audit.Record) error {
		if r.Sequence == sequence {
			leaf = append(leaf, r.Leaf[:]...)
		}
		return nil
	})
	if len(leaf) == 0 && errors.Is(err, fs.ErrNotExist) { // pruned meanwhile
		return l.leaf(sequence)
	}
	if len(leaf) == 0 {
		check(err)
	}
	return leaf
}

func (l *life) seal() {
	note, err := l.w.Seal()
	check(err)
	l.Promises = append(l.Promises, promise{Done: l.done(), Note: note})
	segments, err := filepath.Glob(filepath.Join(l.folder, "log", "segment-*.vlog"))
	check(err)
	if l.bytesMax > 0 && len(segments) > 3 { // so that several go at once
		l.w.Prune()
	}
}

func (l *life) close() {
	check(l.w.Close())
	l.Promises = append(l.Promises, promise{Done: l.done(), Closed: true})
}

func (l *life) live() {
	l.open()
	data, err := os.ReadFile(filepath.Join(l.folder, "keys", "audit-gateway.pub"))
	check(err)
	l.FirstKey = strings.Fields(string(data))[0]
	for range 4 {
		l.append(1+l.random.Intn(4), layout.KindRefusal)
		l.append(1, layout.KindAnchor)
		if l.bytesMax > 0 {
			l.append(1, layout.KindState)
		}
		l.append(l.random.Intn(5), layout.KindRefusal)
		l.seal()
		l.append(5+l.random.Intn(3), layout.KindRefusal)
	}
	note := []byte("vigil/sidecar/0\n1\nAAAA\n\n\u2014 a AAAAAAAA\n")
	_, err = l.w.Append(&auditlog.Entry{Kind: layout.KindAnchor, EventID: events.Anchored, Payload: note})
	check(err)
	_, err = l.w.RotateKey()
	check(err)
	l.append(6, layout.KindRefusal)
	l.close()
	l.open()
	l.append(7, layout.KindRefusal)
	l.seal()
	l.append(5, layout.KindRefusal)
	l.close()
	l.Ops = l.disk.ops
	for place := range l.disk.places {
		l.Places = append(l.Places, place)
	}
}

func reopen() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		w, err := auditlog.Open(options(lines.Text(), "process", nil, 0))
		if err == nil {
			err = w.Close()
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		fmt.Println(strconv.Quote(text))
	}
	check(lines.Err())
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "reopen" {
		reopen()
		return
	}
	if len(os.Args) != 7 || os.Args[1] != "record" {
		check(errors.New("usage: crashtool record DIR DURABILITY SEED SKIP RETENTION, or crashtool reopen"))
	}
	seed, err := strconv.ParseInt(os.Args[4], 10, 64)
	check(err)
	l := &life{folder: os.Args[2], durability: os.Args[3], random: rand.New(rand.NewSource(seed))}
	l.bytesMax, err = strconv.ParseInt(os.Args[6], 10, 64)
	check(err)
	l.disk = &recorder{Disk: auditlog.RealDisk, places: map[string]bool{}, skip: os.Args[5]}
	l.disk.before = l.keepKeys
	l.live()
	check(json.NewEncoder(os.Stdout).Encode(l))
}
