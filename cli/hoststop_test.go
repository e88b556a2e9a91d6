package cli

import (
	"testing"
	"time"

	"conclave/agent"
)

func TestReadShutdown(t *testing.T) {
	for name, c := range map[string]struct {
		grace, critical time.Duration
		byPriority      string
		want            map[int32]time.Duration
		bad             bool
	}{
		"nothing":       {},
		"ordinary":      {grace: time.Minute, want: map[int32]time.Duration{0: time.Minute, agent.CriticalPriority: 0}},
		"critical":      {grace: time.Minute, critical: 10 * time.Second, want: map[int32]time.Duration{0: 50 * time.Second, agent.CriticalPriority: 10 * time.Second}},
		"more of less":  {grace: time.Second, critical: time.Minute, bad: true},
		"by priority":   {byPriority: "1000=20s, -5=0s,2000000000=1m", want: map[int32]time.Duration{1000: 20 * time.Second, -5: 0, 2000000000: time.Minute}},
		"both":          {grace: time.Minute, byPriority: "0=1s", bad: true},
		"no priority":   {byPriority: "high=1s", bad: true},
		"no duration":   {byPriority: "5=soon", bad: true},
		"less than now": {byPriority: "5=-1s", bad: true},
		"too large":     {byPriority: "3000000000=1s", bad: true},
	} {
		got, err := readShutdown(c.grace, c.critical, c.byPriority)
		if (err != nil) != c.bad || len(got) != len(c.want) {
			t.Errorf("%s: %v %v", name, got, err)
		}
		for _, p := range got {
			if c.want[p.Priority] != p.Grace {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
}
