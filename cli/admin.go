package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"conclave/gossip"
	"conclave/identity"
)

// The commands talk to the node on their own machine over a unix socket in the
// data folder, which only root can open. It answers for this node (status,
// images, leave) and hands out credentials for the cluster's API.

func socketPath(dataDir string) string { return dataDir + "/run/conclave.sock" }

func (s *Server) listenAdmin() (net.Listener, error) {
	path := socketPath(s.config.DataDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, os.Chmod(path, 0o600)
}

// serveHTTP answers on a listener until ctx ends. Long-lived requests (watches,
// logs, exec) end with ctx too: they are their server's to end.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 10 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
		<-ended
		return nil
	}
}

// Status is what `conclave status -o json` prints.
type Status struct {
	Node    MemberStatus   `json:"node"` // the one that answers
	Cluster string         `json:"cluster"`
	Leader  string         `json:"leader,omitempty"` // the leader's name
	Term    uint64         `json:"term,omitempty"`
	Members []MemberStatus `json:"members"`
	Masters MasterSet      `json:"masters"`
	// Encryption says who encrypts on the node that answers; empty if nobody.
	Encryption string   `json:"encryption,omitempty"`
	Problems   []string `json:"problems,omitempty"`
}

// MasterSet is how the set of masters is: so many of Voting do their work, Target
// is how many there shall be, and so many standbys could take a place at once.
type MasterSet struct {
	Working int `json:"working"`
	Voting  int `json:"voting"`
	Target  int `json:"target"`
	Standby int `json:"standby"`
}

func (m MasterSet) String() string {
	standby := fmt.Sprintf("%d standbys", m.Standby)
	switch m.Standby {
	case 0:
		standby = "no standby"
	case 1:
		standby = "1 standby"
	}
	// A set that is yet to shrink needs a majority of what it is.
	return fmt.Sprintf("%d of %d masters, %s", m.Working, max(m.Voting, m.Target), standby)
}

// MemberStatus is one node of the cluster.
type MemberStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	State   string `json:"state"` // alive, suspect, dead or left
	Role    string `json:"role"`  // leader, master, standby or node
	Lag     uint64 `json:"lag,omitempty"`
	Zone    string `json:"zone,omitempty"`
}

// consensusStatus is the part of a Status that only masters know.
type consensusStatus struct {
	Leader   string
	Term     uint64
	Voters   map[string]bool // id → votes
	Lag      map[string]uint64
	Masters  *MasterSet // known to the leader alone
	Problems []string
}

var stateNames = map[gossip.State]string{
	gossip.Alive: "alive", gossip.Suspect: "suspect", gossip.Dead: "dead", gossip.Left: "left",
}

func (m *master) status() consensusStatus {
	raw := m.consensus.Status()
	c := consensusStatus{Leader: raw.Leader, Term: raw.Term, Voters: map[string]bool{}, Lag: map[string]uint64{}}
	for _, server := range raw.Servers {
		c.Voters[server.ID], c.Lag[server.ID] = server.Voter, server.Lag
	}
	if runner := m.snapshots.Load(); runner != nil {
		if failed := runner.Result().Failed; failed != "" {
			c.Problems = append(c.Problems, "no snapshot is made on schedule: "+failed)
		}
	}
	if problem := raw.DiskProblem(); problem != "" {
		c.Problems = append(c.Problems, problem)
	}
	if set := raw.Masters; set != nil {
		c.Masters = &MasterSet{Working: set.Voters, Voting: c.voting(), Target: set.Target, Standby: set.Standby}
		c.Problems = append(c.Problems, set.Problems...)
	}
	return c
}

// status is how the cluster is. Whoever looks often leaves the test of all paths
// between the nodes away: it sends packets everywhere and waits for them.
func (s *Server) status(ctx context.Context, testPaths bool) Status {
	c, err := s.askStatus(ctx)
	problems := c.Problems
	if err != nil {
		problems = append(problems, fmt.Sprintf("no master answers: %v", err))
	}
	cluster, _ := s.node.Cluster()
	status := Status{Cluster: cluster.ID, Term: c.Term, Encryption: s.net.EncryptedBy()}
	if c.Leader != "" { // gossip may not have told of it yet
		status.Leader = s.nameOf(c.Leader)
	}
	alive := map[string]bool{} // a machine that was installed anew has its name again, under another id
	for _, m := range s.pool.Members() {
		alive[m.Name] = alive[m.Name] || m.State == gossip.Alive
	}
	for _, m := range s.pool.Members() {
		row := MemberStatus{ID: m.ID, Name: m.Name, Address: m.Addr.String(), State: stateNames[m.State], Role: "node", Zone: m.Zone, Lag: c.Lag[m.ID]}
		if votes, listed := c.Voters[m.ID]; listed && votes {
			row.Role = "master"
		} else if listed {
			row.Role = "standby"
		}
		if m.ID == c.Leader {
			row.Role = "leader"
		}
		if m.ID == s.node.ID() {
			status.Node = row
		}
		if m.State == gossip.Suspect || m.State == gossip.Dead && !alive[m.Name] {
			problems = append(problems, fmt.Sprintf("node %s (%s) does not answer since %s", m.Name, m.Addr, m.Since.Format(time.TimeOnly)))
		}
		status.Members = append(status.Members, row)
	}
	if status.Masters = c.count(status.Members); c.Masters != nil {
		status.Masters = *c.Masters
	}
	if c.Leader == "" && c.Voters != nil {
		problems = append(problems, s.lossProblem(c))
	}
	if why := s.damage.Load(); why != nil {
		problems = append(problems, *why)
	}
	if err := s.agent.Ready(); err != nil {
		problems = append(problems, fmt.Sprintf("this node cannot run pods: %v", err))
	}
	if testPaths {
		problems = append(problems, s.pathProblems(ctx)...)
	}
	slices.SortFunc(status.Members, func(a, b MemberStatus) int { return compareNames(a.Name, b.Name) })
	status.Problems = problems
	return status
}

// leaderWait bounds the question to a leader that may just have died.
const leaderWait = time.Second

// askStatus asks the leader, who knows most, and otherwise any master.
func (s *Server) askStatus(ctx context.Context) (c consensusStatus, err error) {
	if m := s.master.Load(); m != nil {
		c = m.status()
	} else if err := s.askMaster(ctx, "/conclave/v1/status", nil, &c); err != nil {
		return c, err
	}
	if c.Masters != nil || c.Leader == "" {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	var known consensusStatus
	if raw, err := s.dialer.Call(ctx, c.Leader, "/conclave/v1/status", nil); err == nil && json.Unmarshal(raw, &known) == nil && known.Masters != nil {
		known.Problems = append(known.Problems, c.Problems...)
		return known, nil
	}
	return c, nil
}

func (c consensusStatus) voting() (n int) {
	for _, votes := range c.Voters {
		if votes {
			n++
		}
	}
	return n
}

// count is the set of masters as it looks where the leader does not answer.
func (c consensusStatus) count(members []MemberStatus) (set MasterSet) {
	set.Voting = c.voting()
	set.Target = set.Voting
	for _, m := range members {
		switch votes, listed := c.Voters[m.ID]; {
		case !listed || m.State != stateNames[gossip.Alive]:
		case votes:
			set.Working++
		default:
			set.Standby++
		}
	}
	return set
}

func compareNames(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return slices.Compare([]byte(a), []byte(b))
}

// serveStatus tells another node what masters know.
func (s *Server) serveStatus(m *master, _ string, w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, m.status())
}

// credentials are what a client of the whole cluster needs.
type credentials struct {
	CA, Certificate, Key []byte // PEM
	Token                string
}

// credentialLife is how long an administrator's certificate is good for.
const credentialLife = 365 * 24 * time.Hour

func (s *Server) issue(m *master) (credentials, error) {
	cert, key, err := m.authority.SignClient("conclave-admin", []string{"system:masters"}, credentialLife)
	if err != nil {
		return credentials{}, err
	}
	var addresses []string
	for _, member := range s.pool.Members() {
		if member.State == gossip.Alive && len(addresses) < 4 {
			addresses = append(addresses, netip.AddrPortFrom(member.Addr, member.APIPort).String())
		}
	}
	return credentials{
		CA: m.authority.Cluster().CA, Certificate: cert, Key: key, Token: m.authority.Token(addresses).String(),
	}, nil
}

// serveCredentials answers nodes that may become masters: those may be handed
// the CA's key at any time, so nothing is given away (docs/decisions/0003).
func (s *Server) serveCredentials(m *master, _ string, w http.ResponseWriter, r *http.Request) {
	if !identity.PeerEligible(r.TLS) {
		http.Error(w, "a node that was started with --no-master is given no administrator's credentials: ask on another node", http.StatusForbidden)
		return
	}
	c, err := s.issue(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, c)
}

func (s *Server) credentials(ctx context.Context) (c credentials, err error) {
	if m := s.master.Load(); m != nil {
		return s.issue(m)
	}
	err = s.askMaster(ctx, "/conclave/v1/credentials", nil, &c)
	return c, err
}

// askMaster calls the masters in turn until one answers.
func (s *Server) askMaster(ctx context.Context, path string, body []byte, answer any) error {
	err := errors.New("no master is known")
	for _, id := range s.mastersOrReplicas() {
		var raw []byte
		if raw, err = s.dialer.Call(ctx, id, path, body); err != nil {
			continue
		}
		if answer == nil {
			return nil
		}
		return json.Unmarshal(raw, answer)
	}
	return err
}

// kubeconfig is what kubectl needs to use the cluster by this node.
func (s *Server) kubeconfig(ctx context.Context) ([]byte, error) {
	c, err := s.credentials(ctx)
	if err != nil {
		return nil, err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["conclave"] = &clientcmdapi.Cluster{
		Server: "https://" + netip.AddrPortFrom(s.own.get(), apiPort).String(), CertificateAuthorityData: c.CA,
	}
	config.AuthInfos["conclave-admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: c.Certificate, ClientKeyData: c.Key}
	config.Contexts["conclave"] = &clientcmdapi.Context{Cluster: "conclave", AuthInfo: "conclave-admin"}
	config.CurrentContext = "conclave"
	return clientcmd.Write(*config)
}

// adminHandler answers the commands on this machine. stop ends the server.
func (s *Server) adminHandler(stop context.CancelFunc) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, serve func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, err := serve(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			writeJSON(w, body)
		})
	}
	// For finding out where memory and time go:
	//	curl --unix-socket /var/lib/conclave/run/conclave.sock http://conclave/debug/pprof/heap > heap
	//	go tool pprof -top conclave heap
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	// And who says over gossip that it has an image or a layer, as a pull would
	// see it now; a name is whole: docker.io/library/nginx:1.
	answer("GET /debug/holders", func(r *http.Request) (any, error) {
		return imagePeers{s}.announcing(r.FormValue("key")), nil
	})
	answer("GET /status", func(r *http.Request) (any, error) { return s.status(r.Context(), r.URL.Query().Has("paths")), nil })
	answer("GET /recover", func(r *http.Request) (any, error) { return s.planRecovery(r.Context()) })
	answer("POST /recover", func(r *http.Request) (any, error) {
		want := Recovery{ID: r.FormValue("id")}
		var errs [2]error
		want.Term, errs[0] = strconv.ParseUint(r.FormValue("term"), 10, 64)
		want.Index, errs[1] = strconv.ParseUint(r.FormValue("index"), 10, 64)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}
		return s.recover(r.Context(), want)
	})
	answer("GET /token", func(r *http.Request) (any, error) {
		c, err := s.credentials(r.Context())
		return c.Token, err
	})
	answer("GET /kubeconfig", func(r *http.Request) (any, error) {
		raw, err := s.kubeconfig(r.Context())
		return string(raw), err
	})
	answer("GET /images", func(r *http.Request) (any, error) {
		if r.FormValue("here") != "" {
			return s.imageRows(), nil
		}
		return s.clusterImages(r.Context()), nil
	})
	mux.HandleFunc("POST /images/pull", s.servePull)
	answer("POST /images/prune", func(r *http.Request) (any, error) { return s.prune(r.Context()), nil })
	answer("POST /images", func(r *http.Request) (any, error) {
		defer s.agent.ImagesChanged()
		return s.engine.Import(r.Context(), r.Body)
	})
	answer("DELETE /images", func(r *http.Request) (any, error) {
		defer s.agent.ImagesChanged()
		return nil, s.engine.RemoveImage(r.Context(), r.URL.Query().Get("ref"))
	})
	mux.HandleFunc("GET /state", s.serveState)
	mux.HandleFunc("POST /leave", func(w http.ResponseWriter, r *http.Request) {
		say := func(format string, args ...any) {
			fmt.Fprintf(w, format+"\n", args...)
			http.NewResponseController(w).Flush()
		}
		if err := s.leave(r.Context(), say); err != nil {
			say("error: %v", err)
			return
		}
		say("left")
		s.left.Store(true)
		stop()
	})
	return mux
}

func writeJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the client went away: nobody to tell
}
