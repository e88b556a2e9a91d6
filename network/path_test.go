package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
)

// drop makes a machine lose what it receives of UDP 8472 from somebody, and
// returns what heals it.
func (m *machine) drop(from *machine, exprs ...[]expr.Any) (heal func()) {
	m.t.Helper()
	f := familyOf(from.addr)
	return m.lose(f, append([][]expr.Any{f.sourceIs(expr.CmpOpEq, single(from.addr)), protoIs(udp), loadPort(reg0), compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(vxlanPort))}, exprs...)...)
}

// lose makes a machine lose what it receives of a family and meets all of exprs,
// and returns what heals it.
func (m *machine) lose(f *family, exprs ...[]expr.Any) (heal func()) {
	m.t.Helper()
	t := &nftables.Table{Name: "lossy", Family: f.table}
	change := func(f func(*nftables.Conn)) {
		m.in(func() error {
			c, err := connect()
			if err != nil {
				return err
			}
			f(c)
			return c.Flush()
		})
	}
	change(func(c *nftables.Conn) {
		c.AddTable(t)
		ch := c.AddChain(&nftables.Chain{Table: t, Name: "raw", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: rule(append(exprs, verdict(expr.VerdictDrop, ""))...)})
	})
	return func() { change(func(c *nftables.Conn) { c.DelTable(t) }) }
}

// longer matches packets of more than n bytes.
func longer(n uint32) []expr.Any {
	return rule(meta(expr.MetaKeyLEN, reg0),
		one(&expr.Byteorder{SourceRegister: reg0, DestRegister: reg0, Op: expr.ByteorderHton, Len: 4, Size: 4}),
		compare(expr.CmpOpGt, binaryutil.BigEndian.PutUint32(n)))
}

// A path that fails is named by both of its ends, with the reason, and no
// other is; and it is well again once it is healed.
func TestPaths(t *testing.T) {
	t.Parallel()
	t.Run("IPv4", func(t *testing.T) {
		t.Parallel() // these wait more than they compute
		showPaths(t, newLAN(t), 50)
	})
	t.Run("IPv6 alone", func(t *testing.T) {
		t.Parallel()
		l := newLAN(t)
		needIPv6(t)
		l.six = true
		showPaths(t, l, 70)
	})
}

// In a dual-stack cluster a path is tested by both families. What fails for both
// is told once, and what fails by IPv6 alone is said to.
func TestPathsOfBothFamilies(t *testing.T) {
	t.Parallel()
	all, _ := twoDualNodes(t)
	// Kernels refuse the UDP of tests once a second at most, and a few at once: a
	// path that is well may need another test to be seen so.
	wants := func(want string) {
		t.Helper()
		soon(t, "a path that fails thus: "+want, func() bool {
			got := all[0].do(order{Do: "paths"}).Paths
			return want == "" && len(got) == 0 || want != "" && len(got) == 1 && got[0] == PathProblem{"node2", want}
		})
	}
	wants("")
	heal := all[1].drop(all[0].machine)
	wants(overlayDropped)
	heal()
	wants("")
	// Only what is of IPv6 inside: all of it, and what is large.
	for _, tc := range []struct {
		drop []expr.Any
		want string
	}{
		{nil, "by IPv6 nothing gets through the overlay: a firewall of one of the two hosts drops it"},
		{longer(1390), "by IPv6 packets of 1450 bytes do not pass, those of 1350 do: lower the MTU of this host's link to 1400"},
		{protoIs(udp), "by IPv6 pings pass, UDP does not: a network card computes wrong checksums (see ethtool -K, tx-checksum-ip-generic), or a firewall there drops what is for the host itself"},
	} {
		heal := all[1].lose(ip6, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, vxlanName), tc.drop)
		wants(tc.want)
		heal()
	}
	wants("")
}

func showPaths(t *testing.T, l *lan, overhead int) {
	all := nodes{l.node(1), l.node(2), l.node(3)}
	for _, n := range all {
		all.put(n.object())
	}
	for _, n := range all {
		n.do(order{Do: "ready"})
	}
	fails := func(n *testNode, peer, reason string) {
		t.Helper()
		got := n.do(order{Do: "paths"}).Paths
		if reason == "" && len(got) != 0 || reason != "" && (len(got) != 1 || got[0].Node != peer || !strings.Contains(got[0].Reason, reason)) {
			t.Errorf("%s finds %q; want that to %s to fail: %q", n.config.Name, got, peer, reason)
		}
	}
	well := func() {
		t.Helper()
		for _, n := range all {
			fails(n, "", "")
		}
	}
	t.Run("however often it is asked", func(t *testing.T) {
		// Kernels refuse a few packets of UDP in a row, and then one a second.
		for range 6 {
			well()
		}
	})
	t.Run("dropped one way", func(t *testing.T) {
		heal := all[2].drop(all[0].machine)
		fails(all[0], "node3", "UDP 8472 is dropped on the way")
		fails(all[2], "node1", "UDP 8472 is dropped on the way")
		fails(all[1], "", "")
		heal()
		well()
	})
	t.Run("large packets do not pass", func(t *testing.T) {
		heal := all[1].drop(all[0].machine, longer(1420))
		defer heal()
		fails(all[0], "node2", fmt.Sprintf("packets of %d bytes do not pass", 1500-overhead))
	})
	well()
	t.Run("the link's MTU counts", func(t *testing.T) {
		for _, n := range all {
			n.in(func() error {
				link, err := netlink.LinkByName("uplink")
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(link, 1400)
			})
			n.do(order{Do: "paths"}) // whoever tests sees it
			n.in(func() error {
				link, err := netlink.LinkByName(vxlanName)
				if err == nil && link.Attrs().MTU != 1400-overhead {
					t.Errorf("%s: the overlay's MTU is %d", n.config.Name, link.Attrs().MTU)
				}
				return err
			})
		}
		a, b := all[0].attach("a"), all[1].attach("b")
		network := "tcp4"
		if l.six {
			network = "tcp6"
			b.serve6("b", 80)
		} else {
			b.serve("b", 80)
		}
		a.expect(network, at(b.addr, 80), "b", "")
		well()
	})
}

func TestChecksum(t *testing.T) {
	for _, b := range [][]byte{{}, {1}, {8, 0, 0, 0, 1, 2, 3}, {0xff, 0xff, 0xff, 0xff}} {
		if len(b)%2 == 1 {
			b = append(b, 0)
		}
		sum := checksum(b)
		if got := checksum(append(b, byte(sum>>8), byte(sum))); got != 0 {
			t.Errorf("% x: the sum %x over itself is %x", b, sum, got)
		}
	}
}

// Nodes that share a link and say so send packets of pods as they are; where
// that does not work, they use the overlay.
func TestDirectRoutes(t *testing.T) {
	t.Parallel()
	t.Run("IPv4", func(t *testing.T) {
		t.Parallel()
		showDirectRoutes(t, newLAN(t), ip4)
	})
	t.Run("IPv6", func(t *testing.T) {
		t.Parallel()
		l := newLAN(t)
		needIPv6(t)
		l.dual = true
		showDirectRoutes(t, l, ip6)
	})
	t.Run("IPv6 alone", func(t *testing.T) {
		t.Parallel()
		l := newLAN(t)
		needIPv6(t)
		l.six = true
		showDirectRoutes(t, l, ip6)
	})
}

// showDirectRoutes looks at one family; in a dual-stack cluster the other one's
// routes stay as they are.
func showDirectRoutes(t *testing.T, l *lan, f *family) {
	of := func(m *machine) netip.Addr {
		if f == ip6 {
			return m.addr6
		}
		return m.addr
	}
	networks, serve := protocols, (*machine).serve
	if f == ip6 {
		networks, serve = protocols6, (*machine).serve6
	}
	rangeOf := func(n *testNode, f *family) netip.Prefix {
		spec := n.object().Spec
		for _, text := range append([]string{spec.PodCIDR}, spec.PodCIDRs...) {
			if p := netip.MustParsePrefix(text); f.has(p.Addr()) {
				return p
			}
		}
		return netip.Prefix{}
	}
	whole := map[*family]netip.Prefix{ip4: testPodCIDR, ip6: testPodCIDR6}[f]
	all := nodes{l.node(1), l.node(2), l.node(3)}
	for _, n := range all[:2] {
		n.stop()
		n.config.Direct = true
		n.start()
	}
	for _, n := range all {
		all.put(n.object())
	}
	for _, n := range all {
		n.do(order{Do: "ready"})
	}
	a, b, c := all[0].attach("a"), all[1].attach("b"), all[2].attach("c")
	pods := map[string]*machine{"a": a, "b": b, "c": c}
	for name, p := range pods {
		serve(p, name, 80)
	}
	// over is the link over which a node reaches the pods of another.
	over := func(n, to *testNode, f *family) (name string) {
		n.in(func() error {
			gateway := gatewayOf(rangeOf(to, f))
			routes, err := netlink.RouteGet(gateway.AsSlice())
			if err != nil {
				return err
			}
			link, err := netlink.LinkByIndex(routes[0].LinkIndex)
			if err == nil {
				name = link.Attrs().Name
			}
			return err
		})
		return name
	}
	works := func(t *testing.T, oneToTwo, twoToOne string) {
		t.Helper()
		for _, way := range []struct {
			from, to *testNode
			link     string
		}{{all[0], all[1], oneToTwo}, {all[1], all[0], twoToOne}, {all[0], all[2], vxlanName}, {all[2], all[0], vxlanName}} {
			if got := over(way.from, way.to, f); got != way.link {
				t.Errorf("%s reaches the pods of %s over %s; want %s", way.from.config.Name, way.to.config.Name, got, way.link)
			}
		}
		for from, p := range pods {
			for to, q := range pods {
				for _, network := range networks {
					if from != to {
						p.expect(network, at(of(q), 80), to, of(p).String())
					}
				}
			}
		}
		for _, n := range all {
			if got := n.do(order{Do: "paths"}).Paths; len(got) > 0 {
				t.Errorf("%s: %v", n.config.Name, got)
			}
		}
	}
	works(t, "uplink", "uplink")
	ports, targets := both(8080, 80)
	ports[0].NodePort = 30080
	vip := map[*family]netip.Addr{ip4: addr("10.96.0.20"), ip6: addr("fd00:77:0:ff::20")}[f]
	all.put(serviceOf("web", vip.String(), kind(corev1.ServiceTypeNodePort), ports...), sliceOf("web", targets, ep{addr: of(b), node: "node2"}))
	a.expect(networks[0], at(vip, 8080), "b", of(a).String())
	all[0].expect(networks[0], at(vip, 8080), "b", gatewayOf(rangeOf(all[0], f)).String())
	l.host(200).expect(networks[0], at(of(all[0].machine), 30080), "b", "")

	t.Run("where the network drops pods' addresses", func(t *testing.T) {
		all[1].in(func() error {
			c, err := connect()
			if err != nil {
				return err
			}
			lossy := c.AddTable(&nftables.Table{Name: "lossy", Family: f.table})
			ch := c.AddChain(&nftables.Chain{Table: lossy, Name: "raw", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
			c.AddRule(&nftables.Rule{Table: lossy, Chain: ch, Exprs: rule(link(expr.MetaKeyIIFNAME, expr.CmpOpEq, "uplink"), f.sourceIs(expr.CmpOpEq, whole), verdict(expr.VerdictDrop, ""))})
			return c.Flush()
		})
		for range directFailures {
			all[0].do(order{Do: "paths"})
		}
		nodes{all[0]}.put(all[0].object()) // its pass is not before the one that turns to the overlay
		// What the second sends arrives, and is answered by the overlay now.
		works(t, vxlanName, "uplink")
		if l.dual {
			if got := over(all[0], all[1], ip4); got != "uplink" {
				t.Errorf("packets of IPv4, which pass, go over %s", got)
			}
		}
	})
	t.Run("torn down", func(t *testing.T) {
		all[0].do(order{Do: "teardown"})
		all[0].in(func() error {
			return dropRoutes(func(r netlink.Route, link string) bool {
				t.Errorf("a route to %s is left over %s", r.Dst, link)
				return false
			})
		})
	})
}
