package agent

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"conclave/api"
)

// Config is what an Agent is made of.
type Config struct {
	NodeName string
	NodeID   string // goes into the Node's annotation conclave.io/node-id
	Client   api.Client
	Runtime  Runtime
	Network  Network

	// Dir is the data folder; the agent's part of it is pods/.
	Dir string
	// RunDir is a folder on tmpfs, emptied by a reboot: Dir/run if empty.
	RunDir string
	// Seal and Unseal protect Secrets and tokens in Dir. Nil: they are kept as
	// they are, readable by root alone.
	Seal   func(plain []byte) ([]byte, error)
	Unseal func(sealed []byte) ([]byte, error)

	// Addresses are the node's own, the preferred first. AddressesChanged
	// receives when they changed.
	Addresses        func() []netip.Addr
	AddressesChanged <-chan struct{}

	Labels     map[string]string
	Zone       string
	ProviderID string

	// Listener takes the connections of the kubelet API, TLS secures them and
	// Authorize decides about each request. No Listener: no kubelet API.
	Listener  net.Listener
	TLS       *tls.Config
	Authorize func(*http.Request) error

	ClusterDNS    netip.Addr
	ClusterDomain string
	// APIServer is what pods are told as KUBERNETES_SERVICE_HOST and _PORT.
	APIServer netip.AddrPort

	// CgroupRoot is the cgroup below which the runtime makes those of pods, as
	// a path relative to the cgroup file system's root.
	CgroupRoot string
	Version    string
	MaxPods    int // 110 if 0

	Now func() time.Time
	Log *slog.Logger
}

// Agent runs the pods of one node.
type Agent struct {
	cfg Config
}

// New checks the configuration and prepares the folders.
func New(cfg Config) (*Agent, error) { return &Agent{cfg: cfg}, nil }

// Run runs this node's pods until ctx ends. Pods outlive it.
func (a *Agent) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Ready says why this node cannot run pods now; nil if it can.
func (a *Agent) Ready() error { return a.cfg.Network.Ready() }

// PodsRunning returns the pods that have containers running here.
func (a *Agent) PodsRunning() []*corev1.Pod { return nil }
