package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir holds all labs of a machine, each in a folder with its name.
const DefaultDir = "/var/lib/conclave-lab"

// Config describes a lab to make.
type Config struct {
	Name string // at most 9 letters, digits and dashes: it names the bridge
	Dir  string // folder of all labs; DefaultDir if empty
	// Subnet of the hosts: a /24, or a /64 of IPv6, of which the bridge has the
	// first address and host k the one 10 places after its number. The zero value
	// picks one that no link of this machine uses.
	Subnet netip.Prefix
	// IPv6 hosts have no other addresses. It picks the Subnet, if none is given.
	IPv6   bool
	Binary string   // the conclave binary that the hosts run
	Args   []string // further arguments of `conclave up` and `join` on every host
	UpArgs []string // those of `conclave up` alone
	// DiskSize gives every host a disk of its own of so many bytes; zero: their
	// data is on this machine's.
	DiskSize int64
}

// Host is one machine of a lab.
type Host struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	// Init is the host's first process, 0 when the host is off.
	Init process `json:"init"`
	// Daemon is the conclave process as started last.
	Daemon process `json:"daemon"`
	// Skew is by how many seconds its wall clock is wrong.
	Skew int64 `json:"skew,omitempty"`
	// Loss is how many of a hundred packets from other hosts it loses.
	Loss int `json:"loss,omitempty"`
}

// Lab is one made lab. Its methods may be called from one goroutine at a time;
// other processes are kept out by a lock on the state file.
type Lab struct {
	Name   string       `json:"name"`
	Subnet netip.Prefix `json:"subnet"`
	Binary string       `json:"binary"`
	Args   []string     `json:"args,omitempty"`
	UpArgs []string     `json:"upArgs,omitempty"`
	Hosts  []*Host      `json:"hosts"`
	Cuts   []Cut        `json:"cuts,omitempty"`
	// DiskSize is that of each host's own disk, zero if they have none.
	DiskSize int64 `json:"diskSize,omitempty"`

	dir string // the lab's own folder
}

// Cut drops what one host sends to another.
type Cut struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// ErrNoLab says that there is no lab of that name.
var ErrNoLab = errors.New("no such lab: make one with `conclave lab up`")

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,7}[a-z0-9])?$`)

// Create makes the bridge and the folder of a new, empty lab. It refuses a name
// that is taken.
func Create(c Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab hosts are made of namespaces, which needs root: run this as root")
	}
	if !nameRE.MatchString(c.Name) {
		return nil, fmt.Errorf("lab name %q: use 1 to 9 lower-case letters, digits and dashes", c.Name)
	}
	if c.Dir == "" {
		c.Dir = DefaultDir
	}
	l := &Lab{Name: c.Name, Subnet: c.Subnet, Binary: c.Binary, Args: c.Args, UpArgs: c.UpArgs, DiskSize: c.DiskSize, dir: filepath.Join(c.Dir, c.Name)}
	if _, err := os.Stat(l.statePath()); err == nil {
		return nil, fmt.Errorf("lab %q exists already: `conclave lab down --lab %s` removes it", c.Name, c.Name)
	}
	if !l.Subnet.IsValid() {
		// Nobody else may look for a free one until the bridge has this one.
		unlock, err := lockSubnets()
		if err != nil {
			return nil, err
		}
		defer unlock()
		subnet, err := FreeSubnet(c.IPv6)
		if err != nil {
			return nil, err
		}
		l.Subnet = subnet
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab folder: %w", err)
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := makeBridge(l.bridge(), netip.PrefixFrom(l.gateway(), l.Subnet.Bits())); err != nil {
		return nil, errors.Join(err, os.RemoveAll(l.dir))
	}
	return l, nil
}

// Open reads the lab of that name: ErrNoLab.
func Open(dir, name string) (*Lab, error) {
	if dir == "" {
		dir = DefaultDir
	}
	l := &Lab{dir: filepath.Join(dir, name)}
	raw, err := os.ReadFile(l.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoLab
	}
	if err != nil {
		return nil, fmt.Errorf("lab state: %w", err)
	}
	if err := json.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("lab state %s: %w", l.statePath(), err)
	}
	return l, nil
}

func (l *Lab) statePath() string   { return filepath.Join(l.dir, "lab.json") }
func (l *Lab) bridge() string      { return "clab-" + l.Name }
func (l *Lab) gateway() netip.Addr { return nth(l.Subnet, 1) }

// Gateway is this machine's own address on the lab's bridge.
func (l *Lab) Gateway() netip.Addr { return l.gateway() }

// DataDir is the data folder of a host's conclave.
func (l *Lab) DataDir(h *Host) string { return filepath.Join(l.dir, h.Name, "data") }

// LogPath is where a host's conclave writes its log.
func (l *Lab) LogPath(h *Host) string { return filepath.Join(l.dir, h.Name, "conclave.log") }

// CgroupParent is the cgroup below which a host keeps its pods.
func (l *Lab) CgroupParent(h *Host) string { return cgroupRoot + "/" + l.Name + "/" + h.Name }

// save writes the state file, whole or not at all.
func (l *Lab) save() error {
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	tmp := l.statePath() + ".tmp"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("lab state: %w", err)
	}
	return os.Rename(tmp, l.statePath())
}

// update runs change on the newest state of the lab while no other process
// does the same, and saves what it leaves.
func (l *Lab) update(change func() error) error {
	lock, err := os.OpenFile(filepath.Join(l.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("lab lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lab lock: %w", err)
	}
	fresh, err := Open(filepath.Dir(l.dir), filepath.Base(l.dir))
	if err != nil {
		return err
	}
	*l = *fresh
	if err := change(); err != nil {
		return errors.Join(err, l.save())
	}
	return l.save()
}

// Host finds a host by its name, or by its number from 1.
func (l *Lab) Host(name string) (*Host, error) {
	for i, h := range l.Hosts {
		if h.Name == name || fmt.Sprint(i+1) == name {
			return h, nil
		}
	}
	var names []string
	for _, h := range l.Hosts {
		names = append(names, h.Name)
	}
	return nil, fmt.Errorf("lab %q has no host %q; it has %s", l.Name, name, strings.Join(names, ", "))
}

// Add boots a further host and returns it. Nothing runs on it yet.
func (l *Lab) Add() (*Host, error) {
	var h *Host
	err := l.update(func() error {
		k := len(l.Hosts) + 1
		h = &Host{Name: fmt.Sprintf("%s-%d", l.Name, k), Address: nth(l.Subnet, 10+k)}
		if k > 200 {
			return fmt.Errorf("lab %q is full: a lab has at most 200 hosts", l.Name)
		}
		l.Hosts = append(l.Hosts, h)
		return l.boot(h)
	})
	return h, err
}

// Boot switches a host on again, with another address if address is valid.
func (l *Lab) Boot(name string, address netip.Addr) error {
	return l.update(func() error {
		h, err := l.Host(name)
		if err != nil {
			return err
		}
		if h.Init.alive() {
			return fmt.Errorf("host %s is on", h.Name)
		}
		if address.IsValid() {
			if !l.Subnet.Contains(address) {
				return fmt.Errorf("address %s is not in the lab's subnet %s", address, l.Subnet)
			}
			h.Address = address
		}
		return l.boot(h)
	})
}

// boot makes the host's namespaces and link, and applies the cuts that are in force.
func (l *Lab) boot(h *Host) error {
	if err := os.MkdirAll(l.DataDir(h), 0o755); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	if l.DiskSize > 0 {
		if err := l.mountDisk(h); err != nil {
			return fmt.Errorf("host %s: its disk: %w", h.Name, err)
		}
	}
	init, err := startInit(h.Name, filepath.Join(l.dir, h.Name, "init.log"))
	if err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	h.Init, h.Daemon = init, process{}
	if err := plug(l.bridge(), l.port(h), init.PID, l.hardware(h), netip.PrefixFrom(h.Address, l.Subnet.Bits()), l.gateway()); err != nil {
		init.kill()
		h.Init = process{}
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return l.applyAllCuts() // the others know its address from before
}

// port is the name of the host's end on the bridge.
func (l *Lab) port(h *Host) string {
	return fmt.Sprintf("cl%s%d", l.Name, slices.Index(l.Hosts, h)+1)
}

// hardware is the address of the host's network card.
func (l *Lab) hardware(h *Host) net.HardwareAddr {
	return net.HardwareAddr{0x0e, 0xc1, 0, 0, 0, byte(slices.Index(l.Hosts, h) + 1)}
}

// Start runs conclave on a host with these arguments after the data folder and
// the lab's own; its output goes to the host's log.
func (l *Lab) Start(name string, args ...string) error {
	return l.update(func() error {
		h, err := l.Host(name)
		if err != nil {
			return err
		}
		if !h.Init.alive() {
			return fmt.Errorf("host %s is off: boot it first", h.Name)
		}
		if h.Daemon.alive() {
			return fmt.Errorf("conclave runs on host %s already", h.Name)
		}
		log, err := os.OpenFile(l.LogPath(h), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		defer log.Close()
		argv := append([]string{l.Binary}, args...)
		argv = append(argv, l.Args...)
		if len(args) > 0 && args[0] == "up" {
			argv = append(argv, l.UpArgs...)
		}
		h.Daemon, err = h.spawn(argv, l.environment(h), log)
		if err == nil && h.Skew != 0 {
			err = h.applySkew() // before it has read the clock
		}
		return err
	})
}

// environment is what a host's commands get: this process's own, with the
// host's settings.
func (l *Lab) environment(h *Host) []string {
	return append(os.Environ(),
		"CONCLAVE_DATA_DIR="+l.DataDir(h),
		"CONCLAVE_ADDRESS="+h.Address.String(),
		"CONCLAVE_NAME="+h.Name,
		"CONCLAVE_CGROUP_PARENT="+l.CgroupParent(h),
		"PATH="+filepath.Dir(l.Binary)+":"+os.Getenv("PATH"),
		"HOSTNAME="+h.Name,
	)
}

// Kill ends a host's conclave process with SIGKILL; its pods go on.
func (l *Lab) Kill(name string) error { return l.signal(name, unix.SIGKILL) }

// Stop ends a host's conclave process with SIGTERM and waits until it is gone.
func (l *Lab) Stop(name string) error { return l.signal(name, unix.SIGTERM) }

func (l *Lab) signal(name string, sig unix.Signal) error {
	return l.update(func() error {
		h, err := l.Host(name)
		if err != nil {
			return err
		}
		if !h.Daemon.alive() {
			return fmt.Errorf("conclave does not run on host %s", h.Name)
		}
		if err := h.Daemon.signal(sig); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		return h.Daemon.wait(time.Minute)
	})
}

// PowerOff cuts the power of a host: its link, its processes, its mounts and
// what it kept in memory are gone at once.
func (l *Lab) PowerOff(names ...string) error {
	return l.update(func() error {
		var hosts []*Host
		for _, name := range names {
			h, err := l.Host(name)
			if err != nil {
				return err
			}
			if !h.Init.alive() {
				return fmt.Errorf("host %s is off", h.Name)
			}
			hosts = append(hosts, h)
		}
		for _, h := range hosts {
			if err := linkDown(l.port(h)); err != nil {
				return fmt.Errorf("host %s: %w", h.Name, err)
			}
		}
		var failed error
		for _, h := range hosts {
			failed = errors.Join(failed, l.powerOff(h))
		}
		return failed
	})
}

func (l *Lab) powerOff(h *Host) error {
	h.Init.kill()
	err := h.Init.wait(time.Minute)
	h.Init, h.Daemon = process{}, process{}
	return errors.Join(err, removeLink(l.port(h)), removeCgroups(l.CgroupParent(h)))
}

// Exec runs a command on a host and returns its exit code.
func (l *Lab) Exec(ctx context.Context, name string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	h, err := l.Host(name)
	if err != nil {
		return 0, err
	}
	if !h.Init.alive() {
		return 0, fmt.Errorf("host %s is off", h.Name)
	}
	return h.exec(ctx, argv, l.environment(h), stdin, stdout, stderr)
}

// Partition cuts every link between two of these groups, in both directions.
// Hosts that no group names form one more group.
func (l *Lab) Partition(groups ...[]string) error {
	return l.update(func() error {
		group := map[string]int{}
		for i, names := range groups {
			for _, name := range names {
				h, err := l.Host(name)
				if err != nil {
					return err
				}
				if at, twice := group[h.Name]; twice && at != i+1 {
					return fmt.Errorf("host %s is in two groups", h.Name)
				}
				group[h.Name] = i + 1
			}
		}
		l.Cuts = nil
		for _, a := range l.Hosts {
			for _, b := range l.Hosts {
				if group[a.Name] != group[b.Name] {
					l.Cuts = append(l.Cuts, Cut{From: a.Name, To: b.Name})
				}
			}
		}
		return l.applyAllCuts()
	})
}

// Heal removes every cut and every loss.
func (l *Lab) Heal() error { return l.SetNetwork(nil, nil) }

func (l *Lab) applyAllCuts() error {
	var failed error
	for _, h := range l.Hosts {
		if h.Init.alive() {
			failed = errors.Join(failed, l.applyCuts(h))
		}
	}
	return failed
}

// applyCuts makes a host deaf to those that are cut off from it.
func (l *Lab) applyCuts(h *Host) error {
	var deaf []netip.Addr
	for _, c := range l.Cuts {
		if c.To != h.Name {
			continue
		}
		from, err := l.Host(c.From)
		if err != nil {
			return err
		}
		deaf = append(deaf, from.Address)
	}
	var others []netip.Addr
	for _, o := range l.Hosts {
		if o != h {
			others = append(others, o.Address)
		}
	}
	if err := dropFrom(h.Init.PID, l.Subnet.Addr().Is6(), deaf, others, h.Loss); err != nil {
		return fmt.Errorf("host %s: cut: %w", h.Name, err)
	}
	return nil
}

// Status is what `lab ls` shows of a host.
type Status struct {
	Name    string
	Address netip.Addr
	State   string // running, stopped (no conclave) or off
	PID     int    // of conclave, as this machine sees it
}

// Status lists the hosts.
func (l *Lab) Status() []Status {
	var all []Status
	for _, h := range l.Hosts {
		s := Status{Name: h.Name, Address: h.Address, State: "off"}
		switch {
		case h.Daemon.alive():
			s.State, s.PID = "running", h.Daemon.PID
		case h.Init.alive():
			s.State = "stopped"
		}
		all = append(all, s)
	}
	return all
}

// Down powers every host off and removes all that the lab made.
func (l *Lab) Down() error {
	err := l.update(func() error {
		var failed error
		for _, h := range l.Hosts {
			if h.Init.alive() {
				failed = errors.Join(failed, l.powerOff(h))
			} else {
				failed = errors.Join(failed, removeCgroups(l.CgroupParent(h)))
			}
			failed = errors.Join(failed, l.removeDisk(h))
		}
		failed = errors.Join(failed, removeCgroups(cgroupRoot+"/"+l.Name), removeEmptyCgroups(cgroupRoot), removeLink(l.bridge()))
		return failed
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(l.dir)
}

// nth is the n-th address of a prefix.
func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}
