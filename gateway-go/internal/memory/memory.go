// Package memory tells how much memory there is to be had.
//
// Sources: proc_meminfo(5), the kernel's cgroup-v2.rst and cgroup-v1/memory.rst. The sidecar
// reads the same for itself (engine/memory.py).
package memory

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Available gives the bytes that can be had without swapping, by the tightest of the machine and
// the control groups of this process, and which of them that is; 0 where neither can be read.
func Available(proc, groups string) (available int64, of string) {
	total := int64(1) << 62
	fields := statistics(filepath.Join(proc, "meminfo"))
	if all, free := fields["MemTotal:"], fields["MemAvailable:"]; all > 0 {
		total, available, of = all<<10, free<<10, "the machine"
	}
	data, err := os.ReadFile(filepath.Join(proc, "self", "cgroup"))
	if err != nil {
		return available, of
	}
	for line := range strings.Lines(string(data)) {
		for _, g := range foldersOf(strings.TrimSpace(line), groups) {
			limit, used := number(filepath.Join(g.folder, g.limit)), number(filepath.Join(g.folder, g.use))
			if limit < 0 || used < 0 || limit >= total {
				continue
			}
			free := min(limit, max(0, limit-used+statistics(filepath.Join(g.folder, "memory.stat"))[g.droppable]))
			if of == "" || free < available {
				available, of = free, "the control group"
			}
		}
	}
	return available, of
}

type group struct{ folder, limit, use, droppable string }

// foldersOf gives the folders of one line of proc's cgroup, innermost first: a container often sees
// its own group as the root, under a path that only its host has.
func foldersOf(line, groups string) (found []group) {
	parts := strings.SplitN(line, ":", 3)
	if len(parts) != 3 {
		return nil
	}
	one := group{groups, "memory.max", "memory.current", "inactive_file"}
	if parts[1] != "" {
		if !strings.Contains(","+parts[1]+",", ",memory,") {
			return nil
		}
		one = group{filepath.Join(groups, "memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}
	}
	base := one.folder
	for path := filepath.Join("/", parts[2]); ; path = filepath.Dir(path) {
		one.folder = filepath.Join(base, path)
		found = append(found, one)
		if path == "/" {
			return found
		}
	}
}

// statistics reads lines of a name and a number.
func statistics(path string) map[string]int64 {
	found := map[string]int64{}
	data, err := os.ReadFile(path)
	if err != nil {
		return found
	}
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 1 {
			if n, err := strconv.ParseInt(words[1], 10, 64); err == nil {
				found[words[0]] = n
			}
		}
	}
	return found
}

// number is what a file says; -1 when that is no number, such as "max".
func number(path string) int64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}
