package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Role is what a node does in the cluster.
type Role string

// The roles.
const (
	RoleMaster Role = "master"
	RoleNode   Role = "node"
)

// Meta is what a node tells of itself. Packed it has to fit into 512 bytes.
type Meta struct {
	Name        string // the Node's
	Zone        string // topology.kubernetes.io/zone
	Role        Role
	NoMaster    bool
	Memory      uint64  // bytes
	CPU         float64 // cores, to a thousandth
	Started     time.Time
	APIPort     uint16
	KubeletPort uint16
	Addresses   []netip.Addr
	DiskLatency time.Duration // of an fsync, to a microsecond
	// Incarnation is the newest incarnation of the cluster that the node has
	// heard of, as a number and the id that tells two of the same number apart.
	Incarnation, IncarnationID uint64
	// Replica: the node keeps the cluster's state, whether or not it can answer
	// for it at the moment.
	Replica bool
	// Bare: the node has no log, and votes for nobody until it is given one.
	Bare bool
	// Holds are the layers and images that the node can give to others.
	Holds Filter

	// epoch orders the lives of one id; leaving says that this node ends on
	// purpose.
	epoch   uint64
	leaving bool
}

const (
	// metaVersion is the first byte. A later version only appends fields, so
	// that each version can read all others: what follows is ignored.
	metaVersion = 1
	metaLimit   = 512 // memberlist.MetaMaxSize

	flagMaster   = 1 << 0
	flagNoMaster = 1 << 1
	flagLeaving  = 1 << 2
	flagReplica  = 1 << 3
	flagBare     = 1 << 4
)

// encode packs a Meta. What does not fit is left out: first the filter becomes
// coarser, then addresses go, the last ones first.
func (m *Meta) encode() ([]byte, error) {
	for f := m.Holds; ; f = f.fold() {
		short := *m
		short.Holds = f
		if b := short.pack(m.Addresses); len(b) <= metaLimit {
			return b, nil
		}
		if len(f) <= filterMin {
			m = &short
			break
		}
	}
	for n := len(m.Addresses); ; n-- {
		b := m.pack(m.Addresses[:n])
		if len(b) <= metaLimit {
			return b, nil
		}
		if n == 0 {
			return nil, fmt.Errorf("what this node tells of itself has %d bytes; %d fit", len(b), metaLimit)
		}
	}
}

func (m *Meta) pack(addrs []netip.Addr) []byte {
	var flags byte
	if m.Role == RoleMaster {
		flags |= flagMaster
	}
	if m.NoMaster {
		flags |= flagNoMaster
	}
	if m.leaving {
		flags |= flagLeaving
	}
	if m.Replica {
		flags |= flagReplica
	}
	if m.Bare {
		flags |= flagBare
	}
	b := []byte{metaVersion, flags}
	b = binary.AppendUvarint(b, m.epoch)
	b = appendText(b, m.Name)
	b = appendText(b, m.Zone)
	b = binary.AppendUvarint(b, m.Memory)
	b = binary.AppendUvarint(b, uint64(math.Round(max(m.CPU, 0)*1000)))
	started := int64(0) // a zero time is none
	if !m.Started.IsZero() {
		started = m.Started.UnixMilli()
	}
	b = binary.AppendVarint(b, started)
	b = binary.AppendUvarint(b, uint64(m.APIPort))
	b = binary.AppendUvarint(b, uint64(m.KubeletPort))
	b = binary.AppendUvarint(b, uint64(max(m.DiskLatency, 0)/time.Microsecond))
	b = binary.AppendUvarint(b, uint64(len(addrs)))
	for _, a := range addrs {
		b = appendText(b, string(a.WithZone("").AsSlice()))
	}
	b = binary.AppendUvarint(b, m.Incarnation)
	b = binary.AppendUvarint(b, m.IncarnationID)
	return appendText(b, string(m.Holds))
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// metaReader reads fields until the first that is cut.
type metaReader struct {
	b   []byte
	bad bool
}

func (r *metaReader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *metaReader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *metaReader) text() string {
	n := r.uint()
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *metaReader) port() uint16 {
	v := r.uint()
	if v > math.MaxUint16 {
		r.bad = true
	}
	return uint16(v)
}

// decodeMeta unpacks what encode packed, or a later version did.
func decodeMeta(b []byte) (Meta, error) {
	if len(b) < 2 || b[0] < metaVersion {
		return Meta{}, errors.New("what the node tells of itself is of no known version")
	}
	flags := b[1]
	r := &metaReader{b: b[2:]}
	m := Meta{
		Role: RoleNode, NoMaster: flags&flagNoMaster != 0, leaving: flags&flagLeaving != 0, Replica: flags&flagReplica != 0,
		Bare: flags&flagBare != 0,
	}
	if flags&flagMaster != 0 {
		m.Role = RoleMaster
	}
	m.epoch = r.uint()
	m.Name, m.Zone = r.text(), r.text()
	m.Memory = r.uint()
	m.CPU = float64(r.uint()) / 1000
	if ms := r.int(); ms != 0 {
		m.Started = time.UnixMilli(ms)
	}
	m.APIPort, m.KubeletPort = r.port(), r.port()
	latency := r.uint()
	if latency > uint64(math.MaxInt64/time.Microsecond) {
		r.bad = true
	}
	m.DiskLatency = time.Duration(latency) * time.Microsecond
	for n := r.uint(); n > 0 && !r.bad; n-- {
		a, ok := netip.AddrFromSlice([]byte(r.text()))
		if !ok {
			r.bad = true
		}
		m.Addresses = append(m.Addresses, a)
	}
	m.Incarnation, m.IncarnationID = r.uint(), r.uint()
	if len(r.b) > 0 { // a node of an earlier version says nothing of it
		if text := r.text(); text != "" {
			m.Holds = Filter(text)
		}
	}
	if r.bad || !m.Holds.valid() {
		return Meta{}, errors.New("what the node tells of itself cannot be read")
	}
	return m, nil
}
