package fair

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestParseRules(t *testing.T) {
	rules, err := ParseRules([]string{"tenant=plant-7 rate=100 burst=20 share=2 priority=3", "service=* class=batch", "rate=0.5"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{
		{Tenant: "plant-7", Rate: 100, Burst: 20, Share: 2, Priority: 3},
		{Service: "*", Class: "batch", Burst: 1, Share: 1, Priority: PriorityDefault},
		{Rate: 0.5, Burst: 1, Share: 1, Priority: PriorityDefault},
	}
	for i := range want {
		if rules[i] != want[i] {
			t.Errorf("%+v, wanted %+v", rules[i], want[i])
		}
	}
	for text, problem := range map[string]string{
		"":                     "is empty",
		"tenant":               `"tenant" is not of the form key=value`,
		"tenant=":              `"tenant=" is not of the form key=value`,
		"colour=red":           `"colour" is none of service, tenant, class, rate, burst, share, priority`,
		"rate=-1":              `rate = "-1" is no number from 0 to 1e+09`,
		"rate=NaN":             `rate = "NaN" is no number from 0 to 1e+09`,
		"rate=1 burst=0":       `burst = "0" is no number from 1 to 1e+09`,
		"burst=3":              "burst needs a rate",
		"share=0":              `share = "0" is no whole number from 1 to 10000`,
		"priority=10":          `priority = "10" is no whole number from 1 to 9`,
		"tenant=a tenant=b":    "tenant is given twice",
		"tenant=a priority=x ": `priority = "x" is no whole number from 1 to 9`,
	} {
		if _, err := ParseRules([]string{"tenant=ok", text}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q: %s", text, problem)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFlowsOfCalls(t *testing.T) {
	rules, err := ParseRules([]string{"tenant=a class=* rate=1", "tenant=b", "service=s tenant=* priority=2", "class=batch share=3"})
	if err != nil {
		t.Fatal(err)
	}
	table := NewTable(rules, 100)
	of := func(service, tenant, class string) *Flow { return table.Flow(service, tenant, class, start) }
	for _, c := range []struct {
		text string
		same bool
		a, b *Flow
	}{
		{"a class is a flow of its own", false, of("x", "a", "1"), of("x", "a", "2")},
		{"whatever the service", true, of("x", "a", "1"), of("y", "a", "1")},
		{"b has one flow", true, of("x", "b", "1"), of("y", "b", "2")},
		{"tenants of s have one each", false, of("s", "c", ""), of("s", "d", "")},
		{"whatever the class", true, of("s", "c", "1"), of("s", "c", "batch")},
		{"batch is one flow", true, of("x", "c", "batch"), of("y", "d", "batch")},
		{"no rule: tenants apart", false, of("x", "c", ""), of("x", "d", "")},
		{"no rule: classes apart", false, of("x", "c", "1"), of("x", "c", "2")},
		{"no rule: services together", true, of("x", "c", "1"), of("y", "c", "1")},
		{"no tenant, no class", true, of("x", "", ""), of("y", "", "")},
	} {
		if (c.a == c.b) != c.same {
			t.Error(c.text)
		}
	}
	if f := of("s", "c", ""); f.Priority != 2 || f.Share != 1 || f.Rate() != 0 {
		t.Errorf("%+v", f)
	}
	if f := of("x", "z", "batch"); f.Priority != PriorityDefault || f.Share != 3 {
		t.Errorf("%+v", f)
	}
	plain := NewTable(nil, 1)
	if plain.Flow("x", "", "", start) != plain.Flow("y", "", "", start) || plain.Flow("x", "t", "", start) == plain.Flow("x", "", "", start) {
		t.Error("without rules, calls without tenant are one flow")
	}
}

// Names that clients invent take no more room than there is; who is used stays.
func TestFlowsAreBounded(t *testing.T) {
	table := NewTable(nil, 10)
	kept := table.Flow("", "kept", "", start)
	for i := range 1000 {
		now := start.Add(time.Duration(i) * time.Second)
		table.Flow("", fmt.Sprint(i), "", now)
		if table.Flow("", "kept", "", now) != kept {
			t.Fatal("forgot the one that is used, after", i)
		}
	}
	if len(table.flows) != 10 {
		t.Error(len(table.flows), "flows")
	}
}

func TestBucket(t *testing.T) {
	rules, err := ParseRules([]string{"tenant=a rate=10 burst=3"})
	if err != nil {
		t.Fatal(err)
	}
	f := NewTable(rules, 10).Flow("", "a", "", start)
	take := func(after time.Duration) (time.Duration, bool) { return f.Take(start.Add(after)) }
	for range 3 {
		if _, ok := take(0); !ok {
			t.Fatal("the burst is refused")
		}
	}
	if wait, ok := take(0); ok || wait.Round(time.Millisecond) != 100*time.Millisecond {
		t.Error(wait, ok)
	}
	if wait, ok := take(40 * time.Millisecond); ok || wait.Round(time.Millisecond) != 60*time.Millisecond {
		t.Error(wait, ok)
	}
	if _, ok := take(101 * time.Millisecond); !ok {
		t.Error("a tenth of a second is a token")
	}
	if _, ok := NewTable(nil, 1).Flow("", "", "", start).Take(start); !ok {
		t.Error("who has no rate is refused")
	}
}
