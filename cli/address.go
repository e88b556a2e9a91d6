package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownAddress knows the address by which the other nodes reach this one: the
// one that the user gave, or the one that the default route leaves by, followed
// as it changes. It is of IPv4 where there is one, until need says otherwise.
// Run owns the subscription to the kernel.
type ownAddress struct {
	fixed netip.Addr

	mu      sync.Mutex
	current netip.Addr
	// six is the IPv6 address of the same link, if both says it: other nodes do
	// not use it.
	six     netip.Addr
	wants6  bool
	watches []chan struct{}
}

func newOwnAddress(fixed netip.Addr) (*ownAddress, error) {
	a := &ownAddress{fixed: fixed, current: fixed}
	if fixed.IsValid() {
		return a, nil
	}
	found, err := uplinkAddress(netlink.FAMILY_V4)
	if errors.Is(err, errNoAddress) {
		found, err = uplinkAddress(netlink.FAMILY_V6)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: name this machine's address with --address", err)
	}
	a.current = found
	return a, nil
}

// need makes the address be of the family by which the cluster's nodes reach
// each other. It is called before anybody is told of the address.
func (a *ownAddress) need(six bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current.Is6() == six {
		return nil
	}
	family, name := netlink.FAMILY_V4, "IPv4"
	if six {
		family, name = netlink.FAMILY_V6, "IPv6"
	}
	if a.fixed.IsValid() {
		return fmt.Errorf("--address %s: the nodes of this cluster reach each other by %s: name this machine's address of that family", a.fixed, name)
	}
	found, err := uplinkAddress(family)
	if err != nil {
		return fmt.Errorf("the nodes of this cluster reach each other by %s: %w", name, err)
	}
	a.current = found
	return nil
}

func (a *ownAddress) get() netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

func (a *ownAddress) list() []netip.Addr { return []netip.Addr{a.get()} }

// showIPv6 lets both say the IPv6 address too. It is called before run.
func (a *ownAddress) showIPv6() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wants6, a.six = true, sixOf(a.current)
}

// both are the node's addresses as its status shows them.
func (a *ownAddress) both() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.six.IsValid() {
		return []netip.Addr{a.current, a.six}
	}
	return []netip.Addr{a.current}
}

// watch returns a channel that receives after each change.
func (a *ownAddress) watch() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(chan struct{}, 1)
	a.watches = append(a.watches, c)
	return c
}

// run follows the kernel's addresses until ctx ends.
func (a *ownAddress) run(ctx context.Context, log *slog.Logger) error {
	a.mu.Lock()
	wants6 := a.wants6
	a.mu.Unlock()
	if a.fixed.IsValid() && !wants6 {
		<-ctx.Done()
		return nil
	}
	updates := make(chan netlink.AddrUpdate, 16)
	if err := netlink.AddrSubscribe(updates, ctx.Done()); err != nil {
		return fmt.Errorf("follow this machine's addresses: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-updates:
			if !open {
				<-ctx.Done()
				return nil
			}
		}
		found := a.fixed
		if !found.IsValid() {
			var err error
			family, was := netlink.FAMILY_V4, a.get()
			if was.Is6() {
				family = netlink.FAMILY_V6
			}
			if found, err = uplinkAddress(family); err != nil {
				found = was // a link that is away for a moment takes no address from us
			}
		}
		var six netip.Addr
		if wants6 {
			six = sixOf(found)
		}
		a.become(found, six, log)
	}
}

// become takes new addresses and tells who watches.
func (a *ownAddress) become(current, six netip.Addr, log *slog.Logger) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if current == a.current && six == a.six {
		return
	}
	if current != a.current {
		log.Info("this machine's address changed", "from", a.current, "to", current)
	}
	a.current, a.six = current, six
	for _, c := range a.watches {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// sixOf is the IPv6 address of the link that has an IPv4 address: the lowest
// that is to be had for long, so that it does not change by itself; invalid if
// there is none.
func sixOf(own netip.Addr) netip.Addr {
	var found netip.Addr
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return found
	}
	link := 0
	for _, a := range all {
		if a.IP.Equal(own.AsSlice()) {
			link = a.LinkIndex
		}
	}
	return lastingSix(all, link)
}

// lastingSix is the lowest address of IPv6 of a link that is to be had for long.
func lastingSix(all []netlink.Addr, link int) (found netip.Addr) {
	const passing = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ok && ip.Is6() && !ip.Is4In6() && ip.IsGlobalUnicast() && a.LinkIndex == link && a.Flags&passing == 0 && (!found.IsValid() || ip.Less(found)) {
			found = ip
		}
	}
	return found
}

var errNoAddress = errors.New("no link of this machine has an address that others could reach")

// uplinkAddress is the address of a family that the default route leaves by, or
// else the first one that is neither loopback nor link-local nor on a link of our
// own: errNoAddress.
func uplinkAddress(family int) (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("routes of this machine: %w", err)
	}
	for _, r := range routes {
		if src, ok := netip.AddrFromSlice(r.Src); ok {
			return src.Unmap(), nil
		}
		if found, ok := linkAddress(r.LinkIndex, family); ok {
			return found, nil
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("links of this machine: %w", err)
	}
	for _, l := range links {
		virtual := l.Type() == "bridge" || l.Type() == "vxlan"
		if l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().Flags&net.FlagLoopback != 0 || virtual {
			continue
		}
		if found, ok := linkAddress(l.Attrs().Index, family); ok {
			return found, nil
		}
	}
	return netip.Addr{}, errNoAddress
}

func linkAddress(index, family int) (netip.Addr, bool) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return netip.Addr{}, false
	}
	addrs, err := netlink.AddrList(link, family)
	if err != nil {
		return netip.Addr{}, false
	}
	if family == netlink.FAMILY_V6 {
		found := lastingSix(addrs, index)
		return found, found.IsValid()
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip.IsGlobalUnicast() {
			return ip, true
		}
	}
	return netip.Addr{}, false
}
