// Command tilescheck lets Tessera's fsck judge an exported tlog-tiles directory:
// tilescheck DIR VERIFIER_KEY. Built by tests/e2e/test_export.py only.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

// workers are more than the tiles of any test: fsck hangs when all of its workers have found something bad.
const workers = 512

func leafHashes(bundle []byte) ([][]byte, error) {
	var entries api.EntryBundle
	if err := entries.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range entries.Entries {
		out = append(out, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return out, nil
}

func check(folder, key string) (err error) {
	defer func() {
		if r := recover(); r != nil { // fsck panics on a bundle with too few entries
			err = fmt.Errorf("fsck: %v", r)
		}
	}()
	v, err := note.NewVerifier(key)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- fsck.New(v.Name(), v, client.FileFetcher{Root: folder}, leafHashes, fsck.Opts{N: workers}).Check(context.Background())
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		return fmt.Errorf("fsck did not end")
	}
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: tilescheck DIR VERIFIER_KEY")
		os.Exit(2)
	}
	if err := check(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "tilescheck:", err)
		os.Exit(1)
	}
}
