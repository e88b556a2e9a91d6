package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Pods send all that they have to say to the bridge, and packets from one to
// another go by the IP layer of this host, where policies are. But a pod that
// may make frames itself (CAP_NET_RAW, which containers have unless they drop
// it) could hand them to a neighbour by its link, and where the kernel does not
// show IP rules what a bridge forwards, nobody would judge them. So the bridge
// takes no frame for a pod's link from its ports, nor one for everybody with a
// packet for one pod in it. That has a table of its own, with one chain, which
// never changes:
//
//	prerouting (bridge)  from a port of ours: to a pod's MAC, or to many and
//	                     with a pod's address: drop

// portsPriority is before the kernel's own look at bridged packets, which gives
// frames that are for a service another destination.
const portsPriority = -250

var bridgeTable = nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}

// errNoBridgeRules is what guardPorts comes to where the kernel has no nftables
// for bridges.
var errNoBridgeRules = errors.New("this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE): a pod that makes frames itself reaches its neighbours past network policies")

// guardPorts makes the table for pods of these ranges, or makes it anew.
func guardPorts(pods ranges) error {
	c, err := connect()
	if err != nil {
		return err
	}
	t := bridgeTable
	c.AddTable(&t)
	c.DelTable(&t)
	c.AddTable(&t)
	priority := nftables.ChainPriority(portsPriority)
	chain := c.AddChain(&nftables.Chain{Table: &t, Name: "prerouting", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &priority})
	ours := rule(meta(expr.MetaKeyIIFNAME, reg0), compare(expr.CmpOpEq, []byte(vethPrefix)))
	drop := verdict(expr.VerdictDrop, "")
	rules := [][]expr.Any{
		rule(ours, load(reg0, expr.PayloadBaseLLHeader, 0, uint32(len(podMACs))), compare(expr.CmpOpEq, podMACs[:]), drop),
	}
	for _, p := range pods.all() {
		rules = append(rules, rule(ours, toMany(), carries(p.Addr()), familyOf(p.Addr()).destIs(expr.CmpOpEq, p), drop))
	}
	for _, exprs := range rules {
		c.AddRule(&nftables.Rule{Table: &t, Chain: chain, Exprs: exprs})
	}
	switch err := c.Flush(); {
	case lacksBridgeRules(err):
		return errNoBridgeRules
	case err != nil:
		return fmt.Errorf("changing the nftables table bridge %s: %w", tableName, err)
	}
	return nil
}

// lacksBridgeRules says whether an error is what kernels say that have none, by
// their age.
func lacksBridgeRules(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT)
}

// toMany matches frames for a group of links, or for all.
func toMany() []expr.Any {
	return rule(load(reg0, expr.PayloadBaseLLHeader, 0, 1),
		one(&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{1}, Xor: []byte{0}}), compare(expr.CmpOpNeq, []byte{0}))
}

// carries matches frames with packets of an address's family.
func carries(a netip.Addr) []expr.Any {
	kind := []byte{0x08, 0x00}
	if a.Is6() {
		kind = []byte{0x86, 0xdd}
	}
	return rule(meta(expr.MetaKeyPROTOCOL, reg0), compare(expr.CmpOpEq, kind))
}

// unguardPorts removes the table, if it is there.
func unguardPorts() error {
	c, err := connect()
	if err != nil {
		return err
	}
	t := bridgeTable
	c.AddTable(&t) // so that it is there to be deleted
	c.DelTable(&t)
	if err := c.Flush(); err != nil && !lacksBridgeRules(err) {
		return fmt.Errorf("removing the nftables table bridge %s: %w", tableName, err)
	}
	return nil
}
