package sim

import (
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"conclave/consensus"
)

// disk is where a machine keeps its log: it outlives the process, and takes its
// time to write.
type disk struct {
	typical time.Duration // of a write

	mu      sync.Mutex
	rand    *rand.Rand
	first   uint64 // index of entries[0]
	entries []raft.Log
	slow    time.Duration // more for each write, while a fault lasts
	full    bool
	open    *diskLog // of the process that runs
}

func newDisk(rng *rand.Rand, typical time.Duration) *disk {
	return &disk{typical: typical, rand: rng, first: 1}
}

// diskLog is the log as one process has it open (consensus.LogStore).
type diskLog struct {
	*disk
	gone bool // the process was killed: nothing that it writes counts
}

func (d *disk) openLog() (consensus.LogStore, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = &diskLog{disk: d}
	return d.open, nil
}

// kill ends what the running process can do to the disk. Of a write that is
// under way, nothing, all or a part arrives.
func (d *disk) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != nil {
		d.open.gone = true
	}
}

func (d *disk) wipe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.first, d.entries = 1, nil
}

func (d *disk) set(slow time.Duration, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow, d.full = slow, full
}

// used says whether a log was ever begun.
func (d *disk) used() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first > 1 || len(d.entries) > 0
}

var errKilled = errors.New("the process was killed")

func (l *diskLog) StoreLogs(logs []*raft.Log) error {
	l.mu.Lock()
	wait := l.slow + time.Duration(l.rand.ExpFloat64()*float64(l.typical))
	l.mu.Unlock()
	time.Sleep(wait)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != l {
		return errKilled
	}
	count := len(logs)
	if l.gone { // it was killed in the middle of this write, or before it
		count = l.rand.IntN(len(logs) + 1)
		l.open = nil
	} else if l.full {
		return syscall.ENOSPC
	}
	for _, e := range logs[:count] {
		if next := l.first + uint64(len(l.entries)); len(l.entries) == 0 {
			l.first = e.Index
		} else if e.Index != next {
			return errors.New("the log would have a hole")
		}
		l.entries = append(l.entries, *e)
	}
	if l.gone {
		return errKilled
	}
	return nil
}

func (l *diskLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l *diskLog) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) == 0 {
		return 0, nil
	}
	return l.first, nil
}

func (l *diskLog) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) == 0 {
		return 0, nil
	}
	return l.first + uint64(len(l.entries)) - 1, nil
}

func (l *diskLog) GetLog(index uint64, out *raft.Log) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index < l.first || index >= l.first+uint64(len(l.entries)) {
		return raft.ErrLogNotFound
	}
	*out = l.entries[index-l.first]
	return nil
}

// DeleteRange cuts one end of the log, as raft does.
func (l *diskLog) DeleteRange(low, high uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || l.open != l {
		return errKilled
	}
	end := l.first + uint64(len(l.entries)) // one behind
	low, high = max(low, l.first), min(high+1, end)
	switch {
	case low >= high:
	case low == l.first:
		l.entries = append([]raft.Log(nil), l.entries[high-l.first:]...)
		l.first = high
	case high == end:
		l.entries = l.entries[:low-l.first]
	default:
		return errors.New("raft deletes from the middle of the log")
	}
	return nil
}

// Close ends this process's use of it.
func (l *diskLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == l {
		l.open = nil
	}
	return nil
}
