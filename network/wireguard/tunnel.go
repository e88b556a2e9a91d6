package wireguard

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is what a Tunnel needs to know.
type Config struct {
	Link string // its name
	// Dir is a folder on a tmpfs, for the process's socket.
	Dir string
	// Means are what this host can do, as Probe has found.
	Means Means
	// Start starts a process that outlives this one.
	Start func(*exec.Cmd) error
	// Died is called when the process has died: then Set is due.
	Died func()
}

// Means are who encrypts.
type Means int

const (
	Kernel  Means = iota + 1 // the kernel's WireGuard
	Process                  // a process of ours, over tun
)

func (m Means) String() string {
	switch m {
	case Kernel:
		return "WireGuard in the kernel"
	case Process:
		return "WireGuard in a process of its own, because the kernel has none"
	}
	return "nothing"
}

const (
	socketFile = ".wireguard.sock"
	stderrFile = ".wireguard.log"
	// greeted bounds how long the process may take to greet, and to answer.
	greeted = 10 * time.Second
	// restartPause is how long a process must have lived to be started again
	// without anybody being told.
	restartPause = time.Second
)

// The types of links, as the library calls them.
const (
	kernelType  = "wireguard"
	processType = "tuntap"
)

// IsLink says whether a link is of a type that tunnels are of.
func IsLink(l netlink.Link) bool { return l.Type() == kernelType || l.Type() == processType }

// Tunnel is one link. Set and Remove are for one goroutine.
type Tunnel struct {
	cfg    Config
	source string // of the last Set that succeeded
	failed bool   // the last Set

	mu     sync.Mutex
	watch  *net.UnixConn // ends with the process; nil: none is known to live
	begun  time.Time     // when the process was started here
	closed bool
}

// New makes a Tunnel; nothing happens before Set.
func New(cfg Config) *Tunnel { return &Tunnel{cfg: cfg} }

// Probe says what this host can do. It is called in a network namespace of its
// own, in which it leaves links.
func Probe() (Means, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe-wg"
	kernel := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if kernel == nil {
		k, err := openKernel(attrs.Name)
		if err == nil {
			return Kernel, k.close()
		}
		kernel = err
	}
	attrs.Name = "probe-tun"
	if err := netlink.LinkAdd(tunLink(attrs)); err != nil {
		return 0, fmt.Errorf("this node cannot encrypt: its kernel has no WireGuard (module \"wireguard\": %w), and no tun either (module \"tun\", /dev/net/tun: %w); load one of the two", kernel, err)
	}
	return Process, nil
}

// tunLink is a link that stays when nobody holds its other end.
func tunLink(attrs netlink.LinkAttrs) *netlink.Tuntap {
	return &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
}

// Means are who encrypts here.
func (t *Tunnel) Means() Means { return t.cfg.Means }

// Well says whether whoever encrypts is there, as far as is known.
func (t *Tunnel) Well() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cfg.Means == Kernel || t.watch != nil
}

// Set makes the link and makes it be as d says, changing only what differs.
// Turning it on, its addresses and its routes are the caller's.
func (t *Tunnel) Set(mtu int, d Device) (netlink.Link, error) {
	link, err := t.setLink(mtu)
	if err != nil {
		return nil, err
	}
	said := saying{t.source != d.Source.String(), t.failed}
	t.failed = true
	if t.cfg.Means == Kernel {
		k, err := openKernel(t.cfg.Link)
		if err != nil {
			return nil, err
		}
		defer k.close()
		if err := said.settle(k, d); err != nil {
			return nil, fmt.Errorf("telling the kernel: %w", err)
		}
	} else {
		if err := t.find(); err != nil {
			return nil, err
		}
		if link, err = t.setLink(mtu); err != nil { // one of another version has taken it along
			return nil, err
		}
		conn, err := t.dial()
		if err != nil {
			return nil, fmt.Errorf("asking its process: %w", err)
		}
		defer conn.Close()
		if err := said.settle(newUAPI(conn), d); err != nil {
			return nil, fmt.Errorf("telling its process: %w", err)
		}
	}
	t.source, t.failed = d.Source.String(), false
	return link, nil
}

// saying is what has to be said again though it was said before.
type saying struct{ endpoints, port bool }

// settle brings whoever encrypts from what it has to what it shall have.
func (s saying) settle(c interface {
	get() (Device, error)
	set(change) error
}, want Device) error {
	is, err := c.get()
	if err != nil {
		return err
	}
	if s.port {
		is.Port = 0 // it may only say so, and not have got it
	}
	changes := is.to(want, s.endpoints)
	if changes.empty() {
		return nil
	}
	err = c.set(changes)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another program has UDP port %d: %w", want.Port, err)
	}
	return err
}

// setLink makes the link. One of the other type was made before the kernel
// learned or forgot WireGuard.
func (t *Tunnel) setLink(mtu int) (netlink.Link, error) {
	link, err := netlink.LinkByName(t.cfg.Link)
	if err == nil && link.Type() != t.linkType() {
		if !IsLink(link) {
			return nil, fmt.Errorf("there is another link named %s, of type %s: it is not ours to change", t.cfg.Link, link.Type())
		}
		if err := t.Remove(); err != nil {
			return nil, err
		}
		link, err = netlink.LinkByName(t.cfg.Link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = t.cfg.Link
		var made netlink.Link = tunLink(attrs)
		if t.cfg.Means == Kernel {
			made = &netlink.Wireguard{LinkAttrs: attrs}
		}
		if err := netlink.LinkAdd(made); err != nil {
			return nil, fmt.Errorf("adding the link: %w", err)
		}
		link, err = netlink.LinkByName(t.cfg.Link)
	}
	if err != nil {
		return nil, err
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return nil, fmt.Errorf("setting the MTU to %d: %w", mtu, err)
		}
		link.Attrs().MTU = mtu
	}
	return link, nil
}

func (t *Tunnel) linkType() string {
	if t.cfg.Means == Kernel {
		return kernelType
	}
	return processType
}

// --- the process ---------------------------------------------------------------

// errOther is of a process that speaks something else.
var errOther = errors.New("it is of another version")

// find adopts the process that is there, or starts one.
func (t *Tunnel) find() error {
	if t.Well() {
		return nil
	}
	conn, err := t.dial()
	if err != nil && conn != nil {
		// It does not understand us, nor anybody after us: it ends with its link.
		defer conn.Close()
		if err := t.end(conn); err != nil {
			return err
		}
		if _, err := t.setLink(1280); err != nil { // the caller knows the MTU
			return err
		}
	}
	if err == nil {
		t.follow(conn, nil)
		return nil
	}
	t.mu.Lock()
	alive := time.Since(t.begun)
	t.mu.Unlock()
	if alive < restartPause {
		// Whoever calls tries again, ever more slowly.
		t.mu.Lock()
		t.begun = time.Time{}
		t.mu.Unlock()
		return fmt.Errorf("its process ended at once: %s", t.lastWords())
	}
	cmd, err := t.start()
	if err != nil {
		return fmt.Errorf("starting its process: %w", err)
	}
	conn, err = t.dial()
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		go cmd.Wait()
		return fmt.Errorf("its process does not answer: %w: %s", err, t.lastWords())
	}
	t.follow(conn, cmd)
	return nil
}

// dial calls the process and hears its greeting. Of one that greets otherwise,
// or not in time, it returns the connection with the error; of one that is
// about to be gone, it does not.
func (t *Tunnel) dial() (*net.UnixConn, error) {
	dir, err := os.Open(t.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketPath(dir)})
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(greeted)); err != nil {
		conn.Close()
		return nil, err
	}
	said := make([]byte, len(hello))
	if _, err := io.ReadFull(conn, said); errors.Is(err, os.ErrDeadlineExceeded) {
		return conn, err
	} else if err != nil {
		conn.Close()
		return nil, err
	}
	if string(said) != hello {
		return conn, errOther
	}
	return conn, nil
}

// socketPath is a short path to the socket, good while the folder is open: a
// socket's address has 107 bytes, and a data folder may lie deeper.
func socketPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + socketFile
}

// follow waits for the process to end, which the connection shows.
func (t *Tunnel) follow(conn *net.UnixConn, started *exec.Cmd) {
	_ = conn.SetDeadline(time.Time{}) // a connection that is closed shows it at the next read
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		conn.Close()
		return
	}
	t.watch = conn
	t.mu.Unlock()
	if started != nil {
		go started.Wait()
	}
	go func() {
		_, _ = io.Copy(io.Discard, conn) // it ends with the process, however that ends
		conn.Close()
		t.mu.Lock()
		died := t.watch == conn
		if died {
			t.watch = nil
		}
		t.mu.Unlock()
		if died {
			t.cfg.Died()
		}
	}()
}

// start starts a process, with a socket that is ready for calls.
func (t *Tunnel) start() (*exec.Cmd, error) {
	dir, err := os.Open(t.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.Remove(filepath.Join(t.cfg.Dir, socketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(dir)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(filepath.Join(t.cfg.Dir, socketFile), 0o600); err != nil {
		return nil, err
	}
	listener, err := l.File()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	stderr, err := os.OpenFile(filepath.Join(t.cfg.Dir, stderrFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{processName, t.cfg.Link}, Env: []string{}, Dir: "/",
		Stderr: stderr, ExtraFiles: []*os.File{listener}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := t.cfg.Start(cmd); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.begun = time.Now()
	t.mu.Unlock()
	return cmd, nil
}

// lastWords are the last thing that a process said.
func (t *Tunnel) lastWords() string {
	data, err := os.ReadFile(filepath.Join(t.cfg.Dir, stderrFile))
	if said := strings.TrimSpace(string(data)); err == nil && said != "" {
		return said[max(0, len(said)-500):]
	}
	return "it said nothing"
}

// end removes the link, and with it the process, which has this connection.
func (t *Tunnel) end(conn *net.UnixConn) error {
	link, err := netlink.LinkByName(t.cfg.Link)
	if err == nil && IsLink(link) {
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("removing the link %s: %w", t.cfg.Link, err)
		}
	}
	if conn == nil {
		return nil
	}
	if err := conn.SetDeadline(time.Now().Add(greeted)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the process of the tunnel does not end")
	}
	return nil
}

// Close ends the following of the process, which lives on.
func (t *Tunnel) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.watch != nil {
		t.watch.Close()
		t.watch = nil
	}
}

// Remove removes the link and ends the process. Neither needs to be there.
func (t *Tunnel) Remove() error {
	conn, _ := t.dial() // what it greets with, if it does, is all the same
	if conn != nil {
		defer conn.Close()
	}
	if err := t.end(conn); err != nil {
		return err
	}
	for _, file := range []string{socketFile, stderrFile} {
		if err := os.Remove(filepath.Join(t.cfg.Dir, file)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
