// Command leakcheck reports goroutines that cannot end and channels without a partner.
package main

import (
	"golang.org/x/tools/go/analysis/singlechecker"

	"vigil/gateway/leakcheck"
)

func main() { singlechecker.Main(leakcheck.Analyzer) }
