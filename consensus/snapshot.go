package consensus

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"maps"
	"slices"

	"github.com/hashicorp/raft"
	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/watch"
)

// A snapshot is a stream:
//
//	"conclave" | version 1 | revision |
//	for each resource: 'r' | name | number of records |
//	    for each record: revision | object (length and bytes)
//	'e' | CRC-32C of all before, 4 bytes, little-endian
//
// Numbers are uvarints. Resources and records are sorted.
const (
	snapshotMagic   = "conclave"
	snapshotVersion = 1
	tagResource     = 'r'
	tagEnd          = 'e'
	// maxSnapshotObject is far above what an entry can carry: it only keeps
	// a damaged length from asking for all memory.
	maxSnapshotObject = 8 << 20
)

var (
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	errSnapshot = errors.New("damaged snapshot")
)

// snapshot is a consistent view of the whole store, taken in constant time
// for each resource.
type snapshot struct {
	revision uint64
	names    []string
	trees    []*btree.BTreeG[*record]
	encode   func(Object) ([]byte, error)
}

func (s *Store) snapshot(encode func(Object) ([]byte, error)) *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &snapshot{revision: s.revision, encode: encode}
	for _, name := range slices.Sorted(maps.Keys(s.resources)) {
		out.names = append(out.names, name)
		out.trees = append(out.trees, s.resources[name].freeze())
	}
	return out
}

// Persist writes the snapshot while the store goes on (raft.FSMSnapshot).
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(fmt.Errorf("writing the snapshot at revision %d: %w", s.revision, err), sink.Cancel())
	}
	return sink.Close()
}

// Release has nothing to free: the trees are garbage like any other.
func (s *snapshot) Release() {}

// sum is a writer that remembers the checksum of what passed.
type sum struct {
	w io.Writer
	h hash.Hash32
}

func (s sum) Write(b []byte) (int, error) {
	s.h.Write(b)
	return s.w.Write(b)
}

func (s *snapshot) write(to io.Writer) error {
	check := sum{to, crc32.New(castagnoli)}
	w := bufio.NewWriterSize(check, 64<<10)
	var scratch []byte
	number := func(n uint64) {
		scratch = binary.AppendUvarint(scratch[:0], n)
		w.Write(scratch) // bufio keeps the first error for Flush
	}
	w.WriteString(snapshotMagic)
	w.WriteByte(snapshotVersion)
	number(s.revision)
	for i, name := range s.names {
		if s.trees[i].Len() == 0 {
			continue
		}
		w.WriteByte(tagResource)
		number(uint64(len(name)))
		w.WriteString(name)
		number(uint64(s.trees[i].Len()))
		var err error
		s.trees[i].Scan(func(r *record) bool {
			var b []byte
			if b, err = s.encode(r.object); err != nil {
				err = fmt.Errorf("encoding %s %s: %w", name, keyString(r.namespace, r.name), err)
				return false
			}
			number(r.revision)
			number(uint64(len(b)))
			_, err = w.Write(b)
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	w.WriteByte(tagEnd)
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := to.Write(binary.LittleEndian.AppendUint32(nil, check.h.Sum32()))
	return err
}

// contents is what a snapshot holds.
type contents struct {
	revision  uint64
	resources map[string]*btree.BTreeG[*record]
}

// summed is a reader that remembers the checksum of what was taken from it.
type summed struct {
	*bufio.Reader
	h hash.Hash32
}

func (s summed) ReadByte() (byte, error) {
	b, err := s.Reader.ReadByte()
	if err == nil {
		s.h.Write([]byte{b})
	}
	return b, err
}

func (s summed) bytes(n, limit uint64) ([]byte, error) {
	if n > limit {
		return nil, fmt.Errorf("%w: a field of %d bytes", errSnapshot, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.Reader, b); err != nil {
		return nil, err
	}
	s.h.Write(b)
	return b, nil
}

// readSnapshot reads a whole snapshot and checks it before anybody uses it.
func readSnapshot(from io.Reader, decode func([]byte) (Object, error)) (contents, error) {
	r := summed{bufio.NewReaderSize(from, 64<<10), crc32.New(castagnoli)}
	out := contents{resources: make(map[string]*btree.BTreeG[*record])}
	err := out.read(r, decode)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends early", errSnapshot)
	}
	if err != nil {
		return contents{}, err
	}
	return out, nil
}

func (c *contents) read(r summed, decode func([]byte) (Object, error)) error {
	head, err := r.bytes(uint64(len(snapshotMagic))+1, 64)
	if err != nil {
		return err
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return fmt.Errorf("%w: it is none of ours", errSnapshot)
	}
	if v := head[len(snapshotMagic)]; v != snapshotVersion {
		return fmt.Errorf("snapshot of version %d, this program reads version %d: a newer conclave wrote it", v, snapshotVersion)
	}
	if c.revision, err = binary.ReadUvarint(r); err != nil {
		return err
	}
	for {
		tag, err := r.ReadByte()
		if err != nil {
			return err
		}
		switch tag {
		case tagResource:
			if err := c.readResource(r, decode); err != nil {
				return err
			}
		case tagEnd:
			want := r.h.Sum32()
			var got [4]byte
			if _, err := io.ReadFull(r.Reader, got[:]); err != nil {
				return err
			}
			if binary.LittleEndian.Uint32(got[:]) != want {
				return fmt.Errorf("%w: the checksum does not match", errSnapshot)
			}
			return nil
		default:
			return fmt.Errorf("%w: tag %q", errSnapshot, tag)
		}
	}
}

func (c *contents) readResource(r summed, decode func([]byte) (Object, error)) error {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	name, err := r.bytes(n, 1<<10)
	if err != nil {
		return err
	}
	count, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	tree := newTree()
	c.resources[string(name)] = tree
	for range count {
		revision, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		b, err := r.bytes(size, maxSnapshotObject)
		if err != nil {
			return err
		}
		o, err := decode(b)
		if err != nil {
			return fmt.Errorf("snapshot of %s: decoding an object: %w", name, err)
		}
		if revision > c.revision {
			return fmt.Errorf("%w: a record of revision %d in a snapshot of revision %d", errSnapshot, revision, c.revision)
		}
		tree.Set(newRecord(o, revision))
	}
	return nil
}

// restore replaces everything. Every watcher that there is has missed
// something and is told so; the window begins at the snapshot's revision.
func (s *Store) restore(c contents) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start, s.revision, s.bytes = c.revision, c.revision, 0
	for name := range c.resources {
		s.resource(name)
	}
	for name, r := range s.resources {
		r.tree, r.frozen = c.resources[name], nil
		if r.tree == nil {
			r.tree = newTree()
		}
		r.reset(c.revision)
		r.notify()
	}
	s.sum, s.sums = s.count(), [keptSums]sumAt{}
	s.touched = s.touched[:0]
	s.all.reset(c.revision)
	s.finish(c.revision)
}

// Check verifies what must always hold of a store. It is for tests and for
// hunting damage: it walks everything.
func (s *Store) Check() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	perResource := make(map[*resource]int)
	type key struct {
		resource        *resource
		namespace, name string
	}
	newest := make(map[key]*event)
	size, last := 0, s.all.base
	for _, e := range s.all.from(s.all.first) {
		if e.revision() <= last || e.revision() > s.revision {
			wrong("event of revision %d after %d in a store at %d", e.revision(), last, s.revision)
		}
		last = e.revision()
		size += e.size
		own := e.resource.from(e.resource.first)
		if i := perResource[e.resource]; i >= len(own) || own[i] != e {
			wrong("%s: event %d of the window is not its own", e.resource.name, i)
		}
		perResource[e.resource]++
		r := e.Record.(*record)
		newest[key{e.resource, r.namespace, r.name}] = e
	}
	if sum := s.count(); sum != s.sum {
		wrong("the sum of the state is %x, not %x", sum, s.sum)
	}
	if size != s.bytes {
		wrong("the window counts %d bytes, not %d", s.bytes, size)
	}
	if s.all.len() > s.maxEvents {
		wrong("the window holds %d events", s.all.len())
	}
	for name, r := range s.resources {
		if r.name != name || r.len() != perResource[r] || r.base < s.start {
			wrong("%s: %d events, of which %d are in the window; base %d, start %d", name, r.len(), perResource[r], r.base, s.start)
		}
		var before *record
		r.tree.Scan(func(o *record) bool {
			if before != nil && !recordLess(before, o) {
				wrong("%s: %s is not after %s", name, keyString(o.namespace, o.name), keyString(before.namespace, before.name))
			}
			before = o
			if o.object.GetNamespace() != o.namespace || o.object.GetName() != o.name || o.object.GetResourceVersion() != fmt.Sprint(o.revision) || o.revision > s.revision {
				wrong("%s %s: the object says %s, version %s; the record version %d", name, keyString(o.namespace, o.name),
					keyString(o.object.GetNamespace(), o.object.GetName()), o.object.GetResourceVersion(), o.revision)
			}
			return true
		})
	}
	for k, e := range newest {
		o, ok := k.resource.tree.Get(&record{namespace: k.namespace, name: k.name})
		if ok == (e.Type == watch.Deleted) || ok && Record(o) != e.Record {
			wrong("%s %s: the newest event is %s, the index has %v", k.resource.name, keyString(k.namespace, k.name), e.Type, ok)
		}
	}
	for w := range s.waiters {
		if w.revision <= s.revision {
			wrong("somebody still waits for revision %d at %d", w.revision, s.revision)
		}
	}
	return errors.Join(errs...)
}
