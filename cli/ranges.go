package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"conclave/identity"
)

// addressRanges are what a new cluster's pods and Services are to have, as its
// founder says. One that is invalid was not named.
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
		return r, fmt.Errorf("--pod-cidr %q and --service-cidr %q: both name a range of IPv6, or neither", pods, services)
	}
	return r, nil
}

// readRange reads one range of IPv4, or one of IPv4 and one of IPv6.
func readRange(flag, text string) (four, six netip.Prefix, err error) {
	if text == "" {
		return four, six, nil
	}
	bits := rangeBits[flag]
	first, second, two := strings.Cut(text, ",")
	four, err = netip.ParsePrefix(strings.TrimSpace(first))
	if err != nil || !four.Addr().Is4() || four.Bits() < bits.least || four.Bits() > bits.most {
		return four, six, fmt.Errorf("--%s %q: give a range of IPv4 of /%d to /%d; one of IPv6 may follow, after a comma", flag, text, bits.least, bits.most)
	}
	if !two {
		return four.Masked(), six, nil
	}
	six, err = netip.ParsePrefix(strings.TrimSpace(second))
	if err != nil || !six.Addr().Is6() || six.Addr().Is4In6() || six.Bits() < bits.least6 || six.Bits() > bits.most6 {
		return four, six, fmt.Errorf("--%s %q: what follows the comma is not a range of IPv6 of /%d to /%d", flag, text, bits.least6, bits.most6)
	}
	return four.Masked(), six.Masked(), nil
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
			return fmt.Errorf("this node's cluster was founded without IPv6, and the ranges of addresses stay: found another cluster, or leave %s away", range_.wanted)
		default:
			return fmt.Errorf("this node's cluster was founded with %s for %s, and the ranges of addresses stay: found another cluster, or leave %s away", range_.has, range_.name, range_.wanted)
		}
	}
	if dualStack && !c.PodCIDR6.IsValid() {
		return fmt.Errorf("this node's cluster was founded without IPv6, and the ranges of addresses stay: found another cluster, or leave --dual-stack away")
	}
	return nil
}
