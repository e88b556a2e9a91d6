package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/consensus"
	"conclave/gossip"
	"conclave/gossip/gossiptest"
	"conclave/liveness"
)

const (
	gossipPort = 7946
	apiPort    = 6443
	pathMaster = "/conclave/v1/master"
	// leaseDuration is the product's (cli/server.go).
	leaseDuration = 3 * time.Second
)

var gossipKey = []byte("0123456789abcdef0123456789abcdef")

// cluster is one bubble's world.
type cluster struct {
	t        *testing.T
	seed     uint64
	rand     *rand.Rand // of the one who plans the history
	net      *gossiptest.Switch
	dir      string // in memory: identities' votes, snapshots, remembered peers
	began    time.Time
	machines []*machine // in the order in which they came
	ctx      context.Context
	end      context.CancelFunc
	flights  sync.WaitGroup // calls under way, which outlive their callers

	mu      sync.Mutex
	dice    *rand.Rand // of everybody else
	story   []string   // what happened, for whoever looks into a failure
	leaders map[uint64]string
	watched watched
	broken  atomic.Int64 // promises

	// What the planner of the history knows alone.
	files        bool // the log is in files, as in the product, and not in memory
	loss         float64
	base, jitter time.Duration
	lasts, every time.Duration // a fault, and from one to the next, on average
	parted       bool
	moves        int
}

// newCluster makes a world with a network of some kind.
func newCluster(t *testing.T, seed uint64, dir string) *cluster {
	c := &cluster{
		t: t, seed: seed, dir: dir, began: time.Now(), net: gossiptest.New(int64(seed)),
		rand: rand.New(rand.NewPCG(seed, 1)), dice: rand.New(rand.NewPCG(seed, 2)),
		leaders: map[uint64]string{}, watched: newWatched(),
	}
	c.ctx, c.end = context.WithCancel(context.Background())
	return c
}

// chance throws the dice that all goroutines share.
func (c *cluster) chance(p float64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dice.Float64() < p
}

func (c *cluster) upTo(d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.dice.Int64N(int64(d) + 1))
}

// clock is the time since boot of every machine.
func (c *cluster) clock() time.Duration { return time.Since(c.began) }

// tell adds a line to the story.
func (c *cluster) tell(format string, args ...any) {
	line := fmt.Sprintf("%9.4f s  %s", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
	c.mu.Lock()
	c.story = append(c.story, line)
	c.mu.Unlock()
	if *verbose {
		fmt.Fprintln(os.Stderr, line)
	}
}

// mostViolations are told of one seed: the first tell most.
const mostViolations = 20

// violation is a promise that was broken.
func (c *cluster) violation(format string, args ...any) {
	c.t.Helper()
	what := fmt.Sprintf(format, args...)
	c.tell("VIOLATION: %s", what)
	if c.broken.Add(1) <= mostViolations {
		c.t.Error(what)
	}
}

// machine is what outlives a process: an identity, a disk, an address.
type machine struct {
	c        *cluster
	id, name string
	zone     string
	dir      string
	disk     *disk
	noMaster bool
	founder  bool // makes the cluster at its next start

	mu    sync.Mutex
	addr  netip.Addr
	proc  *proc         // that runs, nil if none does
	ended chan struct{} // closed when the latest process has ended
	fence time.Duration // until when, after the beginning, what must not run twice may run here
	busy  atomic.Bool   // a fault is at work here
	fresh atomic.Bool   // it was never in the cluster
	here  atomic.Bool   // it has joined, and has not left or been lost
}

func (c *cluster) machine(i int, zone string, typical time.Duration) *machine {
	m := &machine{
		c: c, id: fmt.Sprintf("id%02d", i), name: fmt.Sprintf("node-%d", i), zone: zone,
		addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), dir: filepath.Join(c.dir, fmt.Sprint(i)),
		disk: newDisk(rand.New(rand.NewPCG(c.seed, uint64(100+i))), typical), ended: make(chan struct{}),
	}
	close(m.ended)
	m.fresh.Store(true)
	c.machines = append(c.machines, m)
	return m
}

func (m *machine) running() *proc {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

func (m *machine) address() netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addr
}

// proc is one run of the program, as cli.Server is in the product.
type proc struct {
	m      *machine
	c      *cluster
	ctx    context.Context
	stop   context.CancelFunc
	log    *slog.Logger
	gossip *gossiptest.Host
	api    *gossiptest.Host
	pool   *gossip.Pool
	lease  *consensus.LeaseClient
	work   sync.WaitGroup

	promote chan struct{}
	master  atomic.Pointer[master]
	members atomic.Pointer[chan struct{}] // closed at the next change of the members
}

// master is what a process runs besides, while its node is one.
type master struct {
	node    *consensus.Node
	judge   *liveness.Judge
	streams chan net.Conn // for raft
	handler http.Handler
}

// start runs the program on a machine where none runs. Peers are told to those
// who join; who was here before remembers.
func (m *machine) start(peers ...string) {
	c := m.c
	<-m.ended
	m.here.Store(true)
	p := &proc{m: m, c: c, log: slog.New(slog.DiscardHandler), promote: make(chan struct{})}
	if *verbose {
		p.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", m.id)
	}
	p.ctx, p.stop = context.WithCancel(c.ctx)
	p.members.Store(new(make(chan struct{})))
	addr := m.address()
	at := netip.AddrPortFrom(addr, gossipPort)
	p.gossip, p.api = c.net.Host(at), c.net.Host(netip.AddrPortFrom(addr, apiPort))
	var err error
	p.pool, err = gossip.New(gossip.Config{
		ID: m.id, Bind: at, Key: gossipKey, Dir: filepath.Join(m.dir, "gossip"), Seeds: peers, Transport: p.gossip, Log: p.log,
		Discover: p.discover,
		Meta: gossip.Meta{Name: m.name, Zone: m.zone, Role: gossip.RoleNode, NoMaster: m.noMaster, Memory: 1 << 30,
			Started: time.Now(), APIPort: apiPort, Addresses: []netip.Addr{addr}},
	})
	if err != nil {
		c.t.Fatalf("%s: %v", m.id, err)
	}
	p.lease = consensus.NewLease(consensus.LeaseConfig{
		ID: m.id, Name: m.name, Caller: p, Masters: p.masters, Duration: leaseDuration, Log: p.log,
		Local: func() (consensus.Renewal, bool) {
			if s := p.master.Load(); s != nil {
				return s.node.RenewLocal()
			}
			return consensus.Renewal{}, false
		},
		Fence: m.holds, Boot: c.clock,
	})
	ended := make(chan struct{})
	m.mu.Lock()
	m.proc, m.ended = p, ended
	m.mu.Unlock()
	for _, room := range []func(context.Context) error{p.pool.Run, p.lease.Run, p.accept, p.followMembers, p.runMasters} {
		p.work.Go(func() {
			if err := room(p.ctx); err != nil && p.ctx.Err() == nil {
				c.violation("%s ended by itself: %v", m.id, err)
			}
		})
	}
	go func() {
		p.work.Wait()
		p.api.Shutdown()
		close(ended)
	}()
}

// discover is who answers to a question on the LAN.
func (p *proc) discover(ctx context.Context) (found []netip.AddrPort, err error) {
	for _, m := range p.c.present() {
		here, there := p.m.address(), m.address()
		if m.running() != nil && m != p.m && p.c.net.Reaches(here, there) && p.c.net.Reaches(there, here) {
			found = append(found, netip.AddrPortFrom(there, gossipPort))
		}
	}
	sleep(ctx, 100*time.Millisecond)
	return found, ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// halt ends the process: in good order, or as kill -9 and as the power do.
func (m *machine) halt(how int) {
	m.mu.Lock()
	p, addr := m.proc, m.addr
	m.proc = nil
	m.mu.Unlock()
	if p == nil {
		return
	}
	switch how {
	case byPower:
		m.c.net.Kill(addr)
		fallthrough
	case byKill:
		m.disk.kill()
		p.gossip.Shutdown()
		p.api.Shutdown()
	}
	p.stop()
}

// The ways to end a process.
const (
	byStop = iota
	byKill
	byPower
)

// again starts the program after a halt, wherever the machine is now.
func (m *machine) again() {
	<-m.ended
	m.c.net.Revive(m.address())
	m.start()
}

// accept hands the connections that come in to raft, where it runs.
func (p *proc) accept(ctx context.Context) error {
	for {
		select {
		case conn := <-p.api.StreamCh():
			s := p.master.Load()
			if s == nil {
				conn.Close()
				continue
			}
			select {
			case s.streams <- conn:
			default:
				conn.Close()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *proc) followMembers(ctx context.Context) error {
	hints, cancel := p.pool.Subscribe()
	defer cancel()
	for {
		select {
		case <-hints:
			close(*p.members.Swap(new(make(chan struct{}))))
		case <-ctx.Done():
			return nil
		}
	}
}

// used says whether there is a log on the machine's disk.
func (m *machine) used() (bool, error) {
	if m.c.files {
		return consensus.HasState(filepath.Join(m.dir, "raft"))
	}
	return m.disk.used(), nil
}

// runMasters runs a master whenever this node is one.
func (p *proc) runMasters(ctx context.Context) error {
	found := p.m.founder
	p.m.founder = false
	used, err := p.m.used()
	if err != nil {
		return err
	}
	for is := found || used; ; is = false {
		if !is {
			p.pool.SetMeta(func(m *gossip.Meta) { m.Bare = true })
			select {
			case <-p.promote:
				p.pool.SetMeta(func(m *gossip.Meta) { m.Bare = false })
			case <-ctx.Done():
				return nil
			}
		}
		retired, err := p.runMaster(ctx, found)
		found = false
		if err != nil || ctx.Err() != nil {
			return err
		}
		if retired {
			p.c.tell("%s is no longer a master", p.m.id)
			p.m.disk.wipe()
			if err := os.RemoveAll(filepath.Join(p.m.dir, "raft")); err != nil {
				return err
			}
		}
	}
}

func (p *proc) runMaster(ctx context.Context, bootstrap bool) (retired bool, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &master{streams: make(chan net.Conn, 16)}
	var gone atomic.Bool
	openLog := p.m.disk.openLog
	if p.c.files {
		openLog = nil
	}
	s.node, err = consensus.New(consensus.Config{
		ID: p.m.id, Name: p.m.name, Dir: filepath.Join(p.m.dir, "raft"),
		Stream: &streamLayer{p: p, s: s, closed: make(chan struct{})}, Addresses: addresses{}, Codec: codec{}, Caller: p,
		PeerID:         func(r *http.Request) string { return r.Header.Get("From") },
		Members:        p.consensusMembers,
		MembersChanged: func() <-chan struct{} { return *p.members.Load() },
		Prepare: func(ctx context.Context, id string) error {
			_, err := p.Call(ctx, id, pathMaster, nil)
			return err
		},
		Retired:       func() { gone.Store(true); stop() },
		LeaseDuration: leaseDuration,
		Compaction:    consensus.Compaction{Every: 5 * time.Second, Threshold: 48, Trailing: 32},
		Log:           p.log, OpenLog: openLog, Boot: p.c.clock,
	})
	if err != nil {
		return false, err
	}
	if bootstrap {
		if err := s.node.Bootstrap(); err != nil {
			return false, err
		}
	}
	s.handler = s.node.Handler()
	s.judge = liveness.New(liveness.Config{
		Members: p.livenessMembers, Subscribe: p.pool.Subscribe, Lease: s.node.Lease,
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			deadline, _ := ctx.Deadline()
			return p.api.DialTimeout(address, time.Until(deadline))
		},
	})
	var work sync.WaitGroup
	p.master.Store(s)
	work.Go(func() { err = s.node.Run(ctx); stop() })
	work.Go(func() { s.node.Lead(ctx, func(ctx context.Context) error { return p.lead(ctx, s) }) })
	work.Go(func() { p.c.follow(ctx, p.m.id, s.node.Store()) })
	work.Go(func() {
		for s.node.Sync(ctx) != nil {
			if sleep(ctx, 50*time.Millisecond); ctx.Err() != nil {
				return
			}
		}
		p.pool.SetMeta(func(m *gossip.Meta) { m.Role = gossip.RoleMaster })
		<-ctx.Done()
		p.pool.SetMeta(func(m *gossip.Meta) { m.Role = gossip.RoleNode })
	})
	work.Wait()
	p.master.Store(nil)
	for {
		select {
		case conn := <-s.streams:
			conn.Close()
			continue
		default:
		}
		break
	}
	if check := s.node.Store().Check(); check != nil {
		p.c.violation("%s: the store is inconsistent: %v", p.m.id, check)
	}
	if err != nil && p.m.running() != p { // it was killed, and its disk with it
		err = nil
	}
	return gone.Load(), err
}

// lead is what the leader alone does.
func (p *proc) lead(ctx context.Context, s *master) error {
	before := s.node.Status()
	if after := s.node.Status(); before.State == "leader" && after.State == "leader" && before.Term == after.Term {
		p.c.leads(after.Term, p.m.id)
	}
	var work sync.WaitGroup
	work.Go(func() { p.judgeFences(ctx, s.node) })
	err := s.judge.Run(ctx)
	work.Wait()
	return err
}

// holds is the page that the agent and the pods' processes share: it outlives
// the process.
func (m *machine) holds(until time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fence = max(m.fence, until)
}

// judgeFences looks, as the leader does that would replace pods, whether they
// may still run where they were.
func (p *proc) judgeFences(ctx context.Context, n *consensus.Node) {
	for ctx.Err() == nil {
		for _, m := range p.c.machines {
			if n.FenceLeft(m.name, m.id) > 0 {
				continue
			}
			m.mu.Lock()
			until := m.fence
			m.mu.Unlock()
			if now := p.c.clock(); until > now {
				p.c.violation("%s, which leads, would replace what runs on %s for another %s", p.m.id, m.id, until-now)
			}
		}
		sleep(ctx, fenceLook)
	}
}

const fenceLook = 500 * time.Millisecond

// leads notes who leads in a term: one at most.
func (c *cluster) leads(term uint64, id string) {
	c.mu.Lock()
	other := c.leaders[term]
	c.leaders[term] = id
	c.mu.Unlock()
	if other != "" && other != id {
		c.violation("both %s and %s lead in term %d", other, id, term)
	}
	c.tell("%s leads in term %d", id, term)
}

func (p *proc) consensusMembers() []consensus.Member {
	var all []consensus.Member
	for _, m := range p.pool.Members() {
		all = append(all, consensus.Member{
			ID: m.ID, Name: m.Name, Zone: m.Zone, NoMaster: m.NoMaster, Bare: m.Bare, Memory: m.Memory, DiskLatency: m.DiskLatency, Started: m.Started,
			Suspect: m.State == gossip.Suspect, Alive: m.State == gossip.Alive || m.State == gossip.Suspect,
		})
	}
	return all
}

func (p *proc) livenessMembers() []liveness.Member {
	var all []liveness.Member
	for _, m := range p.pool.Members() {
		all = append(all, liveness.Member{ID: m.ID, Name: m.Name, Alive: m.State == gossip.Alive, Address: netip.AddrPortFrom(m.Addr, m.APIPort)})
	}
	return all
}

// masters are the ids of the nodes that may know the leader, this one first.
func (p *proc) masters() (ids []string) {
	if p.master.Load() != nil {
		ids = append(ids, p.m.id)
	}
	for _, m := range p.pool.Members() {
		if m.Role == gossip.RoleMaster && m.State == gossip.Alive && m.ID != p.m.id {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func (p *proc) resolve(id string) (netip.AddrPort, bool) {
	m, ok := p.pool.Member(id)
	return netip.AddrPortFrom(m.Addr, m.APIPort), ok
}

// addresses: a server's address is its id; streamLayer finds out where it lives.
type addresses struct{}

func (addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

// streamLayer brings raft onto the switch.
type streamLayer struct {
	p      *proc
	s      *master
	closed chan struct{}
	once   sync.Once
}

func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case conn := <-l.s.streams:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *streamLayer) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *streamLayer) Addr() net.Addr { return &net.UnixAddr{Name: l.p.m.id} }

func (l *streamLayer) Dial(id raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	to, ok := l.p.resolve(string(id))
	if !ok {
		return nil, fmt.Errorf("node %s is not known", id)
	}
	return l.p.api.DialTimeout(to.String(), timeout)
}

// Call posts to another node. The question may arrive after the caller gave up,
// and once in a while arrives twice.
func (p *proc) Call(ctx context.Context, id, path string, body []byte) ([]byte, error) {
	to, ok := p.resolve(id)
	if !ok {
		return nil, fmt.Errorf("node %s is not known", id)
	}
	type answer struct {
		body []byte
		err  error
	}
	answers := make(chan answer, 2)
	flight, land := context.WithCancel(p.c.ctx)
	times := 1
	if path != pathMaster && p.c.chance(0.01) {
		times = 2
	}
	late := p.c.upTo(3 * time.Second)
	context.AfterFunc(ctx, func() { time.AfterFunc(late, land) })
	for range times {
		p.c.flights.Go(func() {
			b, err := p.deliver(flight, to, id, path, body)
			answers <- answer{b, err}
		})
	}
	select {
	case a := <-answers:
		land()
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// deliver brings a question to a node and its answer back.
func (p *proc) deliver(ctx context.Context, to netip.AddrPort, id, path string, body []byte) ([]byte, error) {
	if err := p.api.Carry(ctx, to); err != nil {
		return nil, err
	}
	there := p.c.at(to.Addr())
	if there == nil {
		return nil, syscall.ECONNREFUSED
	}
	if there.m.id != id { // its certificate says another name
		return nil, fmt.Errorf("%s answers instead of %s", there.m.id, id)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(there.ctx, cancel)
	defer stop()
	p.c.net.Awake(to.Addr(), ctx.Done())
	b, err := there.serve(ctx, p.m.id, path, body)
	if p.c.at(to.Addr()) != there {
		return nil, syscall.ECONNRESET
	}
	if back := there.api.Carry(ctx, netip.AddrPortFrom(p.m.address(), apiPort)); back != nil {
		return nil, back
	}
	return b, err
}

// at is the process that has an address now.
func (c *cluster) at(a netip.Addr) *proc {
	for _, m := range c.machines {
		m.mu.Lock()
		p, addr := m.proc, m.addr
		m.mu.Unlock()
		if p != nil && addr == a {
			return p
		}
	}
	return nil
}

// serve answers a call from another node.
func (p *proc) serve(ctx context.Context, from, path string, body []byte) ([]byte, error) {
	if path == pathMaster {
		if p.master.Load() != nil {
			return nil, nil
		}
		select {
		case p.promote <- struct{}{}:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s := p.master.Load()
	if s == nil {
		return nil, errors.New("this node is no master")
	}
	q := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://node"+path, bytes.NewReader(body))
	q.Header.Set("From", from)
	a := httptest.NewRecorder()
	s.handler.ServeHTTP(a, q)
	if a.Code != http.StatusOK {
		return nil, fmt.Errorf("%d: %s", a.Code, a.Body)
	}
	return io.ReadAll(a.Body)
}

// codec keeps things small: the simulation's objects are a name and a word.
type codec struct{}

func (codec) Encode(o consensus.Object) ([]byte, error) {
	return []byte(o.GetNamespace() + "\x00" + o.GetName() + "\x00" + o.GetAnnotations()["v"]), nil
}

func (codec) Decode(b []byte) (consensus.Object, error) {
	parts := strings.Split(string(b), "\x00")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%q is no thing", b)
	}
	return thing(parts[1], parts[2]), nil
}

const namespace = "n"

func thing(name, value string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{"v": value}}}
}

func value(r consensus.Record) string { return r.Object().GetAnnotations()["v"] }
