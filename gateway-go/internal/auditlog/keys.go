package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// keyFile is the signing key of one log: audit-NAME.key (PKCS #8, mode 0600)
// and audit-NAME.pub (note verifier keys, one a line).
type keyFile struct {
	private, next, public, head string
	key                         ed25519.PrivateKey
}

// openKey loads the key, or creates it when there is none.
func openKey(folder, log string) (*keyFile, error) {
	k := &keyFile{private: filepath.Join(folder, "audit-"+log+".key"), public: filepath.Join(folder, "audit-"+log+".pub")}
	k.next, k.head = k.private+".next", filepath.Join(folder, "audit-"+log+".head")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("audit key: %w; give --data-dir a folder that can be written", err)
	}
	var err error
	if k.key, err = loadKey(k.private); !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if _, k.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	return k, writeKey(k.private, k.key)
}

func loadKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("audit key %s: others may read it; set mode 0600, or rotate the key if they did", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("audit key %s: not a PKCS #8 key in PEM; put the right file back", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("audit key %s: not an Ed25519 key", path)
	}
	return key, nil
}

func writeKey(path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return replaceFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// replaceFile puts data in place of a file, whole and forced to disk.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	partial := path + ".partial"
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(partial, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// publish adds a verifier key to the public file, unless it is there; older
// keys stay, for older logs.
func (k *keyFile) publish(s *signer) error {
	data, err := os.ReadFile(k.public)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	known := strings.Fields(string(data))
	if slices.Contains(known, s.verifierKey()) {
		return nil
	}
	return replaceFile(k.public, []byte(strings.Join(append(known, s.verifierKey()), "\n")+"\n"), 0o644)
}

// stage keeps a new key beside the old one until the log has its record.
func (k *keyFile) stage(key ed25519.PrivateKey) error { return writeKey(k.next, key) }

// change puts the staged key in place of the old one: the log has its record, on disk.
func (k *keyFile) change(key ed25519.PrivateKey) error {
	if err := os.Rename(k.next, k.private); err != nil {
		return err
	}
	k.key = key
	return syncFolder(filepath.Dir(k.private))
}

// settle ends a rotation that a crash cut off: the staged key is taken if the
// log's last key record names it, and dropped if not.
func (k *keyFile) settle(origin string, lastNote func() ([]byte, error)) error {
	staged, err := loadKey(k.next)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	note, err := lastNote()
	if err != nil {
		return err
	}
	if bytes.Contains(note, []byte((&signer{origin, staged}).verifierKey())) {
		return k.change(staged)
	}
	return os.Remove(k.next)
}

// keep keeps the latest checkpoint beside the key, before anybody is given it:
// what the log must still be at the next start.
func (k *keyFile) keep(note []byte) error { return replaceFile(k.head, note, 0o600) }

// verifiers are the log's keys, present and published.
func (k *keyFile) verifiers(origin string) note.Verifiers {
	lines := []string{(&signer{origin, k.key}).verifierKey()}
	if data, err := os.ReadFile(k.public); err == nil {
		lines = append(lines, strings.Fields(string(data))...)
	}
	var out []note.Verifier
	for _, line := range lines {
		v, err := note.NewVerifier(line)
		known := func(o note.Verifier) bool { return o.KeyHash() == v.KeyHash() && o.Name() == v.Name() }
		if err == nil && !slices.ContainsFunc(out, known) {
			out = append(out, v)
		}
	}
	return note.VerifierList(out...)
}

// treeHead reads origin, size and root of a checkpoint's text.
func treeHead(text string) (origin string, size uint64, root string) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 {
		return "", 0, ""
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return "", 0, ""
	}
	return lines[0], size, lines[2]
}

const evidence = "keep the folder and the keys as evidence; to start a new log, move both away"

// checkHead refuses a log that has not the tree of the checkpoint kept beside
// its key: else a restart would sign whatever somebody put into the folder. What
// was forced before the checkpoint was signed is there after any crash.
func (w *Writer) checkHead(origin string) error {
	data, err := os.ReadFile(w.keys.head)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := note.Open(data, w.keys.verifiers(origin))
	if err != nil {
		return fmt.Errorf("the checkpoint kept beside its key: %w; %s", err, evidence)
	}
	of, size, root := treeHead(n.Text)
	if of != origin {
		return fmt.Errorf("it is %s, but its key signed %s last; %s", origin, of, evidence)
	}
	present := &signer{origin, w.keys.key}
	last, err := lastKeyNote(w.o.Folder)
	if err != nil {
		return err
	}
	signed := slices.ContainsFunc(n.Sigs, func(s note.Signature) bool {
		return s.Hash == binary.BigEndian.Uint32(present.id())
	})
	if !signed && !bytes.Contains(last, []byte(present.verifierKey())) {
		return errors.New("the key file is not the key that signed it last; put the right one back")
	}
	if found, err := rootAt(w.o.Folder, size); err != nil || base64.StdEncoding.EncodeToString(found) != root {
		return fmt.Errorf("its first %d records are not those that were signed; %s", size, evidence)
	}
	return nil
}

// rootAt is the root of the log's first size records, from the segment that
// holds the last of them; nil when they are not there.
func rootAt(folder string, size uint64) ([]byte, error) {
	segments, err := listSegments(folder)
	if err != nil {
		return nil, err
	}
	for _, path := range slices.Backward(segments) {
		end, err := findEnd(path, size)
		if err != nil {
			return nil, err
		}
		if end.first <= size+1 {
			if end.tree.size() == size {
				return end.tree.root(), nil
			}
			return nil, nil
		}
	}
	return nil, nil
}

// wasOnDisk says whether the damaged record at a log's end was forced to disk
// before: then no crash damaged it. So it is when a checkpoint behind it, signed
// by a key of this log, covers it. Without keys every hole counts.
func (w *Writer) wasOnDisk(end *logEnd) bool {
	if w.keys == nil {
		return true
	}
	origin := originOf(w.o.Log, end.head.instance)
	for _, data := range end.laterNotes {
		n, err := note.Open(data, w.keys.verifiers(origin))
		if err != nil {
			continue
		}
		if of, size, _ := treeHead(n.Text); of == origin && size >= end.next {
			return true
		}
	}
	return false
}

// HashKey reads the key of keyed hashes, audit-hash.key (64 hex digits, mode
// 0600), and makes it when it is not there. Both writers share it: whoever comes
// second finds the first one's.
func HashKey(folder string) ([]byte, error) {
	path := filepath.Join(folder, "audit-hash.key")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		rand.Read(key)
		partial := filepath.Join(folder, fmt.Sprintf("audit-hash.%d.partial", os.Getpid()))
		if err := replaceFile(partial, []byte(hex.EncodeToString(key)+"\n"), 0o600); err != nil {
			return nil, err
		}
		if err := os.Link(partial, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if err := errors.Join(os.Remove(partial), syncFolder(folder)); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("audit key %s: others may read it; set mode 0600", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("audit key %s: not 64 hex digits; put the right file back", path)
	}
	return key, nil
}
