package network

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What a Node says of its addresses and ranges, in clusters of each kind.
func TestNodes(t *testing.T) {
	four, six := "192.168.0.1", "fd00:aa::1"
	for name, tc := range map[string]struct {
		cidrs, addresses []string
		addr             string
		ends             []string
	}{
		"IPv4":                {[]string{"10.244.1.0/24"}, []string{four}, four, []string{four}},
		"dual stack":          {[]string{"10.244.1.0/24", "fd00:1::/64"}, []string{four, six}, four, []string{four, six}},
		"IPv6 first":          {[]string{"10.244.1.0/24", "fd00:1::/64"}, []string{six, four}, four, []string{four, six}},
		"no IPv6 of its own":  {[]string{"10.244.1.0/24", "fd00:1::/64"}, []string{four}, four, []string{four, four}},
		"IPv6":                {[]string{"fd00:1::/64"}, []string{six}, six, []string{six}},
		"IPv6, and more":      {[]string{"fd00:1::/64"}, []string{four, six}, six, []string{six}},
		"no range yet":        {nil, []string{six}, six, nil},
		"two ranges of IPv4":  {[]string{"10.244.1.0/24", "10.245.1.0/24"}, []string{four}, four, []string{four}},
		"nothing":             {nil, nil, "", nil},
		"of the other family": {[]string{"fd00:1::/64"}, []string{four}, "", []string{""}},
		"what cannot be read": {[]string{"x"}, []string{"y"}, "", nil},
	} {
		o := &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: tc.cidrs}}
		if len(tc.cidrs) > 0 {
			o.Spec.PodCIDR = tc.cidrs[0]
		}
		for _, a := range tc.addresses {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		text := func(a netip.Addr) string {
			if !a.IsValid() {
				return ""
			}
			return a.String()
		}
		n := parseNode(o)
		if got := text(n.addr); got != tc.addr {
			t.Errorf("%s: it is reached at %q, want %q", name, got, tc.addr)
		}
		ends := n.ends()
		if len(ends) != len(tc.ends) {
			t.Errorf("%s: the ends are %v, want %v", name, ends, tc.ends)
			continue
		}
		for i, e := range ends {
			if text(e.addr) != tc.ends[i] || e.pods.String() != tc.cidrs[i] {
				t.Errorf("%s: the ends are %v, want %v", name, ends, tc.ends)
			}
		}
	}
}
