package gossip

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	mdnsService = "_conclave._tcp.local."
	mdnsTTL     = 120
	// caPrefix is how much of the CA's hash is announced: enough to tell the
	// clusters of a LAN apart. Whom to trust is decided by the whole of it.
	caPrefix = 8

	// discoverTime bounds Discover where its context does not; after the first
	// answer it waits this much for others.
	discoverTime   = 2 * time.Second
	discoverSettle = 100 * time.Millisecond
	rescanPause    = 500 * time.Millisecond
)

const mdnsPort = 5353

// lan is mDNS over one family of addresses (RFC 6762, 3).
type lan struct {
	network string
	group   net.IP
	address func(p netip.Prefix) bool // says which addresses are of it and worth telling
	// level, link and hops are the socket options that choose the link of
	// multicasts and how far they go.
	level, hops int
	link        func(fd, index int) error
}

var (
	lan4 = lan{"udp4", net.IPv4(224, 0, 0, 251), func(p netip.Prefix) bool { return p.Addr().Is4() }, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL,
		func(fd, index int) error {
			return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)})
		}}
	lan6 = lan{"udp6", net.ParseIP("ff02::fb"), func(p netip.Prefix) bool { return p.Addr().Is6() && p.Addr().IsGlobalUnicast() }, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS,
		func(fd, index int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index)
		}}
)

// on is where everybody on a link listens.
func (l lan) on(iface net.Interface) *net.UDPAddr {
	to := &net.UDPAddr{IP: l.group, Port: mdnsPort}
	if l.network == "udp6" {
		to.Zone = iface.Name
	}
	return to
}

var (
	// askAgain are the pauses between questions: multicast gets lost on Wi-Fi.
	askAgain = []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}
)

// Beacon is what a node announces on its LAN by mDNS, so that others can join
// without being told an address.
type Beacon struct {
	ID     string
	CAHash []byte // of the cluster's CA; its first bytes are announced
	Port   uint16 // of the TLS port
	// IPv6 announces over IPv6 instead of IPv4: by which the nodes of the
	// cluster reach each other.
	IPv6 bool
	// Interfaces says where to announce. By default on every interface that is
	// up, can multicast and has an address, but for loopback.
	Interfaces func() ([]net.Interface, error)
	Log        *slog.Logger
}

// Announce answers questions for this cluster's service until ctx ends. It
// follows interfaces and addresses that come and go.
func Announce(ctx context.Context, b Beacon) error {
	if b.Log == nil {
		b.Log = slog.New(slog.DiscardHandler)
	}
	if b.Interfaces == nil {
		b.Interfaces = lanInterfaces
	}
	if len(b.CAHash) < caPrefix || b.ID == "" || b.Port == 0 {
		return errors.New("announce this node: the beacon lacks an id, a CA hash or a port")
	}
	changes := make(chan netlink.AddrUpdate, 16)
	done := make(chan struct{})
	if err := netlink.AddrSubscribe(changes, done); err != nil {
		return fmt.Errorf("announce this node: watch the addresses: %w", err)
	}
	var wg sync.WaitGroup
	open := map[string]*net.UDPConn{} // by interface and its addresses
	defer func() {
		close(done)
		for _, conn := range open {
			conn.Close()
		}
		wg.Wait()
		for range changes { // closed by netlink's goroutine when it ends
		}
	}()
	rescan := time.NewTimer(0)
	defer rescan.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changes:
			if !ok {
				changes = nil // the interfaces known so far go on
				continue
			}
			rescan.Reset(rescanPause)
		case <-rescan.C:
			b.rescan(open, &wg)
		}
	}
}

// rescan opens a socket on each interface that has none, and closes those whose
// interface or addresses are gone.
func (b *Beacon) rescan(open map[string]*net.UDPConn, wg *sync.WaitGroup) {
	ifaces, err := b.Interfaces()
	if err != nil {
		b.Log.Warn("cannot list the network interfaces to be found on", "err", err)
		return
	}
	l := lan4
	if b.IPv6 {
		l = lan6
	}
	wanted := map[string]bool{}
	for _, iface := range ifaces {
		prefixes := l.prefixes(iface)
		key := fmt.Sprint(iface.Index, prefixes)
		wanted[key] = true
		if open[key] != nil || len(prefixes) == 0 {
			continue
		}
		conn, err := net.ListenMulticastUDP(l.network, &iface, &net.UDPAddr{IP: l.group, Port: mdnsPort})
		if err != nil {
			b.Log.Debug("cannot be found on an interface", "interface", iface.Name, "err", err)
			continue
		}
		open[key] = conn
		wg.Go(func() { b.answer(conn, l.on(iface), prefixes) })
	}
	for key, conn := range open {
		if !wanted[key] {
			conn.Close()
			delete(open, key)
		}
	}
}

// answer reads questions on one interface until its socket is closed.
func (b *Beacon) answer(conn *net.UDPConn, group *net.UDPAddr, prefixes []netip.Prefix) {
	buf := make([]byte, 9000)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				b.Log.Warn("can no longer be found on an interface", "err", err)
			}
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		// Only neighbours are answered: nobody can have an answer sent far
		// away with a forged address.
		i := slices.IndexFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(from.Addr()) })
		if i < 0 && from.Addr().Is6() && from.Addr().IsLinkLocalUnicast() {
			i = 0
		}
		if i < 0 {
			continue
		}
		var question dns.Msg
		if question.Unpack(buf[:n]) != nil {
			continue
		}
		reply := b.reply(&question, prefixes[i].Addr(), from.Port() != mdnsPort)
		if reply == nil {
			continue
		}
		data, err := reply.Pack()
		if err != nil {
			b.Log.Warn("cannot make the answer to a discovery", "err", err)
			continue
		}
		to := net.UDPAddrFromAddrPort(from)
		if from.Port() == mdnsPort {
			to = group // who asks from the service's port listens to the group
		}
		if _, err := conn.WriteToUDP(data, to); err != nil {
			b.Log.Debug("cannot answer a discovery", "to", to, "err", err)
		}
	}
}

// reply is the answer to a message, nil if it does not ask for this service. A
// questioner of one shot gets its question and its id back (RFC 6762, 6.7).
func (b *Beacon) reply(question *dns.Msg, own netip.Addr, oneShot bool) *dns.Msg {
	asked := slices.ContainsFunc(question.Question, func(q dns.Question) bool {
		return strings.EqualFold(q.Name, mdnsService) && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY)
	})
	if question.Response || !asked {
		return nil
	}
	instance, host := b.ID+"."+mdnsService, b.ID+".local."
	header := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: mdnsTTL}
	}
	reply := &dns.Msg{
		MsgHdr: dns.MsgHdr{Response: true, Authoritative: true},
		Answer: []dns.RR{&dns.PTR{Hdr: header(mdnsService, dns.TypePTR), Ptr: instance}},
		Extra: []dns.RR{
			&dns.SRV{Hdr: header(instance, dns.TypeSRV), Port: b.Port, Target: host},
			&dns.TXT{Hdr: header(instance, dns.TypeTXT), Txt: []string{"ca=" + hex.EncodeToString(b.CAHash[:caPrefix])}},
		},
	}
	if own.Is4() {
		reply.Extra = append(reply.Extra, &dns.A{Hdr: header(host, dns.TypeA), A: own.AsSlice()})
	} else {
		reply.Extra = append(reply.Extra, &dns.AAAA{Hdr: header(host, dns.TypeAAAA), AAAA: own.AsSlice()})
	}
	if oneShot {
		reply.Id, reply.Question = question.Id, question.Question
	}
	return reply
}

// readReply finds in an answer the port, and the address of IPv6 if it has one,
// of a node of the cluster with this CA hash; of any cluster, if that is empty.
func readReply(data, caHash []byte) (six netip.Addr, port uint16, ok bool) {
	var m dns.Msg
	if m.Unpack(data) != nil || !m.Response {
		return six, 0, false
	}
	ours := len(caHash) == 0
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		if a, is := rr.(*dns.AAAA); is {
			six, _ = netip.AddrFromSlice(a.AAAA)
		}
		if !strings.HasSuffix(strings.ToLower(rr.Header().Name), "."+mdnsService) {
			continue
		}
		switch rr := rr.(type) {
		case *dns.SRV:
			port = rr.Port
		case *dns.TXT:
			for _, text := range rr.Txt {
				value, found := strings.CutPrefix(text, "ca=")
				prefix, err := hex.DecodeString(value)
				if found && err == nil && len(prefix) >= caPrefix && bytes.HasPrefix(caHash, prefix) {
					ours = true
				}
			}
		}
	}
	return six, port, ours && port != 0
}

// Discover asks the LAN for nodes of the cluster with this CA hash (any
// cluster's, if it is empty) on these interfaces, or on all, and returns the
// addresses of their TLS ports. It returns a tenth of a second after the first
// answer, and without any after two seconds, or when ctx ends. To find nobody
// is no error. An answer proves nothing: whoever joins by it checks the CA.
func Discover(ctx context.Context, caHash []byte, ifaces ...net.Interface) ([]netip.AddrPort, error) {
	if len(ifaces) == 0 {
		var err error
		if ifaces, err = lanInterfaces(); err != nil {
			return nil, fmt.Errorf("look for nodes on the LAN: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTime)
	defer cancel()
	query := new(dns.Msg)
	query.SetQuestion(mdnsService, dns.TypePTR)
	query.RecursionDesired = false
	data, err := query.Pack()
	if err != nil {
		return nil, fmt.Errorf("look for nodes on the LAN: %w", err)
	}
	answers := make(chan netip.AddrPort)
	type asker struct {
		net.PacketConn
		group *net.UDPAddr
	}
	var conns []asker
	var wg sync.WaitGroup
	defer func() {
		cancel()
		for _, conn := range conns {
			conn.Close()
		}
		wg.Wait()
	}()
	var failures []error
	for _, iface := range ifaces {
		for _, l := range []lan{lan4, lan6} {
			for _, own := range l.askFrom(iface) {
				conn, err := l.listenOn(ctx, iface, own)
				if err != nil {
					failures = append(failures, fmt.Errorf("%s: %w", iface.Name, err))
					continue
				}
				conns = append(conns, asker{conn, l.on(iface)})
				wg.Go(func() { readAnswers(ctx, conn, caHash, answers) })
			}
		}
	}
	if len(conns) == 0 {
		return nil, fmt.Errorf("look for nodes on the LAN: no interface can be used: %w", cmp.Or(errors.Join(failures...), os.ErrNotExist))
	}
	var found []netip.AddrPort
	settle := time.NewTimer(discoverTime)
	defer settle.Stop()
	ask := time.NewTimer(0)
	defer ask.Stop()
	for again := askAgain; ; {
		select {
		case <-ctx.Done():
			return found, nil
		case <-settle.C:
			return found, nil
		case <-ask.C:
			for _, conn := range conns {
				// An interface that went down is not an error of the others.
				_, _ = conn.WriteTo(data, conn.group)
			}
			if len(again) > 0 {
				ask.Reset(again[0])
				again = again[1:]
			}
		case a := <-answers:
			if !slices.Contains(found, a) {
				found = append(found, a)
			}
			if len(found) == 1 {
				settle.Reset(discoverSettle)
			}
		}
	}
}

// askFrom are the addresses of an interface from which to ask. In IPv6 the
// kernel chooses one, rightly that of the link.
func (l lan) askFrom(iface net.Interface) (all []netip.Addr) {
	for _, p := range l.prefixes(iface) {
		all = append(all, p.Addr())
	}
	if l.network == "udp6" && len(all) > 0 {
		return []netip.Addr{netip.IPv6Unspecified()}
	}
	return all
}

// listenOn opens a socket whose multicasts go out of one interface.
func (l lan) listenOn(ctx context.Context, iface net.Interface, own netip.Addr) (net.PacketConn, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = errors.Join(l.link(int(fd), iface.Index), unix.SetsockoptInt(int(fd), l.level, l.hops, 255))
		})
		return errors.Join(err, failed)
	}}
	return c.ListenPacket(ctx, l.network, netip.AddrPortFrom(own, 0).String())
}

// readAnswers passes on who answered, until its socket is closed.
func readAnswers(ctx context.Context, conn net.PacketConn, caHash []byte, to chan<- netip.AddrPort) {
	buf := make([]byte, 9000)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		six, port, ok := readReply(buf[:n], caHash)
		if !ok {
			continue
		}
		// The source is where the node can be reached from here, whatever
		// else it has; but for one of the link alone.
		addr := from.(*net.UDPAddr).AddrPort().Addr().Unmap()
		if addr.Is6() && addr.IsLinkLocalUnicast() {
			addr = six
		}
		if !addr.IsGlobalUnicast() && !addr.Is4() {
			continue
		}
		select {
		case to <- netip.AddrPortFrom(addr, port):
		case <-ctx.Done():
			return
		}
	}
}

// lanInterfaces are those where neighbours may be.
func lanInterfaces() ([]net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	const needed = net.FlagUp | net.FlagMulticast
	return slices.DeleteFunc(all, func(i net.Interface) bool {
		return i.Flags&needed != needed || i.Flags&net.FlagLoopback != 0 || len(lan4.prefixes(i))+len(lan6.prefixes(i)) == 0
	}), nil
}

// prefixes are the addresses of an interface, in one family, with their networks.
func (l lan) prefixes(iface net.Interface) []netip.Prefix {
	addrs, err := iface.Addrs()
	if err != nil {
		return nil // it went away
	}
	var prefixes []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && l.address(p) {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}
