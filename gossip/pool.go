package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// State is how alive a member is.
type State uint8

// The states.
const (
	Alive   State = iota
	Suspect       // it did not answer somebody; it may yet
	Dead          // it did not answer for long
	Left          // it said that it leaves
)

var stateNames = [...]string{"alive", "suspect", "dead", "left"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", s)
}

// Member is one node as this one sees it.
type Member struct {
	ID   string
	Addr netip.Addr
	Port uint16 // of gossip
	Meta
	State State
	Since time.Time // when it came into this state, by this node's clock
}

// Config makes a Pool.
type Config struct {
	ID   string
	Meta Meta
	// Bind is where to listen. Port 0 takes a free one.
	Bind netip.AddrPort
	// Advertise is the address by which the others reach this node. It may be
	// left out if Bind has one.
	Advertise netip.Addr
	// Key, of 32 bytes, encrypts everything. Whoever has another one is not
	// heard.
	Key []byte
	// Dir is where peers' addresses are remembered; empty: nowhere.
	Dir string
	// Seeds are host:port of members, for a node that knows none yet. They are
	// tried again and again, and remembered, until one of them was reached, or
	// others have been known for ten minutes.
	Seeds []string
	// Transport replaces the sockets, for tests. The pool shuts it down.
	Transport memberlist.Transport
	// Discover, if set, is asked for gossip addresses while no remembered peer
	// is alive, and a few times at the start by a node that remembers nobody.
	Discover func(ctx context.Context) ([]netip.AddrPort, error)
	Log      *slog.Logger
}

// The timing. doc.go says what follows from it.
const (
	probeInterval  = 400 * time.Millisecond
	probeTimeout   = 150 * time.Millisecond // twice it has to fit, for the helpers' answers
	suspicionMult  = 3
	maxTimeoutMult = 3
	gossipInterval = 200 * time.Millisecond
	streamTimeout  = 3 * time.Second

	metaTimeout  = 2 * time.Second
	leaveTimeout = 2 * time.Second
	// settleTime is how long a member that only an earlier instance knew is
	// believed after this node's own address changed.
	settleTime = 10 * time.Second
	// leftFor is how long a member that left is listed.
	leftFor = time.Hour
)

// Pool is this node's view of the cluster. Its methods may be called from
// anywhere, before Run too.
type Pool struct {
	cfg   Config
	log   *slog.Logger
	inner memberlist.Transport
	store *store

	ready   chan struct{} // closed when Run has made the first instance
	updated chan struct{} // holds at most one: meta changed
	moved   chan struct{} // holds at most one: advertise changed
	changed chan struct{} // holds at most one: entries changed

	// lifecycle holds one while an instance ends, or leaves, which takes its time:
	// memberlist panics if it is told to leave after its end.
	lifecycle chan struct{}

	mu        sync.Mutex
	meta      Meta
	advertise netip.AddrPort
	started   time.Time
	// entries by memberlist's names. This node's own are not among them.
	entries map[string]*entry
	view    []Member // of entries, nil: to be made anew
	// sought is when who is not known was last asked for, by id.
	sought map[string]time.Time
	subs   map[chan struct{}]struct{}
	// list is the instance that runs, nil before and after Run; generation
	// counts instances: what an earlier one reports late is not heard.
	list       *memberlist.Memberlist
	generation int
	left       bool
}

// entry is one name in memberlist: one node at one address.
type entry struct {
	member      Member
	incarnation uint32
	generation  int
}

// New opens the gossip port. Nothing is sent before Run.
func New(c Config) (*Pool, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ID == "" || strings.Contains(c.ID, nameSeparator) {
		return nil, fmt.Errorf("start gossip: %q cannot be a node's id", c.ID)
	}
	if len(c.Key) != 32 {
		return nil, fmt.Errorf("start gossip: the key has %d bytes, not 32", len(c.Key))
	}
	if !c.Advertise.IsValid() {
		c.Advertise = c.Bind.Addr()
	}
	if !c.Advertise.IsValid() || c.Advertise.IsUnspecified() {
		return nil, errors.New("start gossip: there is no address to advertise")
	}
	p := &Pool{
		cfg: c, log: c.Log, meta: c.Meta, inner: c.Transport,
		ready: make(chan struct{}), updated: make(chan struct{}, 1), moved: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		lifecycle: make(chan struct{}, 1),
		started:   time.Now(), entries: map[string]*entry{}, sought: map[string]time.Time{}, subs: map[chan struct{}]struct{}{},
	}
	var err error
	if p.store, err = openStore(c.Dir, c.Seeds, p.log); err != nil {
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	p.meta.epoch = p.store.epoch
	if _, err := p.meta.encode(); err != nil {
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	port := c.Bind.Port()
	if p.inner == nil {
		s, err := listenSocket(c.Bind, p.log)
		if err != nil {
			return nil, err
		}
		p.inner, port = s, s.port()
	}
	p.advertise = netip.AddrPortFrom(c.Advertise.Unmap(), port)
	return p, nil
}

// nameSeparator stands between the id and the address in memberlist's names.
const nameSeparator = "@"

func listName(id string, addr netip.AddrPort) string { return id + nameSeparator + addr.String() }

// start makes an instance of memberlist for the address that is advertised now.
func (p *Pool) start() (*memberlist.Memberlist, error) {
	p.mu.Lock()
	p.generation++
	generation, advertise := p.generation, p.advertise
	p.mu.Unlock()
	d := &delegate{p: p, generation: generation, self: listName(p.cfg.ID, advertise)}
	t, err := newTap(p.cfg.Key, d.hear)
	if err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	c.Name = d.self
	c.Transport = &view{Transport: p.inner, advertise: advertise, tap: t.packet}
	c.SecretKey = p.cfg.Key
	c.EnableCompression = false // packets are small, and compressing costs more than sending
	c.TCPTimeout = streamTimeout
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, maxTimeoutMult
	c.GossipInterval = gossipInterval
	// Each node passes news on so often. With the usual 4, one piece in ten
	// missed somebody in a cluster of five, until the next full exchange.
	c.RetransmitMult = 8
	c.PushPullInterval = time.Minute
	c.QueueCheckInterval = time.Hour // it only feeds a metric
	c.Delegate, c.Events, c.Alive = d, d, d
	c.Logger = listLogger(p.log)
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	p.mu.Lock()
	p.list = list
	p.mu.Unlock()
	return list, nil
}

// Run gossips until ctx ends. It can be called once.
func (p *Pool) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		p.stop()
		p.store.flush()
	}()
	if s, ok := p.inner.(*socket); ok {
		s.start()
	}
	list, err := p.start()
	if err != nil {
		return err
	}
	close(p.ready)

	var (
		retry   = time.NewTimer(0) // look for missing peers
		settle  = time.NewTimer(time.Hour)
		flush   = time.NewTimer(0)
		doubt   = time.NewTimer(time.Hour) // somebody is suspected for too long
		found   = make(chan struct{}, 1)   // the search ended
		backoff searchPause
	)
	settle.Stop()
	doubt.Stop()
	defer doubt.Stop()
	defer retry.Stop()
	defer settle.Stop()
	defer flush.Stop()
	searching, blind := false, 0
	if p.cfg.Discover != nil {
		blind = searchBlind
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.updated:
			// The call waits for the broadcast; an error only says that it
			// takes longer.
			if err := list.UpdateNode(metaTimeout); err != nil {
				p.log.Debug("what this node tells of itself spreads slowly", "err", err)
			}
		case <-p.moved:
			known := p.alive()
			if list, err = p.restart(list); err != nil {
				return err
			}
			p.log.Info("this node's address changed", "address", p.Local().Addr)
			settle.Reset(settleTime)
			wg.Go(func() { p.contact(ctx, known) })
		case <-p.changed:
			if p.store.learn(p.remembered()) {
				flush.Reset(p.store.pause())
			}
			if wait, any := p.acquit(); any {
				doubt.Reset(wait)
			}
			if backoff.changed(p.lost()) && !searching {
				retry.Reset(backoff.next())
			}
		case <-flush.C:
			p.store.flush()
		case <-doubt.C:
			if wait, any := p.acquit(); any {
				doubt.Reset(wait)
			}
		case <-settle.C:
			p.dropUnconfirmed()
		case <-retry.C:
			missing := p.lost()
			backoff.changed(missing)
			lost := len(p.unmet()) > 0 || len(p.alive()) == 0 && blind > 0
			if searching || len(missing) == 0 && !lost {
				continue
			}
			if len(missing) == 0 && blind > 0 {
				blind--
			}
			searching = true
			wg.Go(func() {
				p.search(ctx, missing)
				found <- struct{}{}
			})
		case <-found:
			searching = false
			if len(p.lost()) > 0 || len(p.unmet()) > 0 || blind > 0 {
				retry.Reset(backoff.next())
			}
		}
	}
}

// restart replaces the instance by one for the new address.
func (p *Pool) restart(old *memberlist.Memberlist) (*memberlist.Memberlist, error) {
	p.lifecycle <- struct{}{}
	err := old.Shutdown()
	<-p.lifecycle
	if err != nil {
		return nil, fmt.Errorf("stop gossip: %w", err)
	}
	epoch := p.store.nextEpoch()
	p.mu.Lock()
	p.meta.epoch = epoch
	p.mu.Unlock()
	return p.start()
}

// stop ends the instance and the transport.
func (p *Pool) stop() {
	p.mu.Lock()
	list := p.list
	p.list = nil
	p.generation++
	p.mu.Unlock()
	if list != nil {
		p.lifecycle <- struct{}{}
		err := list.Shutdown()
		<-p.lifecycle
		if err != nil {
			p.log.Debug("stop gossip", "err", err)
		}
	}
	if err := p.inner.Shutdown(); err != nil {
		p.log.Debug("close the gossip port", "err", err)
	}
}

// running waits for Run and returns its instance.
func (p *Pool) running(ctx context.Context) (*memberlist.Memberlist, error) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list == nil {
		return nil, errors.New("gossip has ended")
	}
	return p.list, nil
}

// Join contacts peers, all at once, and returns how many answered; an error if
// none did. Addresses are host:port. It waits for Run to begin.
func (p *Pool) Join(ctx context.Context, addrs []string) (int, error) {
	if len(addrs) == 0 {
		return 0, nil
	}
	list, err := p.running(ctx)
	if err != nil {
		return 0, fmt.Errorf("join by gossip: %w", err)
	}
	results := make(chan error, len(addrs))
	for _, addr := range addrs {
		go func() {
			_, err := list.Join([]string{addr}) // ends within streamTimeout
			results <- err
		}()
	}
	answered := 0
	var failures []error
	for range addrs {
		select {
		case err := <-results:
			if err == nil {
				answered++
			} else {
				failures = append(failures, err)
			}
		case <-ctx.Done():
			if answered == 0 {
				return 0, fmt.Errorf("join by gossip: %w", ctx.Err())
			}
			return answered, nil
		}
	}
	if answered == 0 {
		return 0, fmt.Errorf("join by gossip: %w", errors.Join(failures...))
	}
	return answered, nil
}

// Members lists every node known, this one too, sorted by id. The slice is the
// caller's; what Addresses points to is not.
func (p *Pool) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view == nil {
		p.view = p.members()
	}
	return slices.Clone(p.view)
}

// members makes the list: for each id the entry with the highest epoch.
func (p *Pool) members() []Member {
	newest := map[string]*entry{}
	for _, e := range p.entries {
		if best := newest[e.member.ID]; best == nil || cmp.Or(
			cmp.Compare(e.member.epoch, best.member.epoch),
			e.member.Since.Compare(best.member.Since)) > 0 {
			newest[e.member.ID] = e
		}
	}
	now := time.Now()
	for name, e := range p.entries {
		outdated := newest[e.member.ID] != e && e.member.State >= Dead
		if outdated || e.member.State == Left && now.Sub(e.member.Since) > leftFor {
			delete(p.entries, name)
		}
	}
	list := []Member{p.local()}
	for _, e := range newest {
		list = append(list, e.member)
	}
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Member finds one by id. One that is not known is looked for.
func (p *Pool) Member(id string) (Member, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, known := p.find(id)
	if !known && id != "" {
		_, sought := p.sought[id]
		p.sought[id] = time.Now()
		if !sought {
			hint(p.changed)
		}
	}
	return m, known
}

func (p *Pool) find(id string) (Member, bool) {
	if p.view == nil {
		p.view = p.members()
	}
	i, ok := slices.BinarySearchFunc(p.view, id, func(m Member, id string) int { return cmp.Compare(m.ID, id) })
	if !ok {
		return Member{}, false
	}
	return p.view[i], true
}

// Remembered is where each peer was that this node has ever met and that has
// not left, by its id: what it knows before anybody has answered.
func (p *Pool) Remembered() map[string]netip.AddrPort { return p.store.known() }

// Local is this node.
func (p *Pool) Local() Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.local()
}

func (p *Pool) local() Member {
	m := Member{ID: p.cfg.ID, Addr: p.advertise.Addr(), Port: p.advertise.Port(), Meta: p.meta, Since: p.started}
	if p.left {
		m.State = Left
	}
	return m
}

// SetMeta changes what this node tells of itself. The change must not keep the
// pointer. What does not fit into a packet is refused and logged.
func (p *Pool) SetMeta(change func(*Meta)) {
	p.mu.Lock()
	next := p.meta
	next.Addresses = slices.Clone(next.Addresses)
	change(&next)
	next.epoch, next.leaving = p.meta.epoch, p.meta.leaving
	packed, err := next.encode()
	if before, _ := p.meta.encode(); err == nil && string(before) == string(packed) {
		p.mu.Unlock()
		return
	}
	if err == nil {
		p.meta = next
		p.touch()
	}
	p.mu.Unlock()
	if err != nil {
		p.log.Error("cannot tell the others of a change", "err", err)
		return
	}
	hint(p.updated)
}

// SetAdvertise says by which address the others reach this node now.
func (p *Pool) SetAdvertise(a netip.Addr) {
	a = a.Unmap()
	p.mu.Lock()
	same := !a.IsValid() || a.IsUnspecified() || p.advertise.Addr() == a
	if !same {
		p.advertise = netip.AddrPortFrom(a, p.advertise.Port())
		p.touch()
	}
	p.mu.Unlock()
	if !same {
		hint(p.moved)
	}
}

// Subscribe returns a channel that has something whenever Members may have
// changed since it was last read, and a function that ends that.
func (p *Pool) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subs[c] = struct{}{}
	return c, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.subs, c)
	}
}

// Leave tells the others that this node ends on purpose, and returns once they
// heard it or ctx ended. Run goes on, without looking for anybody.
func (p *Pool) Leave(ctx context.Context) error {
	list, err := p.running(ctx)
	if err != nil {
		return fmt.Errorf("leave by gossip: %w", err)
	}
	p.mu.Lock()
	p.left, p.meta.leaving = true, true
	p.touch()
	p.mu.Unlock()
	done := make(chan error, 1)
	go func() { // ends within the two timeouts
		// The word about leaving goes first, so that the death that follows
		// is understood.
		if err := list.UpdateNode(leaveTimeout); err != nil {
			p.log.Debug("the news that this node leaves spreads slowly", "err", err)
		}
		p.lifecycle <- struct{}{}
		defer func() { <-p.lifecycle }()
		p.mu.Lock()
		ended := p.list != list
		p.mu.Unlock()
		if ended {
			done <- errors.New("gossip has ended")
			return
		}
		done <- list.Leave(leaveTimeout)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("leave by gossip: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("leave by gossip: %w", ctx.Err())
	}
}

// Forget drops a member that is not alive: it was removed from the cluster. Its
// addresses are not tried again.
func (p *Pool) Forget(id string) {
	p.mu.Lock()
	for name, e := range p.entries {
		if e.member.ID == id && e.member.State != Alive {
			delete(p.entries, name)
		}
	}
	p.touch()
	p.mu.Unlock()
	p.store.forget(id)
}

// acquit takes those for alive who are suspected for longer than memberlist
// suspects anybody: it would have called them dead, so the word that they
// answered was not heard by the tap. It returns how long until the next such
// case, if somebody is suspected now.
func (p *Pool) acquit() (next time.Duration, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	scale := max(1, math.Log10(float64(len(p.entries)+1)))
	most := time.Duration(scale*suspicionMult*maxTimeoutMult*float64(probeInterval)) + time.Second
	for _, e := range p.entries {
		if e.member.State != Suspect {
			continue
		}
		left := most - time.Since(e.member.Since)
		if left <= 0 {
			e.become(Alive)
			p.touch()
		} else if !any || left < next {
			next, any = left, true
		}
	}
	return next, any
}

// touch notes that entries or this node changed; the caller holds the lock.
func (p *Pool) touch() {
	p.view = nil
	for c := range p.subs {
		hint(c)
	}
	hint(p.changed)
}

// hint leaves one token in a channel of size one.
func hint(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// dropUnconfirmed declares those dead whom an earlier instance knew and the
// present one never met.
func (p *Pool) dropUnconfirmed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		if e.generation != p.generation && e.member.State < Dead {
			e.member.State, e.member.Since = Dead, time.Now()
			p.touch()
		}
	}
}
