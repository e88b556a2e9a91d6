package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"conclave/lab"
)

// nodeStatus is what a host's conclave says of itself and the others
// (`conclave status -o json`).
type nodeStatus struct {
	Node    member   `json:"node"`
	Leader  string   `json:"leader"`
	Term    uint64   `json:"term"`
	Members []member `json:"members"`
}

type member struct {
	Name  string `json:"name"`
	State string `json:"state"` // alive, suspect, dead or left
	Role  Role   `json:"role"`
	Lag   uint64 `json:"lag"`
}

// readyLag is how many entries a voter may miss and still be called healthy:
// the clients go on writing.
const readyLag = 64

// fetchStatus asks a host by its administrator's socket.
func fetchStatus(ctx context.Context, socket string) (s nodeStatus, err error) {
	err = askSocket(ctx, socket, http.MethodGet, "/status", nil, &s)
	return s, err
}

// newest is the word of the leader of the highest term, or else of whoever
// knows that term: a leader that is cut off may not know yet that it was
// replaced.
func newest(answers map[string]nodeStatus) (best nodeStatus) {
	for _, s := range answers {
		if s.Leader == "" || s.Term < best.Term {
			continue
		}
		if s.Term > best.Term || s.Node.Role == Leader {
			best = s
		}
	}
	return best
}

// voterTarget is how many voters so many live nodes should have.
func voterTarget(live int) int {
	switch {
	case live >= 7:
		return 5
	case live >= 3:
		return 3
	}
	return 1
}

// whole returns what the master set lacks, "" if nothing. away are the hosts
// that a fault keeps from their duties.
func whole(answers map[string]nodeStatus, away func(host string) bool) string {
	best := newest(answers)
	if best.Leader == "" {
		return "no leader is known"
	}
	live, voters, standbys := 0, 0, 0
	for _, m := range best.Members {
		if m.State == "alive" {
			live++
		}
		switch {
		case m.Role.votes():
			own, answered := answers[m.Name]
			switch {
			case away(m.Name):
				return fmt.Sprintf("voter %s is away", m.Name)
			case m.State != "alive":
				return fmt.Sprintf("voter %s is %s", m.Name, m.State)
			case !answered || own.Leader != best.Leader || own.Term != best.Term:
				return fmt.Sprintf("voter %s does not follow %s yet", m.Name, best.Leader)
			case m.Lag > readyLag:
				return fmt.Sprintf("voter %s misses %d entries", m.Name, m.Lag)
			}
			voters++
		case m.Role == Standby && m.State == "alive" && !away(m.Name):
			standbys++
		}
	}
	if want := voterTarget(live); voters < want {
		return fmt.Sprintf("%d voters of %d", voters, want)
	}
	if standbys == 0 && live > voters {
		return "no standby"
	}
	return ""
}

// sight is one look at all hosts.
type sight struct {
	at      time.Duration // since the start of the run
	answers map[string]nodeStatus
}

// observer looks at all hosts again and again.
type observer struct {
	hosts func() []lab.Host
	since func() time.Duration
	found func(sight)
	// socket is where a host's conclave answers.
	socket func(h *lab.Host) string
}

const (
	lookEvery = 100 * time.Millisecond
	lookWait  = 400 * time.Millisecond
)

// run looks until the context ends.
func (o *observer) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		o.found(o.look(ctx))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (o *observer) look(ctx context.Context) sight {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	s := sight{at: o.since(), answers: map[string]nodeStatus{}}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, h := range o.hosts() {
		if h.Init.PID == 0 {
			continue
		}
		asking.Go(func() {
			if answer, err := fetchStatus(ctx, o.socket(&h)); err == nil {
				mu.Lock()
				s.answers[h.Name] = answer
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	return s
}

// askSocket calls a host's conclave as its administrator.
func askSocket(ctx context.Context, socket, method, path string, body []byte, answer any) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	request, err := http.NewRequestWithContext(ctx, method, "http://node"+path, reader(body))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// roles are the hosts' roles as the newest leader tells them.
func (s sight) roles() map[string]Role {
	roles := map[string]Role{}
	for _, m := range newest(s.answers).Members {
		roles[m.Name] = m.Role
	}
	return roles
}
