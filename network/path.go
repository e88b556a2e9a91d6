package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A path is the way from this node to another's pods, by one family of addresses. It is tested from this
// node's address among its pods to the other's, through all that a pod's
// packet passes: a small ping, one as large as a pod may send, and a packet of
// UDP, whose checksum the network card may compute. Kernels answer all three,
// the last by saying that nobody listens; so nothing waits for tests, and a
// path that is well costs three packets when its peer comes, or when somebody
// asks.

const (
	pathWait    = 400 * time.Millisecond // for an answer
	pathTries   = 3
	pathTests   = 16 // at the same time
	pathClosed  = 33434
	pathUnknown = "" // of a reason: the path is well
	// refusalPause is how long a kernel waits between two refusals to one
	// address, once it has sent a few in a row (icmp_ratelimit). Whoever asks
	// more often hears nothing, on the best of paths.
	refusalPause = time.Second
	refusalTries = 4 // longer together than the pause
	// A path that fails counts as failing once it did so for longer than a node
	// needs to set itself up, and is tested again ever more slowly.
	pathFailures = 4
	// A direct route is given up before its path counts as failing.
	directFailures = 2
	pathRetry      = time.Second
	pathRetryMost  = time.Minute
)

// PathProblem is a path that fails.
type PathProblem struct {
	Node   string `json:"node"` // whose pods are not reached
	Reason string `json:"reason"`
}

func (p PathProblem) String() string { return p.Node + "'s pods: " + p.Reason }

// pathKey names a path: the node, and whether it is by the second family.
type pathKey struct {
	node   string
	second bool
}

// pathEnd is where a path leads.
type pathEnd struct {
	addr netip.Addr // the node's
	pods netip.Prefix
}

// pathState is one path.
type pathState struct {
	end      pathEnd // what was tested
	reason   string
	doubtful bool // pods' packets may pass all the same
	failures int
	next     time.Time // of the next test; zero: none is due
	tested   time.Time // when the last test ended
	refused  time.Time // when a packet of UDP was answered last
}

type paths struct {
	testing keyedMutex // one test of a path at a time

	mu      sync.Mutex
	all     map[pathKey]*pathState
	lost    map[pathKey]pathEnd // to which no direct route works: the overlay is used
	changed func()              // called when Problems may differ
}

// followPaths tests every path when its node comes or comes back, and those
// that fail until they do not.
func (n *Network) followPaths(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		alive, members := n.members()
		n.mu.Lock()
		progress := n.progress // ended by a pass, which may have made links to others
		n.mu.Unlock()
		if wait := n.testDue(ctx, alive); wait > 0 {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-members:
		case <-progress:
		case <-timer.C:
		}
	}
}

func (n *Network) members() (alive func(string) bool, changed <-chan struct{}) {
	var names []string
	if n.cfg.Live != nil {
		names, changed = n.cfg.Live()
	}
	return func(name string) bool { return len(names) == 0 || slices.Contains(names, name) }, changed
}

// peersNow are the nodes to which links are made.
func (n *Network) peersNow(alive func(string) bool) map[pathKey]pathEnd {
	out := map[pathKey]pathEnd{}
	n.mu.Lock()
	linked := n.linked
	n.mu.Unlock()
	n.cluster.mu.RLock()
	defer n.cluster.mu.RUnlock()
	for name, o := range n.cluster.nodes {
		if name == n.cfg.NodeName || !o.addr.IsValid() || o.pods.first == linked.first || !alive(name) {
			continue
		}
		for i, end := range o.ends() {
			if i < len(linked.all()) {
				out[pathKey{name, i > 0}] = end
			}
		}
	}
	return out
}

// testDue tests what is due and returns when to look again, 0 if not before
// something changes.
func (n *Network) testDue(ctx context.Context, alive func(string) bool) time.Duration {
	peers, now := n.peersNow(alive), time.Now()
	n.paths.mu.Lock()
	due := map[pathKey]pathEnd{}
	forgot := false
	for key, s := range n.paths.all {
		if p, ok := peers[key]; !ok || p != s.end {
			forgot = forgot || s.failures >= pathFailures
			delete(n.paths.all, key)
		}
	}
	for key, p := range peers {
		s := n.paths.all[key]
		if s == nil || !s.next.IsZero() && !now.Before(s.next) {
			due[key] = p
		}
	}
	n.paths.mu.Unlock()
	if len(due) > 0 {
		n.test(ctx, due)
	} else if forgot {
		n.paths.changed()
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	var wait time.Duration
	for _, s := range n.paths.all {
		if !s.next.IsZero() {
			if left := max(time.Until(s.next), time.Millisecond); wait == 0 || left < wait {
				wait = left
			}
		}
	}
	return wait
}

// test tests some paths and keeps what it finds.
func (n *Network) test(ctx context.Context, due map[pathKey]pathEnd) {
	if n.cfg.DirectRoutes {
		defer n.giveUp(due)
	}
	// Links that do not fit are no reason not to test what there is.
	fit, cancel := context.WithTimeout(ctx, pathWait)
	if err := n.refit(fit); err != nil {
		n.cfg.Log.Debug("paths are tested with links as they are", "err", err)
	}
	cancel()
	var g errgroup.Group
	g.SetLimit(pathTests)
	own, overhead, asked := n.ipam.node(), n.cfg.overhead(), time.Now()
	for key, p := range due {
		from := own.first
		if key.second {
			from = own.second
		}
		g.Go(func() error {
			defer n.paths.testing.lock(fmt.Sprint(key))()
			was := n.paths.state(key, p)
			if was.tested.After(asked) {
				return nil // somebody else did, meanwhile
			}
			reason, doubtful, spoke := n.unkeyed(key.node), false, time.Since(was.refused) < refusalPause
			if reason == "" {
				reason, doubtful = testPath(ctx, gatewayOf(from), gatewayOf(p.pods), overhead, spoke)
			}
			if ctx.Err() != nil {
				return nil
			}
			now := time.Now()
			if !spoke && reason == pathUnknown {
				was.refused = now
			}
			n.paths.keep(key, p, reason, doubtful, now, was.refused)
			return nil
		})
	}
	_ = g.Wait()
	n.paths.changed()
}

// giveUp turns from direct routes that do not work to the overlay, until the
// other node's address changes or this process starts anew.
func (n *Network) giveUp(tested map[pathKey]pathEnd) {
	n.paths.mu.Lock()
	var lost []string
	for key, end := range tested {
		if s := n.paths.all[key]; s != nil && s.failures >= directFailures && s.end == end && !s.doubtful && n.paths.lost[key] != end {
			n.paths.lost[key] = end
			lost = append(lost, key.node+" "+familyOf(end.pods.Addr()).long)
		}
	}
	n.paths.mu.Unlock()
	if len(lost) > 0 {
		n.cfg.Log.Warn("direct routes to pods do not work, using the overlay", "nodes", lost)
		n.want()
	}
}

// isLost says whether a direct route to a node's pods was tried in vain.
func (s *paths) isLost(key pathKey, end pathEnd) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost[key] == end && end != pathEnd{}
}

// state is what is known of a path that leads there.
func (s *paths) state(key pathKey, end pathEnd) pathState {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is := s.all[key]; is != nil && is.end == end {
		return *is
	}
	return pathState{}
}

// keep keeps the result of a test that has ended, and when UDP was answered.
func (s *paths) keep(key pathKey, end pathEnd, reason string, doubtful bool, now, refused time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := s.all[key]
	if is == nil {
		is = &pathState{}
		s.all[key] = is
	}
	is.tested, is.refused = now, refused
	if is.end, is.reason, is.doubtful = end, reason, doubtful; reason == pathUnknown {
		is.failures, is.next = 0, time.Time{}
		return
	}
	is.failures++
	is.next = now.Add(min(pathRetry<<min(is.failures-1, 10), pathRetryMost))
}

// TestPaths tests the paths to all nodes that live, now, and returns those
// that fail.
func (n *Network) TestPaths(ctx context.Context) []PathProblem {
	alive, _ := n.members()
	peers := n.peersNow(alive)
	n.test(ctx, peers)
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	failing := map[pathKey]string{}
	for key := range peers {
		if s := n.paths.all[key]; s != nil && s.reason != pathUnknown {
			failing[key] = s.reason
		}
	}
	return problemsOf(failing)
}

// Paths returns the paths that have failed for longer than a node needs to set
// itself up, and whether there is one that does not.
func (n *Network) Paths() (failing []PathProblem, some bool) {
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	reasons := map[pathKey]string{}
	for key, s := range n.paths.all {
		if s.failures >= pathFailures && !s.doubtful {
			reasons[key] = s.reason
		} else {
			some = true
		}
	}
	return problemsOf(reasons), some
}

// problemsOf is one for each node, sorted. What both families have in common is
// said once, and what only the second has, IPv6, is said to be of it.
func problemsOf(reasons map[pathKey]string) (all []PathProblem) {
	for key, reason := range reasons {
		switch first := reasons[pathKey{node: key.node}]; {
		case !key.second:
			if six := reasons[pathKey{key.node, true}]; six != pathUnknown && six != reason {
				reason += "; by IPv6 " + six
			}
		case first != pathUnknown:
			continue
		case reason == overlayDropped: // that of the first family passes
			reason = "by IPv6 nothing gets through the overlay: a firewall of one of the two hosts drops it"
		case reason == tunnelDropped:
			reason = "by IPv6 nothing gets through the tunnel: a firewall of one of the two hosts drops it"
		default:
			reason = "by IPv6 " + reason
		}
		all = append(all, PathProblem{key.node, reason})
	}
	slices.SortFunc(all, func(a, b PathProblem) int { return strings.Compare(a.Node, b.Node) })
	return all
}

const (
	overlayDropped = "UDP 8472 is dropped on the way"
	tunnelDropped  = "UDP 51820 is dropped on the way, or one of the two does not know the other's key yet"
)

// pathSizes are tried, after the largest, to say what does pass.
var pathSizes = []int{1400, 1350, 1280, 1200, 1000, 576}

// echoes is how a path is tested by one family.
type echoes struct {
	network          string // of raw sockets
	request, answer  byte   // types of ICMP
	level, discovery int    // the socket option that says what to do with what is too large
	probe            int    // its value: send nothing that does not fit
}

var echoesOf = map[*family]echoes{
	ip4: {"ip4:icmp", 8, 0, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
	ip6: {"ip6:ipv6-icmp", 128, 129, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
}

// testPath says why packets of pods do not get from one node's address to
// another's, or nothing; and whether that is in doubt, because the other host
// may only refuse what is for itself. The overlay takes overhead bytes. UDP that
// was answered just now need not be tried again.
func testPath(ctx context.Context, from, to netip.Addr, overhead int, spoke bool) (reason string, doubtful bool) {
	mtu, dropped := 0, "packets of pods, which have a direct route, are dropped on the way"
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: from.AsSlice()})
	if err == nil && len(routes) > 0 {
		var link netlink.Link
		if link, err = netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
			mtu = link.Attrs().MTU
			switch link.Attrs().Name {
			case vxlanName:
				dropped = overlayDropped
			case tunnelName:
				dropped = tunnelDropped
			}
		}
	}
	if bridge, err := netlink.LinkByName(bridgeName); err == nil {
		mtu = min(mtu, bridge.Attrs().MTU) // larger ones no pod sends
	}
	if err != nil || mtu == 0 {
		return fmt.Sprintf("this host has no route to them: %v", err), false
	}
	const small = 84
	way := ping
	if err := ping(ctx, from, to, small); err != nil {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err.Error(), false
		}
		way = refused // a host that answers no pings
		if refused(ctx, from, to, small) != nil {
			return dropped, false
		}
	}
	if err := way(ctx, from, to, mtu); err != nil {
		passes := small
		for _, size := range pathSizes {
			if size < mtu && way(ctx, from, to, size) == nil {
				passes = size
				break
			}
		}
		return fmt.Sprintf("packets of %d bytes do not pass, those of %d do: lower the MTU of this host's link to %d", mtu, passes, passes+overhead), false
	}
	if spoke {
		return pathUnknown, false
	}
	if err := refused(ctx, from, to, small); err != nil {
		return "pings pass, UDP does not: a network card computes wrong checksums (see ethtool -K, tx-checksum-ip-generic), or a firewall there drops what is for the host itself", true
	}
	return pathUnknown, false
}

// dontFragment makes a socket refuse to send what does not fit, and not learn
// from what it hears that less does.
func (e echoes) dontFragment(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), e.level, e.discovery, e.probe) })
	return errors.Join(err, failed)
}

// ping sends an echo request as an IP packet of a size, until one is answered.
func ping(ctx context.Context, from, to netip.Addr, size int) error {
	f := familyOf(to)
	e := echoesOf[f]
	c, err := (&net.ListenConfig{Control: e.dontFragment}).ListenPacket(ctx, e.network, from.String())
	if err != nil {
		return fmt.Errorf("opening a socket to ping from %s: %w", from, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	id := uint16(time.Now().UnixNano()) // others may ping as well
	request := make([]byte, size-f.header)
	answer := make([]byte, size)
	for i := 8; i < len(request); i++ {
		request[i] = byte(i)
	}
	for try := range uint16(pathTries) {
		request[0], request[2], request[3] = e.request, 0, 0
		binary.BigEndian.PutUint16(request[4:], id)
		binary.BigEndian.PutUint16(request[6:], try)
		if f == ip4 { // in IPv6 the kernel does it
			binary.BigEndian.PutUint16(request[2:], checksum(request))
		}
		if _, err := c.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return fmt.Errorf("pinging %s: %w", to, err)
		}
		c.SetDeadline(time.Now().Add(pathWait))
		for {
			n, who, err := c.ReadFrom(answer)
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				return fmt.Errorf("pinging %s: %w", to, err)
			}
			a, ok := who.(*net.IPAddr)
			if ok && a.IP.Equal(to.AsSlice()) && n == len(request) && answer[0] == e.answer && binary.BigEndian.Uint16(answer[4:]) == id &&
				string(answer[8:n]) == string(request[8:]) {
				return nil
			}
		}
	}
	return fmt.Errorf("pinging %s: %w", to, os.ErrDeadlineExceeded)
}

// checksum is the internet's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// refused sends UDP to a port at which nobody listens until the other kernel
// says so: it does once the packet's checksum is right.
func refused(ctx context.Context, from, to netip.Addr, size int) error {
	f := familyOf(to)
	c, err := (&net.Dialer{Control: echoesOf[f].dontFragment, LocalAddr: &net.UDPAddr{IP: from.AsSlice()}}).DialContext(ctx, "udp", netip.AddrPortFrom(to, pathClosed).String())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	for range refusalTries {
		if _, err = c.Write(make([]byte, size-f.header-8)); err == nil {
			c.SetDeadline(time.Now().Add(pathWait))
			_, err = c.Read(make([]byte, 64))
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil, errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
			return nil // an answer, or an error that came back: it has arrived
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
	return err
}
