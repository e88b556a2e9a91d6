package snapshot

import (
	"strings"
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	for _, c := range []struct{ text, after, want string }{
		{"0 3 * * *", "2026-01-01T02:59:59Z", "2026-01-01T03:00:00Z"},
		{"0 3 * * *", "2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z"},
		{"*/15 * * * *", "2026-01-01T03:15:01Z", "2026-01-01T03:30:00Z"},
		{"5-10/5,40 6 * * *", "2026-01-01T06:06:00Z", "2026-01-01T06:10:00Z"},
		{"5-10/5,40 6 * * *", "2026-01-01T06:11:00Z", "2026-01-01T06:40:00Z"},
		{"0 0 31 * *", "2026-04-01T00:00:00Z", "2026-05-31T00:00:00Z"},
		{"0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"30 12 * 12 *", "2026-01-01T00:00:00Z", "2026-12-01T12:30:00Z"},
		{"0 0 * * 7", "2026-11-23T12:00:00Z", "2026-11-29T00:00:00Z"},
		{"0 0 1 * 1", "2026-11-24T12:00:00Z", "2026-11-30T00:00:00Z"}, // either day
		{"@daily", "2026-12-31T23:59:00Z", "2027-01-01T00:00:00Z"},
		{"@every 6h", "2026-01-01T07:00:00Z", "2026-01-01T12:00:00Z"},
		{"@every 6h", "2026-01-01T12:00:00Z", "2026-01-01T18:00:00Z"},
	} {
		s, err := ParseSchedule(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		after, _ := time.Parse(time.RFC3339, c.after)
		if got := s.Next(after).Format(time.RFC3339); got != c.want {
			t.Errorf("%s after %s: %s, want %s", c.text, c.after, got, c.want)
		}
	}
	for _, bad := range []string{"", "3", "0 3 * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "a * * * *", "*/0 * * * *", "5-2 * * * *", "0 0 31 2 *", "@every", "@every 5s", "@yesterday"} {
		if _, err := ParseSchedule(bad); err == nil {
			t.Errorf("%q is a schedule", bad)
		}
	}
}

func TestPlan(t *testing.T) {
	_, recipient, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	good := func(change ...string) map[string]string {
		m := map[string]string{KeySchedule: "@daily", KeyTo: "s3://b/p", KeyRecipients: recipient, "other": "of somebody else's"}
		for i := 0; i < len(change); i += 2 {
			m[change[i]] = change[i+1]
		}
		return m
	}
	p, wanted, err := ParsePlan(good(KeyKeep, " 3 "))
	if err != nil || !wanted || p.Keep != 3 || p.Secret != defaultSecret || len(p.Recipients) != 1 {
		t.Errorf("%+v, %v, %v", p, wanted, err)
	}
	if _, wanted, err := ParsePlan(map[string]string{"other": "x", KeyTo: "s3://b"}); wanted || err != nil {
		t.Errorf("without a schedule: %v, %v", wanted, err)
	}
	for want, data := range map[string]map[string]string{
		"snapshot.schedule":            good(KeySchedule, "noon"),
		"neither s3://":                good(KeyTo, "backups"),
		"snapshot.keep":                good(KeyKeep, "0"),
		"it needs a recipient":         good(KeyRecipients, " "),
		"is no recipient":              good(KeyRecipients, "age1x"),
		"no setting snapshot.shedule:": {"snapshot.shedule": "@daily"},
	} {
		if _, wanted, err := ParsePlan(data); err == nil || !wanted || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, %v", data, wanted, err)
		}
	}
}

func TestSurplus(t *testing.T) {
	at := func(cluster string, hour int) Entry {
		h := Header{Cluster: cluster, Revision: 5, Made: time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC)}
		e, ok := entryOf(h.Name(), 1)
		if !ok {
			t.Fatalf("%s is no name", h.Name())
		}
		return e
	}
	all := []Entry{at("aaaaaaaa", 3), at("bbbbbbbb", 1), at("aaaaaaaa", 5), at("aaaaaaaa", 1), at("aaaaaaaa", 4)}
	var got []int
	for _, e := range surplus(all, "aaaaaaaa-and-more", 2) {
		got = append(got, e.Made.Hour())
	}
	if len(got) != 2 || got[0] != 3 || got[1] != 1 {
		t.Errorf("surplus are those of %v o'clock", got)
	}
	if len(surplus(all, "aaaaaaaa", 9)) != 0 || len(surplus(nil, "a", 1)) != 0 {
		t.Error("there is no surplus")
	}
}
