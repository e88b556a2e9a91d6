package network

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reservation is what one attached pod has. It is a file, so that a restart of
// this process, and a boot without any master in sight, give the same answers.
type reservation struct {
	UID       types.UID  `json:"uid"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"` // of the cluster's first family
	// Address6 is the second one, of IPv6, in a dual-stack cluster.
	Address6  netip.Addr `json:"address6,omitzero"`
	HostPorts []hostPort `json:"hostPorts,omitempty"`
}

// address is the pod's of one family, invalid if it has none.
func (r reservation) address(f *family) netip.Addr {
	if f.has(r.Address) {
		return r.Address
	}
	if f.has(r.Address6) {
		return r.Address6
	}
	return netip.Addr{}
}

// addresses are the pod's, that of the first family first.
func (r reservation) addresses() []netip.Addr {
	if r.Address6.IsValid() {
		return []netip.Addr{r.Address, r.Address6}
	}
	return []netip.Addr{r.Address}
}

// hostPort is a port of this node that leads to a pod.
type hostPort struct {
	Address  netip.Addr `json:"address"` // invalid: all of this node's
	Protocol protocol   `json:"protocol"`
	Port     uint16     `json:"port"`
	PodPort  uint16     `json:"podPort"`
}

// hostPortsOf returns the host ports that a pod's containers ask for.
func hostPortsOf(pod *corev1.Pod) []hostPort {
	var out []hostPort
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			h := hostPort{Protocol: protocolOf(p.Protocol), Port: uint16(p.HostPort), PodPort: uint16(p.ContainerPort)}
			if a, ok := parseAddr(p.HostIP); ok && !a.IsUnspecified() {
				if a == netip.IPv6Loopback() {
					continue // dispatchRules say why it cannot lead to a pod
				}
				h.Address = a
			}
			if !slices.Contains(out, h) {
				out = append(out, h)
			}
		}
	}
	return out
}

// ranges are those of a node, of pods' addresses: one for each of the cluster's
// families.
type ranges struct {
	first netip.Prefix // invalid as long as it is not known
	// second is of IPv6, beside one of IPv4, in a dual-stack cluster. A pod's
	// address has the place in it that the pod's first address has in first.
	second netip.Prefix
}

// all are those that are there, the first one first.
func (r ranges) all() []netip.Prefix {
	switch {
	case r.second.IsValid():
		return []netip.Prefix{r.first, r.second}
	case r.first.IsValid():
		return []netip.Prefix{r.first}
	}
	return nil
}

func (r ranges) String() string {
	if !r.second.IsValid() {
		return r.first.String()
	}
	return r.first.String() + "," + r.second.String()
}

// secondOf is what a has for a second address, if it is to have one.
func (r ranges) secondOf(a netip.Addr) netip.Addr {
	if !r.second.IsValid() {
		return netip.Addr{}
	}
	base, at := r.first.Masked().Addr().As4(), a.As4()
	return nth(r.second, uint64(binary.BigEndian.Uint32(at[:])-binary.BigEndian.Uint32(base[:])))
}

// places6 is how many addresses of a range of IPv6 are in use at all: each that
// has been used is remembered while it rests.
const places6 = 1 << 12

// nth is the nth address of a range of IPv6.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	return netip.AddrFrom16(b)
}

// ipam hands out the addresses of this node's ranges. It writes only in
// reserve, release and setRange.
type ipam struct {
	dir string // the pods' reservations are in dir/pods, the ranges are in dir/range
	now func() time.Time

	mu       sync.Mutex
	ranges   ranges
	byUID    map[types.UID]reservation
	used     map[netip.Addr]types.UID
	released map[netip.Addr]time.Time // when an address was last given back
	next     netip.Addr               // where the search for a fresh address goes on
}

// openIPAM reads what is reserved. A file that cannot be read is what a power
// cut left of one: its pod asks again.
func openIPAM(dir string, log *slog.Logger) (*ipam, error) {
	p := &ipam{dir: dir, now: time.Now, byUID: map[types.UID]reservation{}, used: map[netip.Addr]types.UID{}, released: map[netip.Addr]time.Time{}}
	if err := os.MkdirAll(p.podDir(), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of pod addresses: %w", err)
	}
	if b, err := os.ReadFile(p.rangeFile()); err == nil {
		first, second, _ := strings.Cut(strings.TrimSpace(string(b)), ",")
		if prefix, err := netip.ParsePrefix(first); err == nil {
			p.ranges.first = prefix.Masked()
		}
		if prefix, err := netip.ParsePrefix(second); err == nil && p.ranges.first.Addr().Is4() && prefix.Addr().Is6() {
			p.ranges.second = prefix.Masked()
		}
	}
	files, err := os.ReadDir(p.podDir())
	if err != nil {
		return nil, fmt.Errorf("reading the reserved pod addresses: %w", err)
	}
	var newest time.Time
	for _, f := range files {
		path := filepath.Join(p.podDir(), f.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading a reserved pod address: %w", err)
		}
		var r reservation
		err = json.Unmarshal(b, &r)
		if _, taken := p.used[r.Address]; err != nil || string(r.UID) != f.Name() || !r.Address.IsValid() || taken {
			log.Warn("dropping a damaged reservation of a pod address", "file", path)
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("removing a damaged reservation: %w", err)
			}
			continue
		}
		p.byUID[r.UID], p.used[r.Address] = r, r.UID
		// Go on after the youngest address, so that a restart does not hand
		// out again what was just given back.
		if info, err := f.Info(); err == nil && info.ModTime().After(newest) {
			newest, p.next = info.ModTime(), r.Address.Next()
		}
	}
	return p, nil
}

func (p *ipam) podDir() string    { return filepath.Join(p.dir, "pods") }
func (p *ipam) rangeFile() string { return filepath.Join(p.dir, "range") }

// setRange makes new ranges known and says whether they differ.
func (p *ipam) setRange(r ranges) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ranges == r {
		return false, nil
	}
	p.ranges, p.next = r, netip.Addr{}
	return true, p.write(p.rangeFile(), []byte(r.String()+"\n"))
}

func (p *ipam) node() ranges {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ranges
}

// gatewayOf is this node's own address in its range, the first.
func gatewayOf(prefix netip.Prefix) netip.Addr { return prefix.Masked().Addr().Next() }

// lastOf is the last address of a range; in IPv4, for broadcasts.
func lastOf(prefix netip.Prefix) netip.Addr {
	b := prefix.Masked().Addr().AsSlice()
	for i := prefix.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// get returns what a pod has.
func (p *ipam) get(uid types.UID) (reservation, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.byUID[uid]
	return r, ok
}

// all returns every reservation, ordered by address.
func (p *ipam) all() []reservation {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]reservation, 0, len(p.byUID))
	for _, r := range p.byUID {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b reservation) int { return a.Address.Compare(b.Address) })
	return out
}

// reserve gives a pod its address: the one that it has, or else the one that
// has been free for longest.
func (p *ipam) reserve(pod *corev1.Pod) (reservation, error) {
	if !validUID(pod.UID) {
		return reservation{}, fmt.Errorf("pod %s/%s has no usable UID: %q", pod.Namespace, pod.Name, pod.UID)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r, had := p.byUID[pod.UID]
	if had && p.ranges.first.Contains(r.Address) && p.ranges.secondOf(r.Address) == r.Address6 {
		return r, nil
	}
	r = reservation{UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name, HostPorts: hostPortsOf(pod)}
	var err error
	if r.Address, err = p.free(); err != nil {
		return reservation{}, err
	}
	r.Address6 = p.ranges.secondOf(r.Address)
	b, err := json.Marshal(r)
	if err != nil {
		return reservation{}, fmt.Errorf("encoding a reservation: %w", err)
	}
	if err := p.write(filepath.Join(p.podDir(), string(pod.UID)), b); err != nil {
		return reservation{}, err
	}
	if old, ok := p.byUID[pod.UID]; ok {
		delete(p.used, old.Address)
	}
	p.byUID[r.UID], p.used[r.Address] = r, r.UID
	delete(p.released, r.Address)
	p.next = r.Address.Next()
	return r, nil
}

// free finds an address. Those that were never used come first, in order; then
// the one released longest ago. So an address rests as long as the range
// allows, and a client that still has it in a cache meets nobody else there.
func (p *ipam) free() (netip.Addr, error) {
	if !p.ranges.first.IsValid() {
		return netip.Addr{}, errors.New("this node has no range of pod addresses yet")
	}
	first, last := gatewayOf(p.ranges.first).Next(), lastOf(p.ranges.first)
	if p.ranges.first.Addr().Is6() {
		last = nth(p.ranges.first, places6)
	}
	start := p.next
	if !p.ranges.first.Contains(start) || start.Compare(first) < 0 || start.Compare(last) >= 0 {
		start = first
	}
	var oldest netip.Addr
	for i, a := 0, start; i == 0 || a != start; i++ {
		_, used := p.used[a]
		at, was := p.released[a]
		switch {
		case used:
		case !was:
			return a, nil
		case !oldest.IsValid() || at.Before(p.released[oldest]):
			oldest = a
		}
		if a = a.Next(); a.Compare(last) >= 0 {
			a = first
		}
	}
	if !oldest.IsValid() {
		return netip.Addr{}, fmt.Errorf("all addresses of %s are taken by %d pods", p.ranges.first, len(p.used))
	}
	return oldest, nil
}

// release takes a pod's address back.
func (p *ipam) release(uid types.UID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.byUID[uid]
	if !ok {
		return nil
	}
	if err := os.Remove(filepath.Join(p.podDir(), string(uid))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("releasing the address of pod %s/%s: %w", r.Namespace, r.Name, err)
	}
	delete(p.byUID, uid)
	delete(p.used, r.Address)
	p.released[r.Address] = p.now()
	return nil
}

// validUID says whether a pod's UID can name a file.
func validUID(uid types.UID) bool {
	return uid != "" && len(uid) <= 128 && !strings.ContainsFunc(string(uid), func(c rune) bool {
		return !(c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	})
}

// write replaces one of its files as a whole. It is not synced: what a power
// cut loses belonged to pods that died with it.
func (p *ipam) write(path string, b []byte) error {
	tmp := filepath.Join(p.dir, ".new-"+filepath.Base(path))
	err := os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("keeping a pod address: %w", errors.Join(err, os.RemoveAll(tmp)))
	}
	return nil
}
