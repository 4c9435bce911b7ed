// Command auditverify checks audit logs offline.
//
// Exit codes: 0 intact, 1 could not read, 2 usage, 4 damaged, 5 not a log.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"vigil/gateway/audit"
)

const usage = `usage: auditverify [--json] DIR...

Checks every record, the sequence and the chain of audit logs (each DIR holds
segment-*.vlog). "intact" means whole and chained; it does not mean signed.
Exit codes: 0 intact, 1 could not read, 2 usage, 4 damaged, 5 not a log.
`

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("auditverify", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	asJSON := flags.Bool("json", false, "print one JSON report a line")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return 2
	}
	worst := 0
	for _, dir := range flags.Args() {
		worst = max(worst, verify(dir, *asJSON))
	}
	return worst
}

func verify(dir string, asJSON bool) int {
	report, err := audit.Verify(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "auditverify:", err)
		if errors.Is(err, audit.ErrNoLog) {
			return 5
		}
		return 1
	}
	if asJSON {
		json.NewEncoder(os.Stdout).Encode(report)
	} else if report.Intact {
		fmt.Printf("%s: intact, %d records (%d..%d) in %d segments of %d runs; not signed; head %s\n",
			dir, report.Records, report.FirstSequence, report.LastSequence, report.Segments, report.Boots, report.Head)
	} else {
		fmt.Printf("%s: DAMAGED at %v; the %d records before it are intact\n", dir, report.Damage, report.Records)
	}
	if report.Intact {
		return 0
	}
	return 4
}
