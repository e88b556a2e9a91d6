package gossip

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Role is what a node does in the cluster.
type Role string

// The roles.
const (
	RoleMaster Role = "master"
	RoleNode   Role = "node"
)

// Meta is what a node tells of itself.
type Meta struct {
	Name, Zone           string
	Role                 Role
	NoMaster             bool
	Memory               uint64
	CPU                  float64
	Started              time.Time
	APIPort, KubeletPort uint16
	Addresses            []netip.Addr
	DiskLatency          time.Duration
}

// State is how alive a member is.
type State uint8

// The states.
const (
	Alive State = iota
	Suspect
	Dead
	Left
)

// Member is one node as this one sees it.
type Member struct {
	ID   string
	Addr netip.Addr
	Port uint16
	Meta
	State State
	Since time.Time
}

// Config makes a Pool.
type Config struct {
	ID        string
	Meta      Meta
	Bind      netip.AddrPort
	Advertise netip.Addr
	Key       []byte
	Dir       string
	Transport memberlist.Transport
	// Discover, if set, is asked when no remembered peer answers.
	Discover func(ctx context.Context) ([]netip.AddrPort, error)
	Log      *slog.Logger
}

// Pool is this node's view of the cluster.
type Pool struct{}

// New makes a Pool.
func New(c Config) (*Pool, error) { return nil, nil }

// Run gossips until ctx ends.
func (p *Pool) Run(ctx context.Context) error { return nil }

// Join contacts peers; it returns how many answered.
func (p *Pool) Join(ctx context.Context, addrs []string) (int, error) { return 0, nil }

// Members lists everybody, this node too, sorted by id.
func (p *Pool) Members() []Member { return nil }

// Member finds one by id.
func (p *Pool) Member(id string) (Member, bool) { return Member{}, false }

// Local is this node.
func (p *Pool) Local() Member { return Member{} }

// SetMeta changes what this node tells of itself.
func (p *Pool) SetMeta(change func(*Meta)) {}

// SetAdvertise says that this node's address changed.
func (p *Pool) SetAdvertise(a netip.Addr) {}

// Subscribe gives coalesced hints that Members changed.
func (p *Pool) Subscribe() (<-chan struct{}, func()) { return nil, nil }

// Leave tells everybody that this node leaves for good.
func (p *Pool) Leave(ctx context.Context) error { return nil }

// Forget drops a dead member that was removed from the cluster.
func (p *Pool) Forget(id string) {}

// Beacon is what a node announces on its LAN by mDNS.
type Beacon struct {
	ID     string
	CAHash []byte // the first bytes tell clusters apart
	Port   uint16 // of the TLS port
	// Interfaces, if set, says where to announce.
	Interfaces func() ([]net.Interface, error)
	Log        *slog.Logger
}

// Announce answers mDNS queries until ctx ends.
func Announce(ctx context.Context, b Beacon) error { return nil }

// Discover asks the LAN for nodes of the cluster with this CA hash (any
// cluster if empty), on these interfaces or all, and returns the addresses of
// their TLS ports.
func Discover(ctx context.Context, caHash []byte, ifaces ...net.Interface) ([]netip.AddrPort, error) {
	return nil, nil
}
