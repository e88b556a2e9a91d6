package network

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probe says what this process or kernel lacks. It tries everything in a
// namespace of its own, which is gone when it returns.
func probe(families []*family) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the network of pods needs root: run conclave as root")
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("this kernel or container does not let us make network namespaces: %w", err)
		}
		for _, l := range []netlink.Link{
			&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe0", TxQLen: -1}},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe1", TxQLen: -1}, PeerName: "probe2"},
			&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "probe3", TxQLen: -1}, VxlanId: vxlanID, Port: vxlanPort},
		} {
			if err := netlink.LinkAdd(l); err != nil {
				return fmt.Errorf("this kernel has no %s links (module %q): %w", l.Type(), l.Type(), err)
			}
		}
		c, err := connect()
		if err != nil {
			return fmt.Errorf("this kernel has no nftables (module \"nf_tables\"): %w", err)
		}
		if _, err := c.ListTables(); err != nil {
			return fmt.Errorf("this kernel has no nftables (module \"nf_tables\"): %w", err)
		}
		for _, f := range families {
			if err := probeTables(c, f); err != nil {
				return err
			}
		}
		return nil
	})
}

// probeTables tries what tables of one family need.
func probeTables(c *nftables.Conn, f *family) error {
	if _, err := os.Stat(sysctlPath("ipv6/conf")); f == ip6 && err != nil {
		return errors.New("this kernel has no IPv6 (is ipv6.disable=1 on its command line?), which every node of a cluster with IPv6 needs")
	}
	for _, p := range []struct {
		module string
		hook   *nftables.ChainHook
		kind   nftables.ChainType
		exprs  []expr.Any
	}{
		{"nft_chain_nat", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, nil},
		{"nft_masq", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, masquerade()},
		{"nft_nat", nftables.ChainHookPrerouting, nftables.ChainTypeNAT, rule(f.loadDest(reg0), loadPort(f.behind), f.dnatTarget())},
		{"nft_fib_" + f.long, nftables.ChainHookPrerouting, nftables.ChainTypeNAT, local(expr.CmpOpEq, false)},
		{"nft_numgen", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, one(&expr.Numgen{Register: reg0, Modulus: 1, Type: unix.NFT_NG_RANDOM})},
		{"nft_ct", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, one(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0})},
		{"nft_reject_" + f.long, nftables.ChainHookForward, nftables.ChainTypeFilter, one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
	} {
		t := c.AddTable(&nftables.Table{Name: "probe", Family: f.table})
		ch := c.AddChain(&nftables.Chain{Table: t, Name: "probe-" + p.module, Type: p.kind, Hooknum: p.hook, Priority: nftables.ChainPriorityFilter})
		if p.exprs != nil {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: rule(protoIs(tcp), p.exprs)})
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("this kernel's nftables lacks what services need (module %q): %w", p.module, err)
		}
	}
	return nil
}

// tracksSCTP says whether this kernel follows SCTP's connections, without which
// it cannot translate them. It is asked after probe, which loads what there is.
func tracksSCTP() bool {
	_, err := os.Stat(sysctlPath("netfilter/nf_conntrack_sctp_timeout_established"))
	return err == nil
}
