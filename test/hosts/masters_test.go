package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// masterSet is what `conclave status -o json` says of the masters.
type masterSet struct {
	Leader  string
	Masters struct{ Working, Target, Standby int }
	Members []struct{ Name, State, Role string }
}

// mastersOf asks one host.
func mastersOf(t *testing.T, c *cluster.Cluster, host string) (s masterSet, err error) {
	t.Helper()
	out, err := c.On(t.Context(), host, c.Binary, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// voters are the names of those who vote.
func (s masterSet) voters() (names []string) {
	for _, m := range s.Members {
		if m.Role == "leader" || m.Role == "master" {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// survives says whether the cluster goes on after the death of any one master.
func (s masterSet) survives() bool {
	return s.Leader != "" && s.Masters.Working-1 >= len(s.voters())/2+1
}

func (s masterSet) String() string {
	return fmt.Sprintf("%s (leader %s): %d of %d, %d standby", strings.Join(s.voters(), " "), s.Leader, s.Masters.Working, s.Masters.Target, s.Masters.Standby)
}

// awaitSet waits until a host tells what is wanted of the masters.
func awaitSet(t *testing.T, c *cluster.Cluster, host, what string, wanted func(masterSet) bool) (s masterSet) {
	t.Helper()
	eventually(t, what, func() (err error) {
		if s, err = mastersOf(t, c, host); err == nil && !wanted(s) {
			err = fmt.Errorf("the masters are %v", s)
		}
		return err
	})
	return s
}

func wholeSet(voters, standby int) func(masterSet) bool {
	return func(s masterSet) bool {
		return s.Leader != "" && len(s.voters()) == voters && s.Masters.Working == voters && s.Masters.Target == voters && s.Masters.Standby == standby
	}
}

// TestMastersOneAfterAnother cuts the power of one master after another, the
// leader's every other time, until two hosts of seven are left, while clients
// write through every host that is left. Then the dead come back. The next one
// dies as soon as the others would survive it; CONCLAVE_KILL_EVERY=15s makes it
// a rhythm.
func TestMastersOneAfterAnother(t *testing.T) {
	t.Parallel()
	every, _ := time.ParseDuration(os.Getenv("CONCLAVE_KILL_EVERY"))
	c := own(t, 7)
	left := others(c, "")
	state := awaitSet(t, c, left[0], "five masters and a standby", wholeSet(5, 1))
	w, err := c.Write(t.Context(), 50*time.Millisecond, left...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, h := range left {
		eventually(t, "writes through "+h, func() error {
			if w.Acknowledged(h) < 10 {
				return errors.New("too few are acknowledged")
			}
			return nil
		})
	}
	var table strings.Builder
	var dead []string
	for len(left) > 2 {
		victim := state.Leader
		if len(dead)%2 == 1 {
			followers := slices.DeleteFunc(state.voters(), func(n string) bool { return n == state.Leader || slices.Contains(dead, n) })
			victim = followers[len(dead)%len(followers)]
		}
		role := map[bool]string{true: "leader", false: "master"}[victim == state.Leader]
		w.Leave(victim)
		began := time.Now()
		if err := c.PowerOff(victim); err != nil {
			t.Fatal(err)
		}
		dead = append(dead, victim)
		left = slices.DeleteFunc(left, func(n string) bool { return n == victim })
		for _, h := range left {
			before := w.Acknowledged(h)
			eventually(t, "writes through "+h, func() error {
				if w.Acknowledged(h) < before+20 {
					return errors.New("too few are acknowledged")
				}
				return nil
			})
		}
		safe := func(s masterSet) bool { return s.survives() || len(left) == 2 && s.Leader != "" }
		state = awaitSet(t, c, left[0], "masters that survive the next death", safe)
		again := time.Since(began)
		if wait := every - again; wait > 0 {
			select {
			case <-time.After(wait):
			case <-t.Context().Done():
				t.Fatal("ended")
			}
			state = awaitSet(t, c, left[0], "masters that survive the next death", safe)
		}
		fmt.Fprintf(&table, "%d  %-6s %-2s", len(dead), role, victim)
		best, worst := time.Hour, time.Duration(0)
		for _, h := range left {
			gap := w.Gap(h, began)
			best, worst = min(best, gap), max(worst, gap)
		}
		fmt.Fprintf(&table, "  no write for %.2f s, at the worst host %.2f s; safe again after %.1f s: %v\n", best.Seconds(), worst.Seconds(), again.Seconds(), state)
	}
	w.Stop()
	t.Logf("%d writes were acknowledged\n%s", w.Acknowledged(""), table.String())
	check := func(hosts []string) {
		for _, h := range hosts {
			eventually(t, "all that was acknowledged, asked of "+h, func() error {
				lost, err := w.Lost(t.Context(), h)
				if err == nil && len(lost) > 0 {
					t.Fatalf("%d acknowledged writes are lost, as %s says: %v", len(lost), h, lost[:min(len(lost), 10)])
				}
				return err
			})
		}
	}
	check(left)
	began := time.Now()
	for _, h := range dead {
		boot(t, c, h)
	}
	state = awaitSet(t, c, left[0], "the whole set again", wholeSet(5, 1))
	t.Logf("whole again after %.1f s: %v", time.Since(began).Seconds(), state)
	check(dead)
}

// TestStopsGracefully ends the leader by SIGTERM while clients write through the
// others: leadership is handed over before, so that nobody waits for an
// election.
func TestStopsGracefully(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	all := others(c, "")
	var gaps []string
	for range 6 {
		state := awaitSet(t, c, all[0], "three masters", wholeSet(3, 0))
		rest := others(c, state.Leader)
		w, err := c.Write(t.Context(), 20*time.Millisecond, rest...)
		if err != nil {
			t.Fatal(err)
		}
		flowing := func() {
			for _, h := range rest {
				before := w.Acknowledged(h)
				eventually(t, "writes through "+h, func() error {
					if w.Acknowledged(h) < before+10 {
						return errors.New("too few are acknowledged")
					}
					return nil
				})
			}
		}
		flowing()
		handed := handovers(t, c, state.Leader)
		began := time.Now()
		if err := c.Stop(state.Leader); err != nil {
			t.Fatal(err)
		}
		flowing()
		for _, h := range rest {
			gaps = append(gaps, fmt.Sprintf("%.0f ms", w.Gap(h, began).Seconds()*1000))
		}
		next, err := mastersOf(t, c, rest[0])
		if err != nil || next.Leader == state.Leader || next.Leader == "" {
			t.Errorf("%s was stopped, and %s leads (%v)", state.Leader, next.Leader, err)
		}
		if now := handovers(t, c, state.Leader); now != handed+1 {
			t.Errorf("%s did not hand over", state.Leader)
		}
		told, err := clientsOf(t, c, 10*time.Second, next.Leader)[0].RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
		if err != nil {
			t.Error(err)
		}
		mustContain(t, "what the new leader tells", string(told), "\nconclave_leader 1\n", "\nconclave_election_seconds_count ",
			"\nconclave_masters{part=\"target\"} ", "\nconclave_ready_seconds ")
		w.Stop()
		if lost, err := w.Lost(t.Context(), rest[1]); err != nil || len(lost) > 0 {
			t.Errorf("lost: %v (%v)", lost, err)
		}
		if err := c.Start(state.Leader, "up"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the longest times without an acknowledged write, through each survivor: %s", strings.Join(gaps, ", "))
}

// TestFirstLeaderKilledWhileOthersJoin ends the first node's conclave by SIGKILL
// while two others join, and starts it again: the cluster becomes whole.
// CONCLAVE_ROUNDS=20 looks for what is rare.
func TestFirstLeaderKilledWhileOthersJoin(t *testing.T) {
	t.Parallel()
	needRoot(t)
	rounds := 1
	if text := os.Getenv("CONCLAVE_ROUNDS"); text != "" {
		fmt.Sscan(text, &rounds)
	}
	for round := range rounds {
		c, err := cluster.New(t.Context(), cluster.Config{Name: labName("y"), Hosts: 3, Bare: true})
		if err != nil {
			t.Fatal(err)
		}
		down := func() {
			if err := c.Down(); err != nil {
				t.Error(err)
			}
		}
		func() {
			defer down()
			defer func() {
				if t.Failed() {
					dumpLogs(t, c)
				}
			}()
			first := c.Hosts[0].Name
			if err := c.Start(first, "up"); err != nil {
				t.Fatal(err)
			}
			var token string
			eventually(t, "a token", func() (err error) {
				token, err = c.On(t.Context(), first, c.Binary, "token", "--bare")
				return err
			})
			for _, h := range c.Hosts[1:] {
				if err := c.Start(h.Name, "join", strings.TrimSpace(token)); err != nil {
					t.Fatal(err)
				}
			}
			moments := []func(masterSet) bool{
				func(s masterSet) bool { return len(s.Members) > 1 },
				func(s masterSet) bool { return len(s.Members) > 2 },
				func(s masterSet) bool { return s.Masters.Target > 1 },
				func(s masterSet) bool { return len(s.voters()) > 1 },
			}
			awaitSet(t, c, first, "the moment to kill", moments[(round+os.Getpid())%len(moments)])
			before, _ := mastersOf(t, c, first)
			if err := c.Kill(first); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := c.Start(first, "up"); err != nil {
				t.Fatal(err)
			}
			for _, h := range c.Hosts {
				awaitSet(t, c, h.Name, "three masters, as "+h.Name+" sees it", wholeSet(3, 0))
			}
			if err := c.Connect(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, h := range c.Hosts {
				eventually(t, "a write through "+h.Name, func() error {
					_, err := clientsOf(t, c, 5*time.Second, h.Name)[0].CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "by-" + h.Name}}, metav1.CreateOptions{})
					return err
				})
			}
			t.Logf("killed when the masters were %v: whole again after %.1f s", before, time.Since(began).Seconds())
		}()
	}
}

// handovers is how often a host has said that it handed leadership over.
func handovers(t *testing.T, c *cluster.Cluster, host string) int {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.LogPath(h))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "handed leadership over")
}
