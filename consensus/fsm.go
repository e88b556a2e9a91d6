package consensus

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// errStale is the result of an entry that was committed in another term than
// its sender meant: it did nothing.
var errStale = errors.New("the entry came too late")

// machine feeds the store from the log (raft.FSM). raft calls it from one
// goroutine. It has no clock.
type machine struct {
	store *Store
	codec Codec
	// decoded holds the objects of entries that this node proposed, by the
	// first byte of the entry: the proposer had to decode them anyway, to
	// know that every replica can.
	decoded sync.Map // *byte → Object
	// committed is told each batch's last index.
	committed func(index uint64)
	// failed is called once, with what makes this replica unable to go on.
	failed func(error)
	broken error
	// unreadable says why the newest snapshot could not be read: of all its
	// snapshots raft only says that none could.
	unreadable error
}

func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch decodes first and then changes the store in one step, so that
// readers wait little and watchers wake once.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	writes := make([]*Write, len(logs)) // nil: the log does nothing to the store
	ids := make([]requestID, len(logs))
	good := 0
	for ; good < len(logs) && m.broken == nil; good++ {
		l := logs[good]
		if l.Type != raft.LogCommand {
			continue
		}
		w, id, err := m.decode(l)
		if errors.Is(err, errStale) {
			results[good] = applied{revision: l.Index, err: err}
			continue
		}
		if err != nil {
			// Going on without this entry would be another history than the
			// other replicas'.
			m.broken = fmt.Errorf("log entry %d cannot be applied: %w", l.Index, damage(err))
			m.failed(m.broken)
			break
		}
		writes[good], ids[good] = &w, id
	}
	if good > 0 {
		m.store.mu.Lock()
		for i, w := range writes[:good] {
			if w != nil {
				results[i] = m.store.apply(logs[i].Index, *w, ids[i], len(logs[i].Data))
			}
		}
		m.store.finish(logs[good-1].Index)
		m.store.mu.Unlock()
		m.committed(logs[good-1].Index)
	}
	for i := good; i < len(results); i++ {
		results[i] = applied{err: m.broken}
	}
	return results
}

// damage marks an error as ErrDamaged if it says that bytes are not as they
// were written.
func damage(err error) error {
	if errors.Is(err, errEntry) || errors.Is(err, errSnapshot) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

func (m *machine) decode(l *raft.Log) (w Write, id requestID, err error) {
	e, err := decodeEntry(l.Data)
	if err != nil {
		return w, id, err
	}
	if e.term != l.Term {
		return w, id, errStale
	}
	var o Object
	if e.verb != Delete {
		if o, err = m.object(l.Data, e.object); err != nil {
			return w, id, err
		}
	}
	w = e.write(o)
	return w, e.id, w.check()
}

func (m *machine) object(key, b []byte) (Object, error) {
	if o, ok := m.decoded.LoadAndDelete(&key[0]); ok {
		return o.(Object), nil
	}
	return m.codec.Decode(b)
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	return m.store.snapshot(m.codec.Encode), nil
}

func (m *machine) Restore(from io.ReadCloser) error {
	defer from.Close()
	c, err := readSnapshot(from, m.codec.Decode)
	if err != nil {
		m.unreadable = damage(err)
		return m.unreadable
	}
	m.store.restore(c)
	return nil
}
