// Command auditverify checks audit logs and proofs offline.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"vigil/gateway/audit"
)

const usage = `usage: auditverify [--key FILE]... [--witness FILE]... [--json] DIR...
       auditverify proof FILE --key FILE... [--json]
       auditverify export DIR --key FILE... [--json]

Checks audit logs (each DIR holds segment-*.vlog): every record, the chain, the
tree, the signed checkpoints, and each log against the checkpoints that the
others hold of it. Or checks one proof of inclusion (C2SP tlog-proof), or an
export: its manifest, every file under it, and its segments or proofs.

--key FILE holds note verifier keys that you trust, one a line. Keys that lie
inside a log are never trusted: without --key nothing is called verified.

--witness FILE is a checkpoint that was kept outside: the log must contain it.

Exit codes: 0 verified, 1 could not read, 2 usage, 3 verified but for an
unsealed tail, 4 forged or damaged, 5 not a log, 6 no signature by a trusted key.
Of several logs the worst counts, in the order 0, 3, 6, 5, 1, 4.
`

func main() { os.Exit(run(os.Args[1:])) }

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// parse takes flags before and after the other arguments.
func parse(args []string) (rest, keys, kept []string, asJSON bool, code int) {
	flags := flag.NewFlagSet("auditverify", flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	var files, witnesses list
	flags.Var(&files, "key", "")
	flags.Var(&witnesses, "witness", "")
	flags.BoolVar(&asJSON, "json", false, "")
	for {
		if err := flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, nil, nil, false, 0
			}
			return nil, nil, nil, false, 2
		}
		if flags.NArg() == 0 {
			break
		}
		rest = append(rest, flags.Arg(0))
		args = flags.Args()[1:]
	}
	if len(rest) == 0 {
		flags.Usage()
		return nil, nil, nil, false, 2
	}
	return rest, files, witnesses, asJSON, -1
}

func run(args []string) int {
	rest, files, kept, asJSON, code := parse(args)
	if code >= 0 {
		return code
	}
	keys, err := audit.ReadKeys(files)
	if err != nil {
		fmt.Fprintln(os.Stderr, "auditverify: --key:", err)
		return 2
	}
	if rest[0] == "proof" {
		return proofs(rest[1:], keys, asJSON)
	}
	if rest[0] == "export" {
		return exports(rest[1:], keys, asJSON)
	}
	var witnesses []audit.Witness
	for _, file := range kept {
		note, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintln(os.Stderr, "auditverify: --witness:", err)
			return 2
		}
		witnesses = append(witnesses, audit.Witness{Name: file, Note: note})
	}
	reports, err := audit.VerifyAll(rest, keys, witnesses...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "auditverify:", err)
		if errors.Is(err, audit.ErrNoLog) {
			return audit.ExitNoLog
		}
		if errors.Is(err, audit.ErrWitness) {
			return 2
		}
		return audit.ExitUnreadable
	}
	worst := 0
	for _, r := range reports {
		worst = audit.Worse(worst, r.ExitCode)
		if asJSON {
			_ = json.NewEncoder(os.Stdout).Encode(r)
		} else {
			show(os.Stdout, r)
		}
	}
	return worst
}

func show(out io.Writer, r *audit.Report) {
	if r.Damage != nil {
		fmt.Fprintf(out, "%s: %s at %v; the first %d records are as signed\n", r.Folder, r.Verdict, r.Damage, r.Sealed)
		return
	}
	fmt.Fprintf(out, "%s: %s\n", r.Folder, r.Verdict)
	fmt.Fprintf(out, "  %s: %d records (%d..%d) in %d segments of %d runs, %d checkpoints\n",
		r.Log, r.Records, r.FirstSequence, r.LastSequence, r.Segments, r.Boots, r.Checkpoints)
	if r.Pruned > 0 || r.Kept > 0 || r.KeptUnproven > 0 {
		without := ""
		if r.KeptUnproven > 0 {
			without = fmt.Sprintf(", %d without a trusted signature", r.KeptUnproven)
		}
		fmt.Fprintf(out, "  the %d records before were pruned; %d of them are kept with proofs%s\n", r.Pruned, r.Kept, without)
	}
	if !r.Closed {
		fmt.Fprintf(out, "  it does not end with a closing record: it is still written, its writer was killed, or its end was cut off\n")
	}
	if r.Unlogged > 0 {
		fmt.Fprintf(out, "  %d calls and events got no record while the log could not be written, as it says itself (event unlogged)\n", r.Unlogged)
	}
	if r.Witnessed > 0 {
		since := ""
		if r.UnwitnessedS >= 0 {
			since = fmt.Sprintf(" (%.1f s)", r.UnwitnessedS)
		}
		fmt.Fprintf(out, "  %d records are witnessed elsewhere; the last %d%s are not\n", r.Witnessed, r.LastSequence-r.Witnessed, since)
	} else {
		fmt.Fprintf(out, "  nothing given here witnesses it: a cut-off end would not be seen\n")
	}
}

func proofs(files []string, keys []audit.Key, asJSON bool) int {
	if len(files) != 1 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "auditverify:", err)
		return audit.ExitUnreadable
	}
	p, err := audit.CheckProof(data, keys)
	code := audit.ExitVerified
	switch {
	case errors.Is(err, audit.ErrNoTrustedKey):
		code = audit.ExitNoKey
	case err != nil:
		code = audit.ExitForged
	}
	if asJSON && err == nil {
		_ = json.NewEncoder(os.Stdout).Encode(p)
	} else if err == nil {
		fmt.Printf("%s: verified: record %d of %s, event %d, is one of the %d records that %s signed\n",
			files[0], p.Sequence, p.Log, p.EventID, p.TreeSize, p.SignedBy)
	} else {
		fmt.Fprintf(os.Stderr, "auditverify: %s: %v\n", files[0], err)
	}
	return code
}

func exports(folders []string, keys []audit.Key, asJSON bool) int {
	if len(folders) != 1 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	r, err := audit.VerifyExport(folders[0], keys)
	if err != nil {
		fmt.Fprintln(os.Stderr, "auditverify:", err)
		if errors.Is(err, audit.ErrNoExport) {
			return audit.ExitNoLog
		}
		return audit.ExitUnreadable
	}
	switch {
	case asJSON:
		_ = json.NewEncoder(os.Stdout).Encode(r)
	case r.Problem != "":
		fmt.Printf("%s: %s\n", r.Folder, r.Problem)
	default:
		fmt.Printf("%s: all %d files are those of the manifest\n", r.Folder, r.Files)
		for _, l := range r.Logs {
			show(os.Stdout, l)
		}
		for log, n := range r.Proven {
			verdict := "verified"
			if r.ExitCode == audit.ExitNoKey {
				verdict = "no signature by a trusted key"
			}
			fmt.Printf("  %s: %d records are in the signed log, %d have no proof: %s\n", log, n, r.Unproven[log], verdict)
		}
	}
	return r.ExitCode
}
