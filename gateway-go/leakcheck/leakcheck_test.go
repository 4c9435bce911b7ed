package leakcheck

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"
)

// Each leak is found, and nothing in sound code is called one.
func TestLeaks(t *testing.T) { analysistest.Run(t, analysistest.TestData(), Analyzer, "leaks") }

func TestSound(t *testing.T) { analysistest.Run(t, analysistest.TestData(), Analyzer, "sound") }
