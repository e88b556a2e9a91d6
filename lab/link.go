package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// FreeSubnet picks a /24 of 10.88.0.0/16, or a /64 of fd88::/56, that no address
// of this machine lies in.
func FreeSubnet(six bool) (netip.Prefix, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("addresses of this machine: %w", err)
	}
	for third := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, byte(third), 0}), 24)
		if six {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x88, 7: byte(third)}), 64)
		}
		taken := false
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			ones, _ := a.Mask.Size()
			taken = taken || p.Overlaps(netip.PrefixFrom(ip, ones))
		}
		if !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("every /24 of 10.88.0.0/16, or /64 of fd88::/56, is in use here: choose one with --subnet")
}

// lockSubnets keeps every other process and goroutine of this machine from
// choosing a subnet. The lock is a socket that has a name and no file: it ends
// with its owner and leaves nothing behind.
func lockSubnets() (unlock func(), err error) {
	const patience = 30 * time.Second
	for since := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		lock, err := net.Listen("unix", "@conclave-lab-subnets")
		if err == nil {
			return func() { _ = lock.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || time.Since(since) > patience {
			return nil, fmt.Errorf("wait for another lab that is being made: %w", err)
		}
	}
}

func makeBridge(name string, address netip.Prefix) error {
	if _, err := netlink.LinkByName(name); err == nil {
		return fmt.Errorf("link %s exists already and is not this lab's: choose another name for the lab", name)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	// A bridge whose address nobody chose takes that of one of its ports, and
	// another one when that port goes: all hosts would lose their gateway.
	made, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetHardwareAddr(made, made.Attrs().HardwareAddr)
	}
	if err == nil {
		err = netlink.AddrAdd(bridge, linkAddress(address))
	}
	if err == nil {
		err = netlink.LinkSetUp(bridge)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("bridge %s: %w", name, err), netlink.LinkDel(bridge))
	}
	return nil
}

func linkAddress(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody else has it, and it is needed at once
	}
	return a
}

// plug gives the network namespace of a process a link eth0 to the bridge, with
// the hardware address that the host has had before, as real ones do.
func plug(bridge, port string, pid int, hardware net.HardwareAddr, address netip.Prefix, gateway netip.Addr) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if err := removeLink(port); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port, br.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerHardwareAddr = "eth0", netlink.NsPid(pid), hardware
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s: %w", port, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("link %s: %w", port, err)
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer inside.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		if name == "eth0" {
			if err := inside.AddrAdd(link, linkAddress(address)); err != nil {
				return fmt.Errorf("address %s: %w", address, err)
			}
		}
		if err := inside.LinkSetUp(link); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	if err := inside.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("default route by %s: %w", gateway, err)
	}
	return nil
}

func linkDown(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return netlink.LinkSetDown(link)
}

// removeLink removes a link of this machine; one that is not there is no error.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	// The host's namespace may take its end of the pair, and so ours, with it.
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// cutTable is the nftables table that holds a host's cuts.
const cutTable = "conclave-lab"

// dropFrom makes the network namespace of a process drop everything that comes
// from the addresses in deaf, and so many of a hundred packets that come from
// those in lossy, before any other rule sees it, and nothing else: as with ARP,
// neighbours of IPv6 still learn where they are, so that one that hears nothing
// can be heard.
func dropFrom(pid int, six bool, deaf, lossy []netip.Addr, loss int) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	table, source := &nftables.Table{Name: cutTable, Family: nftables.TableFamilyIPv4}, uint32(12)
	if six {
		table.Family, source = nftables.TableFamilyIPv6, 8
	}
	conn.AddTable(table) // deleting one that is not there would fail the batch
	conn.DelTable(table)
	if loss == 0 {
		lossy = nil
	}
	if len(deaf)+len(lossy) > 0 {
		conn.AddTable(table)
		chain := conn.AddChain(&nftables.Chain{
			Name: "cut", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-400),
		})
		if six {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{ // icmpv6 type 135-136 accept
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
				&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{135}},
				&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{136}},
				&expr.Verdict{Kind: expr.VerdictAccept},
			}})
		}
		drop := func(from netip.Addr, when ...expr.Any) {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(append([]expr.Any{
				// ip saddr
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: uint32(len(from.AsSlice()))},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
			}, when...), &expr.Verdict{Kind: expr.VerdictDrop})})
		}
		for _, a := range deaf {
			drop(a)
		}
		for _, a := range lossy {
			drop(a, // numgen random mod 100 < loss
				&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
				&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(loss))})
		}
	}
	return conn.Flush()
}
