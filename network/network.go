package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"conclave/api"

	corev1 "k8s.io/api/core/v1"
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
	// PodCIDR and ServiceCIDR are the whole cluster's.
	PodCIDR, ServiceCIDR netip.Prefix
	// ClusterDNS is the service address at which every node answers DNS.
	ClusterDNS netip.Addr
	// Domain is the cluster's, "cluster.local" if empty.
	Domain string
	// Upstreams answer for names outside Domain. Nil takes them from
	// /etc/resolv.conf, without those that are ourselves.
	Upstreams []netip.AddrPort
	Log       *slog.Logger
}

// Network is this node's part in the cluster's network.
type Network struct {
	cfg Config
}

// New checks that this kernel and process can do the work, and says what is
// missing if not.
func New(cfg Config) (*Network, error) {
	return &Network{cfg: cfg}, nil
}

// Run programs links and rules and serves DNS until ctx ends. What pods need
// stays in the kernel afterwards: their traffic flows on while this process
// is away.
func (n *Network) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Attach gives a pod its network namespace, with address, routes and host
// ports, and returns the file that names the namespace. It waits for this
// node's range to be known. It is idempotent by the pod's UID: the same
// answer, also after a restart of this process.
func (n *Network) Attach(ctx context.Context, pod *corev1.Pod) (netns string, ips []netip.Addr, err error) {
	return "", nil, errors.ErrUnsupported
}

// Detach undoes Attach. A pod that is not attached is no error.
func (n *Network) Detach(ctx context.Context, podUID string) error { return errors.ErrUnsupported }

// Ready returns nil once pods can be attached, or what is missing.
func (n *Network) Ready() error { return errors.ErrUnsupported }

// Teardown removes everything that was ever made here: links, namespaces,
// rules, routes, addresses and reservations. Run must have returned.
func (n *Network) Teardown(ctx context.Context) error { return errors.ErrUnsupported }
