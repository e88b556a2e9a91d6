package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/network/wireguard"
)

// Config is what a Network needs to know.
type Config struct {
	// NodeName is the name of this node's Node object.
	NodeName string
	// Client reads Nodes, Services, EndpointSlices and Pods.
	Client api.Client
	// Dir holds the reservations of pod addresses (data-dir/network). It must
	// survive a reboot.
	Dir string
	// RunDir is on a tmpfs and holds the pods' network namespaces as files.
	RunDir string
	// Address returns this node's own address, the one that other nodes reach
	// it at. It may be invalid as long as none is known.
	Address func() netip.Addr
	// AddressChanged says that Address may answer differently. It may be nil.
	AddressChanged <-chan struct{}
	// Live returns the names of the nodes that are alive, and a channel that is
	// closed when the answer may have changed. Nil takes all for alive.
	Live func() (names []string, changed <-chan struct{})
	// Made names the network namespace that was made for a pod because it has to
	// belong to the pod's user namespace; empty for other pods. It may be nil.
	Made func(podUID string) string
	// PodCIDR and ServiceCIDR are the whole cluster's, of its first family, of
	// which Address is too: IPv4, or IPv6 in a cluster of IPv6 alone.
	PodCIDR, ServiceCIDR netip.Prefix
	// PodCIDR6 and ServiceCIDR6 are those of IPv6 in a dual-stack cluster, both
	// invalid in one of a single family.
	PodCIDR6, ServiceCIDR6 netip.Prefix
	// ClusterDNS is the service address at which every node answers DNS.
	ClusterDNS netip.Addr
	// Domain is the cluster's, "cluster.local" if empty.
	Domain string
	// Upstreams answer for names outside Domain. Nil takes them from
	// /etc/resolv.conf, without those that are ourselves.
	Upstreams []netip.AddrPort
	// DirectRoutes sends packets of pods as they are to nodes that share the link
	// of Address and say the same of themselves, as long as that works.
	DirectRoutes bool
	// Encrypt makes a WireGuard tunnel take the overlay's place; nil: none.
	Encrypt *Encryption
	// PathsChanged is called when Paths may answer differently. It may be nil.
	PathsChanged func()
	Log          *slog.Logger
}

// AnnotationDirectRoutes of a Node says that it was started with DirectRoutes.
const AnnotationDirectRoutes = "conclave.io/direct-routes"

const (
	// coalesce is how long a change waits for others to join it.
	coalesce = 2 * time.Millisecond
	// retryFirst and retryMost bound the pause after a failed pass.
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
	// leakAge is how long the address of a pod that the cluster no longer
	// knows stays its own: its processes may still be ending.
	leakAge = 10 * time.Minute
)

// Network is this node's part in the cluster's network.
type Network struct {
	cfg      Config
	cluster  *cluster
	policies *policyState
	proxies  []*proxy // program's, one for each family
	ipam     *ipam
	host     *host
	key      wireguard.Key // private, of a node that encrypts
	dns      *resolver
	paths    paths
	pods     keyedMutex // by UID: one Attach or Detach at a time

	kick        chan struct{} // capacity 1: something has changed
	balanceKick chan struct{} // the same, for runBalance

	mu sync.Mutex
	// wanted counts the changes asked for; done is the last that the kernel
	// has. progress is closed and replaced at the end of each pass.
	wanted, done uint64
	policed      uint64 // the last of which the kernel has the policies
	progress     chan struct{}
	bridged      bool         // the bridge, and DNS's address on it, are there
	linked       ranges       // those whose links are there
	mtu          int          // of the links that are there
	gone         []netip.Addr // addresses of detached pods whose flows must be forgotten
	problems     map[string]error
}

// The resources that are followed, of pods this node's own; policyState follows
// what network policies are about.
var followed = map[string]schema.GroupVersionResource{
	"nodes":          corev1.SchemeGroupVersion.WithResource("nodes"),
	"services":       corev1.SchemeGroupVersion.WithResource("services"),
	"pods":           corev1.SchemeGroupVersion.WithResource("pods"),
	"endpointslices": {Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
}

var eventResource = corev1.SchemeGroupVersion.WithResource("events")

// New checks that this kernel and process can do the work, and says what is
// missing if not.
func New(cfg Config) (*Network, error) {
	if cfg.Domain == "" {
		cfg.Domain = "cluster.local"
	}
	for _, need := range []struct {
		what    string
		missing bool
	}{
		{"NodeName", cfg.NodeName == ""}, {"Client", cfg.Client == nil}, {"Dir", cfg.Dir == ""}, {"RunDir", cfg.RunDir == ""},
		{"Log", cfg.Log == nil}, {"Address", cfg.Address == nil},
		{"PodCIDR", !cfg.PodCIDR.IsValid()},
		{"ServiceCIDR", !cfg.ServiceCIDR.IsValid() || cfg.ServiceCIDR.Addr().Is4() != cfg.PodCIDR.Addr().Is4()},
		{"ClusterDNS", !cfg.ServiceCIDR.Contains(cfg.ClusterDNS)},
		{"PodCIDR6", cfg.PodCIDR6.IsValid() && (cfg.PodCIDR6.Addr().Is4() || cfg.PodCIDR.Addr().Is6())},
		{"ServiceCIDR6", cfg.ServiceCIDR6.IsValid() != cfg.PodCIDR6.IsValid() || cfg.ServiceCIDR6.IsValid() && cfg.ServiceCIDR6.Addr().Is4()},
	} {
		if need.missing {
			return nil, fmt.Errorf("network: the configuration lacks a usable %s", need.what)
		}
	}
	cfg.PodCIDR, cfg.ServiceCIDR = cfg.PodCIDR.Masked(), cfg.ServiceCIDR.Masked()
	cfg.PodCIDR6, cfg.ServiceCIDR6 = cfg.PodCIDR6.Masked(), cfg.ServiceCIDR6.Masked()
	if err := probe(cfg.families()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o711); err != nil {
		return nil, fmt.Errorf("making the folder of network namespaces: %w", err)
	}
	p, err := openIPAM(cfg.Dir, cfg.Log)
	if err != nil {
		return nil, err
	}
	n := &Network{
		cfg: cfg, ipam: p, host: &host{runDir: cfg.RunDir},
		kick: make(chan struct{}, 1), balanceKick: make(chan struct{}, 1), progress: make(chan struct{}),
		problems: map[string]error{"links": errors.New("not set up yet"), "rules": errors.New("not set up yet"), "DNS": errors.New("not served yet")},
	}
	if cfg.Encrypt != nil {
		if err := n.openTunnel(); err != nil {
			return nil, err
		}
	}
	n.paths = paths{all: map[pathKey]*pathState{}, lost: map[pathKey]pathEnd{}, changed: func() {
		if cfg.PathsChanged != nil {
			cfg.PathsChanged()
		}
	}}
	n.cluster = newCluster(n.changed)
	base := Base{PodCIDR: cfg.PodCIDR, ServiceCIDR: cfg.ServiceCIDR, DNS: cfg.ClusterDNS, Overlay: true, NoSCTP: !tracksSCTP(), Tunnel: cfg.Encrypt != nil}
	n.proxies = []*proxy{newProxy(base, cfg.NodeName)}
	if cfg.PodCIDR6.IsValid() {
		base.PodCIDR, base.ServiceCIDR, base.DNS, base.Overlay = cfg.PodCIDR6, cfg.ServiceCIDR6, netip.Addr{}, false
		n.proxies = append(n.proxies, newProxy(base, cfg.NodeName))
	}
	if n.policies, err = openPolicies(cfg.Dir, cfg.ClusterDNS, func() { n.want() }); err != nil {
		return nil, err
	}
	n.dns = newResolver(cfg, n.cluster)
	return n, nil
}

// families are those that pods and services have addresses of, the first one
// first.
func (c Config) families() []*family {
	all := []*family{familyOf(c.PodCIDR.Addr())}
	if c.PodCIDR6.IsValid() {
		all = append(all, ip6)
	}
	return all
}

// changed is called after every change of what we know of the cluster. DNS
// reads the cluster itself.
func (n *Network) changed(resource string) {
	if resource != "pods" {
		select {
		case n.balanceKick <- struct{}{}:
		default:
		}
	}
	n.want()
}

// want asks for a pass and returns its number.
func (n *Network) want() uint64 {
	n.mu.Lock()
	n.wanted++
	w := n.wanted
	n.mu.Unlock()
	select {
	case n.kick <- struct{}{}:
	default:
	}
	return w
}

// await returns once ok does, which is asked after each pass.
func (n *Network) await(ctx context.Context, what string, ok func() bool) error {
	for {
		n.mu.Lock()
		met, progress := ok(), n.progress
		n.mu.Unlock()
		if met {
			return nil
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("waiting for %s: %w", what, ctx.Err())
			if r := n.Ready(); r != nil {
				err = fmt.Errorf("%w (%w)", err, r)
			}
			return err
		case <-progress:
		}
	}
}

// Run programs links and rules and serves DNS until ctx ends. What pods need
// stays in the kernel afterwards: their traffic flows on while this process
// is away.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	handlers := n.cluster.handlers()
	for name, resource := range followed {
		var o metav1.ListOptions
		var h api.Handler = handlers[name]
		if name == "pods" {
			o.FieldSelector = "spec.nodeName=" + n.cfg.NodeName
			h = tee{h, n.policies.ownHandler()}
		}
		g.Go(func() error {
			return ended(ctx, api.Follow(ctx, n.cfg.Client, resource, "", o, h))
		})
	}
	g.Go(func() error { return n.policies.run(ctx, n.cfg.Client) })
	g.Go(func() error {
		return ended(ctx, api.Follow(ctx, n.cfg.Client, corev1.SchemeGroupVersion.WithResource("configmaps"), metav1.NamespaceSystem,
			metav1.ListOptions{FieldSelector: "metadata.name=" + api.SettingsName}, settingsHandler{n.dns.up, n.cfg.Log}))
	})
	g.Go(func() error { return n.program(ctx) })
	g.Go(func() error { return n.runBalance(ctx) })
	g.Go(func() error { return n.followPaths(ctx) })
	g.Go(func() error {
		return n.dns.run(ctx, func() error {
			return n.await(ctx, "the address of DNS", func() bool { return n.bridged })
		}, func(err error) { n.problem("DNS", err) })
	})
	err := g.Wait()
	if n.host.tunnel != nil {
		n.host.tunnel.Close()
	}
	n.problem("DNS", errors.New("not served any more"))
	return err
}

// ended turns the end of ctx into the end that was asked for.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// kernels are the tables in the kernel, one of each sort for each family.
type kernels struct {
	rules    []*kernel
	policies []*policyKernel
}

// program is the loop that brings the kernel to what is wanted.
func (n *Network) program(ctx context.Context) error {
	var k kernels
	for _, f := range n.cfg.families() {
		k.rules, k.policies = append(k.rules, newKernel(f)), append(k.policies, newPolicyKernel(f))
	}
	var (
		links   *hostConfig // what the host was last set to
		leaks   = map[types.UID]time.Time{}
		moved   = n.cfg.AddressChanged
		pause   = retryFirst
		timer   = time.NewTimer(0) // the first pass
		soon    = true             // the timer is about to fire
		leakDue = time.NewTimer(leakAge)
	)
	defer timer.Stop()
	defer leakDue.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-moved:
			if !open {
				moved = nil
			}
			select { // its links may be others
			case n.balanceKick <- struct{}{}:
			default:
			}
			soon = n.hurry(timer, soon)
			continue
		case <-n.kick:
			soon = n.hurry(timer, soon)
			continue
		case <-leakDue.C:
		case <-timer.C:
			soon = false
		}
		var err error
		if links, err = n.pass(&k, links); err != nil {
			n.cfg.Log.Warn("programming the network failed, trying again", "in", pause, "err", err)
			timer.Reset(pause)
			pause = min(2*pause, retryMost)
		} else {
			pause = retryFirst
		}
		if wait := n.reclaim(leaks, time.Now()); wait > 0 {
			leakDue.Reset(wait)
		} else {
			leakDue.Stop()
		}
	}
}

// hurry makes the timer fire as soon as changes may have come together.
// Further changes do not put it off.
func (n *Network) hurry(timer *time.Timer, soon bool) bool {
	if !soon {
		timer.Reset(coalesce)
	}
	return true
}

// pass brings links, then rules, to what is wanted now. It returns what the
// links were set to, nil if that failed.
func (n *Network) pass(k *kernels, links *hostConfig) (*hostConfig, error) {
	n.mu.Lock()
	pass, gone := n.wanted, n.gone
	n.gone = nil
	n.mu.Unlock()

	want, linkErr := n.hostConfig()
	if linkErr == nil && (links == nil || !want.equal(*links) || !n.host.tunnelWell()) {
		linkErr = n.host.set(want)
		if err := guardPorts(ranges{n.cfg.PodCIDR, n.cfg.PodCIDR6}); errors.Is(err, errNoBridgeRules) {
			n.cfg.Log.Warn("frames of pods are not looked at", "err", err)
		} else {
			linkErr = errors.Join(linkErr, err)
		}
	}
	kept, ruleErr := n.applyRules(k.rules, gone)
	policed := true
	for _, p := range k.policies {
		did, err := n.applyPolicies(p)
		policed, ruleErr = policed && did, errors.Join(ruleErr, err)
	}

	n.mu.Lock()
	defer n.mu.Unlock()
	n.problems["links"], n.problems["rules"] = linkErr, ruleErr
	if linkErr == nil {
		links, n.bridged, n.linked, n.mtu = &want, true, want.Range, want.MTU
		if !want.Range.first.IsValid() {
			n.problems["links"] = errors.New("this node has no range of pod addresses yet")
		}
	} else {
		links = nil
	}
	if ruleErr == nil {
		n.done = pass
	}
	if policed {
		n.policed = pass
	}
	if ruleErr != nil || kept {
		n.gone = append(n.gone, gone...)
	}
	close(n.progress)
	n.progress = make(chan struct{})
	return links, errors.Join(linkErr, ruleErr)
}

// address is this node's own, invalid as long as it has none of the first
// family.
func (n *Network) address() netip.Addr {
	if a := n.cfg.Address().Unmap(); n.cfg.families()[0].has(a) {
		return a
	}
	return netip.Addr{}
}

// refit has the links set up anew if the MTU of this host's own link is another
// by now: nobody tells of that, so whoever counts on it asks.
func (n *Network) refit(ctx context.Context) error {
	up, err := uplinkOf(n.address())
	if err != nil {
		return err
	}
	fits := func() bool { return n.mtu == up.mtu-n.cfg.overhead() }
	n.mu.Lock()
	did := fits()
	n.mu.Unlock()
	if did {
		return nil
	}
	n.want()
	return n.await(ctx, "links as large as this host's own", fits)
}

// hostConfig is what the links shall be now. It learns this node's range.
func (n *Network) hostConfig() (hostConfig, error) {
	c := hostConfig{DNS: n.cfg.ClusterDNS, ServiceCIDR: n.cfg.ServiceCIDR, ServiceCIDR6: n.cfg.ServiceCIDR6, Address: n.address()}
	up, err := uplinkOf(c.Address)
	if err != nil {
		return c, err
	}
	// What fits into the overlay fits everywhere.
	c.MTU, c.Uplink, c.Key = up.mtu-n.cfg.overhead(), up.index, n.key
	synced := n.cluster.isSynced("nodes")
	n.cluster.mu.RLock()
	own := n.cluster.nodes[n.cfg.NodeName]
	if synced {
		c.Peers = []peer{}
		for name, o := range n.cluster.nodes {
			if name == n.cfg.NodeName || !familyOf(n.cfg.PodCIDR.Addr()).has(o.addr) || !o.pods.first.IsValid() || o.addr == c.Address || o.pods.first == own.pods.first {
				continue
			}
			p := peer{Range: o.pods, Address: o.addr, Key: o.key}
			for i, end := range o.ends() {
				if n.cfg.DirectRoutes && o.direct && up.isNear(end) && !n.paths.isLost(pathKey{name, i > 0}, end) {
					p.Direct[i] = end.addr
				}
			}
			c.Peers = append(c.Peers, p)
		}
	}
	n.cluster.mu.RUnlock()
	// Two nodes with one range cannot be told apart; the order only keeps the
	// choice from changing.
	slices.SortFunc(c.Peers, func(a, b peer) int {
		if d := a.Range.first.Addr().Compare(b.Range.first.Addr()); d != 0 {
			return d
		}
		return a.Address.Compare(b.Address)
	})
	c.Peers = slices.CompactFunc(c.Peers, func(a, b peer) bool { return a.Range.first == b.Range.first })
	if n.cfg.Encrypt != nil {
		c.Peers = keyed(c.Peers)
	}
	if own.pods.first.IsValid() {
		whole := ranges{n.cfg.PodCIDR, n.cfg.PodCIDR6}
		r := own.pods
		if !whole.second.IsValid() {
			r.second = netip.Prefix{}
		}
		for i, w := range whole.all() {
			if all := r.all(); i >= len(all) || !w.Overlaps(all[i]) || all[i].Bits() > mostBits(w) {
				return c, fmt.Errorf("this node's range %s is no usable part of %s", own.pods, w)
			}
		}
		changed, err := n.ipam.setRange(r)
		if err != nil {
			return c, err
		}
		if changed {
			n.cfg.Log.Info("this node's range of pod addresses", "range", r)
		}
	}
	c.Range = n.ipam.node()
	if slices.ContainsFunc(c.Range.all(), func(r netip.Prefix) bool { return r.Addr().Is6() }) && c.MTU < minMTU6 {
		return c, fmt.Errorf("packets of pods have %d bytes at most here, and IPv6 needs %d: raise the MTU of this host's link to %d", c.MTU, minMTU6, minMTU6+n.cfg.overhead())
	}
	return c, nil
}

// applyRules brings the rules up to date. Until services, their endpoints and
// the nodes have all been seen once, the rules that an earlier process left
// are kept as they are, because they know more than we do.
func (n *Network) applyRules(kernels []*kernel, gone []netip.Addr) (kept bool, err error) {
	if !n.cluster.isSynced("services", "endpointslices", "nodes") {
		for _, k := range kernels {
			if k.applied != nil {
				continue
			}
			if there, err := k.exists(); err != nil || there {
				return there, err
			}
		}
	}
	dirty, all := n.cluster.takeDirty()
	for i, k := range kernels {
		fresh := k.applied == nil
		was, is := n.proxies[i].update(n.cluster, dirty, all, n.ipam.all())
		if failed := k.change(was, is, n.proxies[i].rules); failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		if fresh {
			was, is = nil, n.proxies[i].rules
		}
		err = errors.Join(err, staleAfter(was, is, gone).forget(k.ip))
	}
	return false, err
}

// applyPolicies brings network policies up to date, and says whether they are.
func (n *Network) applyPolicies(k *policyKernel) (bool, error) {
	left := false
	if k.applied == nil {
		var err error
		if left, err = k.exists(); err != nil {
			return false, err
		}
	}
	version, due := n.policies.due(left)
	if !due {
		return false, nil
	}
	if k.applied != nil && k.version == version {
		return true, nil
	}
	p, version := n.policies.compile(k.ip, n.ipam.all())
	if err := k.apply(p); err != nil {
		return false, err
	}
	k.version = version
	return true, n.policies.keep()
}

// reclaim frees the addresses of pods that the cluster has not known for long,
// and returns when to look again, 0 if not before something changes.
func (n *Network) reclaim(leaks map[types.UID]time.Time, now time.Time) time.Duration {
	if !n.cluster.isSynced("pods") {
		return 0
	}
	var next time.Duration
	known := func(uid types.UID) bool {
		n.cluster.mu.RLock()
		defer n.cluster.mu.RUnlock()
		_, ok := n.cluster.localPods[uid]
		return ok
	}
	for uid := range leaks {
		if _, held := n.ipam.get(uid); !held || known(uid) {
			delete(leaks, uid)
		}
	}
	for _, r := range n.ipam.all() {
		if known(r.UID) {
			continue
		}
		since, ok := leaks[r.UID]
		if !ok {
			since, leaks[r.UID] = now, now
		}
		left := leakAge - now.Sub(since)
		if left <= 0 {
			n.cfg.Log.Warn("reclaiming the address of a pod that is long gone", "pod", r.Namespace+"/"+r.Name, "address", r.Address)
			if err := n.detach(r.UID); err != nil {
				n.cfg.Log.Warn("reclaiming a pod's address failed", "pod", r.Namespace+"/"+r.Name, "err", err)
				leaks[r.UID], left = now, leakAge
			} else {
				delete(leaks, r.UID)
				continue
			}
		}
		if next == 0 || left < next {
			next = left
		}
	}
	return next
}

func (n *Network) problem(what string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problems[what] = err
}

// Ready returns nil once pods can be attached, or what is missing.
func (n *Network) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, what := range []string{"links", "rules", "DNS"} {
		if err := n.problems[what]; err != nil {
			return fmt.Errorf("network: %s: %w", what, err)
		}
	}
	return nil
}

func (n *Network) netns(uid types.UID) string { return filepath.Join(n.cfg.RunDir, string(uid)) }

// Attach gives a pod its network namespace, with address, routes and host
// ports, and returns the file that names the namespace. It waits for this
// node's range to be known, and for Run to have set the links up. It is
// idempotent by the pod's UID: the same answer, also after a restart of this
// process. A pod on the host's network gets no namespace: the name is empty.
func (n *Network) Attach(ctx context.Context, pod *corev1.Pod) (netns string, ips []netip.Addr, err error) {
	if pod.Spec.HostNetwork {
		if a := n.cfg.Address(); a.IsValid() {
			ips = []netip.Addr{a}
		}
		return "", ips, nil
	}
	defer n.pods.lock(string(pod.UID))()
	if err := n.await(ctx, "this node's range of pod addresses", func() bool {
		return n.linked.first.IsValid() && n.linked == n.ipam.node()
	}); err != nil {
		return "", nil, fmt.Errorf("attaching pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r, err := n.ipam.reserve(pod)
	if err != nil {
		return "", nil, fmt.Errorf("attaching pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	path := n.netns(pod.UID)
	isNew := !n.host.attached(path, r)
	n.policies.attached(pod, isNew)
	pass := n.want()
	if isNew {
		err := n.host.detach(path, pod.UID, r) // what a crash may have left
		if err == nil {
			err = n.refit(ctx)
		}
		if err == nil {
			err = n.host.attach(path, n.made(pod), r, n.ipam.node())
		}
		if err != nil {
			return "", nil, fmt.Errorf("attaching pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	// The pod is nobody's to reach before its policies are in place.
	if isNew && n.policies.concern() {
		if err := n.await(ctx, "the network policies of the pod", func() bool { return n.policed >= pass }); err != nil {
			return "", nil, fmt.Errorf("attaching pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	if len(r.HostPorts) > 0 {
		if err := n.await(ctx, "the pod's host ports", func() bool { return n.done >= pass }); err != nil {
			return "", nil, fmt.Errorf("attaching pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	return path, r.addresses(), nil
}

// made is a namespace that was made for the pod before it came here.
func (n *Network) made(pod *corev1.Pod) string {
	if n.cfg.Made == nil || pod.Spec.HostUsers == nil || *pod.Spec.HostUsers {
		return ""
	}
	return n.cfg.Made(string(pod.UID))
}

// Detach undoes Attach. A pod that is not attached is no error.
func (n *Network) Detach(ctx context.Context, podUID string) error {
	if err := n.detach(types.UID(podUID)); err != nil {
		return fmt.Errorf("detaching pod %s: %w", podUID, err)
	}
	return nil
}

func (n *Network) detach(uid types.UID) error {
	if !validUID(uid) {
		return nil // never attached
	}
	defer n.pods.lock(string(uid))()
	r, held := n.ipam.get(uid)
	if err := n.host.detach(n.netns(uid), uid, r); err != nil {
		return err
	}
	if !held {
		return nil
	}
	if err := n.ipam.release(uid); err != nil {
		return err
	}
	n.policies.detached(uid)
	n.mu.Lock()
	n.gone = append(n.gone, r.addresses()...)
	n.mu.Unlock()
	n.want()
	return nil
}

// Teardown removes everything that was ever made here: links, namespaces,
// rules, routes, addresses and reservations. Run must have returned.
func (n *Network) Teardown(ctx context.Context) error {
	var errs []error
	files, err := os.ReadDir(n.cfg.RunDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("listing network namespaces: %w", err))
	}
	for _, f := range files {
		if validUID(types.UID(f.Name())) {
			errs = append(errs, removeNamespace(n.netns(types.UID(f.Name()))))
		}
	}
	for _, f := range n.cfg.families() {
		errs = append(errs, nftTable{tableName, f}.remove(), nftTable{policyTableName, f}.remove())
	}
	errs = append(errs, unguardPorts(), n.host.teardown(), os.RemoveAll(n.cfg.Dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("taking the network down: %w", err)
	}
	return nil
}

// keyedMutex is one mutex per key in use.
type keyedMutex struct {
	mu    sync.Mutex
	users map[string]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int
}

// lock returns what unlocks.
func (k *keyedMutex) lock(key string) func() {
	k.mu.Lock()
	if k.users == nil {
		k.users = map[string]*keyedLock{}
	}
	l := k.users[key]
	if l == nil {
		l = &keyedLock{}
		k.users[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.users, key)
		}
	}
}
