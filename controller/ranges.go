package controller

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// ranges yields the prefixes of the given length inside one, in order.
func ranges(within netip.Prefix, bits int) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for a := within.Masked().Addr(); a.IsValid() && within.Contains(a); {
			if !yield(netip.PrefixFrom(a, bits)) {
				return
			}
			a = advance(a, bits)
		}
	}
}

// advance returns the first address of the next range of this length; the
// invalid address after the last.
func advance(a netip.Addr, bits int) netip.Addr {
	b := a.AsSlice()
	i, step := (bits-1)/8, byte(1)<<(7-(bits-1)%8)
	if bits == 0 {
		return netip.Addr{}
	}
	for ; i >= 0; i-- {
		b[i] += step
		if b[i] >= step {
			next, _ := netip.AddrFromSlice(b)
			return next
		}
		step = 1
	}
	return netip.Addr{}
}

func mapKeys[K comparable, V any](m map[K]V) []K { return slices.Collect(maps.Keys(m)) }
