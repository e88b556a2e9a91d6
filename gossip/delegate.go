package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate takes what one instance of memberlist tells. All of it runs under
// memberlist's lock: it updates the table and leaves hints, nothing else.
type delegate struct {
	p          *Pool
	generation int
	self       string
}

// NodeMeta packs what this node tells of itself.
func (d *delegate) NodeMeta(int) []byte {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	b, err := d.p.meta.encode()
	if err != nil {
		// New and SetMeta let nothing in that does not fit; the flag and the
		// epoch that are added later take a few bytes more.
		d.p.log.Error("cannot tell the others of this node", "err", err)
		return nil
	}
	return b
}

// The pool sends no messages of its own.

func (d *delegate) NotifyMsg([]byte)                {}
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}

// NotifyAlive refuses what is no node of ours.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	_, err := readNode(n)
	return err
}

// NotifyJoin hears of a node that is new or back.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.alive(n) }

// NotifyUpdate hears of a change of meta.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.alive(n) }

func (d *delegate) alive(n *memberlist.Node) {
	m, err := readNode(n)
	if err != nil || n.Name == d.self {
		return
	}
	p := d.p
	if m.ID == p.cfg.ID {
		d.twin(m)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.generation != p.generation {
		return
	}
	e := p.entries[n.Name]
	if e == nil {
		e = &entry{}
		p.entries[n.Name] = e
	}
	m.State, m.Since = Alive, time.Now()
	if e.generation != 0 && e.member.State == Alive {
		m.Since = e.member.Since
	}
	if e.generation != d.generation || e.member.State >= Dead {
		e.incarnation = 0
	}
	e.member, e.generation = m, d.generation
	p.touch()
}

// twin hears of another entry with this node's id: its own former address, or,
// if that began later, another machine with a copy of its data folder.
func (d *delegate) twin(m Member) {
	d.p.mu.Lock()
	own := d.p.meta.epoch
	d.p.mu.Unlock()
	if m.epoch > own {
		d.p.log.Error("another machine has this node's identity: one of the two has to get an empty data folder",
			"address", m.Addr)
	}
}

// NotifyLeave hears of a death, or that somebody left.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	d.change(n.Name, func(e *entry) bool {
		if e.member.leaving {
			return e.become(Left)
		}
		return e.become(Dead)
	})
}

// hear takes what memberlist tells the others about somebody.
func (d *delegate) hear(r rumour) {
	d.change(r.Node, func(e *entry) bool {
		if r.Incarnation < e.incarnation {
			return false
		}
		newer := r.Incarnation > e.incarnation
		e.incarnation = r.Incarnation
		switch {
		case r.kind == wireSuspect && e.member.State == Alive:
			return e.become(Suspect)
		case r.kind == wireAlive && newer && e.member.State == Suspect:
			return e.become(Alive)
		case r.kind == wireDead && r.From == r.Node && e.member.State == Dead:
			return e.become(Left)
		}
		return false
	})
}

func (d *delegate) change(name string, f func(*entry) bool) {
	p := d.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.generation != p.generation {
		return
	}
	if e := p.entries[name]; e != nil && f(e) {
		p.touch()
	}
}

// become changes the state; it reports whether it was another.
func (e *entry) become(s State) bool {
	if e.member.State == s {
		return false
	}
	e.member.State, e.member.Since = s, time.Now()
	return true
}

// readNode makes a Member of what memberlist says.
func readNode(n *memberlist.Node) (Member, error) {
	id, _, ok := strings.Cut(n.Name, nameSeparator)
	if !ok || id == "" {
		return Member{}, fmt.Errorf("%q is no node's name", n.Name)
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return Member{}, fmt.Errorf("node %s has no address", id)
	}
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		return Member{}, fmt.Errorf("node %s: %w", id, err)
	}
	return Member{ID: id, Addr: addr.Unmap(), Port: n.Port, Meta: meta}, nil
}

// listLogger writes memberlist's lines, which begin with a level in brackets.
// Its errors are mostly of peers that cannot be reached, which is what it is
// there to find out: they are no more than debugging here.
func listLogger(to *slog.Logger) *log.Logger { return log.New(lineWriter{to}, "", 0) }

type lineWriter struct{ to *slog.Logger }

func (w lineWriter) Write(b []byte) (int, error) {
	ctx := context.Background()
	if w.to.Enabled(ctx, slog.LevelDebug) {
		w.to.Log(ctx, slog.LevelDebug, string(bytes.TrimSpace(b)))
	}
	return len(b), nil
}
