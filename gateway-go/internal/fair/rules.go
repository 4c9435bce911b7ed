// Package fair decides in which order calls get their turn, and which get none: rules by service,
// tenant and trace class, a token bucket for each flow of calls, and a queue that shares what there
// is. It knows no clock, no sockets and no messages.
package fair

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	// PriorityDefault is the level of calls that no rule gives another; 1 goes first, PriorityLast last.
	PriorityDefault = 5
	PriorityLast    = 9
	rateMax         = 1e9
	shareMax        = 10_000
)

// Rule says what calls get that it matches. The first rule that matches a call is its rule.
type Rule struct {
	// Service, Tenant and Class match by name; empty matches all, which then share one flow, and
	// "*" matches all, with a flow for each name.
	Service, Tenant, Class string
	// Rate is calls a second of each flow, 0 for any number; Burst is how many may come at once.
	Rate, Burst float64
	// Share is the flow's part of what several flows of one priority get that wait.
	Share int
	// Priority of the flow; a lower one is served first.
	Priority int
}

// ParseRules reads rules, one in each text: "tenant=plant-7 rate=100 burst=20 share=2 priority=3".
// The error names rule, field, value and limit.
func ParseRules(texts []string) ([]Rule, error) {
	var out []Rule
	for _, text := range texts {
		rule, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		out = append(out, rule)
	}
	return out, nil
}

func parse(text string) (Rule, error) {
	r := Rule{Share: 1, Priority: PriorityDefault}
	seen := map[string]bool{}
	for field := range strings.FieldsSeq(text) {
		key, value, ok := strings.Cut(field, "=")
		if !ok || value == "" {
			return r, fmt.Errorf("%q is not of the form key=value", field)
		}
		if seen[key] {
			return r, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case "service":
			r.Service = value
		case "tenant":
			r.Tenant = value
		case "class":
			r.Class = value
		case "rate":
			r.Rate, err = number(key, value, 0, rateMax)
		case "burst":
			r.Burst, err = number(key, value, 1, rateMax)
		case "share":
			r.Share, err = whole(key, value, 1, shareMax)
		case "priority":
			r.Priority, err = whole(key, value, 1, PriorityLast)
		default:
			err = fmt.Errorf("%q is none of service, tenant, class, rate, burst, share, priority", key)
		}
		if err != nil {
			return r, err
		}
	}
	if len(seen) == 0 {
		return r, fmt.Errorf("is empty")
	}
	if r.Burst > 0 && r.Rate == 0 {
		return r, fmt.Errorf("burst needs a rate")
	}
	if r.Burst == 0 {
		r.Burst = max(1, r.Rate)
	}
	return r, nil
}

func number(key, value string, least, most float64) (float64, error) {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || !(n >= least && n <= most) {
		return 0, fmt.Errorf("%s = %q is no number from %g to %g", key, value, least, most)
	}
	return n, nil
}

func whole(key, value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s = %q is no whole number from %d to %d", key, value, least, most)
	}
	return n, nil
}

// matches says whether a part of a rule matches a name, and gives what of the name makes the flow.
func matches(part, name string) (key string, ok bool) {
	switch part {
	case "":
		return "", true
	case "*":
		return name, true
	}
	return "", part == name
}

// match says whether the rule is a call's, and gives the parts of the name of its flow.
func (r *Rule) match(service, tenant, class string) (key [3]string, ok bool) {
	for i, c := range [3][2]string{{r.Service, service}, {r.Tenant, tenant}, {r.Class, class}} {
		if key[i], ok = matches(c[0], c[1]); !ok {
			return key, false
		}
	}
	return key, true
}
