package cli

import (
	"net/netip"
	"strings"
	"testing"

	"conclave/identity"
)

func TestRanges(t *testing.T) {
	for _, tc := range []struct{ pods, services, want string }{
		{"", "", ""},
		{"10.1.0.0/16", "", ""},
		{"10.1.0.0/16, fd00:1::/48", "10.2.0.0/20,fd00:2::/112", ""},
		{"10.1.0.0/16,fd00:1::/48", "", "both name a range of IPv6, or neither"},
		{"10.1.0.0/25", "", `--pod-cidr "10.1.0.0/25": give a range of IPv4 of /8 to /24`},
		{"fd00:1::/48", "fd00:2::/112", `--pod-cidr "fd00:1::/48": give a range of IPv4 of /8 to /24; one of IPv6 may follow, after a comma`},
		{"10.1.0.0/16,10.3.0.0/16", "", `what follows the comma is not a range of IPv6 of /40 to /64`},
		{"10.1.0.0/16,fd00::/65", "", `is not a range of IPv6 of /40 to /64`},
		{"", "10.2.0.0/28", `--service-cidr "10.2.0.0/28": give a range of IPv4 of /8 to /27`},
		{"", "ten", `--service-cidr "ten": give a range`},
	} {
		_, err := readRanges(tc.pods, tc.services)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q, %q: %v, want %q", tc.pods, tc.services, err, tc.want)
		}
	}
}

// A node that is a member already says what is wrong with other ranges.
func TestRangesAgree(t *testing.T) {
	prefix := netip.MustParsePrefix
	single := identity.Cluster{PodCIDR: prefix("10.244.0.0/16"), ServiceCIDR: prefix("10.96.0.0/16")}
	dual := single
	dual.PodCIDR6, dual.ServiceCIDR6 = prefix("fd00:1::/56"), prefix("fd00:2::/112")
	for _, tc := range []struct {
		cluster   identity.Cluster
		ranges    addressRanges
		dualStack bool
		want      string
	}{
		{single, addressRanges{}, false, ""},
		{dual, addressRanges{}, false, ""},
		{dual, addressRanges{}, true, ""},
		{dual, addressRanges{pods: dual.PodCIDR, pods6: dual.PodCIDR6, services: dual.ServiceCIDR, services6: dual.ServiceCIDR6}, true, ""},
		{single, addressRanges{}, true, "founded without IPv6"},
		{single, addressRanges{pods6: dual.PodCIDR6}, false, "founded without IPv6"},
		{dual, addressRanges{pods: prefix("10.1.0.0/16")}, false, "founded with 10.244.0.0/16 for pods"},
		{dual, addressRanges{services6: prefix("fd00:3::/112")}, false, "founded with fd00:2::/112 for Services"},
	} {
		err := tc.ranges.agree(tc.cluster, tc.dualStack)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v, %t: %v, want %q", tc.ranges, tc.dualStack, err, tc.want)
		}
	}
}
