package chaos

import (
	"strings"
	"testing"
	"time"

	"conclave/lab"
)

func TestReport(t *testing.T) {
	at := func(s int) time.Duration { return time.Duration(s) * time.Second }
	roles := func(leader, other Role) map[string]Role { return map[string]Role{"a": leader, "b": other, "c": Plain} }
	alive := map[string]string{"a": "alive", "b": "alive", "c": "alive"}
	doubted := map[string]string{"a": "dead", "b": "alive", "c": "alive"}
	all, bc := map[string]bool{"a": true, "b": true, "c": true}, map[string]bool{"b": true, "c": true}
	r := &Report{Seed: 9, Nodes: 3, Sown: at(20), Finished: at(30), Started: time.Unix(0, 0), Command: "again & again",
		Spans: []Span{{Kind: Kill, Hosts: []string{"a"}, Text: "kill a", From: at(5), To: at(12)}}}
	r.draw([]Op{op(Write, "1", "", Done, "", 1, 2)}, []Probe{{Host: "b", At: at(3), Pod: "page-1"}},
		[]lab.Host{{Name: "a"}, {Name: "b"}, {Name: "c"}}, observed{
			{At: 0, Leader: "a", Term: 1, Roles: roles(Leader, Master), States: alive, Up: all},
			{At: at(6), Leader: "a", Term: 1, Roles: roles(Leader, Master), States: doubted, Up: bc},
			{At: at(7), Leader: "b", Term: 2, Roles: roles(Master, Leader), States: doubted, Up: bc},
			{At: at(9), Leader: "b", Term: 2, Roles: map[string]Role{"a": Plain, "b": Leader, "c": Master}, States: doubted, Up: bc},
		})
	for i, want := range []time.Duration{at(1), at(2), at(4)} {
		if got := r.Times[i].Values; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, not %s", r.Times[i].What, got, want)
		}
	}
	if g := r.longest("writes", ""); g.From != at(2) || g.To != at(20) {
		t.Errorf("the longest gap of writes is %+v", g)
	}
	var text, page strings.Builder
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	if err := r.HTML(&page); err != nil {
		t.Fatal(err)
	}
	for what, both := range map[string][]string{text.String(): {"no violation", "again & again", "1 kill"}, page.String(): {"no violation", "again &amp; again", `class="fault"`, `class="leader"`, `class="gap"`}} {
		for _, want := range both {
			if !strings.Contains(what, want) {
				t.Errorf("the report lacks %q:\n%s", want, what)
			}
		}
	}
	if strings.Contains(page.String(), "http:") || strings.Contains(page.String(), "https:") {
		t.Error("the page needs something from elsewhere")
	}
	r.violate("a lie")
	text.Reset()
	page.Reset()
	r.Violations = append(r.Violations, `<b title="x">'s`)
	if err := r.HTML(&page); err != nil || !strings.Contains(page.String(), `<li>&lt;b title=&#34;x&#34;&gt;&#39;s</li>`) || !strings.Contains(page.String(), `<span class="bad">2 VIOLATIONS</span>`) {
		t.Errorf("%v %s", err, page.String())
	}
	r.Violations = r.Violations[:1]
	if err := r.Text(&text); err != nil || !strings.Contains(text.String(), "1 VIOLATION\n") || !strings.Contains(text.String(), "a lie") {
		t.Errorf("%v %s", err, text.String())
	}
}
