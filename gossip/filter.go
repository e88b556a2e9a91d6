package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// Filter is a set of keys that fits into a packet, at a price: it may say that
// it has a key that it was not given. It is a Bloom filter whose length is a
// power of two, so that folding it in half leaves a filter of the same keys.
// The empty filter has nothing.
type Filter []byte

const (
	filterMin    = 16  // bytes
	filterMax    = 128 // bytes
	filterHashes = 3
	filterBits   = 16 // a key, as long as there is room: then one answer in 200 is wrong
)

// NewFilter makes the filter of some keys.
func NewFilter(keys []string) Filter {
	if len(keys) == 0 {
		return nil
	}
	size := filterMin
	for size < filterMax && size*8 < len(keys)*filterBits {
		size *= 2
	}
	f := make(Filter, size)
	for _, k := range keys {
		for _, at := range places(k) {
			at %= uint32(len(f) * 8)
			f[at/8] |= 1 << (at % 8)
		}
	}
	return f
}

func places(key string) (at [filterHashes]uint32) {
	sum := sha256.Sum256([]byte(key))
	for i := range at {
		at[i] = binary.BigEndian.Uint32(sum[4*i:])
	}
	return at
}

// Has says whether a key may be in it.
func (f Filter) Has(key string) bool {
	if len(f) == 0 {
		return false
	}
	for _, at := range places(key) {
		at %= uint32(len(f) * 8)
		if f[at/8]&(1<<(at%8)) == 0 {
			return false
		}
	}
	return true
}

// fold makes a filter of the same keys of half the length.
func (f Filter) fold() Filter {
	if len(f) <= filterMin {
		return nil
	}
	half := make(Filter, len(f)/2)
	for i := range f {
		half[i%len(half)] |= f[i]
	}
	return half
}

// valid says whether another node can have made it.
func (f Filter) valid() bool {
	return len(f) == 0 || bits.OnesCount(uint(len(f))) == 1 && len(f) >= filterMin && len(f) <= 512
}

// Weight is how much a node weighs for a key: of all nodes that know the same
// members, the heaviest is the same everywhere.
func Weight(id, key string) uint64 {
	sum := sha256.Sum256([]byte(id + "\x00" + key))
	return binary.BigEndian.Uint64(sum[:])
}
