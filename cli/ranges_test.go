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
		{"10.1.0.0/16,fd00:1::/48", "", "both name a range of IPv6 after the comma, or neither"},
		{"10.1.0.0/25", "", `--pod-cidr "10.1.0.0/25": give a range of IPv4 of /8 to /24`},
		{"fd00:1::/48", "fd00:2::/112", ""},
		{"fd00:1::/48", "", ""},
		{"fd00:1::/65", "", `--pod-cidr "fd00:1::/65": give a range of IPv4 of /8 to /24, or of IPv6 of /40 to /64, or both`},
		{"::ffff:10.1.0.0/48", "", `give a range of IPv4`},
		{"fd00:1::/48,10.1.0.0/16", "", `give a range of IPv4 of /8 to /24, or of IPv6 of /40 to /64, or both in this order`},
		{"fd00:1::/48", "10.2.0.0/16", `both begin with a range of IPv4, or both are of IPv6`},
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
	six := identity.Cluster{PodCIDR: dual.PodCIDR6, ServiceCIDR: dual.ServiceCIDR6}
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
		{six, addressRanges{}, false, ""},
		{six, addressRanges{pods: six.PodCIDR}, false, ""},
		{single, addressRanges{}, true, "founded with IPv4 alone"},
		{single, addressRanges{pods6: dual.PodCIDR6}, false, "founded with IPv4 alone"},
		{six, addressRanges{}, true, "founded with IPv6 alone"},
		{six, addressRanges{pods: single.PodCIDR}, false, "founded with fd00:1::/56 for pods"},
		{dual, addressRanges{pods: prefix("10.1.0.0/16")}, false, "founded with 10.244.0.0/16 for pods"},
		{dual, addressRanges{services6: prefix("fd00:3::/112")}, false, "founded with fd00:2::/112 for Services"},
	} {
		err := tc.ranges.agree(tc.cluster, tc.dualStack)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v, %t: %v, want %q", tc.ranges, tc.dualStack, err, tc.want)
		}
	}
}

// By which family the nodes of a new cluster reach each other, its ranges say,
// and if there are none, the address of the machine.
func TestNewClusterOfIPv6(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tc := range []struct {
		pods, services string
		dualStack      bool
		own            netip.Addr
		want           bool
	}{
		{"", "", false, four, false},
		{"", "", false, six, true},
		{"", "", true, six, false},
		{"", "fd00:2::/112", false, four, true},
		{"fd00:1::/48", "", false, four, true},
		{"10.1.0.0/16", "", false, six, false},
		{"10.1.0.0/16,fd00:1::/48", "10.2.0.0/16,fd00:2::/112", false, six, false},
	} {
		r, err := readRanges(tc.pods, tc.services)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.six(tc.dualStack, tc.own); got != tc.want {
			t.Errorf("%q, %q, %t on %s: %t", tc.pods, tc.services, tc.dualStack, tc.own, got)
		}
	}
	for _, tc := range []struct {
		want      string
		addresses []string
	}{
		{"", nil},
		{"", []string{"example.org:6443"}},
		{"", []string{"192.0.2.1:6443", "[2001:db8::1]:6443"}},
		{"IPv4", []string{"192.0.2.1:6443", "192.0.2.2:6443"}},
		{"IPv6", []string{"[2001:db8::1]:6443"}},
	} {
		got := ""
		if six, all := familyOf(tc.addresses); all {
			got = map[bool]string{false: "IPv4", true: "IPv6"}[six]
		}
		if got != tc.want {
			t.Errorf("%v are of %q, not %q", tc.addresses, got, tc.want)
		}
	}
}
