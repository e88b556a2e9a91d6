package consensus

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"k8s.io/apimachinery/pkg/types"
)

// entryVersion is the first byte of every entry. A replica that meets another
// version stops: guessing would make it differ from the others. Entries of
// version 1 had no checksum.
const (
	entryVersion  = 2
	entryUnsummed = 1
)

// maxEntry bounds one entry of the log.
const maxEntry = 1536 << 10

// requestID names one Write, however often it is sent.
type requestID [16]byte

func newRequestID() (id requestID) {
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// entry is a Write as the log holds it:
//
//	version 2 | CRC-32C of all behind it, 4 bytes, little-endian |
//	verb | id [16] | term | precondition version |
//	resource | namespace | name | precondition UID | object
//
// The checksum tells an entry that the disk has lost from one that a program
// wrote. Numbers are uvarints; strings are a length and their bytes; the object is
// the rest.
type entry struct {
	verb Verb
	id   requestID
	// term is the only term of raft in which the entry counts. An entry that
	// is committed in another came late, by a road on which its sender no
	// longer waits, and does nothing: see Node.Write.
	term                      uint64
	version                   uint64
	resource, namespace, name string
	uid                       types.UID
	object                    []byte
}

func (e *entry) encode() []byte {
	b := make([]byte, 1+crc32.Size, 64+len(e.resource)+len(e.namespace)+len(e.name)+len(e.uid)+len(e.object))
	b[0] = entryVersion
	b = append(b, byte(e.verb))
	b = append(b, e.id[:]...)
	b = binary.AppendUvarint(b, e.term)
	b = binary.AppendUvarint(b, e.version)
	for _, s := range []string{e.resource, e.namespace, e.name, string(e.uid)} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, e.object...)
	binary.LittleEndian.PutUint32(b[1:], crc32.Checksum(b[1+crc32.Size:], castagnoli))
	return b
}

var errEntry = errors.New("malformed log entry")

// checkEntry returns what an entry says, if it is as it was written.
func checkEntry(b []byte) ([]byte, error) {
	const head = 1 + crc32.Size
	switch {
	case len(b) == 0:
		return nil, fmt.Errorf("%w: it is empty", errEntry)
	case b[0] == entryUnsummed:
		return b[1:], nil
	case b[0] != entryVersion:
		return nil, fmt.Errorf("log entry of version %d, this program reads version %d: a newer conclave wrote it", b[0], entryVersion)
	case len(b) < head || binary.LittleEndian.Uint32(b[1:]) != crc32.Checksum(b[head:], castagnoli):
		return nil, fmt.Errorf("%w: the checksum does not match", errEntry)
	}
	return b[head:], nil
}

// decodeEntry reads an entry. The object aliases b.
func decodeEntry(b []byte) (e entry, err error) {
	if b, err = checkEntry(b); err != nil {
		return e, err
	}
	if len(b) < 1+len(e.id) {
		return e, fmt.Errorf("%w: %d bytes", errEntry, len(b))
	}
	e.verb = Verb(b[0])
	copy(e.id[:], b[1:])
	b = b[1+len(e.id):]
	number := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errors.Join(err, errEntry)
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := number()
		if n > uint64(len(b)) {
			err = errors.Join(err, errEntry)
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	e.term, e.version = number(), number()
	e.resource, e.namespace, e.name, e.uid = text(), text(), text(), types.UID(text())
	e.object = b
	switch {
	case err != nil:
		return entry{}, errEntry
	case e.verb < Create || e.verb > Delete:
		return entry{}, fmt.Errorf("%w: verb %d", errEntry, e.verb)
	case (len(e.object) == 0) != (e.verb == Delete):
		return entry{}, fmt.Errorf("%w: %s with %d bytes of object", errEntry, e.verb, len(e.object))
	}
	return e, nil
}

// write is the entry as a Write, with the object that its bytes stand for.
func (e *entry) write(o Object) Write {
	return Write{
		Verb: e.verb, Resource: e.resource, Namespace: e.namespace, Name: e.name,
		Object: o, Version: e.version, UID: e.uid,
	}
}
