package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"conclave/identity"
)

// addressRanges are what a new cluster's pods and Services are to have, as its
// founder says: one range of either family, or one of IPv4 and one of IPv6. One
// that is invalid was not named.
type addressRanges struct{ pods, services, pods6, services6 netip.Prefix }

// The bits that ranges may have: a node gets a /24 of pods' addresses and a /64
// of those of IPv6, and the tenth address of services is DNS's.
var rangeBits = map[string]struct{ least, most, least6, most6 int }{
	"pod-cidr":     {8, 24, 40, 64},
	"service-cidr": {8, 27, 64, 120},
}

func readRanges(pods, services string) (r addressRanges, err error) {
	if r.pods, r.pods6, err = readRange("pod-cidr", pods); err != nil {
		return r, err
	}
	if r.services, r.services6, err = readRange("service-cidr", services); err != nil {
		return r, err
	}
	if r.pods6.IsValid() != r.services6.IsValid() {
		return r, fmt.Errorf("--pod-cidr %q and --service-cidr %q: both name a range of IPv6 after the comma, or neither", pods, services)
	}
	if r.pods.IsValid() && r.services.IsValid() && r.pods.Addr().Is4() != r.services.Addr().Is4() {
		return r, fmt.Errorf("--pod-cidr %q and --service-cidr %q: both begin with a range of IPv4, or both are of IPv6", pods, services)
	}
	return r, nil
}

// readRange reads one range, or one of IPv4 and one of IPv6.
func readRange(flag, text string) (first, second netip.Prefix, err error) {
	if text == "" {
		return first, second, nil
	}
	bits := rangeBits[flag]
	within := func(p netip.Prefix, least, most int) bool { return p.Bits() >= least && p.Bits() <= most }
	fits6 := func(p netip.Prefix) bool {
		return p.Addr().Is6() && !p.Addr().Is4In6() && within(p, bits.least6, bits.most6)
	}
	one, other, two := strings.Cut(text, ",")
	first, err = netip.ParsePrefix(strings.TrimSpace(one))
	if err != nil || !(first.Addr().Is4() && within(first, bits.least, bits.most) || !two && fits6(first)) {
		return first, second, fmt.Errorf("--%s %q: give a range of IPv4 of /%d to /%d, or of IPv6 of /%d to /%d, or both in this order with a comma between", flag, text, bits.least, bits.most, bits.least6, bits.most6)
	}
	if !two {
		return first.Masked(), second, nil
	}
	second, err = netip.ParsePrefix(strings.TrimSpace(other))
	if err != nil || !fits6(second) {
		return first, second, fmt.Errorf("--%s %q: what follows the comma is not a range of IPv6 of /%d to /%d", flag, text, bits.least6, bits.most6)
	}
	return first.Masked(), second.Masked(), nil
}

// six says whether the new cluster is of IPv6 alone, on a machine with this
// address: as its ranges say, or else as its address.
func (r addressRanges) six(dualStack bool, own netip.Addr) bool {
	for _, p := range []netip.Prefix{r.pods, r.services} {
		if p.IsValid() {
			return p.Addr().Is6()
		}
	}
	return !dualStack && own.Is6()
}

// agree says whether what is asked for is what a cluster has: its ranges are
// fixed when it is founded.
func (r addressRanges) agree(c identity.Cluster, dualStack bool) error {
	for _, range_ := range []struct {
		name        string
		wanted, has netip.Prefix
	}{
		{"pods", r.pods, c.PodCIDR}, {"Services", r.services, c.ServiceCIDR}, {"pods", r.pods6, c.PodCIDR6}, {"Services", r.services6, c.ServiceCIDR6},
	} {
		switch {
		case !range_.wanted.IsValid() || range_.wanted == range_.has:
		case !range_.has.IsValid():
			return fmt.Errorf("this node's cluster was founded with %s, and the ranges of addresses stay: found another cluster, or leave %s away", foundedWith(c), range_.wanted)
		default:
			return fmt.Errorf("this node's cluster was founded with %s for %s, and the ranges of addresses stay: found another cluster, or leave %s away", range_.has, range_.name, range_.wanted)
		}
	}
	if dualStack && !c.PodCIDR6.IsValid() {
		return fmt.Errorf("this node's cluster was founded with %s, and the ranges of addresses stay: found another cluster, or leave --dual-stack away", foundedWith(c))
	}
	return nil
}

// foundedWith is the family of a cluster that has one.
func foundedWith(c identity.Cluster) string {
	if c.PodCIDR.Addr().Is6() {
		return "IPv6 alone"
	}
	return "IPv4 alone"
}
