package network

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"conclave/network/wireguard"
)

const (
	bridgeName = "conclave0"
	vxlanName  = "conclave.vx"
	vethPrefix = "cvl" // then 12 hexadecimal digits of the hash of the pod's UID

	vxlanID       = 1
	vxlanPort     = 8472
	vxlanOverhead = 50 // outer Ethernet, IPv4, UDP and VXLAN headers

	minMTU6 = 1280 // RFC 8200: of a link that carries IPv6
	// overlayPlace is where in a node's IPv6 range its address in the overlay
	// is, beyond all that pods have; mostBits6 leaves room for it.
	overlayPlace = 1 << 32
	mostBits4    = 30
	mostBits6    = 88

	// routeProtocol marks routes as ours.
	routeProtocol netlink.RouteProtocol = 0xc0
)

// overhead is how much longer the overlay makes a packet that it carries in
// packets of a family.
func (f *family) overhead() int { return vxlanOverhead + f.header - ip4.header }

// mostBits is how small a node's part of a range may be.
func mostBits(of netip.Prefix) int {
	if of.Addr().Is6() {
		return mostBits6
	}
	return mostBits4
}

// hostConfig is how this host's links, addresses and routes shall be.
type hostConfig struct {
	DNS         netip.Addr
	ServiceCIDR netip.Prefix // of the first family, which DNS and Address are of too
	// ServiceCIDR6 is valid in a dual-stack cluster alone.
	ServiceCIDR6 netip.Prefix
	// Address is this node's own: the source of overlay packets.
	Address netip.Addr
	// MTU is what fits into an overlay packet on the link of Address.
	MTU int
	// Range is not valid as long as the node has none; then there are no pods
	// and no overlay.
	Range ranges
	// Uplink is the link of Address, over which peers are reached directly.
	Uplink int
	// Key is this node's, of a node that encrypts.
	Key wireguard.Key
	// Peers are the other nodes, sorted by range. Nil means unknown: then
	// what the kernel has stays.
	Peers []peer
}

// peer is another node, as the overlay sees it.
type peer struct {
	Range   ranges
	Address netip.Addr
	// Direct are the peer's addresses, of the first and the second family, to
	// which pods' packets of that family go as they are, over the uplink.
	// Invalid: they go into the overlay.
	Direct [2]netip.Addr
	Key    wireguard.Key // public; zero if it has shown none
}

func (c hostConfig) equal(d hostConfig) bool {
	return c.DNS == d.DNS && c.ServiceCIDR == d.ServiceCIDR && c.ServiceCIDR6 == d.ServiceCIDR6 && c.Address == d.Address && c.MTU == d.MTU && c.Uplink == d.Uplink && c.Range == d.Range && c.Key == d.Key &&
		(c.Peers == nil) == (d.Peers == nil) && slices.Equal(c.Peers, d.Peers)
}

// host programs the network namespace that this process runs in.
type host struct {
	runDir string
	tunnel *wireguard.Tunnel // of a host that encrypts
	// saving guards the file of remembered sysctls.
	saving sync.Mutex
}

// set makes everything as the configuration says, changing only what differs.
func (h *host) set(c hostConfig) error {
	services := ranges{c.ServiceCIDR, c.ServiceCIDR6}.all()
	for path, value := range map[string]string{
		"ipv4/ip_forward": "1",
		// Pods reach each other by way of the bridge's address, on purpose;
		// nobody shall tell them of a shorter way. (The kernel sends redirects
		// where either "all" or the link says so, so other links keep theirs.)
		"ipv4/conf/all/send_redirects": "0",
	} {
		if err := h.sysctl(path, value); err != nil {
			return err
		}
	}
	if services[len(services)-1].Addr().Is6() {
		if err := h.forward6(); err != nil {
			return err
		}
	}
	bridge, err := h.setBridge(c, c.MTU)
	if err != nil {
		return fmt.Errorf("setting up the bridge %s: %w", bridgeName, err)
	}
	if !c.Range.first.IsValid() {
		return nil
	}
	// Processes of this host reach services from the bridge's address, which
	// pods everywhere know the way back to.
	var routes []netlink.Route
	for i, r := range c.Range.all() {
		if i < len(services) {
			routes = append(routes, linkRoute(bridge, services[i], r))
		}
	}
	if err := setRoutes(bridge, routes); err != nil {
		return err
	}
	if !c.Address.IsValid() {
		return nil
	}
	if h.tunnel != nil {
		if err := h.setTunnel(c); err != nil {
			return fmt.Errorf("setting up the tunnel %s: %w", tunnelName, err)
		}
		return nil
	}
	if err := h.setOverlay(c, c.MTU); err != nil {
		return fmt.Errorf("setting up the overlay %s: %w", vxlanName, err)
	}
	if c.Peers == nil {
		return nil
	}
	return setDirect(c)
}

// forward6 makes this host pass IPv6 packets on. A host that does takes no
// router's word for its own addresses and ways any more, unless it is told to:
// so where it did, it is told.
func (h *host) forward6() error {
	const key = "ipv6/conf/all/forwarding"
	if b, err := os.ReadFile(sysctlPath(key)); err == nil && strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	links, err := os.ReadDir(sysctlPath("ipv6/conf"))
	if err != nil {
		return fmt.Errorf("this host's links with IPv6: %w", err)
	}
	for _, l := range links {
		accept := "ipv6/conf/" + l.Name() + "/accept_ra"
		b, err := os.ReadFile(sysctlPath(accept))
		if l.Name() == "all" || err != nil || strings.TrimSpace(string(b)) != "1" {
			continue // or the link has just gone
		}
		if err := h.sysctl(accept, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return h.sysctl(key, "1")
}

// setDirect makes the routes to the peers that share our link, and removes
// those over links that are not ours any more to route over.
func setDirect(c hostConfig) error {
	var want []netlink.Route
	for _, p := range c.Peers {
		theirs := p.Range.all()
		for i, own := range c.Range.all() {
			if i < len(theirs) && p.Direct[i].IsValid() {
				want = append(want, netlink.Route{LinkIndex: c.Uplink, Dst: ipNet(theirs[i]), Gw: p.Direct[i].AsSlice(), Src: gatewayOf(own).AsSlice(), Protocol: routeProtocol})
			}
		}
	}
	if err := dropRoutes(func(r netlink.Route, link string) bool {
		return r.LinkIndex != c.Uplink && link != bridgeName && link != vxlanName
	}); err != nil {
		return err
	}
	if c.Uplink == 0 {
		return nil
	}
	uplink, err := netlink.LinkByIndex(c.Uplink)
	if err != nil {
		return fmt.Errorf("looking up the link of %s: %w", c.Address, err)
	}
	return setRoutes(uplink, want)
}

// dropRoutes removes those of our routes that are of no use.
func dropRoutes(useless func(r netlink.Route, link string) bool) error {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range all {
		name := ""
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		if !useless(r, name) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// uplink is the link that has this node's address.
type uplink struct {
	index int
	mtu   int
	// near are the addresses that share the link, by the masks of its own.
	near []netip.Prefix
}

// isNear says whether where a path leads shares the link.
func (u uplink) isNear(end pathEnd) bool {
	return familyOf(end.addr) == familyOf(end.pods.Addr()) && slices.ContainsFunc(u.near, func(p netip.Prefix) bool { return p.Contains(end.addr) })
}

func uplinkOf(own netip.Addr) (uplink, error) {
	out := uplink{mtu: 1500}
	if own.IsValid() {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return out, fmt.Errorf("listing this host's addresses: %w", err)
		}
		for _, a := range addrs {
			if !a.IP.Equal(own.AsSlice()) {
				continue
			}
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if err != nil {
				return out, fmt.Errorf("looking up the link of %s: %w", own, err)
			}
			// Nothing is gained by jumbo packets on loopback.
			out = uplink{index: a.LinkIndex, mtu: min(link.Attrs().MTU, 9000)}
			// Of IPv4 only its own network counts; of IPv6, whatever it has.
			for _, b := range addrs {
				ip, _ := netip.AddrFromSlice(b.IP)
				ones, _ := b.Mask.Size()
				if b.LinkIndex == a.LinkIndex && ip.IsGlobalUnicast() && (ip == own || ip.Is6()) {
					out.near = append(out.near, netip.PrefixFrom(ip, ones).Masked())
				}
			}
		}
	}
	return out, nil
}

func (h *host) setBridge(c hostConfig, mtu int) (netlink.Link, error) {
	no := false
	want := &netlink.Bridge{
		// Without an address that it was given a bridge takes the lowest of its
		// ports', and would change it as pods come and go. One that is there
		// keeps its own: given again, it would forget who is where.
		LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: mtu, TxQLen: -1, HardwareAddr: randomMAC()},
		// Snooping would send queries of its own for ever.
		MulticastSnooping: &no,
	}
	link, err := ensureLink(want, func(netlink.Link) bool { return true })
	if err != nil {
		return nil, err
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return nil, err
		}
	}
	for key, value := range map[string]string{
		"send_redirects": "0",
		// A process of this host that talks to a host port by 127.0.0.1 is led
		// to a pod. What comes from pods to such addresses is dropped by rule.
		"route_localnet": "1",
	} {
		if err := h.sysctl("ipv4/conf/"+bridgeName+"/"+key, value); err != nil {
			return nil, err
		}
	}
	addrs := []netip.Prefix{single(c.DNS)}
	for _, r := range c.Range.all() {
		// Of IPv6 there is no link-local one, so that nobody is told of a shorter
		// way (which takes no sysctl in IPv6): then the host cannot ask its pods
		// where they are, and is told when they are plugged in.
		addrs = append(addrs, netip.PrefixFrom(gatewayOf(r), r.Bits()))
	}
	return link, bringUp(link, addrs)
}

func (h *host) setOverlay(c hostConfig, mtu int) error {
	// The link's own address is the sender's where a packet that goes into
	// the overlay is masqueraded.
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: vxlanName, MTU: mtu, HardwareAddr: overlayMAC(c.Range.first), TxQLen: -1},
		VxlanId:   vxlanID, Port: vxlanPort, SrcAddr: c.Address.AsSlice(),
	}
	link, err := ensureLink(want, func(l netlink.Link) bool {
		v, ok := l.(*netlink.Vxlan)
		return ok && v.VxlanId == want.VxlanId && v.Port == want.Port && v.SrcAddr.Equal(want.SrcAddr) && !v.Learning &&
			v.MTU == mtu && bytes.Equal(v.HardwareAddr, want.HardwareAddr)
	})
	if err != nil {
		return err
	}
	if err := bringUp(link, c.Range.between()); err != nil {
		return err
	}
	if c.Peers == nil {
		return nil
	}
	return setPeers(link, c)
}

// between are the addresses of a node's link to the others: of IPv4 the first of
// its range, which no pod has, and of IPv6 one that is beyond all that pods have.
func (r ranges) between() (addrs []netip.Prefix) {
	for _, r := range r.all() {
		a := r.Addr()
		if a.Is6() {
			a = nth(r, overlayPlace)
		}
		addrs = append(addrs, single(a))
	}
	return addrs
}

// linkRoute leads to a range over a link. Who sends from this host to it has the
// address of the bridge, in the node's own range of that family.
func linkRoute(link netlink.Link, to, own netip.Prefix) netlink.Route {
	r := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Src: gatewayOf(own).AsSlice(), Protocol: routeProtocol}
	if own.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// setPeers makes the kernel send a peer's range to that peer: a route to the
// first address of the range, which nobody has, leads into the overlay; that
// address's neighbour entry names the peer's overlay MAC, and the forwarding
// entry of that MAC names the peer. In IPv6 a link-local address that follows
// from the peer's first range stands for the first. Nothing is asked or learned on the
// wire.
func setPeers(link netlink.Link, c hostConfig) error {
	index := link.Attrs().Index
	fdb, next := map[string]netlink.Neigh{}, map[*family]map[string]netlink.Neigh{}
	for _, own := range c.Range.all() {
		next[familyOf(own.Addr())] = map[string]netlink.Neigh{}
	}
	var routes []netlink.Route
	for _, p := range c.Peers {
		mac, theirs := overlayMAC(p.Range.first), p.Range.all()
		fdb[mac.String()] = netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: p.Address.AsSlice(), HardwareAddr: mac}
		for i, own := range c.Range.all() {
			if i >= len(theirs) {
				continue
			}
			f, via, flags := familyOf(own.Addr()), theirs[i].Masked().Addr(), int(netlink.FLAG_ONLINK)
			if f == ip6 {
				via, flags = overlayLocal(p.Range.first), 0
			}
			next[f][via.String()] = netlink.Neigh{LinkIndex: index, Family: f.netlink, State: netlink.NUD_PERMANENT, IP: via.AsSlice(), HardwareAddr: mac}
			if !p.Direct[i].IsValid() {
				routes = append(routes, netlink.Route{
					LinkIndex: index, Dst: ipNet(theirs[i]), Gw: via.AsSlice(), Src: gatewayOf(own).AsSlice(), Flags: flags, Protocol: routeProtocol,
				})
			}
		}
	}
	address := func(n netlink.Neigh) string { return n.IP.String() }
	if err := setNeighbours(index, unix.AF_BRIDGE, fdb, func(n netlink.Neigh) string { return n.HardwareAddr.String() }); err != nil {
		return err
	}
	for f, want := range next {
		if err := setNeighbours(index, f.netlink, want, address); err != nil {
			return err
		}
	}
	return setRoutes(link, routes)
}

// setNeighbours makes the permanent entries of a link be those wanted.
func setNeighbours(index, family int, want map[string]netlink.Neigh, key func(netlink.Neigh) string) error {
	have, err := netlink.NeighList(index, family)
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	missing := make(map[string]netlink.Neigh, len(want))
	for k, n := range want {
		missing[k] = n
	}
	for _, n := range have {
		w, ok := want[key(n)]
		switch {
		case ok && n.State&netlink.NUD_PERMANENT != 0 && n.IP.Equal(w.IP) && bytes.Equal(n.HardwareAddr, w.HardwareAddr):
			delete(missing, key(n))
		case !ok && n.State&netlink.NUD_PERMANENT != 0 && (family != unix.AF_BRIDGE || n.Flags&netlink.NTF_SELF != 0):
			n.LinkIndex, n.Family = index, family
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("removing the neighbour %s: %w", key(n), err)
			}
		}
	}
	for k, n := range missing {
		if err := netlink.NeighSet(&n); err != nil {
			return fmt.Errorf("setting the neighbour %s: %w", k, err)
		}
	}
	return nil
}

// setRoutes makes our routes over a link be those wanted.
func setRoutes(link netlink.Link, want []netlink.Route) error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: routeProtocol},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	same := func(a, b netlink.Route) bool {
		return a.Dst != nil && b.Dst != nil && a.Dst.String() == b.Dst.String() && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src)
	}
	for _, r := range have {
		if !slices.ContainsFunc(want, func(w netlink.Route) bool { return w.Dst.String() == r.Dst.String() }) {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("removing the route to %s: %w", r.Dst, err)
			}
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(r netlink.Route) bool { return same(r, w) }) {
			if err := netlink.RouteReplace(&w); err != nil {
				return fmt.Errorf("setting the route to %s: %w", w.Dst, err)
			}
		}
	}
	return nil
}

// ensureLink returns the link of want's name and type, made anew unless same
// accepts the one that is there. A link of that name but another type belongs
// to somebody else.
func ensureLink(want netlink.Link, same func(netlink.Link) bool) (netlink.Link, error) {
	name := want.Attrs().Name
	link, err := netlink.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
	case err != nil:
		return nil, err
	case link.Type() != want.Type():
		return nil, fmt.Errorf("there is another link named %s, of type %s: it is not ours to change", name, link.Type())
	case same(link):
		return link, nil
	default:
		if err := netlink.LinkDel(link); err != nil {
			return nil, fmt.Errorf("removing the old link: %w", err)
		}
	}
	if err := netlink.LinkAdd(want); err != nil {
		return nil, fmt.Errorf("adding the link: %w", err)
	}
	return netlink.LinkByName(name)
}

// bringUp gives a link of ours exactly these addresses, and turns it on. One
// that gets none of IPv6 has no IPv6 at all.
func bringUp(link netlink.Link, want []netip.Prefix) error {
	var want4, want6 []netip.Prefix
	for _, p := range want {
		if p.Addr().Is4() {
			want4 = append(want4, p)
		} else {
			want6 = append(want6, p)
		}
	}
	prepare := disableIPv6
	if len(want6) > 0 {
		prepare = enableIPv6
	}
	if err := prepare(link); err != nil {
		return err
	}
	if err := setAddresses(link, ip4, want4); err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("turning the link on: %w", err)
		}
	}
	if len(want6) == 0 {
		return nil
	}
	return setAddresses(link, ip6, want6)
}

// setAddresses makes a link's addresses of one family be those wanted.
func setAddresses(link netlink.Link, f *family, want []netip.Prefix) error {
	have, err := netlink.AddrList(link, f.netlink)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	missing := slices.Clone(want)
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		prefix := netip.PrefixFrom(ip.Unmap(), ones)
		if i := slices.Index(missing, prefix); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		} else if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("removing the address %s: %w", prefix, err)
		}
	}
	for _, p := range missing {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if f == ip6 {
			a.Flags = unix.IFA_F_NODAD // it is nobody else's, and needed at once
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("adding the address %s: %w", p, err)
		}
	}
	return nil
}

// randomMAC is nobody's: one that is administered locally.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // crypto/rand never fails
	mac[0] = mac[0]&^1 | 2
	if [2]byte(mac) == podMACs {
		mac[1]++ // what is for pods alone never is for the bridge
	}
	return mac
}

// tellsApart is the part of a range that no other node's has: the whole address
// of IPv4; of IPv6, of which nodes have a /64 each of a /40 at most, the second
// four bytes.
func tellsApart(r netip.Prefix) []byte {
	b := r.Masked().Addr().AsSlice()
	if len(b) > 4 {
		return b[4:8]
	}
	return b
}

// overlayMAC is the overlay's MAC of the node that has a range. That it
// follows from the range is why nobody needs to ask for it.
func overlayMAC(r netip.Prefix) net.HardwareAddr {
	return append(net.HardwareAddr{0x0e, 0xc0}, tellsApart(r)...)
}

// overlayLocal is the address that stands in the overlay's routes of IPv6 for
// the node whose first range this is.
func overlayLocal(r netip.Prefix) netip.Addr {
	b := [16]byte{0: 0xfe, 1: 0x80}
	copy(b[12:], tellsApart(r))
	return netip.AddrFrom16(b)
}

// podMACs is what the MACs of all pods begin with.
var podMACs = [2]byte{0x0a, 0xc0}

// podMAC follows from the pod's first address too: an address used again has the
// MAC that neighbours may still remember.
func podMAC(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return append(net.HardwareAddr(podMACs[:]), b[len(b)-4:]...)
}

func vethName(uid types.UID) string {
	sum := sha256.Sum256([]byte(uid))
	return vethPrefix + hex.EncodeToString(sum[:6])
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// attach makes a pod's namespace and its link to the bridge.
func (h *host) attach(path, from string, r reservation, node ranges) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("looking up the bridge: %w", err)
	}
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("opening this process's network namespace: %w", err)
	}
	defer here.Close()
	name := vethName(r.UID)
	if err := inNewNamespace(path, from, func() error { return makePodLink(name, int(here.Fd()), bridge.Attrs().MTU, r, node) }); err != nil {
		return err
	}
	if err := h.plug(name, bridge, r); err != nil {
		return errors.Join(err, removeNamespace(path), deleteLink(name))
	}
	return nil
}

// makePodLink runs in the pod's namespace. The pod has its address alone and
// reaches everything, its neighbours too, by way of the bridge's address: so
// that rules of the IP layer see all packets both ways, whether or not the
// kernel shows it those that a bridge forwards. It has no link-local address of
// IPv6 either, by which neighbours would meet behind those rules.
func makePodLink(peerName string, hostNS, mtu int, r reservation, node ranges) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking up the pod's loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("turning the pod's loopback on: %w", err)
	}
	var addrs []netip.Prefix
	for _, a := range r.addresses() {
		addrs = append(addrs, single(a))
	}
	// The link is born with what it would get later: a kernel may not need its
	// lock for what new links get, and spins for it where it sets a link's own.
	born := func(disabled string) error {
		if slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			return nil
		}
		return ifIPv6(setSysctl("ipv6/conf/default/disable_ipv6", disabled))
	}
	if err := born("1"); err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: mtu, HardwareAddr: podMAC(r.Address), TxQLen: -1},
		PeerName:  peerName, PeerNamespace: netlink.NsFd(hostNS),
	}); err != nil {
		return fmt.Errorf("adding the pod's link: %w", err)
	}
	if err := born("0"); err != nil { // links that the pod makes are its own affair
		return err
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("looking up the pod's link: %w", err)
	}
	for _, who := range []string{"all", "eth0"} {
		if err := writeSysctl("ipv4/conf/"+who+"/accept_redirects", "0"); err != nil {
			return err
		}
	}
	if err := bringUp(eth, addrs); err != nil {
		return err
	}
	for _, own := range slices.Backward(node.all()) {
		if err := addDefault(eth, gatewayOf(own)); err != nil {
			return err
		}
	}
	return nil
}

// addDefault makes a pod's routes of one family: all goes by way of the bridge.
func addDefault(eth netlink.Link, gateway netip.Addr) error {
	index := eth.Attrs().Index
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(single(gateway)), Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("adding the pod's route to %s: %w", gateway, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("adding the pod's default route by %s: %w", gateway, err)
	}
	return nil
}

// plug connects the host's end of a pod's link.
func (h *host) plug(name string, bridge netlink.Link, r reservation) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking up the host's end of a pod's link: %w", err)
	}
	if err := muteIPv6(link); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("plugging a pod's link into the bridge: %w", err)
	}
	// Where the kernel applies IP rules to bridged packets, a pod that reaches
	// itself through a service is sent back out of the port it came from.
	if err := netlink.LinkSetHairpin(link, true); err != nil {
		return fmt.Errorf("letting a pod reach itself: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("turning on the host's end of a pod's link: %w", err)
	}
	six := r.address(ip6)
	if !six.IsValid() {
		return nil
	}
	n := neighbour6(bridge, six)
	n.HardwareAddr = podMAC(r.Address)
	if err := netlink.NeighSet(n); err != nil {
		return fmt.Errorf("telling this host where %s is: %w", six, err)
	}
	return nil
}

func neighbour6(bridge netlink.Link, a netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: bridge.Attrs().Index, Family: unix.AF_INET6, State: netlink.NUD_PERMANENT, IP: a.AsSlice()}
}

// attached says whether a pod has all that attach makes.
func (h *host) attached(path string, r reservation) bool {
	if !isNamespace(path) {
		return false
	}
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return false
	}
	link, err := netlink.LinkByName(vethName(r.UID))
	if err != nil || link.Attrs().MasterIndex != bridge.Attrs().Index || link.Attrs().Flags&net.FlagUp == 0 {
		return false
	}
	return inNamespace(path, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(eth, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		// The first family's default route is the last thing that attach makes
		// inside.
		routes, err := netlink.RouteList(eth, familyOf(r.Address).netlink)
		if err != nil {
			return err
		}
		missing := slices.ContainsFunc(r.addresses(), func(w netip.Addr) bool {
			return !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(w.AsSlice()) })
		})
		if missing || !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw != nil }) {
			return errors.New("incomplete")
		}
		return nil
	}) == nil
}

// detach removes what attach made for a pod that had these addresses, if any.
func (h *host) detach(path string, uid types.UID, r reservation) error {
	six := r.address(ip6)
	// The link goes first and at once; the namespace goes when its last
	// process has ended.
	errs := []error{deleteLink(vethName(uid)), removeNamespace(path)}
	if bridge, err := netlink.LinkByName(bridgeName); err == nil && six.IsValid() {
		if err := netlink.NeighDel(neighbour6(bridge, six)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("forgetting where %s was: %w", six, err))
		}
	}
	return errors.Join(errs...)
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing the link %s: %w", name, err)
	}
	return nil
}

// teardown removes every link of ours, with its addresses and routes, and
// gives the sysctls back.
func (h *host) teardown() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	errs := []error{dropRoutes(func(netlink.Route, string) bool { return true }), h.removeTunnel()}
	for _, l := range links {
		name := l.Attrs().Name
		if name == vxlanName && l.Type() == "vxlan" || name == bridgeName && l.Type() == "bridge" || l.Type() == "veth" && isVethName(name) {
			errs = append(errs, deleteLink(name))
		}
	}
	return errors.Join(append(errs, h.restoreSysctls())...)
}

func isVethName(name string) bool {
	digits, ok := strings.CutPrefix(name, vethPrefix)
	_, err := hex.DecodeString(digits)
	return ok && err == nil && len(digits) == 12
}

func disableIPv6(link netlink.Link) error {
	return ifIPv6(setSysctl("ipv6/conf/"+link.Attrs().Name+"/disable_ipv6", "1"))
}

// ifIPv6 is err unless all that is wrong is that the kernel has no IPv6.
func ifIPv6(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// muteIPv6 lets a link have no addresses of IPv6 but those that it is given. A
// port of a bridge has nothing more to say then: what it receives is the
// bridge's.
func muteIPv6(link netlink.Link) error {
	if _, err := os.Stat(sysctlPath("ipv6")); err != nil {
		return ifIPv6(err)
	}
	if err := netlink.LinkSetIP6AddrGenMode(link, noIPv6AddrGen); err != nil {
		return fmt.Errorf("keeping %s from making up addresses of IPv6: %w", link.Attrs().Name, err)
	}
	return nil
}

const noIPv6AddrGen = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h

// enableIPv6 lets a link of ours have the addresses of IPv6 that it is given,
// and no others: nothing is made up, and no router is listened to.
func enableIPv6(link netlink.Link) error {
	if err := muteIPv6(link); err != nil {
		return err
	}
	for _, set := range [][2]string{{"accept_ra", "0"}, {"accept_redirects", "0"}, {"keep_addr_on_down", "1"}, {"disable_ipv6", "0"}} {
		if err := setSysctl("ipv6/conf/"+link.Attrs().Name+"/"+set[0], set[1]); err != nil {
			return err
		}
	}
	return nil
}

func sysctlPath(key string) string { return filepath.Join("/proc/sys/net", key) }

func writeSysctl(key, value string) error {
	if err := os.WriteFile(sysctlPath(key), []byte(value), 0); err != nil {
		return fmt.Errorf("setting the sysctl net/%s to %s: %w", key, value, err)
	}
	return nil
}

// setSysctl writes a value where it is another. To read takes no lock of the
// kernel's network, while some writes try for it again and again, which many at
// once pay for dearly.
func setSysctl(key, value string) error {
	if is, err := readSysctl(key); err != nil || is == value {
		return err
	}
	return writeSysctl(key, value)
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlPath(key))
	if err != nil {
		return "", fmt.Errorf("reading the sysctl net/%s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// sysctl sets a value and remembers, until the next boot, what it was.
func (h *host) sysctl(key, value string) error {
	was, err := readSysctl(key)
	if err != nil || was == value {
		return err
	}
	h.saving.Lock()
	defer h.saving.Unlock()
	saved, err := h.savedSysctls()
	if err != nil {
		return err
	}
	if _, ok := saved[key]; !ok {
		saved[key] = was
		b, err := json.Marshal(saved)
		if err != nil {
			return fmt.Errorf("encoding sysctls: %w", err)
		}
		if err := os.WriteFile(h.sysctlFile(), b, 0o600); err != nil {
			return fmt.Errorf("remembering the sysctl net/%s: %w", key, err)
		}
	}
	return writeSysctl(key, value)
}

func (h *host) sysctlFile() string { return filepath.Join(h.runDir, ".sysctls") }

func (h *host) savedSysctls() (map[string]string, error) {
	saved := map[string]string{}
	b, err := os.ReadFile(h.sysctlFile())
	if errors.Is(err, fs.ErrNotExist) {
		return saved, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &saved)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the remembered sysctls: %w", err)
	}
	return saved, nil
}

func (h *host) restoreSysctls() error {
	saved, err := h.savedSysctls()
	if err != nil {
		return err
	}
	var errs []error
	for key, value := range saved {
		// Those of our own links went with them.
		if err := writeSysctl(key, value); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(h.sysctlFile()))...)
}
