package flow

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"vigil/gateway/internal/fair"
	"vigil/gateway/internal/telemetry"
)

// Fairness says which flows calls belong to, and what flows get.
type Fairness struct {
	Rules    []fair.Rule
	FlowsMax int
	// ClassFrom says what of a call is its trace class: none; tracestate, the value of the
	// member ClassKey (W3C Trace Context, 3.3); header, the value of the header ClassKey; trace_id,
	// its first ClassKey hexadecimal digits.
	ClassFrom, ClassKey string
}

// classBytesMax is the longest name of a class; a longer one is none.
const classBytesMax = 256

func (f Fairness) table() *fair.Table { return fair.NewTable(f.Rules, max(1, f.FlowsMax)) }

// Check says what is wrong with it.
func (f Fairness) Check() error {
	switch f.ClassFrom {
	case "", "none":
		return nil
	case "trace_id":
		if digits, err := strconv.Atoi(f.ClassKey); err != nil || digits < 1 || digits > 32 {
			return fmt.Errorf("flow.class_key = %q: with flow.class_from = trace_id it is how many digits, 1 to 32", f.ClassKey)
		}
		return nil
	}
	if f.ClassKey == "" {
		return fmt.Errorf("flow.class_key is empty: with flow.class_from = %s it names the %s", f.ClassFrom,
			map[string]string{"tracestate": "member of tracestate", "header": "header"}[f.ClassFrom])
	}
	return nil
}

// Class is the trace class of a call with these headers.
func (s *Service) Class(trace *telemetry.Trace, header func(string) string) string {
	class := ""
	switch f := s.limits.Fairness; f.ClassFrom {
	case "tracestate":
		class = member(header("tracestate"), f.ClassKey)
	case "header":
		class = header(strings.ToLower(f.ClassKey))
	case "trace_id":
		digits, err := strconv.Atoi(f.ClassKey)
		if err != nil || digits < 0 || digits > 32 { // Check says so at the start
			return ""
		}
		class = trace.ID()[:digits]
	}
	if len(class) > classBytesMax || !utf8.ValidString(class) {
		return ""
	}
	return class
}

// member is the value of a member of a tracestate header; empty where there is none.
func member(state, key string) string {
	for part := range strings.SplitSeq(state, ",") {
		if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && k == key {
			return v
		}
	}
	return ""
}

// flowOf is the flow of a call. One that says something impossible of itself is refused later, and
// belongs to nobody until then.
func (s *Service) flowOf(c *call) *fair.Flow {
	tenant := c.caller.Tenant
	if len(tenant) > tenantBytesMax || !utf8.ValidString(tenant) {
		tenant = ""
	}
	return s.flows.Flow(c.method.Service, tenant, c.caller.Class, time.Now())
}
