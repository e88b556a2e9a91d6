package network

import (
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// drop makes a machine lose what it receives of UDP 8472 from somebody, and
// returns what heals it.
func (m *machine) drop(from *machine, exprs ...[]expr.Any) (heal func()) {
	m.t.Helper()
	t := &nftables.Table{Name: "lossy", Family: nftables.TableFamilyIPv4}
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
		parts := append([][]expr.Any{sourceIs(expr.CmpOpEq, single(from.addr)), protoIs(udp), loadPort(reg0), compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(vxlanPort))}, exprs...)
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: rule(append(parts, verdict(expr.VerdictDrop, ""))...)})
	})
	return func() { change(func(c *nftables.Conn) { c.DelTable(t) }) }
}

// A path that fails is named by both of its ends, with the reason, and no
// other is; and it is well again once it is healed.
func TestPaths(t *testing.T) {
	l := newLAN(t)
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
	well()
	t.Run("dropped one way", func(t *testing.T) {
		heal := all[2].drop(all[0].machine)
		fails(all[0], "node3", "UDP 8472 is dropped on the way")
		fails(all[2], "node1", "UDP 8472 is dropped on the way")
		fails(all[1], "", "")
		heal()
		well()
	})
	t.Run("large packets do not pass", func(t *testing.T) {
		length := one(&expr.Meta{Key: expr.MetaKeyLEN, Register: reg0})
		heal := all[1].drop(all[0].machine, length, compare(expr.CmpOpGt, binaryutil.NativeEndian.PutUint32(1420)))
		defer heal()
		fails(all[0], "node2", "packets of 1450 bytes do not pass")
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
			n.do(order{Do: "address", Address: n.addr}) // any pass sees it
			n.in(func() error {
				link, err := netlink.LinkByName(vxlanName)
				if err == nil && link.Attrs().MTU != 1400-vxlanOverhead {
					t.Errorf("%s: the overlay's MTU is %d", n.config.Name, link.Attrs().MTU)
				}
				return err
			})
		}
		a, b := all[0].attach("a"), all[1].attach("b")
		b.serve("b", 80)
		a.expect("tcp4", b.addr.String()+":80", "b", "")
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
