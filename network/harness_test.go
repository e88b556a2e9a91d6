package network

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/network/wireguard"
)

// The tests here run whole nodes: each is a process of its own (this test
// binary, told by an environment variable to be a node) in a network namespace
// of its own, all on one bridge, with pods that are namespaces with sockets of
// the test's in them.

const nodeEnv = "CONCLAVE_NETWORK_TEST_NODE"

func TestMain(m *testing.M) {
	if wireguard.IsProcess() {
		os.Exit(wireguard.Main())
	}
	if config := os.Getenv(nodeEnv); config != "" {
		if err := nodeProcess(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// nodeConfig goes to a node's process.
type nodeConfig struct {
	Name, Dir, RunDir string
	Address           netip.Addr
	Upstreams         []netip.AddrPort
	Held              bool // no master can be reached
	Direct            bool // packets of pods go directly where they can
	Dual              bool // pods and services have IPv6 addresses too
	Encrypt           bool
	Six               bool // and no others, as nodes have
}

// order is one request to a node's process; each has one answer.
type order struct {
	Do       string // put, delete, attach, detach, ready, address, teardown
	Resource string
	Object   json.RawMessage
	UID      string
	Address  netip.Addr
}

type answer struct {
	Paths []PathProblem
	Error string
	Netns string
	IPs   []netip.Addr
}

var (
	testPodCIDR     = netip.MustParsePrefix("10.244.0.0/16")
	testServiceCIDR = netip.MustParsePrefix("10.96.0.0/16")
	testDNS         = netip.MustParseAddr("10.96.0.10")

	testPodCIDR6     = netip.MustParsePrefix("fd00:77:0:f00::/56")
	testServiceCIDR6 = netip.MustParsePrefix("fd00:77:0:ff::/112")
	testDNS6         = netip.MustParseAddr("fd00:77:0:ff::a")
)

func newObject(resource string) (api.Object, error) {
	switch resource {
	case "nodes":
		return &corev1.Node{}, nil
	case "services":
		return &corev1.Service{}, nil
	case "pods":
		return &corev1.Pod{}, nil
	case "endpointslices":
		return &discoveryv1.EndpointSlice{}, nil
	case "networkpolicies":
		return &networkingv1.NetworkPolicy{}, nil
	case "namespaces":
		return &corev1.Namespace{}, nil
	}
	return nil, fmt.Errorf("no such resource: %q", resource)
}

func nodeProcess(config string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	var mu sync.Mutex
	address, moved := c.Address, make(chan struct{}, 1)
	client := newMemory()
	if c.Held {
		client.held = make(chan struct{})
	}
	live := &liveNodes{changed: make(chan struct{})}
	var pods6, services6 netip.Prefix
	if c.Dual {
		pods6, services6 = testPodCIDR6, testServiceCIDR6
	}
	var encrypt *Encryption
	if c.Encrypt {
		encrypt = &Encryption{Start: (*exec.Cmd).Start}
	}
	pods, services, dns := testPodCIDR, testServiceCIDR, testDNS
	if c.Six {
		pods, services, dns = testPodCIDR6, testServiceCIDR6, testDNS6
	}
	var n *Network
	n, err := New(Config{
		Encrypt:  encrypt,
		PodCIDR6: pods6, ServiceCIDR6: services6,
		PathsChanged: func() { n.want() }, DirectRoutes: c.Direct,
		NodeName: c.Name, Live: live.get, Client: client, Dir: c.Dir, RunDir: c.RunDir,
		Address:        func() netip.Addr { mu.Lock(); defer mu.Unlock(); return address },
		AddressChanged: moved, PodCIDR: pods, ServiceCIDR: services, ClusterDNS: dns,
		Upstreams: c.Upstreams, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- n.Run(ctx) }()

	do := func(o order) (a answer, err error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var object api.Object
		if o.Resource != "" {
			if object, err = newObject(o.Resource); err != nil {
				return a, err
			}
			if err := json.Unmarshal(o.Object, object); err != nil {
				return a, err
			}
		}
		switch o.Do {
		case "put":
			client.put(o.Resource, object)
			return a, n.settled(ctx)
		case "delete":
			client.delete(o.Resource, object)
			return a, n.settled(ctx)
		case "attach":
			a.Netns, a.IPs, err = n.Attach(ctx, object.(*corev1.Pod))
			return a, errors.Join(err, n.settled(ctx))
		case "detach":
			return a, errors.Join(n.Detach(ctx, o.UID), n.settled(ctx))
		case "burst", "unburst":
			count, err := strconv.Atoi(o.UID)
			if err != nil {
				return a, err
			}
			errs := make([]error, count)
			var wg sync.WaitGroup
			for i := range count {
				wg.Go(func() {
					pod := podNamed(fmt.Sprintf("burst%d", i))
					if o.Do == "burst" {
						_, _, errs[i] = n.Attach(ctx, pod)
					} else {
						errs[i] = n.Detach(ctx, string(pod.UID))
					}
				})
			}
			wg.Wait()
			return a, errors.Join(errs...)
		case "paths":
			// The first tests happen by themselves.
			if err := n.await(ctx, "the first test of a path", func() bool {
				n.paths.mu.Lock()
				defer n.paths.mu.Unlock()
				return len(n.paths.all) > 0
			}); err != nil {
				return a, err
			}
			a.Paths = n.TestPaths(ctx)
			return a, nil
		case "reached": // a cluster that was held can be
			close(client.held)
			if err := n.await(ctx, "the cluster", func() bool { return n.cluster.isSynced("services", "endpointslices", "nodes") }); err != nil {
				return a, err
			}
			return a, n.settled(ctx)
		case "ready":
			return a, n.await(ctx, "readiness", func() bool {
				return n.problems["links"] == nil && n.problems["rules"] == nil && n.problems["DNS"] == nil
			})
		case "address":
			mu.Lock()
			address = o.Address
			mu.Unlock()
			moved <- struct{}{}
			return a, n.settled(ctx)
		case "live":
			live.set(strings.Split(o.UID, ","))
			return a, nil
		case "teardown":
			cancel()
			return a, n.Teardown(context.Background())
		}
		return a, fmt.Errorf("no such order: %q", o.Do)
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			cancel()
			return errors.Join(err, <-ran)
		}
		if o.Do == "teardown" {
			cancel()
			if err := <-ran; err != nil {
				return err
			}
			ran <- nil
		}
		a, err := do(o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// liveNodes is what a test says of who is alive.
type liveNodes struct {
	mu      sync.Mutex
	names   []string
	changed chan struct{}
}

func (l *liveNodes) get() ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.names, l.changed
}

func (l *liveNodes) set(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.names, l.changed = names, make(chan struct{})
}

// settled returns once everything that the client was told is in the kernel.
func (n *Network) settled(ctx context.Context) error {
	for m := n.cfg.Client.(*memory); ; {
		quiet := m.quiet()
		pass := n.want()
		if err := n.await(ctx, "the rules", func() bool { return n.done >= pass }); err != nil || quiet {
			return err
		}
	}
}

// lan is a bridge in a namespace of its own, with hosts on it.
type lan struct {
	t       *testing.T
	encrypt bool // its nodes encrypt
	dual    bool // its nodes are of a dual-stack cluster, its hosts have IPv6
	six     bool // its nodes are of a cluster of IPv6 alone, as its hosts are
	dir     string
	path    string
}

// machine is a namespace: a host or a pod.
type machine struct {
	t    *testing.T
	path string
	addr netip.Addr
	// addr6 is invalid where there is none.
	addr6 netip.Addr
}

func needRoot(t *testing.T) {
	t.Helper()
	if err := probe([]*family{ip4}); err != nil {
		t.Skipf("needs namespaces, links and nftables: %v", err)
	}
}

func needIPv6(t *testing.T) {
	t.Helper()
	if err := probe([]*family{ip6}); err != nil {
		t.Skipf("needs IPv6: %v", err)
	}
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	needRoot(t)
	l := &lan{t: t, dir: t.TempDir()}
	l.path = filepath.Join(l.dir, "lan")
	l.namespace(l.path, func() error {
		no := false
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0", TxQLen: -1}, MulticastSnooping: &no}); err != nil {
			return err
		}
		return up("lan0")
	})
	return l
}

func (l *lan) namespace(path string, f func() error) {
	l.t.Helper()
	if err := inNewNamespace(path, "", f); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := removeNamespace(path); err != nil {
			l.t.Error(err)
		}
	})
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func ipNet6(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)}
}

func setAddress(name string, a netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	old, err := netlink.AddrList(link, familyOf(a).netlink)
	if err != nil {
		return err
	}
	for _, o := range old {
		if err := netlink.AddrDel(link, &o); err != nil {
			return err
		}
	}
	if a.Is6() {
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet6(a), Flags: unix.IFA_F_NODAD})
	}
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}})
}

// host adds a machine 192.168.77.N to the LAN.
func (l *lan) host(number int) *machine {
	l.t.Helper()
	m := &machine{t: l.t, path: filepath.Join(l.dir, fmt.Sprintf("host%d", number)), addr: netip.AddrFrom4([4]byte{192, 168, 77, byte(number)})}
	six := netip.AddrFrom16([16]byte{0xfd, 0, 0, 0xaa, 15: byte(number)})
	world := net.IPv4(192, 168, 77, 254)
	if l.six {
		m.addr, m.addr6, world = six, six, net.ParseIP("fd00:aa::fe")
	}
	bridgeNS, err := os.Open(l.path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer bridgeNS.Close()
	peer := fmt.Sprintf("to%d", number)
	l.namespace(m.path, func() error {
		if err := up("lo"); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink", TxQLen: -1}, PeerName: peer, PeerNamespace: netlink.NsFd(int(bridgeNS.Fd()))}); err != nil {
			return err
		}
		if err := errors.Join(setAddress("uplink", m.addr), up("uplink")); err != nil {
			return err
		}
		if l.dual {
			m.addr6 = six
			link, err := netlink.LinkByName("uplink")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet6(m.addr6), Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		// Nobody has this address: it stands for the way to the world.
		return netlink.RouteAdd(&netlink.Route{Gw: world})
	})
	if err := inNamespace(l.path, func() error {
		bridge, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(peer)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}); err != nil {
		l.t.Fatal(err)
	}
	return m
}

// testNode is a node's process on a machine.
type testNode struct {
	*machine
	config nodeConfig
	cmd    *exec.Cmd
	orders *json.Encoder
	close  func() error
	out    *json.Decoder
}

func (l *lan) node(number int, upstreams ...netip.AddrPort) *testNode {
	l.t.Helper()
	m := l.host(number)
	if upstreams == nil {
		upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.168.77.250:53")}
	}
	n := &testNode{machine: m, config: nodeConfig{
		Dual: l.dual, Six: l.six, Encrypt: l.encrypt,
		Name: fmt.Sprintf("node%d", number), Address: m.addr, Upstreams: upstreams,
		Dir: filepath.Join(l.dir, fmt.Sprintf("data%d", number)), RunDir: filepath.Join(l.dir, fmt.Sprintf("run%d", number)),
	}}
	l.t.Cleanup(func() {
		n.stop()
		files, err := os.ReadDir(n.config.RunDir)
		if err != nil {
			l.t.Error(err)
		}
		for _, f := range files {
			if err := removeNamespace(filepath.Join(n.config.RunDir, f.Name())); err != nil {
				l.t.Error(err)
			}
		}
	})
	n.start()
	return n
}

func (n *testNode) start() {
	n.t.Helper()
	config, err := json.Marshal(n.config)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command("/proc/self/exe")
	n.cmd.Env = append(os.Environ(), nodeEnv+"="+string(config))
	n.cmd.Stderr = &logWriter{t: n.t, name: n.config.Name}
	in, err := n.cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	n.orders, n.out, n.close = json.NewEncoder(in), json.NewDecoder(out), in.Close
	if err := inNamespace(n.path, n.cmd.Start); err != nil {
		n.t.Fatal(err)
	}
}

type logWriter struct {
	t    *testing.T
	name string
	mu   sync.Mutex
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(string(b)) {
		w.t.Logf("%s: %s", w.name, strings.TrimSuffix(line, "\n"))
	}
	return len(b), nil
}

// stop ends the process as a user would; kill as a power cut would.
func (n *testNode) stop() {
	if n.cmd != nil {
		n.close()
		if err := n.cmd.Wait(); err != nil {
			n.t.Errorf("%s: %v", n.config.Name, err)
		}
		n.cmd = nil
	}
}

func (n *testNode) kill() {
	if err := n.cmd.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	n.cmd.Wait() // it says that it was killed
	n.cmd = nil
}

func (n *testNode) do(o order) answer {
	n.t.Helper()
	a, err := n.try(o)
	if err != nil {
		n.t.Fatalf("%s: %s %s: %v", n.config.Name, o.Do, o.Resource, err)
	}
	return a
}

func (n *testNode) try(o order) (answer, error) {
	n.t.Helper()
	var a answer
	if err := n.orders.Encode(o); err != nil {
		n.t.Fatalf("%s: %s: %v", n.config.Name, o.Do, err)
	}
	if err := n.out.Decode(&a); err != nil {
		n.t.Fatalf("%s: %s: %v", n.config.Name, o.Do, err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func resourceOf(o api.Object) string {
	switch o.(type) {
	case *corev1.Node:
		return "nodes"
	case *corev1.Service:
		return "services"
	case *corev1.Pod:
		return "pods"
	case *networkingv1.NetworkPolicy:
		return "networkpolicies"
	case *corev1.Namespace:
		return "namespaces"
	}
	return "endpointslices"
}

func encode(t *testing.T, o api.Object) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// nodes is a cluster: what is put is put to all.
type nodes []*testNode

func (all nodes) put(objects ...api.Object) {
	for _, n := range all {
		n.t.Helper()
		for _, o := range objects {
			n.do(order{Do: "put", Resource: resourceOf(o), Object: encode(n.t, o)})
		}
	}
}

func (all nodes) delete(objects ...api.Object) {
	for _, n := range all {
		n.t.Helper()
		for _, o := range objects {
			n.do(order{Do: "delete", Resource: resourceOf(o), Object: encode(n.t, o)})
		}
	}
}

func (n *testNode) object() *corev1.Node {
	bytes := n.addr.AsSlice()
	number := bytes[len(bytes)-1]
	o := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.config.Name, Annotations: map[string]string{AnnotationDirectRoutes: strconv.FormatBool(n.config.Direct)}},
		Spec:       corev1.NodeSpec{PodCIDR: fmt.Sprintf("10.244.%d.0/24", number)},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.addr.String()}}},
	}
	if n.config.Dual {
		o.Spec.PodCIDRs = []string{o.Spec.PodCIDR, fmt.Sprintf("fd00:77:0:f%02x::/64", number)}
	}
	if n.config.Six {
		o.Spec.PodCIDR = fmt.Sprintf("fd00:77:0:f%02x::/64", number)
	}
	if n.addr6.IsValid() && n.addr6 != n.addr {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: n.addr6.String()})
	}
	return o
}

func podNamed(name string, ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Ports: ports}}},
	}
}

func (n *testNode) attach(name string, ports ...corev1.ContainerPort) *machine {
	n.t.Helper()
	a := n.do(order{Do: "attach", Resource: "pods", Object: encode(n.t, podNamed(name, ports...))})
	m := &machine{t: n.t, path: a.Netns, addr: a.IPs[0]}
	if m.addr.Is6() {
		m.addr6 = m.addr
	}
	if len(a.IPs) > 1 {
		m.addr6 = a.IPs[1]
	}
	return m
}

func (n *testNode) detach(name string) {
	n.t.Helper()
	n.do(order{Do: "detach", UID: "uid-" + name})
}

// in runs f in a machine's namespace.
func (m *machine) in(f func() error) {
	m.t.Helper()
	if err := inNamespace(m.path, f); err != nil {
		m.t.Fatal(err)
	}
}

// serve answers on a TCP and a UDP port with its name and the client's
// address, until the test or the returned function ends it.
func (m *machine) serve(name string, port int) (stop func()) {
	m.t.Helper()
	return m.serveAt(name, "4", fmt.Sprintf("0.0.0.0:%d", port))
}

// serve6 is serve by IPv6 alone.
func (m *machine) serve6(name string, port int) (stop func()) {
	m.t.Helper()
	return m.serveAt(name, "6", fmt.Sprintf("[::]:%d", port))
}

func (m *machine) serveAt(name, version, address string) (stop func()) {
	m.t.Helper()
	var l net.Listener
	var p net.PacketConn
	m.in(func() (err error) {
		if l, err = net.Listen("tcp"+version, address); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp"+version, address)
		return err
	})
	hello := func(a net.Addr) []byte {
		return []byte(name + " " + netip.MustParseAddrPort(a.String()).Addr().String() + "\n")
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				// One line for each that comes, so that a connection can live.
				for s := bufio.NewScanner(c); s.Scan(); {
					c.Write(hello(c.RemoteAddr()))
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 2000)
		for {
			_, a, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			p.WriteTo(hello(a), a)
		}
	}()
	stop = sync.OnceFunc(func() { l.Close(); p.Close() })
	m.t.Cleanup(stop)
	return stop
}

// talk sends a line and returns the answer's words: who answered, and whom it
// saw.
func (m *machine) talk(network, to string) (who, saw string, err error) {
	m.t.Helper()
	c, err := m.dial(network, to, "")
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return exchange(c)
}

func (m *machine) dial(network, to, from string) (net.Conn, error) {
	m.t.Helper()
	d := net.Dialer{Timeout: 3 * time.Second}
	if from != "" {
		a, err := net.ResolveTCPAddr("tcp4", from)
		if err != nil {
			return nil, err
		}
		if d.LocalAddr = a; network == "udp4" {
			d.LocalAddr = &net.UDPAddr{IP: a.IP, Port: a.Port}
		}
	}
	var c net.Conn
	err := inNamespace(m.path, func() (err error) { c, err = d.Dial(network, to); return err })
	return c, err
}

func exchange(c net.Conn) (who, saw string, err error) {
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return "", "", err
	}
	b := make([]byte, 200)
	n, err := c.Read(b)
	if err != nil {
		return "", "", err
	}
	who, saw, _ = strings.Cut(strings.TrimSpace(string(b[:n])), " ")
	return who, saw, nil
}

// expect asserts who answers, and whom it saw unless that is empty.
func (m *machine) expect(network, to, who, saw string) {
	m.t.Helper()
	gotWho, gotSaw, err := m.talk(network, to)
	if err != nil || gotWho != who || saw != "" && gotSaw != saw {
		m.t.Errorf("%s %s: got %q which saw %q, %v; want %q which saw %q", network, to, gotWho, gotSaw, err, who, saw)
	}
}

// expectRefused asserts a refusal that comes at once.
func (m *machine) expectRefused(network, to string) {
	m.t.Helper()
	start := time.Now()
	who, _, err := m.talk(network, to)
	// A process of the node itself that sends UDP learns it from the send.
	sent := strings.HasPrefix(network, "udp") && errors.Is(err, unix.EPERM)
	if !errors.Is(err, unix.ECONNREFUSED) && !sent || time.Since(start) > time.Second {
		m.t.Errorf("%s %s: got %q, %v after %s; want to be refused at once", network, to, who, err, time.Since(start))
	}
}

func serviceOf(name, ip string, change func(*corev1.Service), ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: ports},
	}
	if change != nil {
		change(s)
	}
	return s
}

type ep struct {
	addr     netip.Addr
	node     string
	hostname string
	notReady bool
	draining bool
	forZone  string
	forNode  string
}

func sliceOf(service string, ports []discoveryv1.EndpointPort, endpoints ...ep) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
	}
	if len(endpoints) > 0 && endpoints[0].addr.Is6() {
		s.Name, s.AddressType = service+"-2", discoveryv1.AddressTypeIPv6
	}
	for _, e := range endpoints {
		ready, terminating, serving := !e.notReady && !e.draining, e.draining, e.draining || !e.notReady
		de := discoveryv1.Endpoint{Addresses: []string{e.addr.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}}
		if e.node != "" {
			de.NodeName = &e.node
		}
		if e.hostname != "" {
			de.Hostname = &e.hostname
		}
		if e.forZone != "" || e.forNode != "" {
			de.Hints = &discoveryv1.EndpointHints{}
		}
		if e.forZone != "" {
			de.Hints.ForZones = []discoveryv1.ForZone{{Name: e.forZone}}
		}
		if e.forNode != "" {
			de.Hints.ForNodes = []discoveryv1.ForNode{{Name: e.forNode}}
		}
		s.Endpoints = append(s.Endpoints, de)
	}
	return s
}

func ptr[T any](v T) *T { return &v }

func both(port, target int32) ([]corev1.ServicePort, []discoveryv1.EndpointPort) {
	return []corev1.ServicePort{
			{Name: "t", Protocol: corev1.ProtocolTCP, Port: port},
			{Name: "u", Protocol: corev1.ProtocolUDP, Port: port},
		}, []discoveryv1.EndpointPort{
			{Name: ptr("t"), Protocol: ptr(corev1.ProtocolTCP), Port: &target},
			{Name: ptr("u"), Protocol: ptr(corev1.ProtocolUDP), Port: &target},
		}
}

// twoNodes starts a cluster of two.
func twoNodes(t *testing.T) (nodes, *lan) {
	t.Helper()
	l := newLAN(t)
	all := nodes{l.node(1), l.node(2)}
	return all.ready(), l
}

// twoDualNodes starts a dual-stack cluster of two.
func twoDualNodes(t *testing.T) (nodes, *lan) {
	t.Helper()
	l := newLAN(t)
	needIPv6(t)
	l.dual = true
	all := nodes{l.node(1), l.node(2)}
	return all.ready(), l
}

func (all nodes) ready() nodes {
	// Kernels differ in whether IP rules see what a bridge forwards: one node
	// of each kind.
	all[1].in(func() error {
		if err := writeSysctl("bridge/bridge-nf-call-iptables", "0"); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
	all.put(all[0].object(), all[1].object())
	for _, n := range all {
		n.do(order{Do: "ready"})
	}
	return all
}

var protocols = []string{"tcp4", "udp4"}
