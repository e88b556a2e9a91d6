package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	peersFile = "peers.json"
	// writePause is the least time between two writes of it, unless there is a
	// peer that it does not name at all: a power cut must not lose the only way
	// back to the others. Those are gathered for a moment.
	writePause = 5 * time.Second
	newPause   = 100 * time.Millisecond

	searchFirst = time.Second
	searchMost  = 10 * time.Second
	// searchWidth is how many missing peers are tried at a time.
	searchWidth = 16
	// searchLAN bounds Config.Discover.
	searchLAN = 3 * time.Second
	// searchBlind is how often a node that remembers nobody asks the LAN.
	searchBlind = 3
)

// store remembers peers' addresses and this node's epoch.
type store struct {
	path string // empty: nowhere
	log  *slog.Logger

	mu      sync.Mutex
	epoch   uint64
	peers   map[string]netip.AddrPort // by id
	seeds   []string                  // addresses of who knows, until one of them was reached
	met     time.Time                 // when the first peer was
	dirty   bool
	fresh   bool // a peer is not in the file yet
	written time.Time
}

// storeFile is peers.json.
type storeFile struct {
	Epoch uint64                    `json:"epoch"`
	Peers map[string]netip.AddrPort `json:"peers"`
	Seeds []string                  `json:"seeds,omitempty"`
}

// openStore reads what was remembered and begins a new epoch. A file that
// cannot be read costs only memories. Seeds are remembered like peers.
func openStore(dir string, seeds []string, log *slog.Logger) (*store, error) {
	s := &store{log: log, peers: map[string]netip.AddrPort{}}
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		s.path = filepath.Join(dir, peersFile)
		data, err := os.ReadFile(s.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		var f storeFile
		if err == nil {
			if err := json.Unmarshal(data, &f); err != nil {
				log.Warn("the remembered peers cannot be read", "file", s.path, "err", err)
				f = storeFile{}
			}
		}
		s.epoch, s.seeds = f.Epoch, f.Seeds
		for id, addr := range f.Peers {
			if addr.IsValid() {
				s.peers[id] = addr
			}
		}
	}
	if len(seeds) > 0 {
		s.seeds = slices.Clone(seeds)
	}
	s.nextEpoch()
	return s, nil
}

// nextEpoch begins a new one: higher than all before, whatever the clock says,
// and, for a node that lost its file, than those before by the clock.
func (s *store) nextEpoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = max(s.epoch+1, uint64(max(time.Now().Unix(), 0)))
	s.dirty = true
	return s.epoch
}

// learn replaces addresses of peers; it reports whether there is something to
// write.
func (s *store) learn(peers map[string]netip.AddrPort, gone []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, addr := range peers {
		old, ok := s.peers[id]
		if old != addr {
			s.peers[id] = addr
			s.dirty = true
		}
		s.fresh = s.fresh || !ok
	}
	if len(peers) > 0 && s.met.IsZero() {
		s.met = time.Now()
	}
	for _, id := range gone {
		if _, ok := s.peers[id]; ok {
			delete(s.peers, id)
			s.dirty = true
		}
	}
	return s.dirty
}

func (s *store) forget(id string) { s.learn(nil, []string{id}) }

func (s *store) known() map[string]netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.peers)
}

// seedsFor is for how long seeds are tried beside peers that are no seeds.
// Newcomers find each other, and must not stop there: who has been here for
// longer may be cut off from them for a while.
const seedsFor = 10 * time.Minute

// unmet are the seeds that are yet to be tried.
func (s *store) unmet() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seeds != nil && !s.met.IsZero() && time.Since(s.met) >= seedsFor {
		s.seeds, s.dirty = nil, true
	}
	return s.seeds
}

// reached says that a seed answered: it tells of all others.
func (s *store) reached() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seeds != nil {
		s.seeds, s.dirty = nil, true
	}
}

// pause is how long to wait before writing.
func (s *store) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh {
		return newPause
	}
	return max(0, time.Until(s.written.Add(writePause)))
}

// flush writes what changed. Losing it costs a slower return, so that a failure
// is only logged.
func (s *store) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty || s.path == "" {
		s.dirty, s.fresh = false, false
		return
	}
	if err := s.write(); err != nil {
		s.log.Warn("cannot remember the peers' addresses", "err", err)
		return
	}
	s.dirty, s.fresh, s.written = false, false, time.Now()
}

func (s *store) write() error {
	data, err := json.Marshal(storeFile{Epoch: s.epoch, Peers: s.peers, Seeds: s.seeds})
	if err != nil {
		return err
	}
	temp := s.path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", temp, err)
	}
	return os.Rename(temp, s.path)
}

// remembered sorts the members into those whose addresses are worth keeping and
// those that left.
func (p *Pool) remembered() (keep map[string]netip.AddrPort, gone []string) {
	keep = map[string]netip.AddrPort{}
	for _, m := range p.Members() {
		switch {
		case m.ID == p.cfg.ID:
		case m.State == Alive:
			keep[m.ID] = netip.AddrPortFrom(m.Addr, m.Port)
		case m.State == Left:
			gone = append(gone, m.ID)
		}
	}
	return keep, gone
}

// alive lists the addresses of all peers that are not dead.
func (p *Pool) alive() []string {
	var addrs []string
	for _, m := range p.Members() {
		if m.ID != p.cfg.ID && m.State < Dead {
			addrs = append(addrs, netip.AddrPortFrom(m.Addr, m.Port).String())
		}
	}
	return addrs
}

// Alone says that this node knows of no other that has not left since.
func (p *Pool) Alone() bool { return len(p.missing())+len(p.alive())+len(p.unmet()) == 0 }

// missing lists the remembered peers that are not alive here, by id.
func (p *Pool) missing() map[string]netip.AddrPort {
	p.mu.Lock()
	left := p.left
	p.mu.Unlock()
	if left {
		return nil
	}
	peers := p.store.known()
	for _, m := range p.Members() {
		if m.ID == p.cfg.ID || m.State < Dead || m.State == Left {
			delete(peers, m.ID)
		}
	}
	return peers
}

// soughtFor is how long somebody who was asked for, and is not known, is looked for.
const soughtFor = time.Minute

// lost are those whom this node misses: remembered peers that are not alive here,
// and, without an address, who was asked for lately and is not known at all.
func (p *Pool) lost() map[string]netip.AddrPort {
	lost := p.missing()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left {
		return lost
	}
	for id, at := range p.sought {
		if time.Since(at) > soughtFor {
			delete(p.sought, id)
		} else if _, known := p.find(id); known {
			delete(p.sought, id)
		} else if _, missing := lost[id]; !missing {
			lost[id] = netip.AddrPort{}
		}
	}
	return lost
}

// unmet are the addresses that this node was given, while it knows nobody else.
func (p *Pool) unmet() []string {
	p.mu.Lock()
	left := p.left
	p.mu.Unlock()
	if left {
		return nil
	}
	return p.store.unmet()
}

// search tries to reach missing peers and seeds, and asks the LAN if nobody is
// alive. It exchanges all with one that is alive, too: the missing may have another
// address, or an acquaintance, that was told while this node was not there to hear
// it, and memberlist by itself makes one such exchange a minute.
func (p *Pool) search(ctx context.Context, missing map[string]netip.AddrPort) {
	ids := slices.Collect(maps.Keys(missing))
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	if seeds := p.unmet(); len(seeds) > 0 && p.contact(ctx, seeds) {
		p.store.reached()
	}
	var addrs []string
	for _, id := range ids[:min(len(ids), searchWidth)] {
		if addr := missing[id]; addr.IsValid() {
			addrs = append(addrs, addr.String())
		}
	}
	if alive := p.alive(); len(ids) > 0 && len(alive) > 0 {
		addrs = append(addrs, alive[rand.IntN(len(alive))])
	}
	p.contact(ctx, addrs)
	if p.cfg.Discover == nil || len(p.alive()) > 0 || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, searchLAN)
	defer cancel()
	found, err := p.cfg.Discover(ctx)
	if err != nil {
		p.log.Debug("cannot ask the LAN for peers", "err", err)
		return
	}
	addrs = nil
	for _, addr := range found {
		addrs = append(addrs, addr.String())
	}
	p.contact(ctx, addrs)
}

// contact joins whom it can reach, and reports whether that was anybody.
func (p *Pool) contact(ctx context.Context, addrs []string) bool {
	n, err := p.Join(ctx, addrs)
	if err != nil {
		p.log.Debug("no peer can be reached", "tried", len(addrs), "err", err)
	} else if n > 0 {
		p.log.Debug("reached peers", "tried", len(addrs), "answered", n)
	}
	return n > 0
}

// searchPause is the time between searches: it grows until somebody else is
// missing.
type searchPause struct {
	missing map[string]netip.AddrPort
	wait    time.Duration
}

// changed notes who is missing; it reports whether somebody is newly so.
func (s *searchPause) changed(missing map[string]netip.AddrPort) bool {
	more := false
	for id := range missing {
		if _, ok := s.missing[id]; !ok {
			more = true
		}
	}
	s.missing = missing
	if more {
		s.wait = 0
	}
	return more
}

// next is how long to wait before the next search, a quarter of it by chance. It
// grows by a quarter each time: whoever was away for less than a minute meets the
// others again within a third of that time and a second, not within as much
// again.
func (s *searchPause) next() time.Duration {
	s.wait = min(max(s.wait*5/4, searchFirst), searchMost)
	return s.wait*3/4 + rand.N(s.wait/4)
}
