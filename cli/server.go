package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiversion "k8s.io/apimachinery/pkg/version"

	"conclave/agent"
	"conclave/api"
	"conclave/api/custom"
	"conclave/consensus"
	"conclave/controller"
	"conclave/gossip"
	"conclave/identity"
	"conclave/liveness"
	"conclave/network"
	"conclave/runtime"
	"conclave/scheduler"
	"conclave/snapshot"
	"conclave/wire"
)

// The ports of a node (design, decision 8).
const (
	apiPort     = 6443
	gossipPort  = 7946
	kubeletPort = 10250
)

// leaseDuration is how long the leader believes in a node that it does not hear.
const leaseDuration = 3 * time.Second

// ServerConfig is one node. The zero value of a field is its flag's default.
type ServerConfig struct {
	DataDir      string
	Name         string     // the host's name if empty
	Address      netip.Addr // found and followed if invalid
	Labels       map[string]string
	NoMaster     bool
	DirectRoutes bool
	CgroupParent string
	StaticPods   string // folder; DataDir/manifests if empty
	NodeResources
	InsecureRegistries    []string
	RegistryDir           string // folders with hosts.toml; the data folder's registries/ if empty
	MaxParallelPulls      int
	ImageGC               agent.ImageGC
	CredentialProviders   string // kubelet's file of credential provider plugins
	CredentialProviderBin string // the folder of their programs
	SeccompDefault        bool
	UnsafeSysctls         []string
	UnreachableToleration time.Duration
	// Ranges and DualStack are of the cluster that is founded here.
	Ranges    addressRanges
	DualStack bool
	Encrypt   bool
	// Shutdown is what pods get to end when the host goes down; none: they are
	// left to the host.
	Shutdown []agent.ShutdownPeriod

	// Join is the token to join with; nil founds a cluster, unless the data
	// folder is a member of one already.
	Join          *identity.Token
	JoinAddresses []string
	// Restore founds the cluster that a snapshot holds.
	Restore *restoration

	// Tell is told what a user wants to read about the start, a line at a time.
	Tell func(format string, args ...any)
	Log  *slog.Logger
}

// Server is one node of the cluster: every room, wired together.
type Server struct {
	config ServerConfig
	log    *slog.Logger
	start  time.Time

	own    *ownAddress
	node   *identity.Node
	certs  *identity.Certificates
	pool   *gossip.Pool
	dialer *wire.Dialer
	port   *wire.Port
	lease  *consensus.LeaseClient
	engine *runtime.Engine
	net    *network.Network
	agent  *agent.Agent
	client *switchClient

	agentCtx  context.Context // ends with the server, or before it when the node leaves
	stopAgent context.CancelFunc

	master  atomic.Pointer[master]     // nil on a node that is none
	promote chan promotion             // what this node needs to become a master
	rebirth atomic.Pointer[rebirth]    // a recovery that was asked for
	begun   identity.Incarnation       // by this process; runMasters' alone while no master runs
	doubt   chan struct{}              // a hint that there may be a newer incarnation
	damage  atomic.Pointer[string]     // what happened to this master's log, until it is one again
	left    atomic.Bool                // this node has left the cluster: forget it on the way out
	cluster atomic.Pointer[hintChange] // closed at each change of the members

	images chan struct{} // a hint that this node has other images than before

	readyAfter atomic.Int64 // nanoseconds from the start until this node was Ready, 0 before
}

// hintChange is a channel that is closed once.
type hintChange struct{ c chan struct{} }

// NewServer checks what can be checked before anything is changed.
func NewServer(c ServerConfig) (*Server, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("conclave runs containers and programs the network, which needs root: run it with sudo")
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("this machine's name: %w: give one with --name", err)
		}
		c.Name = strings.ToLower(host)
	}
	own, err := newOwnAddress(c.Address)
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Log, start: time.Now(), own: own,
		promote: make(chan promotion), doubt: make(chan struct{}, 1), images: make(chan struct{}, 1)}
	s.cluster.Store(&hintChange{make(chan struct{})})
	return s, nil
}

func (s *Server) path(parts ...string) string {
	return filepath.Join(append([]string{s.config.DataDir}, parts...)...)
}

// Run is the node, from its start to its end. Pods outlive it.
func (s *Server) Run(ctx context.Context) error {
	unlock, err := s.claimFolder()
	if err != nil {
		return err
	}
	defer unlock()
	// Probes come before anything is founded or joined, so that a machine that
	// cannot run pods changes nothing.
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", apiPort))
	if err != nil {
		return fmt.Errorf("the cluster's port: %w", err)
	}
	defer listener.Close()
	s.engine, err = runtime.New(runtime.Config{
		Root: s.config.DataDir, RunDir: s.path("run", "runtime"), CgroupParent: s.config.CgroupParent,
		InsecureRegistries: s.config.InsecureRegistries, RegistryDir: s.config.RegistryDir, MaxParallelPulls: s.config.MaxParallelPulls,
		Peers: imagePeers{s}, Changed: s.imagesChanged, Log: s.log.With("room", "runtime"),
		Faults: engineFaults(s.config.DataDir),
	})
	if err != nil {
		return err
	}
	authority, founded, peers, err := s.enter(ctx)
	if err != nil {
		return err
	}
	if err := s.settleLog(); err != nil {
		return err
	}
	if err := s.connect(listener, peers); err != nil {
		return err
	}
	if err := s.equip(ctx); err != nil {
		return err
	}
	if err := s.run(ctx, authority, founded); err != nil || !s.left.Load() {
		return err
	}
	return s.forget()
}

// lockPatience is how long a process before this one may take to end.
const lockPatience = 2 * time.Second

// claimFolder makes the data folder, keeps every other conclave out of it, and
// mounts the part of it that must not outlive a reboot.
func (s *Server) claimFolder() (release func(), err error) {
	if err := os.MkdirAll(s.config.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	// The one before may have been killed and still be on its way out.
	held := func() error { return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	err = held()
	for patience := time.Now().Add(lockPatience); err != nil && time.Now().Before(patience); err = held() {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("conclave runs already with data folder %s: stop it first, or see `conclave status`", s.config.DataDir)
	}
	run := s.path("run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		lock.Close()
		return nil, fmt.Errorf("data folder: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(run, &fs); err != nil {
		lock.Close()
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if fs.Type != unix.TMPFS_MAGIC || !mountPoint(run) {
		if err := unix.Mount("conclave", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			lock.Close()
			return nil, fmt.Errorf("mount a tmpfs on %s: %w", run, err)
		}
	}
	return func() { lock.Close() }, nil
}

// mountPoint says whether something is mounted on a folder.
func mountPoint(dir string) bool {
	var here, above unix.Stat_t
	return unix.Lstat(dir, &here) == nil && unix.Lstat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// enter gives this node its place in a cluster: the one that it is a member of,
// the one that the token names, or a new one.
func (s *Server) enter(ctx context.Context) (authority *identity.Authority, founded bool, peers []string, err error) {
	s.node, err = identity.Open(s.path("identity"))
	if err != nil {
		return nil, false, nil, err
	}
	if cluster, member := s.node.Cluster(); member {
		if s.config.Restore != nil {
			return nil, false, nil, fmt.Errorf("data folder %s is a member of cluster %.8s: a snapshot is restored on a new machine, or after `conclave leave`, or into another --data-dir", s.config.DataDir, cluster.ID)
		}
		if s.config.Join != nil && s.config.Join.CAHash != cluster.CAHash() {
			return nil, false, nil, fmt.Errorf("data folder %s is a member of another cluster: `conclave leave` that one first, or choose another --data-dir", s.config.DataDir)
		}
		if err := s.config.Ranges.agree(cluster, s.config.DualStack); err != nil {
			return nil, false, nil, err
		}
		if err := s.own.need(cluster.PodCIDR.Addr().Is6()); err != nil {
			return nil, false, nil, err
		}
		if err := s.agreeEncrypted(cluster); err != nil {
			return nil, false, nil, err
		}
		s.config.Name, s.config.NoMaster = s.node.Name(), s.node.NoMaster()
		s.config.Tell("resuming node %s of cluster %.8s", s.config.Name, cluster.ID)
		authority, err = identity.OpenAuthority(s.path("master"))
		if errors.Is(err, os.ErrNotExist) {
			authority, err = nil, nil
		}
		if s.config.Join != nil { // whom it names may know more than is remembered here
			for _, a := range append(slices.Clone(s.config.JoinAddresses), s.config.Join.Addresses...) {
				host, _, bad := net.SplitHostPort(a)
				if bad != nil {
					host = a
				}
				peers = append(peers, net.JoinHostPort(host, strconv.Itoa(gossipPort)))
			}
		}
		return authority, false, peers, err
	}
	if s.config.Restore != nil {
		authority, peers, err = s.enterRestored(ctx, s.config.Restore)
		return authority, false, peers, err
	}
	if s.config.Join == nil {
		if s.config.NoMaster {
			return nil, false, nil, errors.New("the first node of a cluster is its first master: leave --no-master away")
		}
		if err := s.own.need(s.config.Ranges.six(s.config.DualStack, s.own.get())); err != nil {
			return nil, false, nil, err
		}
		if err := s.canEncrypt(identity.Cluster{Encrypt: s.config.Encrypt}); err != nil {
			return nil, false, nil, err
		}
		authority, err = s.node.Found(ctx, identity.FoundOptions{
			Name: s.config.Name, Addresses: s.own.list(), MasterDir: s.path("master"),
			Domain:  "cluster.local",
			PodCIDR: s.config.Ranges.pods, ServiceCIDR: s.config.Ranges.services,
			PodCIDR6: s.config.Ranges.pods6, ServiceCIDR6: s.config.Ranges.services6, DualStack: s.config.DualStack,
			Encrypt: s.config.Encrypt,
		})
		if err == nil {
			s.config.Tell("founding a cluster on %s (%s)", s.config.Name, s.own.get())
		}
		return authority, true, nil, err
	}
	token := *s.config.Join
	token.Addresses = append(slices.Clone(s.config.JoinAddresses), token.Addresses...)
	join := func() (*identity.JoinReply, error) {
		if six, all := familyOf(token.Addresses); all {
			if err := s.own.need(six); err != nil {
				return nil, err
			}
		}
		return identity.Join(ctx, identity.JoinConfig{
			Token: token, Node: s.node, Name: s.config.Name, Addresses: s.own.list(), NoMaster: s.config.NoMaster, Accept: s.canEncrypt,
		})
	}
	reply, err := join()
	if errors.Is(err, identity.ErrUnreachable) {
		// Nobody is where the token says: addresses change. Ask on the LAN.
		found, discovery := gossip.Discover(ctx, token.CAHash[:])
		if discovery == nil && len(found) > 0 {
			token.Addresses = nil
			for _, a := range found {
				token.Addresses = append(token.Addresses, a.String())
			}
			reply, err = join()
		}
	}
	if errors.Is(err, identity.ErrNameTaken) {
		err = fmt.Errorf("name %q: %w", s.config.Name, err)
	}
	if err != nil {
		return nil, false, nil, err
	}
	if err := s.own.need(reply.Cluster.PodCIDR.Addr().Is6()); err != nil { // by a name, it may have joined by the other family
		return nil, false, nil, err
	}
	s.config.Tell("joined cluster %.8s as %s (%s)", reply.Cluster.ID, s.config.Name, s.own.get())
	return nil, false, reply.Peers, nil
}

// familyOf says whether addresses with ports, if all are of one family, are of
// IPv6. Names are of none.
func familyOf(addresses []string) (six, all bool) {
	for i, text := range addresses {
		a, err := netip.ParseAddrPort(text)
		if err != nil || i > 0 && a.Addr().Is6() != six {
			return false, false
		}
		six, all = a.Addr().Is6(), true
	}
	return six, all
}

// connect makes what lets this node talk to the others.
func (s *Server) connect(listener net.Listener, peers []string) (err error) {
	cluster, _ := s.node.Cluster()
	caHash := cluster.CAHash()
	s.certs, err = identity.NewCertificates(identity.CertificatesConfig{
		Node: s.node, Addresses: s.own.list, Log: s.log.With("room", "identity"),
		Renew: func(ctx context.Context, csr []byte) ([]byte, error) {
			if m := s.master.Load(); m != nil {
				return m.authority.SignNode(csr, s.node.Name(), s.own.list(), nil, s.node.NoMaster(), time.Now())
			}
			return identity.RenewFrom(s.node, s.masterAddresses)(ctx, csr)
		},
	})
	if err != nil {
		return err
	}
	meta := gossip.Meta{
		Name: s.node.Name(), Zone: s.config.Labels[corev1.LabelTopologyZone], Role: gossip.RoleNode,
		NoMaster: s.config.NoMaster, Memory: totalMemory(), CPU: float64(goruntime.NumCPU()), Started: s.start,
		APIPort: apiPort, KubeletPort: kubeletPort, Addresses: s.own.list(),
	}
	life := s.node.Incarnation()
	meta.Incarnation, meta.IncarnationID = life.Number, life.ID
	anywhere := netip.IPv4Unspecified()
	if s.own.get().Is6() {
		anywhere = netip.IPv6Unspecified()
	}
	s.pool, err = gossip.New(gossip.Config{
		ID: s.node.ID(), Meta: meta, Bind: netip.AddrPortFrom(anywhere, gossipPort), Advertise: s.own.get(),
		Key: cluster.GossipKey, Dir: s.path("gossip"), Seeds: peers, Log: s.log.With("room", "gossip"),
		Discover: func(ctx context.Context) ([]netip.AddrPort, error) {
			found, err := gossip.Discover(ctx, caHash[:])
			for i := range found {
				found[i] = netip.AddrPortFrom(found[i].Addr(), gossipPort)
			}
			return found, err
		},
	})
	if err != nil {
		return err
	}
	s.dialer = &wire.Dialer{Certs: s.certs, Resolve: s.resolve, Log: s.log.With("room", "wire")}
	s.port = wire.New(wire.Config{
		Listener: listener, PeerID: identity.PeerID, Log: s.log.With("room", "wire"),
		TLS: func() *tls.Config {
			return s.certs.Server(wire.ProtoRaft, wire.ProtoNode, wire.ProtoJoin, wire.ProtoStream)
		},
		APITLS: s.apiTLS, Splice: s.splice,
	})
	s.lease = consensus.NewLease(consensus.LeaseConfig{
		ID: s.node.ID(), Name: s.node.Name(), Caller: s.dialer, Masters: s.masters, Duration: leaseDuration,
		Local: func() (r consensus.Renewal, leads bool) {
			if m := s.master.Load(); m != nil {
				return m.consensus.RenewLocal()
			}
			return r, false
		},
		Fence: func(until time.Duration) {
			if s.engine.HoldFence(until) {
				s.agent.FenceRaised()
			}
		},
		Log: s.log.With("room", "lease"),
	})
	return nil
}

// equip makes what runs pods.
func (s *Server) equip(ctx context.Context) (err error) {
	cluster, _ := s.node.Cluster()
	if cluster.PodCIDR6.IsValid() {
		s.own.showIPv6()
	}
	s.client = newSwitchClient(api.NewHTTP(&url.URL{Scheme: "https", Host: "conclave"}, &masterTransport{server: s}),
		func() bool { ids := s.masters(); return len(ids) > 1 || len(ids) == 1 && ids[0] != s.node.ID() }, s.membersChanged)
	s.net, err = network.New(network.Config{
		NodeName: s.node.Name(), Client: s.client, Dir: s.path("network"), RunDir: s.path("run", "network"),
		Address: s.own.get, AddressChanged: s.own.watch(),
		PodCIDR: cluster.PodCIDR, ServiceCIDR: cluster.ServiceCIDR, ClusterDNS: cluster.DNS, Domain: cluster.Domain,
		PodCIDR6: cluster.PodCIDR6, ServiceCIDR6: cluster.ServiceCIDR6,
		Live: s.liveNodes, DirectRoutes: s.config.DirectRoutes, Encrypt: s.encryption(cluster), PathsChanged: func() { s.agent.PathsChanged() },
		Made: s.engine.IsolatedNetwork, Log: s.log.With("room", "network"),
	})
	if err != nil {
		return err
	}
	kubelet, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", kubeletPort))
	if err != nil {
		return fmt.Errorf("the kubelet API's port: %w", err)
	}
	sealer, err := s.node.Sealer()
	if err != nil {
		return err
	}
	s.agent, err = agent.New(agent.Config{
		NodeName: s.node.Name(), NodeID: s.node.ID(), Client: s.client, Runtime: engineRuntime{s.engine}, Network: s.net,
		Dir: s.config.DataDir, RunDir: s.path("run"), Addresses: s.own.both, AddressesChanged: s.own.watch(),
		SeccompDefault: s.config.SeccompDefault, UnsafeSysctls: s.config.UnsafeSysctls,
		Labels: s.config.Labels, Annotations: s.nodeAnnotations(), Zone: s.config.Labels[corev1.LabelTopologyZone],
		Listener: kubelet, TLS: s.certs.ServerToAll("h2", "http/1.1"), Authorize: s.authorizeKubelet,
		Paths: s.pathsFailing, DirectRoutes: s.config.DirectRoutes,
		ClusterDNS: cluster.DNS, ClusterDomain: cluster.Domain,
		APIServer: netip.AddrPortFrom(cluster.ServiceCIDR.Masked().Addr().Next(), 443),
		Seal:      func(plain []byte) ([]byte, error) { return sealer.Seal(plain, podContext) },
		Unseal:    func(sealed []byte) ([]byte, error) { return sealer.Open(sealed, podContext) },
		ImageGC:   s.config.ImageGC, DockerConfigs: s.dockerConfigs(),
		CredentialProviderConfig: s.config.CredentialProviders, CredentialProviderBinDir: s.config.CredentialProviderBin,
		Faults:     fault(s.config.DataDir),
		StaticDir:  cmp.Or(s.config.StaticPods, s.path("manifests")),
		CgroupRoot: filepath.Join(s.config.CgroupParent, "kubepods"), MaxPods: s.config.MaxPods, Reserved: s.config.Reserved,
		EvictionHard: s.config.EvictionHard, EvictionSoft: s.config.EvictionSoft, EvictionTransition: s.config.EvictionTransition, PodPIDs: s.config.PodPIDs,
		KernelLog: "/dev/kmsg",
		Version:   serverVersion().GitVersion, Log: s.log.With("room", "agent"),
	})
	return err
}

// run is everything that goes on at the same time. The first failure ends the rest.
// When ctx ends, this node first hands leadership over, while all still runs that
// this needs: the others notice nothing.
func (s *Server) run(ctx context.Context, authority *identity.Authority, founded bool) error {
	asked := ctx
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	admin, err := s.listenAdmin()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	s.agentCtx, s.stopAgent = context.WithCancel(ctx)
	defer s.stopAgent()
	for room, work := range map[string]func(context.Context) error{
		"address":      func(ctx context.Context) error { return s.own.run(ctx, s.log) },
		"certificates": s.certs.Run,
		"gossip":       s.pool.Run,
		"wire":         s.port.Run,
		"node calls":   func(ctx context.Context) error { return wire.ServeNode(ctx, s.port.Node(), s.nodeHandler(), s.log) },
		"API":          func(ctx context.Context) error { return serveHTTP(ctx, s.port.API(), s.apiHandler()) },
		"admin":        func(ctx context.Context) error { return serveHTTP(ctx, admin, s.adminHandler(stop)) },
		"lease":        s.lease.Run,
		"runtime":      s.engine.Run,
		"network":      s.net.Run,
		"agent":        s.runAgent,
		"masters":      func(ctx context.Context) error { return s.runMasters(ctx, authority, founded) },
		"incarnations": s.followIncarnations,
		"membership":   s.followMembers,
		"discovery":    s.announce,
		"disk":         s.measureDisk,
		"images":       s.announceImages,
	} {
		g.Go(func() error {
			err := work(ctx)
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", room, err)
			}
			return nil
		})
	}
	g.Go(func() error { return s.tellReady(ctx, founded || s.config.Restore != nil) })
	g.Go(func() error {
		select {
		case <-asked.Done():
			s.endPods()
			s.resign()
			stop()
		case <-ctx.Done():
		}
		return nil
	})
	err = g.Wait()
	s.dialer.Close()
	return err
}

// resign gives leadership away, if this node leads and there is somebody to take
// it.
func (s *Server) resign() {
	m := s.master.Load()
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	began := time.Now()
	led, err := m.consensus.Resign(ctx)
	switch {
	case err != nil:
		s.log.Warn("this node leads and stops without a successor", "error", err)
	case led:
		s.log.Info("handed leadership over", "took", time.Since(began))
	}
}

// runAgent runs the agent until ctx ends, or until leave stops it first.
func (s *Server) runAgent(ctx context.Context) error {
	if err := s.agent.Run(s.agentCtx); err != nil && s.agentCtx.Err() == nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// measureDisk tells the others, once, how fast this node's disk is.
func (s *Server) measureDisk(ctx context.Context) error {
	latency, err := consensus.DiskLatency(s.config.DataDir)
	if err != nil {
		s.log.Warn("the disk's latency is unknown: it does not count when masters are chosen", "error", err)
	} else {
		s.pool.SetMeta(func(m *gossip.Meta) { m.DiskLatency = latency })
	}
	<-ctx.Done()
	return nil
}

// followMembers turns gossip's hints into what the rooms wait for.
func (s *Server) followMembers(ctx context.Context) error {
	hints, cancel := s.pool.Subscribe()
	defer cancel()
	moved := s.own.watch()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
			s.pool.SetAdvertise(s.own.get())
			s.pool.SetMeta(func(m *gossip.Meta) { m.Addresses = s.own.list() })
			s.certs.Kick()
		case <-hints:
			for _, m := range s.pool.Members() {
				if m.State == gossip.Dead {
					s.dialer.Reset(m.ID) // kept connections would be tried until they time out
					for _, a := range s.resolve(m.ID) {
						s.port.Forsake(a)
					}
				}
			}
		}
		s.fireMembers()
	}
}

func (s *Server) fireMembers() { close(s.cluster.Swap(&hintChange{make(chan struct{})}).c) }

// liveNodes are the names of the members that are not known to be gone, this
// node's among them.
func (s *Server) liveNodes() ([]string, <-chan struct{}) {
	changed := s.membersChanged()
	names := []string{s.node.Name()}
	for _, m := range s.pool.Members() {
		if m.State == gossip.Alive || m.State == gossip.Suspect {
			names = append(names, m.Name)
		}
	}
	return names, changed
}

func (s *Server) membersChanged() <-chan struct{} { return s.cluster.Load().c }

// announce answers those who look for this cluster on the LAN.
func (s *Server) announce(ctx context.Context) error {
	cluster, _ := s.node.Cluster()
	caHash := cluster.CAHash()
	err := gossip.Announce(ctx, gossip.Beacon{
		ID: s.node.ID(), CAHash: caHash[:], Port: apiPort, IPv6: cluster.PodCIDR.Addr().Is6(), Log: s.log.With("room", "discovery"),
	})
	if err != nil && ctx.Err() == nil {
		s.log.Warn("this node cannot be found by multicast: joining needs its address", "error", err)
		<-ctx.Done()
	}
	return nil
}

// resolve is where the peer with this id answers now.
func (s *Server) resolve(id string) []netip.AddrPort {
	if id == s.node.ID() {
		return []netip.AddrPort{netip.AddrPortFrom(s.own.get(), apiPort)}
	}
	m, ok := s.pool.Member(id)
	if !ok { // nobody has answered yet: it may be where it was
		if last, known := s.pool.Remembered()[id]; known {
			return []netip.AddrPort{netip.AddrPortFrom(last.Addr(), apiPort)}
		}
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(m.Addr, m.APIPort)}
}

// masters are the ids of the nodes that may know the leader, this one first.
// Those of an older incarnation of the cluster know nothing that counts.
func (s *Server) masters() []string {
	var ids []string
	life := s.node.Incarnation()
	for _, m := range s.pool.Members() {
		if m.Incarnation != life.Number || m.IncarnationID != life.ID {
			continue
		}
		if m.Role == gossip.RoleMaster && m.State == gossip.Alive && m.ID != s.node.ID() {
			ids = append(ids, m.ID)
		}
	}
	if s.master.Load() != nil {
		ids = append([]string{s.node.ID()}, ids...)
	}
	return ids
}

// mastersOrReplicas are the masters, or, where there is none that can answer for
// the cluster, the nodes that have its state and can say so.
func (s *Server) mastersOrReplicas() []string {
	ids := s.masters()
	if len(ids) > 0 {
		return ids
	}
	for _, m := range s.pool.Members() {
		if m.Replica && m.State == gossip.Alive && m.ID != s.node.ID() {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func (s *Server) masterAddresses() []string {
	var all []string
	for _, id := range s.masters() {
		for _, a := range s.resolve(id) {
			all = append(all, a.String())
		}
	}
	return all
}

// splice connects an API client to a master, where this node is none.
func (s *Server) splice(ctx context.Context) (net.Conn, error) {
	if m := s.master.Load(); m != nil && m.ready.Load() {
		return nil, wire.ErrLocal
	}
	var masters []netip.AddrPort
	for _, id := range s.mastersOrReplicas() {
		if id != s.node.ID() {
			masters = append(masters, s.resolve(id)...)
		}
	}
	conn, err := wire.DialFirst(ctx, masters)
	switch {
	case err == nil:
		return conn, nil
	case s.master.Load() != nil:
		return nil, wire.ErrLocal
	}
	return nil, fmt.Errorf("reach a master: %w", err)
}

func (s *Server) apiTLS() *tls.Config {
	m := s.master.Load()
	if m == nil {
		return s.certs.Server("http/1.1")
	}
	return m.tls
}

// apiHandler answers as the API server that runs now. A connection to one that
// has ended since leads nowhere.
func (s *Server) apiHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := s.master.Load()
		switch {
		case m == nil:
		case r.URL.Path == statePath:
			if err := m.authority.VerifyNode(r.TLS); err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			s.serveState(w, r)
			return
		default:
			m.api.ServeHTTP(w, r)
			return
		}
		wire.Refuse(w, "this node is no master any more: connect again")
	})
}

// authorizeKubelet lets the API servers in, and nobody else.
func (s *Server) authorizeKubelet(r *http.Request) error {
	if r.TLS != nil {
		if id, ok := identity.PeerID(r.TLS); ok && identity.PeerEligible(r.TLS) {
			if m, known := s.pool.Member(id); id == s.node.ID() || known && m.Role == gossip.RoleMaster {
				return nil
			}
		}
	}
	return errors.New("only the cluster's masters may use the kubelet API")
}

// tellIncarnation has gossip tell the others.
func (s *Server) tellIncarnation(i identity.Incarnation) {
	s.pool.SetMeta(func(m *gossip.Meta) { m.Incarnation, m.IncarnationID = i.Number, i.ID })
}

// heardIncarnations is what the other live nodes tell by gossip. Of what it
// says, nothing is believed before it is signed.
func (s *Server) heardIncarnations() map[string]identity.Incarnation {
	heard := map[string]identity.Incarnation{}
	for _, m := range s.pool.Members() {
		if m.State == gossip.Alive && m.ID != s.node.ID() {
			heard[m.ID] = identity.Incarnation{Number: m.Incarnation, ID: m.IncarnationID}
		}
	}
	return heard
}

// --- masters ---------------------------------------------------------------

// master is what a node runs besides, while it is one.
type master struct {
	authority *identity.Authority
	consensus *consensus.Node
	api       *api.Server
	judge     *liveness.Judge
	tls       *tls.Config
	life      identity.Incarnation
	ready     atomic.Bool   // has caught up with the cluster once
	ended     chan struct{} // closed when all of it has ended, and its log is where it belongs
	finish    func(ending)  // stops it; the first reason counts
	snapshots atomic.Pointer[snapshot.Runner]

	extensions map[string]string // what API servers behind this one read
}

// ending is why a master ended.
type ending uint32

const (
	stopped    ending = iota // with the node
	retired                  // the leader took it out of the configuration
	superseded               // the cluster was recovered without it
	reborn                   // to begin a new incarnation with its log
	damaged                  // its log is not what was written
)

// promotion makes this node a master.
type promotion struct {
	bundle []byte     // of the authority
	result chan error // buffered
}

// runMasters runs a master whenever this node is one.
func (s *Server) runMasters(ctx context.Context, authority *identity.Authority, founded bool) error {
	if authority != nil && !founded {
		has, err := consensus.HasState(s.path("raft"))
		if errors.Is(err, consensus.ErrDamaged) {
			if err = s.beginAnew(err); err == nil {
				err = consensus.SetDamagedAside(s.path("raft"))
			}
		}
		if err != nil {
			return err
		}
		if !has {
			authority = nil // promoted, but stopped before it was added: the leader tries again
		}
	}
	for {
		if authority == nil {
			s.pool.SetMeta(func(meta *gossip.Meta) { meta.Bare = true })
		}
		for authority == nil {
			select {
			case <-ctx.Done():
				return nil
			case p := <-s.promote:
				var err error
				s.pool.SetMeta(func(meta *gossip.Meta) { meta.Bare = false })
				authority, err = identity.SaveBundle(s.path("master"), p.bundle)
				p.result <- err
			}
		}
		m, end, err := s.runMaster(ctx, authority, founded)
		if err == nil && ctx.Err() == nil {
			switch end {
			case reborn:
				err = s.beginIncarnation(authority)
			case superseded:
				s.log.Warn("the cluster was recovered without this master: its log is set aside, and it will follow the others", "log", consensus.Superseded(s.path("raft")))
				err = errors.Join(consensus.SetAside(s.path("raft")), os.RemoveAll(s.path("master")))
				authority = nil
			case damaged:
				err = consensus.SetDamagedAside(s.path("raft"))
				authority = nil
			case retired:
				s.log.Info("this node is no longer a master")
				err = errors.Join(os.RemoveAll(s.path("raft")), os.RemoveAll(s.path("master")))
				authority = nil
			default:
				authority = nil
			}
			if err != nil {
				err = fmt.Errorf("end a master: %w", err)
			}
		}
		if m != nil {
			close(m.ended)
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
		founded = false
	}
}

// runMaster runs a master until ctx ends or it is finished.
func (s *Server) runMaster(ctx context.Context, authority *identity.Authority, bootstrap bool) (m *master, end ending, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority.Cluster().CA) {
		return nil, stopped, errors.New("the cluster's CA cannot be read: restore data folder's master/ from another master")
	}
	var reason atomic.Uint32
	m = &master{authority: authority, life: s.node.Incarnation(), ended: make(chan struct{})}
	m.finish = func(why ending) { reason.CompareAndSwap(uint32(stopped), uint32(why)); stop() }
	m.consensus, err = consensus.New(consensus.Config{
		ID: s.node.ID(), Name: s.node.Name(), Dir: s.path("raft"),
		Stream: s.dialer.StreamLayer(s.port.Raft(), s.node.ID()), Addresses: idAddresses{},
		Codec: sealedCodec{authority.Sealer()}, Caller: s.dialer, PeerID: peerOf,
		Members: s.consensusMembers, MembersChanged: s.membersChanged,
		Prepare:     func(ctx context.Context, id string) error { return s.prepareMaster(ctx, id, authority) },
		Incarnation: logIncarnation(m.life), Outdated: s.inDoubt,
		Confirm:       func(ctx context.Context) error { return s.confirmIncarnation(ctx, m.life) },
		Retired:       func() { m.finish(retired) },
		LeaseDuration: leaseDuration, Log: s.log.With("room", "consensus"),
	})
	switch {
	case errors.Is(err, consensus.ErrSuperseded):
		return m, superseded, nil
	case errors.Is(err, consensus.ErrDamaged):
		return m, damaged, s.beginAnew(err)
	case err != nil:
		return m, stopped, err
	}
	if bootstrap {
		if err := m.consensus.Bootstrap(); err != nil {
			return m, stopped, err
		}
	}
	frontProxy, err := authority.FrontProxy()
	if err != nil {
		return m, stopped, err
	}
	m.extensions = api.RequestHeaders(authority.Cluster().CA, frontProxy.CAPEM(), identity.FrontProxyName)
	m.api, err = api.New(api.Config{
		Storage: storage{m.consensus}, Kinds: custom.Kinds(),
		ClientCAs:            func() *x509.CertPool { return roots },
		ServiceAccountSigner: authority.ServiceAccountSigner,
		ServiceCIDR:          authority.Cluster().ServiceCIDR,
		ServiceCIDR6:         authority.Cluster().ServiceCIDR6,
		Nodes:                kubelets{s}, Leases: m.leases, FrontProxy: frontProxy.Client,
		Ready:                 func() error { return m.readiness() },
		Metrics:               s.metrics,
		Stale:                 func(ctx context.Context) (string, error) { return m.staleness(ctx, s.node.Name()) },
		UnreachableToleration: s.config.UnreachableToleration,
		Version:               serverVersion(), Log: s.log.With("room", "api"),
	})
	if err != nil {
		return m, stopped, err
	}
	m.tls = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.RequestClientCert,
		GetCertificate: authority.Serving([]string{"conclave://node/" + s.node.ID()}, s.memberAddresses),
	}
	m.judge = liveness.New(liveness.Config{
		Members: s.livenessMembers, Subscribe: s.pool.Subscribe, Lease: m.consensus.Lease,
	})
	local := m.api.Local(api.User{Name: "system:node:" + s.node.Name(), Groups: []string{"system:nodes", "system:authenticated"}})
	s.master.Store(m)
	defer s.master.Store(nil)
	s.fireMembers()
	if s.node.Incarnation().Compare(m.life) > 0 {
		m.finish(superseded) // it was adopted while this master was made
	}
	s.pool.SetMeta(func(meta *gossip.Meta) { meta.Replica = true })
	defer s.pool.SetMeta(func(meta *gossip.Meta) { meta.Replica = false })
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.consensus.Run(ctx) })
	g.Go(func() error { return m.api.Run(ctx) })
	g.Go(func() error { return m.consensus.Lead(ctx, func(ctx context.Context) error { return s.lead(ctx, m) }) })
	g.Go(func() error {
		// A replica that has just started may hold an old state: nobody here
		// reads it before it has caught up once.
		for m.consensus.Sync(ctx) != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
		m.ready.Store(true)
		s.damage.Store(nil)
		s.client.use(local)
		s.pool.SetMeta(func(meta *gossip.Meta) { meta.Role = gossip.RoleMaster })
		<-ctx.Done()
		s.client.use(nil)
		s.pool.SetMeta(func(meta *gossip.Meta) { meta.Role = gossip.RoleNode })
		return nil
	})
	err = g.Wait()
	if errors.Is(err, consensus.ErrDamaged) {
		return m, damaged, s.beginAnew(err)
	}
	if end = ending(reason.Load()); end != stopped || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return m, end, err
}

// beginAnew is told why this master cannot go on with its log. The others have the
// whole log, take its vote, and give it another. Where there is nobody else, what
// can be read is all that there is, and somebody has to decide.
func (s *Server) beginAnew(why error) error {
	if s.pool.Alone() {
		return fmt.Errorf("%w: no other node has the cluster's state; restore it from a snapshot into another --data-dir (`conclave snapshot restore`)", why)
	}
	message := fmt.Sprintf("%v: it is set aside in %s, and this node gets another from the other masters", why, consensus.Damaged(s.path("raft")))
	s.log.Error("this master begins anew", "why", why, "log", consensus.Damaged(s.path("raft")))
	s.damage.Store(&message)
	s.agent.Warn("MasterLogDamaged", message)
	return nil
}

func (m *master) readiness() error {
	switch {
	case m.consensus.Leader() == "":
		return errors.New("no leader is elected")
	case !m.ready.Load():
		return errors.New("this master has not caught up with the others yet")
	}
	return nil
}

// lead is what the leader alone does, until leadership's context ends.
func (s *Server) lead(ctx context.Context, m *master) error {
	system := func(name string) api.Client {
		return m.api.Local(api.User{Name: name, Groups: []string{"system:masters", "system:authenticated"}})
	}
	if err := retry(ctx, s.log, "create what every cluster has", m.api.EnsureDefaults); err != nil {
		return err
	}
	var served []schema.GroupVersionResource
	for _, k := range custom.Kinds() {
		if k.Stored == "" {
			served = append(served, k.GVR())
		}
	}
	cluster := m.authority.Cluster()
	manager, err := controller.New(controller.Config{
		Client: system("system:kube-controller-manager"), Kinds: served, Liveness: judgements{m.judge, m.consensus},
		RootCA: func() []byte { return cluster.CA }, PodCIDR: cluster.PodCIDR, PodCIDR6: cluster.PodCIDR6, CallDriver: s.callDriver,
		SignClient: func(request []byte, usage x509.KeyUsage, life time.Duration) ([]byte, error) {
			return m.authority.SignClientRequest(request, usage, life, time.Now())
		},
		LocalAPIServices: m.api.LocalAPIServices, CheckPolicy: m.api.CheckPolicy, ProbeAPIService: m.api.ProbeAPIService, EmptyBehind: m.api.EmptyBehind,
		MeasurePods:             m.api.MeasurePods,
		ExtensionAuthentication: func() map[string]string { return m.extensions },
		Log:                     s.log.With("room", "controller"),
	})
	if err != nil {
		return err
	}
	placer, err := scheduler.New(scheduler.Config{
		Client: system("system:kube-scheduler"), Log: s.log.With("room", "scheduler"),
		Suspect: func(nodeName string) bool {
			for _, member := range s.pool.Members() {
				if member.Name == nodeName {
					return m.judge.State(nodeName, member.ID) != liveness.Alive
				}
			}
			return false
		},
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.judge.Run(ctx) })
	g.Go(func() error { return manager.Run(ctx) })
	g.Go(func() error { return placer.Run(ctx) })
	g.Go(func() error {
		defer m.snapshots.Store(nil)
		return s.snapshots(m, snapshot.Config{Client: system("system:conclave"), Cluster: cluster.ID, Log: s.log.With("room", "snapshot")}).Run(ctx)
	})
	g.Go(func() error {
		for {
			changed := s.membersChanged()
			// Just after the start not even this node has told that it is a master.
			if masters := s.liveMasters(); len(masters) > 0 {
				if err := retry(ctx, s.log, "publish the masters' addresses", func(ctx context.Context) error {
					return m.api.SetMasters(ctx, masters)
				}); err != nil {
					return nil
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
		}
	})
	return g.Wait()
}

// liveMasters are where the kubernetes Service leads.
func (s *Server) liveMasters() []netip.AddrPort {
	var all []netip.AddrPort
	for _, m := range s.pool.Members() {
		if m.Role == gossip.RoleMaster && m.State == gossip.Alive {
			all = append(all, netip.AddrPortFrom(m.Addr, m.APIPort))
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}

// retry does something until it succeeds or ctx ends.
func retry(ctx context.Context, log *slog.Logger, what string, do func(context.Context) error) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn("cannot "+what+": trying again", "error", err, "in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// --- calls between nodes -----------------------------------------------------

// nodeHandler answers the other nodes, below /conclave/v1/.
func (s *Server) nodeHandler() http.Handler {
	join := identity.JoinServer{
		Authority: func() *identity.Authority {
			if m := s.master.Load(); m != nil {
				return m.authority
			}
			return nil
		},
		Admit: s.admit, Masters: s.masterAddresses, Log: s.log.With("room", "identity"),
		Peers: func() []string {
			var all []string
			for _, m := range s.pool.Members() {
				if m.State == gossip.Alive {
					all = append(all, netip.AddrPortFrom(m.Addr, m.Port).String())
				}
			}
			return all
		},
	}
	mux := http.NewServeMux()
	mux.Handle("POST /conclave/v1/join", identity.JoinHandler(join))
	mux.Handle("POST /conclave/v1/renew", identity.RenewHandler(join))
	mux.HandleFunc("POST /conclave/v1/master", s.becomeMaster)
	mux.HandleFunc("POST /conclave/v1/credentials", s.forMaster(s.serveCredentials))
	mux.HandleFunc("POST /conclave/v1/status", s.forMaster(s.serveStatus))
	mux.HandleFunc("POST /conclave/v1/drain", s.forMaster(s.serveDrain))
	mux.HandleFunc("POST /conclave/v1/leave", s.forMaster(s.serveLeave))
	mux.HandleFunc("POST /conclave/v1/incarnation", forMember(s.serveIncarnation))
	mux.HandleFunc("POST /conclave/v1/paths", forMember(s.servePaths))
	mux.HandleFunc("POST /conclave/v1/report", forMember(s.serveReport))
	mux.HandleFunc("POST /conclave/v1/csi", s.serveDriver)
	mux.HandleFunc("POST /conclave/v1/recover", forMember(s.serveRecover))
	mux.HandleFunc("POST /conclave/v1/images", forMember(s.serveImages))
	mux.HandleFunc("POST /conclave/v1/image", forMember(s.serveImage))
	mux.HandleFunc("GET /conclave/v1/layer", forMember(func(_ string, w http.ResponseWriter, r *http.Request) { s.engine.ServeLayer(w, r) }))
	mux.HandleFunc("/conclave/v1/", s.forMaster(func(m *master, id string, w http.ResponseWriter, r *http.Request) {
		m.consensus.Handler().ServeHTTP(w, r)
	}))
	return mux
}

// forMember answers only members.
func forMember(serve func(id string, w http.ResponseWriter, r *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := peerOf(r)
		if id == "" {
			http.Error(w, "only members of the cluster may call this", http.StatusForbidden)
			return
		}
		serve(id, w, r)
	}
}

// forMaster answers only members, and only where a master runs.
func (s *Server) forMaster(serve func(m *master, id string, w http.ResponseWriter, r *http.Request)) http.HandlerFunc {
	return forMember(func(id string, w http.ResponseWriter, r *http.Request) {
		m := s.master.Load()
		if m == nil {
			http.Error(w, "this node is no master", http.StatusServiceUnavailable)
			return
		}
		serve(m, id, w, r)
	})
}

func peerOf(r *http.Request) string {
	if r.TLS == nil {
		return ""
	}
	id, _ := identity.PeerID(r.TLS)
	return id
}

// admit refuses a name that a live node has, and gives up a dead node's. A node
// that renews must still be among the cluster's Nodes: one that left or was
// deleted must join again.
func (s *Server) admit(ctx context.Context, name, id string, renews bool) error {
	for _, m := range s.pool.Members() {
		if m.Name == name && m.ID != id && (m.State == gossip.Alive || m.State == gossip.Suspect) {
			return identity.ErrNameTaken
		}
	}
	m := s.master.Load()
	if !renews || m == nil {
		return nil
	}
	// This replica's own word is enough to let a node stay: where all
	// certificates have ended, there is no quorum to ask before some are renewed.
	client := m.api.Local(api.User{Name: "system:conclave", Groups: []string{"system:masters", "system:authenticated"}})
	for _, options := range []metav1.GetOptions{{ResourceVersion: "0"}, {}} {
		node, err := client.Get(ctx, nodesResource, "", name, options)
		switch {
		case err == nil && node.GetAnnotations()["conclave.io/node-id"] == id:
			return nil
		case err != nil && !apierrors.IsNotFound(err):
			return fmt.Errorf("look for node %s: %w", name, err)
		}
	}
	return identity.ErrRefused
}

// becomeMaster takes the masters' keys from the leader and starts a master.
func (s *Server) becomeMaster(w http.ResponseWriter, r *http.Request) {
	if peerOf(r) == "" || !identity.PeerEligible(r.TLS) {
		http.Error(w, "only a master may make another", http.StatusForbidden)
		return
	}
	if s.node.NoMaster() {
		http.Error(w, "this node was started with --no-master", http.StatusConflict)
		return
	}
	if s.master.Load() != nil {
		return // it runs already: the leader asked twice
	}
	bundle, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p := promotion{bundle: bundle, result: make(chan error, 1)}
	select {
	case s.promote <- p:
		if err := <-p.result; err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	case <-r.Context().Done():
		http.Error(w, "this node is busy", http.StatusServiceUnavailable)
	}
}

// serveLeave takes the caller out of the cluster's records.
func (s *Server) serveLeave(m *master, id string, w http.ResponseWriter, r *http.Request) {
	err := m.consensus.Remove(r.Context(), id)
	if err == nil {
		if member, ok := s.pool.Member(id); ok {
			err = m.forgetNode(r.Context(), member.Name)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// --- seams: where one room's types become another's --------------------------

// storage is the replicated store as the API server asks for it.
type storage struct{ *consensus.Node }

var storageErrors = map[error]error{
	consensus.ErrNotFound: api.ErrNotFound, consensus.ErrExists: api.ErrExists, consensus.ErrConflict: api.ErrConflict,
	consensus.ErrExpired: api.ErrExpired, consensus.ErrFuture: api.ErrFuture, consensus.ErrNoLeader: api.ErrNoLeader,
	consensus.ErrUnknownOutcome: api.ErrUnknownOutcome, consensus.ErrTooLarge: api.ErrTooLarge, consensus.ErrDiskFull: api.ErrDiskFull,
}

// seamError is an error of one room that also matches another room's sentinel.
type seamError struct {
	error
	as error
}

func (e seamError) Unwrap() []error { return []error{e.error, e.as} }

// translate makes an error match the sentinel of the room that reads it.
func translate(table map[error]error, err error) error {
	if err == nil {
		return nil
	}
	for from, to := range table {
		if errors.Is(err, from) {
			return seamError{err, to}
		}
	}
	return err
}

func (st storage) Get(resource, namespace, name string) api.Record {
	return st.Store().Get(resource, namespace, name)
}

func (st storage) List(resource, namespace string) ([]api.Record, uint64) {
	return st.Store().List(resource, namespace)
}

func (st storage) ListAt(resource, namespace string, revision uint64) ([]api.Record, error) {
	records, err := st.Store().ListAt(resource, namespace, revision)
	return records, translate(storageErrors, err)
}

func (st storage) Watch(resource, namespace string, after uint64) (api.Watcher, error) {
	w, err := st.Store().Watch(resource, namespace, after)
	if err != nil {
		return nil, translate(storageErrors, err)
	}
	return watcher{w}, nil
}

func (st storage) ListAndWatch(resource, namespace string) ([]api.Record, api.Watcher, error) {
	records, w, err := st.Store().ListAndWatch(resource, namespace)
	if err != nil {
		return nil, nil, translate(storageErrors, err)
	}
	return records, watcher{w}, nil
}

func (st storage) Revision() uint64 { return st.Store().Revision() }

func (st storage) Changed(resources ...string) uint64 { return st.Store().Changed(resources...) }

func (st storage) Sync(ctx context.Context) error {
	return translate(storageErrors, st.Node.Sync(ctx))
}

func (st storage) WaitFor(ctx context.Context, revision uint64) error {
	return translate(storageErrors, st.Store().WaitFor(ctx, revision))
}

func (st storage) Write(ctx context.Context, w api.Write) (api.Record, error) {
	record, err := st.Node.Write(ctx, consensus.Write{
		Verb: consensus.Verb(w.Verb), Resource: w.Resource, Namespace: w.Namespace, Name: w.Name,
		Object: w.Object, Version: w.Version, UID: w.UID,
	})
	return record, translate(storageErrors, err)
}

type watcher struct{ *consensus.Watcher }

func (w watcher) Next(ctx context.Context) ([]api.Event, uint64, error) {
	events, revision, err := w.Watcher.Next(ctx)
	if err != nil {
		return nil, revision, translate(storageErrors, err)
	}
	out := make([]api.Event, len(events))
	for i, e := range events {
		out[i] = api.Event(e)
	}
	return out, revision, nil
}

// sealedCodec is the storage form of objects; those of Secrets are sealed. The
// first byte tells them apart.
type sealedCodec struct{ sealer *identity.Sealer }

const (
	plainObject  = 0
	sealedObject = 1
)

var (
	secretContext = []byte("conclave secret") // in the store
	podContext    = []byte("conclave pod")    // in a node's own copies
)

func (c sealedCodec) Encode(obj consensus.Object) ([]byte, error) {
	raw, err := api.EncodeStored(obj)
	if err != nil {
		return nil, err
	}
	if _, secret := obj.(*corev1.Secret); !secret {
		return append([]byte{plainObject}, raw...), nil
	}
	sealed, err := c.sealer.Seal(raw, secretContext)
	if err != nil {
		return nil, fmt.Errorf("seal secret %s/%s: %w", obj.GetNamespace(), obj.GetName(), err)
	}
	return append([]byte{sealedObject}, sealed...), nil
}

func (c sealedCodec) Decode(raw []byte) (consensus.Object, error) {
	if len(raw) == 0 {
		return nil, errors.New("a stored object is empty")
	}
	form, body := raw[0], raw[1:]
	if form == sealedObject {
		opened, err := c.sealer.Open(body, secretContext)
		if err != nil {
			return nil, fmt.Errorf("open a sealed object: %w", err)
		}
		body = opened
	}
	return api.DecodeStored(body)
}

// dialerTo calls nodes from a machine that is in no cluster yet.
func dialerTo(certs wire.Certs, resolve func(id string) []netip.AddrPort, log *slog.Logger) *wire.Dialer {
	return &wire.Dialer{Certs: certs, Resolve: resolve, Log: log.With("room", "wire")}
}

// idAddresses tells raft that its addresses are node ids: wire resolves them.
type idAddresses struct{}

func (idAddresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

func (s *Server) consensusMembers() []consensus.Member {
	members := s.pool.Members()
	all := make([]consensus.Member, 0, len(members))
	for _, m := range members {
		all = append(all, consensus.Member{
			ID: m.ID, Name: m.Name, Zone: m.Zone, NoMaster: m.NoMaster, Bare: m.Bare, Memory: m.Memory, DiskLatency: m.DiskLatency,
			Started: m.Started, Suspect: m.State == gossip.Suspect,
			Alive: m.State == gossip.Alive || m.State == gossip.Suspect,
		})
	}
	return all
}

func (s *Server) livenessMembers() []liveness.Member {
	members := s.pool.Members()
	all := make([]liveness.Member, 0, len(members))
	for _, m := range members {
		all = append(all, liveness.Member{
			ID: m.ID, Name: m.Name, Alive: m.State == gossip.Alive, Address: netip.AddrPortFrom(m.Addr, m.APIPort),
		})
	}
	return all
}

// memberAddresses are all that a client of the API may have dialled.
func (s *Server) memberAddresses() []netip.Addr {
	all := []netip.Addr{s.own.get()}
	for _, m := range s.pool.Members() {
		all = append(all, m.Addr)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

type judgements struct {
	*liveness.Judge
	consensus *consensus.Node
}

func (j judgements) FenceLeft(nodeName, nodeID string) time.Duration {
	return j.consensus.FenceLeft(nodeName, nodeID)
}

func (j judgements) State(nodeName, nodeID string) controller.NodeState {
	return controller.NodeState(j.Judge.State(nodeName, nodeID))
}

func (m *master) leases() []api.NodeLease {
	var all []api.NodeLease
	for _, l := range m.consensus.Leases() {
		all = append(all, api.NodeLease{Name: l.Name, Holder: l.Name, Renewed: l.Renewed, Acquired: l.Renewed, Duration: leaseDuration})
	}
	return all
}

// kubelets reaches the kubelet API of every node by its certificate.
type kubelets struct{ s *Server }

func (k kubelets) Kubelet(ctx context.Context, nodeName string) (*url.URL, http.RoundTripper, error) {
	for _, m := range k.s.pool.Members() {
		if m.Name != nodeName {
			continue
		}
		host := netip.AddrPortFrom(m.Addr, m.KubeletPort).String()
		return &url.URL{Scheme: "https", Host: host}, &http.Transport{
			TLSClientConfig: k.s.certs.Client(m.ID), ForceAttemptHTTP2: false, IdleConnTimeout: 30 * time.Second,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, MaxIdleConnsPerHost: 1,
		}, nil
	}
	return nil, nil, fmt.Errorf("no node %q is known to gossip", nodeName)
}

// masterTransport sends API requests to a master; to another one after a failure.
type masterTransport struct {
	server *Server
	mu     sync.Mutex
	sticky string
}

func (t *masterTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ids := t.server.masters()
	t.mu.Lock()
	if i := slices.Index(ids, t.sticky); i > 0 {
		ids[0], ids[i] = ids[i], ids[0]
	}
	t.mu.Unlock()
	var failed error = errors.New("no master is known")
	for _, id := range ids {
		if id == t.server.node.ID() {
			continue // this node's own store has not caught up: ask another
		}
		if failed != nil && r.Body != nil && r.GetBody != nil {
			body, err := r.GetBody()
			if err != nil {
				return nil, err
			}
			r = r.Clone(r.Context())
			r.Body = body
		}
		response, err := t.server.dialer.HTTP(id).RoundTrip(r)
		if err == nil {
			t.mu.Lock()
			t.sticky = id
			t.mu.Unlock()
			return response, nil
		}
		failed = err
		var dial *net.OpError
		if !errors.As(err, &dial) || dial.Op != "dial" {
			break // it may have been answered: the caller decides whether to ask again
		}
	}
	return nil, failed
}

// engineRuntime is the container engine as the agent asks for it.
type engineRuntime struct{ *runtime.Engine }

var runtimeErrors = map[error]error{
	runtime.ErrImageNotFound: agent.ErrImageNotFound, runtime.ErrUnauthorized: agent.ErrImageNotFound,
	runtime.ErrFenced: agent.ErrFenced, runtime.ErrDiskFull: agent.ErrDiskFull, runtime.ErrRegistryUnavailable: agent.ErrRegistryUnavailable, runtime.ErrInvalidImageName: agent.ErrInvalidImageName,
}

func (e engineRuntime) StartPod(ctx context.Context, c agent.PodConfig) error {
	return e.Engine.StartPod(ctx, runtime.PodConfig(c))
}

func (e engineRuntime) Isolate(ctx context.Context, c agent.PodConfig) error {
	return e.Engine.Isolate(ctx, runtime.PodConfig(c))
}

func (e engineRuntime) RunContainer(ctx context.Context, c agent.ContainerConfig) error {
	return translate(runtimeErrors, e.Engine.RunContainer(ctx, runtime.ContainerConfig(c)))
}

func (e engineRuntime) Containers(podID string) []agent.ContainerStatus {
	all := e.Engine.Containers(podID)
	out := make([]agent.ContainerStatus, len(all))
	for i, c := range all {
		out[i] = agent.ContainerStatus{
			PodID: c.PodID, ID: c.ID, Image: c.Image, State: agent.State(c.State), PID: c.PID,
			StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode, OOMKilled: c.OOMKilled,
			Reason: c.Reason, Message: c.Message, User: (*agent.ContainerUser)(c.User), StopSignal: c.StopSignal,
		}
	}
	return out
}

func (e engineRuntime) Subscribe() (<-chan struct{}, func()) {
	events, cancel := e.Engine.Subscribe()
	hints := make(chan struct{}, 1)
	go func() { // ends when cancel closes events
		for range events {
			select {
			case hints <- struct{}{}:
			default:
			}
		}
	}()
	return hints, cancel
}

func (e engineRuntime) UpdateContainer(ctx context.Context, podID, id string, r *specs.LinuxResources) error {
	return e.Engine.UpdateResources(ctx, podID, id, r)
}

func (e engineRuntime) SetBounds(b agent.Bounds) error {
	return e.Engine.SetBounds(runtime.Bounds(b))
}

func (e engineRuntime) Stats(podID, id string) (agent.Stats, error) {
	u, err := e.Engine.Stats(podID, id)
	return agent.Stats{
		Time: u.Time, CPUNanoseconds: uint64(u.CPU), MemoryUsage: u.Memory, MemoryWorkingSet: u.WorkingSet,
		MemoryRSS: u.RSS, MemoryLimit: u.MemoryLimit, PageFaults: u.PageFaults, MajorFaults: u.MajorFaults, Processes: u.PIDs,
		Periods: u.Periods, Throttled: u.Throttled, ThrottledNanoseconds: uint64(u.ThrottledTime),
	}, err
}

func runtimeCredentials(in []agent.Credential) []runtime.Credential {
	var out []runtime.Credential
	for _, c := range in {
		out = append(out, runtime.Credential(c))
	}
	return out
}

func credentialsOf(c agent.Credentials) func(string) ([]runtime.Credential, error) {
	if c == nil {
		return nil
	}
	return func(repository string) ([]runtime.Credential, error) {
		found, err := c(repository)
		return runtimeCredentials(found), err
	}
}

func (e engineRuntime) Pull(ctx context.Context, ref string, o agent.PullOptions) (agent.Image, error) {
	img, err := e.Engine.Pull(ctx, ref, runtime.PullOptions{Credentials: credentialsOf(o.Credentials), Fresh: o.Fresh})
	return agentImage(img), translate(runtimeErrors, err)
}

func (e engineRuntime) Entitled(ref string, c agent.Credentials) bool {
	return e.Engine.Entitled(ref, credentialsOf(c))
}

func (e engineRuntime) Image(ref string) (agent.Image, bool) {
	img, ok := e.Engine.Image(ref)
	return agentImage(img), ok
}

func (e engineRuntime) Images() []agent.Image {
	var all []agent.Image
	for _, img := range e.Engine.Images() {
		all = append(all, agentImage(img))
	}
	return all
}

func agentImage(i runtime.Image) agent.Image {
	return agent.Image{
		ID: i.ID, Names: i.Names, Digests: i.Digests, Size: i.Size, User: i.User, Pinned: i.Pinned,
		Env: i.Env, Entrypoint: i.Entrypoint, Cmd: i.Cmd, WorkingDir: i.WorkingDir, StopSignal: i.StopSignal,
	}
}

// forgetNode deletes a node that left.
func (m *master) forgetNode(ctx context.Context, name string) error {
	client := m.api.Local(api.User{Name: "system:conclave", Groups: []string{"system:masters", "system:authenticated"}})
	err := client.Delete(ctx, corev1.SchemeGroupVersion.WithResource("nodes"), "", name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// serverVersion is what the API says of itself.
func serverVersion() apiversion.Info {
	v := apiversion.Info{
		Major: "1", Minor: "37", GitVersion: "v1.37.2+conclave-" + version, GoVersion: goruntime.Version(),
		Compiler: goruntime.Compiler, Platform: goruntime.GOOS + "/" + goruntime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.GitCommit = s.Value
		case "vcs.time":
			v.BuildDate = s.Value
		case "vcs.modified":
			v.GitTreeState = map[string]string{"true": "dirty", "false": "clean"}[s.Value]
		}
	}
	return v
}
