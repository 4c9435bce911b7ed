package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	manifestName     = "manifest.json"
	manifestBytesMax = 64 << 20
)

// ErrNoExport says that a folder holds no export.
var ErrNoExport = errors.New("no audit export (manifest.json) here")

type manifest struct {
	Format  string     `json:"format"`
	Version int        `json:"version"`
	Whole   bool       `json:"whole"`
	Logs    []exported `json:"logs"`
	Files   []struct {
		Path   string `json:"path"`
		Bytes  int64  `json:"bytes"`
		SHA256 string `json:"sha256"`
	} `json:"files"`
}

// exported is what a manifest says of one log.
type exported struct {
	Log      string `json:"log"`
	Origin   string `json:"origin"`
	Exported int    `json:"exported"`
	Unproven int    `json:"unproven"`
}

// ExportReport is what a check of an export found. Files of tables are only
// compared with the manifest, which nobody signed: what proves something are the
// segments of a whole export, and the proofs of one of selected records.
type ExportReport struct {
	Folder   string         `json:"folder"`
	Files    int            `json:"files"`
	Whole    bool           `json:"whole"`
	Logs     []*Report      `json:"logs"`
	Proven   map[string]int `json:"proven"`
	Unproven map[string]int `json:"unproven"`
	ExitCode int            `json:"exit_code"`
	Problem  string         `json:"problem"`
}

// VerifyExport checks an export's manifest, every file under it, and what proves
// its records, against trusted keys. The error is about reading; what is wrong is
// in the report.
func VerifyExport(folder string, trusted []Key) (*ExportReport, error) {
	m, err := readManifest(folder)
	if err != nil {
		return nil, err
	}
	r := &ExportReport{Folder: folder, Files: len(m.Files), Whole: m.Whole, Proven: map[string]int{}, Unproven: map[string]int{}}
	if r.Problem, err = checkFiles(folder, m); err != nil {
		return nil, err
	}
	if r.Problem != "" {
		r.ExitCode = ExitForged
		return r, nil
	}
	if m.Whole {
		return r, r.segments(folder, m, trusted)
	}
	return r, r.proofs(folder, m, trusted)
}

func readManifest(folder string) (*manifest, error) {
	path := filepath.Join(folder, manifestName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", folder, ErrNoExport)
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > manifestBytesMax {
		return nil, fmt.Errorf("%s has more than %d bytes", path, manifestBytesMax)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(data, m); err != nil || m.Format != "vigil audit export" {
		return nil, fmt.Errorf("%s: %w: its manifest cannot be understood", folder, ErrNoExport)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("%s: version %d of the manifest, this program knows 1", path, m.Version)
	}
	return m, nil
}

// checkFiles compares the folder with the manifest, both ways.
func checkFiles(folder string, m *manifest) (problem string, err error) {
	listed := map[string]bool{manifestName: true}
	for _, f := range m.Files {
		if !filepath.IsLocal(f.Path) || listed[f.Path] {
			return fmt.Sprintf("the manifest names %q", f.Path), nil
		}
		listed[f.Path] = true
		sum, size, err := hashFile(filepath.Join(folder, f.Path))
		if errors.Is(err, fs.ErrNotExist) {
			return f.Path + " is missing", nil
		}
		if err != nil {
			return "", err
		}
		if size != f.Bytes || sum != f.SHA256 {
			return f.Path + " is not the file that the manifest names: another size or hash", nil
		}
	}
	err = filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err == nil && (!listed[filepath.ToSlash(name)] || !e.Type().IsRegular()) && problem == "" {
			problem = name + " is not in the manifest, or no regular file"
		}
		return err
	})
	return problem, err
}

func hashFile(path string) (string, int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", 0, err
	}
	if !info.Mode().IsRegular() {
		return "", -1, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// segments verifies the logs of a whole export.
func (r *ExportReport) segments(folder string, m *manifest, trusted []Key) error {
	var folders []string
	for _, l := range m.Logs {
		if path := filepath.Join(folder, "segments", filepath.Base(l.Log)); isFolder(path) {
			folders = append(folders, path)
		}
	}
	if len(folders) == 0 {
		r.ExitCode, r.Problem = ExitNoKey, "it has no segments: nothing in it can be proven"
		return nil
	}
	logs, err := VerifyAll(folders, trusted)
	if err != nil {
		return err
	}
	r.Logs = logs
	for i, l := range logs {
		r.ExitCode = Worse(r.ExitCode, l.ExitCode)
		at := slices.IndexFunc(m.Logs, func(o exported) bool { return o.Log == filepath.Base(folders[i]) })
		if said := m.Logs[at]; said.Origin != l.Log || uint64(said.Exported) != l.Records {
			r.ExitCode, r.Problem = ExitForged, fmt.Sprintf("the manifest has %d records of %s, the segments %d of %s",
				said.Exported, said.Origin, l.Records, l.Log)
		}
	}
	return nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// proofs checks the proof of each selected record.
func (r *ExportReport) proofs(folder string, m *manifest, trusted []Key) error {
	for _, l := range m.Logs {
		name := filepath.Base(l.Log)
		r.Proven[name], r.Unproven[name] = 0, l.Unproven
		found, err := readKeptFile(filepath.Join(folder, "proofs", name+".proofs"), "")
		if errors.Is(err, fs.ErrNotExist) && l.Exported == 0 {
			continue
		}
		if err != nil {
			r.ExitCode, r.Problem = ExitForged, err.Error()
			return nil
		}
		last := uint64(0)
		for _, k := range found {
			_, signed, err := openNote(k.checkpoint, trusted)
			switch {
			case err != nil:
			case k.head.origin != l.Origin:
				err = errors.New("it is of another log")
			case k.proven.Sequence <= last:
				err = errors.New("it is there twice, or out of order")
			case !slices.ContainsFunc(signed, func(key Key) bool { return key.Name() == l.Origin }):
				r.ExitCode = Worse(r.ExitCode, ExitNoKey)
			}
			if err != nil {
				r.ExitCode, r.Problem = ExitForged, strings.Replace(k.fault(err).Error(), "kept record", "record", 1)
				return nil
			}
			last = k.proven.Sequence
			r.Proven[name]++
		}
		if r.Proven[name]+l.Unproven != l.Exported {
			r.ExitCode, r.Problem = ExitForged, fmt.Sprintf("%s: %d proofs for %d records", name, r.Proven[name], l.Exported)
			return nil
		}
		if l.Unproven > 0 {
			r.ExitCode = Worse(r.ExitCode, ExitUnsealed)
		}
	}
	return nil
}

// Worse is the exit code that counts of two: in the order 0, 3, 6, 5, 1, 4.
func Worse(a, b int) int {
	const order = "036514"
	if strings.IndexByte(order, byte('0'+b)) > strings.IndexByte(order, byte('0'+a)) {
		return b
	}
	return a
}
