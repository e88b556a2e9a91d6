package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// The files of Config.Dir. raft's snapshots are in its own folder snapshots/.
const (
	logFile   = "log.db"
	voteFile  = "vote"
	snapsDir  = "snapshots"
	keepSnaps = 2
	// logLockWait is how long another process may keep the log open before it
	// is called its owner: a predecessor that is just ending.
	logLockWait = time.Second
)

// noSpace says whether an error means that the disk takes no more.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, ErrDiskFull)
}

// disk is what raft keeps on disk.
type disk struct {
	log   *guardedLog
	store LogStore // below log
	vote  *voteStore
	snaps snapshots
	// silent says whether this replica may neither vote nor be elected.
	silent *silence
}

// snapshots takes none that is older than what is there: a leader's would
// bring this node back to what it was, and drop the log behind it.
type snapshots struct{ *raft.FileSnapshotStore }

func (s snapshots) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration, serversIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	have, err := s.List()
	if err != nil {
		return nil, err
	}
	if len(have) > 0 && have[0].Index > index {
		return nil, fmt.Errorf("a snapshot of entry %d is here, one of %d is not wanted", have[0].Index, index)
	}
	return s.FileSnapshotStore.Create(version, index, term, servers, serversIndex, t)
}

// openDisk opens or makes the files in dir.
func openDisk(dir string, open func() (LogStore, error), log *raftLog) (d *disk, err error) {
	defer func() {
		if err == nil {
			return
		}
		d.close()
		if noSpace(err) && !errors.Is(err, ErrDiskFull) {
			err = fmt.Errorf("%w: %w", ErrDiskFull, err)
		}
		err = fmt.Errorf("opening the log in %s: %w", dir, err)
	}()
	d = &disk{}
	if err := os.MkdirAll(filepath.Join(dir, snapsDir), 0o700); err != nil {
		return d, err
	}
	if err := dropUnfinished(filepath.Join(dir, snapsDir)); err != nil {
		return d, err
	}
	if open == nil {
		open = func() (LogStore, error) { return openBolt(filepath.Join(dir, logFile), false) }
	}
	if d.store, err = open(); err != nil {
		d.store = nil // a typed nil is none
		return d, err
	}
	if d.log, err = newGuardedLog(d.store); err != nil {
		return d, err
	}
	if d.vote, err = openVote(filepath.Join(dir, voteFile)); err != nil {
		return d, err
	}
	last, err := d.store.LastIndex()
	if err != nil {
		return d, err
	}
	if _, err := d.vote.GetUint64([]byte("CurrentTerm")); last > 0 && err != nil {
		// raft has a term before it has entries. Without it this node could
		// vote twice.
		return d, fmt.Errorf("%w: %s: there are log entries, and no term", ErrDamaged, filepath.Join(dir, voteFile))
	}
	if d.silent, err = openSilence(dir); err != nil {
		return d, err
	}
	if d.snaps.FileSnapshotStore, err = raft.NewFileSnapshotStoreWithLogger(dir, keepSnaps, log); err != nil {
		return d, err
	}
	return d, d.closeGap(last)
}

// closeGap drops a log that ends before the newest snapshot: a leader sent that
// snapshot, and the process ended before raft had dropped the log itself.
func (d *disk) closeGap(last uint64) error {
	snaps, err := d.snaps.List()
	if err != nil || len(snaps) == 0 || last == 0 || last >= snaps[0].Index {
		return err
	}
	first, err := d.store.FirstIndex()
	if err != nil {
		return err
	}
	return d.store.DeleteRange(first, last)
}

func (d *disk) close() error {
	var errs []error
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.vote != nil {
		errs = append(errs, d.vote.file.Close())
	}
	return errors.Join(errs...)
}

// hasState says whether there is anything that raft has decided by.
func (d *disk) hasState() bool {
	has, err := raft.HasExistingState(d.log, d.vote, d.snaps)
	return has || err != nil
}

// openBolt opens the log. bbolt panics on some damage, which must reach the
// user as a sentence.
func openBolt(path string, readOnly bool) (store *raftboltdb.BoltStore, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: %v", ErrDamaged, path, p)
		}
	}()
	store, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{
		Timeout: logLockWait, ReadOnly: readOnly,
		// The list of free pages is found by a scan at start instead of being
		// written with every commit.
		NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	}})
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return nil, fmt.Errorf("%s is in use by another process", path)
	case errors.Is(err, bbolt.ErrInvalid), errors.Is(err, bbolt.ErrChecksum), errors.Is(err, bbolt.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return store, err
}

// dropUnfinished removes the snapshots that a crash cut off.
func dropUnfinished(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// HasState says whether dir holds the log of a cluster.
func HasState(dir string) (bool, error) {
	entries, err := os.ReadDir(filepath.Join(dir, snapsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("looking for a log in %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasSuffix(e.Name(), ".tmp") {
			return true, nil
		}
	}
	path := filepath.Join(dir, logFile)
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return false, nil
	}
	log, err := openBolt(path, true)
	if err != nil {
		return false, fmt.Errorf("looking for a log in %s: %w", dir, err)
	}
	last, err := log.LastIndex()
	return last > 0, errors.Join(err, log.Close())
}

// cachedEntries are the newest entries, kept in memory for replication.
const cachedEntries = 512

// guardedLog is the log with a cache, and with an eye on the disk's space.
type guardedLog struct {
	raft.LogStore // the cache
	disk          *keeper

	mu sync.Mutex
	// cut is the end of the log that raft had removed, until it has stored what
	// comes in its place. If that fails, raft goes on as if the old end were
	// still there, and would panic where it is not. So it is: read from here,
	// and stored in front of whatever is stored next.
	cut []raft.Log
	// kept is the entry behind which nothing may be removed (keep); 0: all may.
	kept    uint64
	refused atomic.Pointer[refusal]
}

// refusal is that the disk took nothing, and whether it has taken something since.
type refusal struct {
	at   time.Time
	err  error
	over bool
}

// refusal is why the disk takes nothing, as far as is known; nil if it does.
func (g *guardedLog) refusal() error {
	if r := g.refused.Load(); r != nil && !r.over {
		return r.err
	}
	return nil
}

// muteFor is how long a node whose disk took nothing asks for no votes. Then it
// tries: it may have the newest log of all, so that nobody else can lead, and
// nothing but a write shows whether there is room again.
const muteFor = 3 * time.Second

// mute says that this node would be no use as a leader: its disk is full, or
// takes no writes for another reason, as a card does that is worn out.
func (g *guardedLog) mute() bool {
	r := g.refused.Load()
	return r != nil && !r.over && time.Since(r.at) < muteFor
}

// keeper remembers the log's newest error: raft's cache only passes on its
// text. raft stores from one goroutine. What it reads it checks: a leader must
// send nobody what its disk has made of an entry.
type keeper struct {
	raft.LogStore
	err error
	// damaged is told of entries that cannot be read back as they were written.
	damaged func(error)
}

func (k *keeper) GetLog(index uint64, l *raft.Log) error {
	err := k.LogStore.GetLog(index, l)
	if err == nil && l.Type == raft.LogCommand {
		_, err = checkEntry(l.Data)
		err = damage(err)
	} else if err != nil && !errors.Is(err, raft.ErrLogNotFound) && !errors.Is(err, bbolt.ErrDatabaseNotOpen) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("reading entry %d of the log: %w", index, err)
		if k.damaged != nil {
			k.damaged(err)
		}
	}
	return err
}

func (k *keeper) StoreLogs(logs []*raft.Log) error {
	k.err = k.LogStore.StoreLogs(logs)
	return k.err
}

func newGuardedLog(log raft.LogStore) (*guardedLog, error) {
	g := &guardedLog{disk: &keeper{LogStore: log}}
	cache, err := raft.NewLogCache(cachedEntries, g.disk)
	g.LogStore = cache
	return g, err
}

func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	g.mu.Lock()
	var before []*raft.Log
	for i := range g.cut {
		if g.cut[i].Index < logs[0].Index {
			before = append(before, &g.cut[i])
		}
	}
	if n := len(before); n > 0 && before[n-1].Index+1 != logs[0].Index {
		before = nil // a snapshot took their place
	}
	g.mu.Unlock()
	if err := g.LogStore.StoreLogs(append(before, logs...)); err == nil {
		if r := g.refused.Load(); r != nil && !r.over {
			g.refused.Store(&refusal{r.at, r.err, true})
		}
		g.mu.Lock()
		g.cut = nil
		g.mu.Unlock()
		return nil
	}
	why := g.disk.err
	if noSpace(why) && !errors.Is(why, ErrDiskFull) {
		why = fmt.Errorf("%w: %w", ErrDiskFull, why)
	}
	g.refused.Store(&refusal{time.Now(), why, false})
	return g.disk.err
}

var errKept = errors.New("entries are being added")

// keep has the log refuse to give up an end that is behind an entry, until the
// function returned is called. What is there then stays there; a leader that
// wants other entries in its place asks again.
func (g *guardedLog) keep(index uint64) (release func()) {
	set := func(index uint64) {
		g.mu.Lock()
		g.kept = index
		g.mu.Unlock()
	}
	set(index)
	return func() { set(0) }
}

// DeleteRange removes the beginning of the log, or its end, or all.
func (g *guardedLog) DeleteRange(low, high uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kept > 0 && low > g.kept {
		return errKept
	}
	last, err := g.LogStore.LastIndex() // on disk
	if err != nil {
		return err
	}
	var cut []raft.Log
	if high >= last && last > 0 { // 0: nothing is there
		for i := low; i <= last; i++ {
			var l raft.Log
			if err := g.LogStore.GetLog(i, &l); err != nil {
				return err
			}
			cut = append(cut, l)
		}
	}
	if low <= last && last > 0 {
		if err := g.LogStore.DeleteRange(low, min(high, last)); err != nil {
			return err
		}
	}
	g.cut = append(cut, g.cut...) // which begins behind last
	return nil
}

func (g *guardedLog) GetLog(index uint64, l *raft.Log) error {
	g.mu.Lock()
	if n := len(g.cut); n > 0 && index >= g.cut[0].Index && index <= g.cut[n-1].Index {
		defer g.mu.Unlock()
		*l = g.cut[index-g.cut[0].Index]
		return nil
	}
	g.mu.Unlock()
	return g.LogStore.GetLog(index, l)
}

// termAt is the term of an entry, 0 if it is not in the log.
func (g *guardedLog) termAt(index uint64) uint64 {
	var l raft.Log
	if g.GetLog(index, &l) != nil {
		return 0
	}
	return l.Term
}

func (g *guardedLog) LastIndex() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.cut); n > 0 {
		return g.cut[n-1].Index, nil
	}
	return g.LogStore.LastIndex()
}

// IsMonotonic has raft drop the log when it takes a snapshot from a leader. Else
// the old entries stay in front of a gap, and some of them may never have been
// committed: a node that leads later would send them to whoever asks for that
// part of the log, as if they had been.
func (g *guardedLog) IsMonotonic() bool { return true }

func (g *guardedLog) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// voteStore keeps raft's term and vote in one small file (raft.StableStore).
// The file is written in place and never grows, so that a full disk cannot
// stop an election, nor crash raft, which does not survive a failed write
// here. Two slots take turns; a torn write leaves the other.
type voteStore struct {
	mu     sync.Mutex
	file   *os.File
	seq    uint64 // of the newest slot
	values map[string][]byte
}

const voteSlot = 4096

var errVoteNotFound = errors.New("not found") // raft compares the text

func openVote(path string) (*voteStore, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	v := &voteStore{file: f, values: make(map[string][]byte)}
	if err := v.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

func (v *voteStore) load() error {
	b := make([]byte, 2*voteSlot)
	if info, err := v.file.Stat(); err != nil {
		return err
	} else if info.Size() < int64(len(b)) {
		// New, or cut off before the first vote: nothing was promised yet.
		if _, err := v.file.WriteAt(b, 0); err != nil {
			return err
		}
		return v.file.Sync()
	}
	if _, err := v.file.ReadAt(b, 0); err != nil {
		return err
	}
	empty := !bytes.ContainsFunc(b, func(r rune) bool { return r != 0 })
	for _, slot := range [][]byte{b[:voteSlot], b[voteSlot:]} {
		if seq, values, ok := parseVote(slot); ok && seq > v.seq {
			v.seq, v.values = seq, values
		}
	}
	if v.seq == 0 && !empty {
		return fmt.Errorf("%w: the term and vote of this node cannot be read", ErrDamaged)
	}
	return nil
}

// parseVote reads a slot: CRC-32C of the rest | length | seq | pairs of key
// and value, each with its length.
func parseVote(slot []byte) (seq uint64, values map[string][]byte, ok bool) {
	sum, length := binary.LittleEndian.Uint32(slot), binary.LittleEndian.Uint32(slot[4:])
	if length < 8 || length > uint32(len(slot)-8) || crc32.Checksum(slot[4:8+length], castagnoli) != sum {
		return 0, nil, false
	}
	b := slot[8 : 8+length]
	seq, b = binary.LittleEndian.Uint64(b), b[8:]
	values = make(map[string][]byte)
	for len(b) > 0 {
		var pair [2][]byte
		for i := range pair {
			if len(b) < 2 || len(b)-2 < int(binary.LittleEndian.Uint16(b)) {
				return 0, nil, false
			}
			n := 2 + int(binary.LittleEndian.Uint16(b))
			pair[i], b = bytes.Clone(b[2:n]), b[n:]
		}
		values[string(pair[0])] = pair[1]
	}
	return seq, values, true
}

func (v *voteStore) Set(key, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old, had := v.values[string(key)]
	if had && bytes.Equal(old, value) {
		return nil
	}
	values := maps.Clone(v.values)
	values[string(key)] = bytes.Clone(value)
	body := binary.LittleEndian.AppendUint64(nil, v.seq+1)
	for _, k := range slices.Sorted(maps.Keys(values)) {
		for _, s := range [][]byte{[]byte(k), values[k]} {
			body = binary.LittleEndian.AppendUint16(body, uint16(len(s)))
			body = append(body, s...)
		}
	}
	if len(body) > voteSlot-8 {
		return fmt.Errorf("setting %s: %d bytes do not fit", key, len(body))
	}
	slot := make([]byte, 8, voteSlot)
	binary.LittleEndian.PutUint32(slot[4:], uint32(len(body)))
	slot = append(slot, body...)
	binary.LittleEndian.PutUint32(slot, crc32.Checksum(slot[4:], castagnoli))
	if _, err := v.file.WriteAt(slot, int64((v.seq+1)%2)*voteSlot); err != nil {
		return err
	}
	if err := v.file.Sync(); err != nil {
		return err
	}
	v.seq, v.values = v.seq+1, values
	return nil
}

func (v *voteStore) Get(key []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if b, ok := v.values[string(key)]; ok {
		return b, nil
	}
	return nil, errVoteNotFound
}

func (v *voteStore) SetUint64(key []byte, n uint64) error {
	return v.Set(key, binary.LittleEndian.AppendUint64(nil, n))
}

func (v *voteStore) GetUint64(key []byte) (uint64, error) {
	b, err := v.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("%s is no number", key)
	}
	return binary.LittleEndian.Uint64(b), nil
}
