package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// revisionGap is how far the revisions of a new incarnation are ahead of the
// log that it began with. The dead may have given out revisions that nobody
// else has; were they given out again, a client that saw them would miss what
// is written under them now. So a watch from there ends with ErrExpired, as
// for a store that has moved on.
const revisionGap = 1_000_000_000

// Position is how far a log goes.
type Position struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
	// Written is when the leader of the time wrote the last entry; zero if that
	// is not known.
	Written time.Time `json:"written,omitzero"`
}

// Report is what one node knows that matters when a majority is lost.
type Report struct {
	ID          string      `json:"id"`
	Term        uint64      `json:"term"`                 // raft's own
	Leader      string      `json:"leader,omitempty"`     // that a majority follows now, as the leader itself says
	Log         *Position   `json:"log,omitempty"`        // nil: it has none
	Incarnation Incarnation `json:"incarnation,omitzero"` // of its log
	Voters      []string    `json:"voters,omitempty"`
	// Alive are the nodes that gossip there does not call dead.
	Alive []string `json:"alive"`
}

// Report describes this node.
func (n *Node) Report(ctx context.Context) (Report, error) {
	r := Report{ID: n.c.ID, Incarnation: n.c.Incarnation}
	r.Incarnation.Proof = nil
	for _, m := range n.c.Members() {
		if m.Alive {
			r.Alive = append(r.Alive, m.ID)
		}
	}
	_, r.Term = n.leaderAndTerm()
	for _, id := range voterIDs(n.configuration()) {
		r.Voters = append(r.Voters, string(id))
	}
	if at, err := n.verify.do(ctx, n.verifyLeader); err == nil {
		r.Leader, r.Term = n.c.ID, at.term
	}
	at, err := n.disk.position()
	if err == nil && at.Index > 0 {
		r.Log = &at
	}
	return r, err
}

// position is that of the last entry, or of the snapshot behind which nothing
// came.
func (d *disk) position() (p Position, err error) {
	last, err := d.log.LastIndex()
	if err != nil {
		return p, fmt.Errorf("reading the log: %w", err)
	}
	if last > 0 {
		var l raft.Log
		if err := d.log.GetLog(last, &l); err != nil {
			return p, err // says which
		}
		p = Position{Term: l.Term, Index: l.Index, Written: l.AppendedAt}
	}
	snaps, err := d.snaps.List()
	if err != nil {
		return p, fmt.Errorf("listing snapshots: %w", err)
	}
	for _, s := range snaps {
		if s.Index > p.Index {
			p = Position{Term: s.Term, Index: s.Index}
		}
	}
	return p, nil
}

func (p Position) less(o Position) bool {
	return p.Term < o.Term || p.Term == o.Term && p.Index < o.Index
}

// Loss is what Judge found: who can go on alone, and what that may cost.
type Loss struct {
	Best Report
	// Missing are the voters of Best's configuration that do not answer.
	Missing []string
	// Term is the highest that anybody who answered has seen.
	Term uint64
}

// ErrNotLost says that no majority is lost, or that one may still answer.
var ErrNotLost = errors.New("the cluster can go on by itself")

// ErrNoLog says that nobody who answers has the cluster's state.
var ErrNoLog = errors.New("no node that answers has a copy of the cluster's state")

// Judge decides from the reports of all nodes that answer whether a majority of
// the voters is lost, and whose log goes furthest. name is how people call a
// node.
func Judge(reports []Report, name func(id string) string) (Loss, error) {
	names := func(ids []string) string {
		var all []string
		for _, id := range ids {
			all = append(all, name(id))
		}
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	var l Loss
	var now Incarnation
	for _, r := range reports {
		if r.Leader != "" {
			return l, fmt.Errorf("%w: %s leads, and a majority of the masters follows", ErrNotLost, name(r.Leader))
		}
		if r.Log != nil && now.Compare(r.Incarnation) < 0 {
			now = r.Incarnation
		}
	}
	current := make(map[string]bool) // who has a log that counts
	for _, r := range reports {
		l.Term = max(l.Term, r.Term)
		if r.Log == nil || r.Incarnation.Compare(now) != 0 {
			continue
		}
		current[r.ID] = true
		if l.Best.Log == nil || l.Best.Log.less(*r.Log) || !r.Log.less(*l.Best.Log) && r.ID < l.Best.ID {
			l.Best = r
		}
	}
	if l.Best.Log == nil {
		return l, ErrNoLog
	}
	answers := make(map[string]bool)
	alive := make(map[string]bool)
	for _, r := range reports {
		answers[r.ID] = true
		for _, id := range r.Alive {
			alive[id] = true
		}
	}
	var able, seen []string
	for _, id := range l.Best.Voters {
		switch {
		case current[id]:
			able = append(able, id)
		case !answers[id] && alive[id]:
			seen = append(seen, id)
		}
		if !answers[id] {
			l.Missing = append(l.Missing, id)
		}
	}
	quorum := len(l.Best.Voters)/2 + 1
	switch {
	case len(able) >= quorum:
		return l, fmt.Errorf("%w: %d of its %d masters answer (%s), which is a majority: they elect a leader by themselves within seconds; if they do not, their logs say why",
			ErrNotLost, len(able), len(l.Best.Voters), names(able))
	case len(able)+len(seen) >= quorum:
		return l, fmt.Errorf("%w, perhaps: gossip still sees %s, which would make a majority of the %d masters: if they are gone for good, power them off and wait until `conclave status` calls them dead; if they are not, start conclave on them, or repair the network",
			ErrNotLost, names(seen), len(l.Best.Voters))
	}
	return l, nil
}

// Seed makes the first log of a new incarnation, with one voter. Nothing may
// run in Dir. What was there before is kept beside it, in a folder that
// Superseded names.
type Seed struct {
	ID, Dir     string
	Codec       Codec
	Incarnation Incarnation
	Term        uint64 // the highest known of the older incarnation
	OpenLog     func() (LogStore, error)
	Log         *slog.Logger
}

// FromLog begins with the log that is in Dir: all of it, also what its node
// does not know to be committed, for the dead may have acknowledged it. It
// returns how far that log went.
func (s Seed) FromLog() (at Position, err error) {
	store := newStore(1, 1)
	fail := func(err error) (Position, error) {
		return at, fmt.Errorf("recovering the log in %s: %w", s.Dir, err)
	}
	d, err := openDisk(s.Dir, s.OpenLog, newRaftLog(s.logger()))
	if err != nil {
		return fail(err)
	}
	at, err = d.position()
	if err == nil {
		err = d.replay(&machine{store: store, codec: s.Codec, committed: func(uint64) {}, failed: func(error) {}})
	}
	if err = errors.Join(err, d.close()); err != nil {
		return fail(err)
	}
	if at.Index == 0 {
		return fail(errors.New("it is empty"))
	}
	if err := s.plant(store, at); err != nil {
		return fail(err)
	}
	return at, nil
}

// Read reads what State.Write wrote, to the stream's end.
func Read(from io.Reader, codec Codec) (*Store, error) {
	c, err := readSnapshot(from, codec.Decode)
	if err == nil {
		_, err = io.Copy(io.Discard, from) // its end may say that all of it is damaged
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	store := newStore(1, 1)
	store.restore(c)
	return store, nil
}

// FromStore begins with what Read returned.
func (s Seed) FromStore(store *Store) error {
	if err := s.plant(store, Position{Term: s.Term, Index: store.Revision()}); err != nil {
		return fmt.Errorf("restoring the state into %s: %w", s.Dir, err)
	}
	return nil
}

func (s Seed) logger() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// replay brings a fresh machine to the end of the log.
func (d *disk) replay(m *machine) error {
	snaps, err := d.snaps.List()
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	var at uint64
	var damaged error
	for _, s := range snaps { // the newest is first
		_, from, err := d.snaps.Open(s.ID)
		if err == nil {
			err = m.Restore(from)
		}
		if err == nil {
			at = s.Index
			break
		}
		damaged = errors.Join(damaged, fmt.Errorf("snapshot %s: %w", s.ID, err))
	}
	first, err := d.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := d.log.LastIndex()
	if err != nil {
		return err
	}
	if first > at+1 || last == 0 && damaged != nil {
		return errors.Join(fmt.Errorf("there is nothing before entry %d", max(first, 1)), damaged)
	}
	for i := max(first, at+1); i <= last; i++ {
		var l raft.Log
		if err := d.log.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if m.Apply(&l); m.broken != nil {
			return m.broken
		}
	}
	return nil
}

// plant writes the store as the first snapshot of the new incarnation and puts
// it in the place of what Dir holds.
func (s Seed) plant(store *Store, at Position) error {
	index, term := at.Index+revisionGap, max(at.Term, s.Term)+1
	store.mu.Lock()
	store.finish(index)
	store.mu.Unlock()
	fresh := s.Dir + freshSuffix
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(fresh, snapsDir), 0o700); err != nil {
		return err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(fresh, keepSnaps, newRaftLog(s.logger()))
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(s.ID)) // encodes addresses in a format no longer used
	defer trans.Close()
	alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.ID)}}}
	sink, err := snaps.Create(1, index, term, alone, index, trans)
	if err != nil {
		return err
	}
	if err := store.snapshot(s.Codec.Encode).Persist(sink); err != nil {
		return err
	}
	vote, err := openVote(filepath.Join(fresh, voteFile))
	if err != nil {
		return err
	}
	if err := errors.Join(vote.SetUint64([]byte("CurrentTerm"), term), vote.file.Close()); err != nil {
		return err
	}
	// Last: a folder with this file is whole.
	if err := writeIncarnation(fresh, s.Incarnation); err != nil {
		return err
	}
	if err := SetAside(s.Dir); err != nil {
		return err
	}
	if err := os.Rename(fresh, s.Dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.Dir))
}

const (
	freshSuffix      = ".new"
	supersededSuffix = ".superseded"
	damagedSuffix    = ".damaged"
)

// Superseded is where SetAside keeps the log of dir.
func Superseded(dir string) string { return dir + supersededSuffix }

// SetAside takes the log in dir out of use and keeps it, the newest one only:
// it may hold what somebody misses.
func SetAside(dir string) error { return moveAside(dir, Superseded(dir)) }

// Damaged is where SetDamagedAside keeps the log of dir.
func Damaged(dir string) string { return dir + damagedSuffix }

// SetDamagedAside is SetAside of a log that gave ErrDamaged.
func SetDamagedAside(dir string) error { return moveAside(dir, Damaged(dir)) }

func moveAside(dir, to string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.Rename(dir, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// Settle ends what a crash cut off while a Seed was planted, and returns the
// incarnation of the log in dir. It is called before New.
func Settle(dir string) (Incarnation, error) {
	fresh := dir + freshSuffix
	_, err := os.Stat(dir)
	if _, whole := os.Stat(filepath.Join(fresh, incarnationFile)); errors.Is(err, fs.ErrNotExist) && whole == nil {
		err = os.Rename(fresh, dir)
	} else {
		err = os.RemoveAll(fresh) // nobody was told of it yet
	}
	if err == nil {
		err = syncDir(filepath.Dir(dir))
	}
	if err != nil {
		return Incarnation{}, fmt.Errorf("settling what recovery left at %s: %w", dir, err)
	}
	return readIncarnation(dir)
}

// State is the whole store as it was at one moment. The store goes on.
type State struct{ s *snapshot }

// State takes the state as it is now.
func (n *Node) State() State { return State{n.store.snapshot(n.c.Codec.Encode)} }

// Revision is the moment.
func (s State) Revision() uint64 { return s.s.revision }

// Write writes the state for Seed.FromStream.
func (s State) Write(to io.Writer) error {
	if err := s.s.write(to); err != nil {
		return fmt.Errorf("writing the state at revision %d: %w", s.s.revision, err)
	}
	return nil
}
