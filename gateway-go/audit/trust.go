package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"vigil/gateway/audit/layout"
)

const (
	rotationTitle = "vigil audit key rotation"
	pruneTitle    = "vigil audit prune"
	noteBytesMax  = 8192
	// LagMax is how many records a checkpoint's record may come behind the tree
	// that it signs (docs/audit-format.md).
	LagMax = 1 << 20
)

// Key is a trusted note verifier key.
type Key struct {
	note.Verifier
	Text string
}

// ParseKeys reads note verifier keys, one a line; empty lines and lines that
// begin with # are passed over.
func ParseKeys(data []byte) ([]Key, error) {
	var keys []Key
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("line %d is no note verifier key (name+id+key): %w", i+1, err)
		}
		keys = append(keys, Key{v, line})
	}
	if len(keys) == 0 {
		return nil, errors.New("no key in it")
	}
	return keys, nil
}

// ReadKeys reads the keys of files.
func ReadKeys(files []string) ([]Key, error) {
	var keys []Key
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		more, err := ParseKeys(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys = append(keys, more...)
	}
	return keys, nil
}

// openNote gives a note's text and those of the trusted keys that signed it.
func openNote(data []byte, trusted []Key) (string, []Key, error) {
	if len(data) > noteBytesMax {
		return "", nil, fmt.Errorf("the note has %d bytes, the limit is %d", len(data), noteBytesMax)
	}
	verifiers := make([]note.Verifier, 0, len(trusted))
	for _, k := range trusted {
		known := func(v note.Verifier) bool { return v.Name() == k.Name() && v.KeyHash() == k.KeyHash() }
		if !slices.ContainsFunc(verifiers, known) {
			verifiers = append(verifiers, k.Verifier)
		}
	}
	n, err := note.Open(data, note.VerifierList(verifiers...))
	var stranger *note.UnverifiedNoteError
	if errors.As(err, &stranger) {
		return stranger.Note.Text, nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	var signed []Key
	for _, s := range n.Sigs {
		for _, k := range trusted {
			if k.Name() == s.Name && k.KeyHash() == s.Hash {
				signed = append(signed, k)
			}
		}
	}
	return n.Text, signed, nil
}

// openOwn opens a note of a log's own, with exactly as many signatures as its
// writer makes.
func openOwn(data []byte, trusted []Key, signatures int) (string, []Key, error) {
	text, signed, err := openNote(data, trusted)
	if err != nil {
		return "", nil, err
	}
	at := bytes.LastIndex(data, []byte("\n\n"))
	if found := bytes.Count(data[at+2:], []byte("\n")); found != signatures {
		return "", nil, fmt.Errorf("a note of this log with %d signatures, its writer makes %d", found, signatures)
	}
	return text, signed, nil
}

// treeHead is what a checkpoint states (C2SP tlog-checkpoint).
type treeHead struct {
	origin string
	size   uint64
	root   string
}

func parseHead(text string) (*treeHead, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[len(lines)-1] != "" || slices.Contains(lines[:len(lines)-1], "") {
		return nil, errors.New("not a checkpoint: it needs origin, size and root")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return nil, errors.New("not a checkpoint: its size is not a plain number")
	}
	root, err := decodeBase64(lines[2])
	if err != nil || len(root) != 32 {
		return nil, errors.New("not a checkpoint: its root is not 32 bytes of base64")
	}
	return &treeHead{lines[0], size, string(root)}, nil
}

// anchor is another log's checkpoint in this one.
type anchor struct {
	sequence, timeNs uint64
	note             []byte
}

// seals follows one log: checkpoints, key rotations, anchors. From the first
// checkpoint of a trusted key on, each must be signed by a key that is trusted
// then; a rotation, signed by both keys, hands trust over.
type seals struct {
	origin          string
	active, retired []Key
	whole, base     tree
	leaves          [][32]byte
	wanted          map[uint64]bool
	roots           map[uint64]string
	sealed          uint64
	sealedNs        uint64
	lastSize        uint64
	checkpoints     uint64
	rotations       uint64
	anchors         []anchor
	endsWithSeal    bool
	begin           uint64 // records that were pruned before the first one here
	prunes          []prune
	starts          map[uint64]string // roots where segments begin
}

// prune is a record that says that the first size records are gone.
type prune struct{ sequence, size uint64 }

// newSeals begins behind the records of a tree: those that were pruned.
func newSeals(origin string, trusted []Key, begin *tree, wanted map[uint64]bool) *seals {
	s := &seals{origin: origin, wanted: wanted, roots: map[uint64]string{}, starts: map[uint64]string{}, begin: begin.size}
	s.whole, s.base = tree{begin.size, slices.Clone(begin.hashes)}, tree{begin.size, slices.Clone(begin.hashes)}
	if wanted[begin.size] {
		s.roots[begin.size] = begin.root()
	}
	for _, k := range trusted {
		if k.Name() == origin {
			s.active = append(s.active, k)
		}
	}
	return s
}

func (s *seals) known() []Key { return slices.Concat(s.active, s.retired) }

func (s *seals) size() uint64 { return s.whole.size }

// root is the root of all records fed.
func (s *seals) root() string { return s.whole.root() }

func (s *seals) foldTo(size uint64) {
	if size == s.whole.size {
		s.base = tree{size, slices.Clone(s.whole.hashes)}
		s.leaves = s.leaves[:0]
		return
	}
	count := size - s.base.size
	s.base.extend(s.leaves[:count])
	s.leaves = append(s.leaves[:0], s.leaves[count:]...)
}

// record takes the next record; the error says why it is a forgery.
func (s *seals) record(kind uint16, sequence, timeNs uint64, payload []byte, leaf [32]byte) error {
	s.endsWithSeal = false
	var err error
	switch kind {
	case layout.KindCheckpoint:
		err = s.checkpoint(payload, timeNs)
	case layout.KindKey:
		err = s.rotation(payload)
	case layout.KindAnchor:
		if len(payload) > noteBytesMax {
			return fmt.Errorf("an anchor of %d bytes, the limit is %d", len(payload), noteBytesMax)
		}
		s.anchors = append(s.anchors, anchor{sequence, timeNs, slices.Clone(payload)})
	case layout.KindPrune:
		err = s.pruneRecord(sequence, payload)
	}
	if err != nil {
		return err
	}
	s.leaves = append(s.leaves, leaf)
	s.whole.append(leaf)
	if len(s.leaves) > 2*LagMax {
		s.foldTo(s.base.size + LagMax)
	}
	if s.wanted[s.size()] {
		s.roots[s.size()] = s.root()
	}
	return nil
}

// head is the tree head that a note states, checked against the tree of the
// chain's own records.
func (s *seals) head(text string) (*treeHead, error) {
	h, err := parseHead(text)
	switch {
	case err != nil:
		return nil, err
	case h.origin != s.origin:
		return nil, fmt.Errorf("a checkpoint of %s in the log %s", h.origin, s.origin)
	case h.size > s.size():
		return nil, fmt.Errorf("the checkpoint covers %d records, %d stand before it: records were taken out", h.size, s.size())
	case h.size <= s.lastSize && s.lastSize > 0:
		return nil, fmt.Errorf("the checkpoint of %d records comes after one of %d: an old one was put in again", h.size, s.lastSize)
	case h.size < s.begin && h.size+LagMax >= s.begin: // it was late, and what it covers was pruned since
		s.lastSize = h.size
		return h, nil
	case h.size < s.base.size:
		return nil, fmt.Errorf("the checkpoint of %d records comes more than %d records late", h.size, LagMax)
	}
	s.foldTo(h.size)
	if s.base.root() != h.root {
		return nil, fmt.Errorf("the records are not those that were signed: another root at %d records", h.size)
	}
	s.lastSize = h.size
	return h, nil
}

func holds(keys, some []Key) bool {
	return slices.ContainsFunc(some, func(k Key) bool {
		return slices.ContainsFunc(keys, func(o Key) bool { return o.Text == k.Text })
	})
}

func (s *seals) checkpoint(payload []byte, timeNs uint64) error {
	text, signed, err := openOwn(payload, s.known(), 1)
	if err != nil {
		return err
	}
	h, err := s.head(text)
	if err != nil {
		return err
	}
	s.checkpoints++
	s.endsWithSeal = h.size == s.size()
	switch {
	case holds(s.active, signed):
		if h.size >= s.begin {
			s.sealed, s.sealedNs = h.size, timeNs
		}
	case len(signed) > 0:
		return errors.New("a checkpoint is signed by a key that was rotated away")
	case s.sealed > 0:
		return errors.New("a checkpoint is not signed by the key that signed the one before")
	}
	return nil
}

// segment notes that a segment begins here: where a cut may be.
func (s *seals) segment() { s.starts[s.size()] = s.root() }

func (s *seals) pruneRecord(sequence uint64, payload []byte) error {
	title, rest, _ := strings.Cut(string(payload), "\n")
	if title != pruneTitle || strings.Count(rest, "\n") != 3 {
		return errors.New("not a prune record: it needs its title, origin, size and root")
	}
	h, err := parseHead(rest)
	switch {
	case err != nil:
		return err
	case h.origin != s.origin:
		return fmt.Errorf("a prune record of %s in the log %s", h.origin, s.origin)
	case h.size >= s.size() || (len(s.prunes) > 0 && h.size < s.prunes[len(s.prunes)-1].size):
		return fmt.Errorf("a prune record of %d records, %d stand before it", h.size, s.size())
	case h.size >= s.begin && s.starts[h.size] != h.root:
		return fmt.Errorf("the prune record of %d records names another root, or no segment begins there", h.size)
	}
	s.prunes = append(s.prunes, prune{sequence, h.size})
	return nil
}

// prunedByRight says whether a signed checkpoint covers a prune record that
// accounts for what is missing before the first record.
func (s *seals) prunedByRight() bool {
	return slices.ContainsFunc(s.prunes, func(p prune) bool { return p.size >= s.begin && p.sequence <= s.sealed })
}

// signedNow says whether a key that is trusted now signed a note.
func (s *seals) signedNow(note []byte) bool {
	_, signed, err := openNote(note, s.active)
	return err == nil && len(signed) > 0
}

// openRotation reads a key record: the new key, who signed, and the tree head.
func (s *seals) openRotation(payload []byte) (next Key, signed []Key, head string, err error) {
	lines := strings.Split(string(payload), "\n")
	if len(lines) < 5 {
		return next, nil, "", errors.New("a key record that names no key")
	}
	v, err := note.NewVerifier(lines[4])
	if err != nil {
		return next, nil, "", errors.New("a key record that names no key")
	}
	if v.Name() != s.origin {
		return next, nil, "", fmt.Errorf("a key record for %s in the log %s", v.Name(), s.origin)
	}
	next = Key{v, lines[4]}
	text, signed, err := openOwn(payload, append(s.known(), next), 2)
	if err != nil {
		return next, nil, "", err
	}
	title, body, _ := strings.Cut(text, "\n")
	if title != rotationTitle || !holds(signed, []Key{next}) {
		return next, nil, "", errors.New("a key record that its new key did not sign")
	}
	return next, signed, strings.Join(strings.SplitAfter(body, "\n")[:3], ""), nil
}

// handOver lets the new key of a key record take over when the one before signed it.
func (s *seals) handOver(next Key, signed []Key) error {
	if holds(s.active, slices.DeleteFunc(signed, func(k Key) bool { return k.Text == next.Text })) {
		s.retired, s.active = append(s.retired, s.active...), []Key{next}
	} else if s.sealed > 0 {
		return errors.New("a key record that the key before did not sign")
	}
	return nil
}

// trust takes over from a key record that was kept when its segment was pruned.
func (s *seals) trust(payload []byte) error {
	next, signed, _, err := s.openRotation(payload)
	if err != nil {
		return err
	}
	return s.handOver(next, signed)
}

func (s *seals) rotation(payload []byte) error {
	next, signed, head, err := s.openRotation(payload)
	if err != nil {
		return err
	}
	if _, err := s.head(head); err != nil {
		return err
	}
	if err := s.handOver(next, signed); err != nil {
		return err
	}
	s.rotations++
	return nil
}
