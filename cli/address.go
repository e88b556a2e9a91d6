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
)

// ownAddress knows the address by which the other nodes reach this one: the
// one that the user gave, or the one that the default route leaves by, followed
// as it changes. Run owns the subscription to the kernel.
type ownAddress struct {
	fixed netip.Addr

	mu      sync.Mutex
	current netip.Addr
	watches []chan struct{}
}

func newOwnAddress(fixed netip.Addr) (*ownAddress, error) {
	a := &ownAddress{fixed: fixed, current: fixed}
	if fixed.IsValid() {
		return a, nil
	}
	found, err := uplinkAddress()
	if err != nil {
		return nil, fmt.Errorf("%w: name this machine's address with --address", err)
	}
	a.current = found
	return a, nil
}

func (a *ownAddress) get() netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

func (a *ownAddress) list() []netip.Addr { return []netip.Addr{a.get()} }

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
	if a.fixed.IsValid() {
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
		found, err := uplinkAddress()
		if err != nil || found == a.get() {
			continue // a link that is away for a moment takes no address from us
		}
		log.Info("this machine's address changed", "from", a.get(), "to", found)
		a.mu.Lock()
		a.current = found
		watches := a.watches
		a.mu.Unlock()
		for _, c := range watches {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

var errNoAddress = errors.New("no link of this machine has an address that others could reach")

// uplinkAddress is the address that the default route leaves by, or else the
// first one that is neither loopback nor link-local nor on a link of our own.
func uplinkAddress() (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("routes of this machine: %w", err)
	}
	for _, r := range routes {
		if src, ok := netip.AddrFromSlice(r.Src.To4()); ok {
			return src, nil
		}
		if found, ok := linkAddress(r.LinkIndex); ok {
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
		if found, ok := linkAddress(l.Attrs().Index); ok {
			return found, nil
		}
	}
	return netip.Addr{}, errNoAddress
}

func linkAddress(index int) (netip.Addr, bool) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return netip.Addr{}, false
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip.IsGlobalUnicast() {
			return ip, true
		}
	}
	return netip.Addr{}, false
}
