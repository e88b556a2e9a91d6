package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"conclave/gossip"
	"conclave/network"
)

// pathsFailing is what the agent says of the network in its Node.
func (s *Server) pathsFailing() (failing []string, some bool) {
	all, some := s.net.Paths()
	for _, p := range all {
		failing = append(failing, p.String())
	}
	return failing, some
}

// pathsWait bounds the test of all paths from one node. One that is well takes
// a round trip; one that is not takes all the tries of a test.
const pathsWait = 3 * time.Second

// servePaths tests this node's paths to the pods of all others.
func (s *Server) servePaths(_ string, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), pathsWait)
	defer cancel()
	writeJSON(w, s.net.TestPaths(ctx))
}

// pathProblems has every node test its paths, now, and says which pair fails.
// One that fails both ways for one reason is one problem.
func (s *Server) pathProblems(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, pathsWait)
	defer cancel()
	type pair struct{ from, to string }
	var (
		mu    sync.Mutex
		found = map[pair]string{}
		all   sync.WaitGroup
		alive = map[string]bool{}
	)
	for _, m := range s.pool.Members() {
		alive[m.Name] = alive[m.Name] || m.State == gossip.Alive
	}
	keep := func(from string, failing []network.PathProblem) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range failing {
			found[pair{from, p.Node}] = p.Reason
		}
	}
	all.Go(func() { keep(s.node.Name(), s.net.TestPaths(ctx)) })
	for _, m := range s.pool.Members() {
		if m.State != gossip.Alive || m.ID == s.node.ID() {
			continue
		}
		all.Go(func() {
			var failing []network.PathProblem
			if raw, err := s.dialer.Call(ctx, m.ID, "/conclave/v1/paths", nil); err == nil && json.Unmarshal(raw, &failing) == nil {
				keep(m.Name, failing)
			}
		})
	}
	all.Wait()
	var out []string
	for p, reason := range found {
		if !alive[p.to] {
			continue // it is about to be dead, and status says that
		}
		switch back, both := found[pair{p.to, p.from}]; {
		case !both || back != reason:
			out = append(out, fmt.Sprintf("%s cannot reach %s's pods: %s", p.from, p.to, reason))
		case compareNames(p.from, p.to) < 0:
			out = append(out, fmt.Sprintf("%s and %s cannot reach each other's pods: %s", p.from, p.to, reason))
		}
	}
	slices.Sort(out)
	return out
}
