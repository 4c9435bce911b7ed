package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"vigil/gateway/internal/safety"
)

// simulating as the first argument drives the safety table with events from stdin.
const simulating = "simulate"

type parameters map[string]int64

func (p parameters) String() string { return "" }

func (p parameters) Set(text string) error {
	name, value, _ := strings.Cut(text, "=")
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 {
		return errors.New("needs NAME=NUMBER")
	}
	p[name] = n
	return nil
}

func simulate(args []string, in io.Reader, out io.Writer) int {
	flags := flag.NewFlagSet("vigil-gateway simulate", flag.ContinueOnError)
	given := parameters{}
	flags.Var(given, "parameter", "a parameter of safety/machine.yaml: `NAME=NUMBER`")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	table, err := safety.Machine(given)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 2
	}
	if err := safety.Simulate(table, in, out); err != nil {
		fmt.Fprintln(os.Stderr, "vigil-gateway:", err)
		return 1
	}
	return 0
}
