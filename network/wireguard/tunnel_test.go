package wireguard

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// oldName makes this program a process of a version that nobody understands.
const oldName = "conclave-wireguard-old"

func TestMain(m *testing.M) {
	switch {
	case IsProcess():
		os.Exit(Main())
	case os.Args[0] == oldName:
		os.Exit(mainOfOld())
	}
	os.Exit(m.Run())
}

// mainOfOld holds the link until it is gone, and greets otherwise.
func mainOfOld() int {
	end, err := openTun("wg-test")
	if err != nil {
		return 1
	}
	l, err := net.FileListener(os.NewFile(listenFD, "listener"))
	if err != nil {
		return 1
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, strings.Replace(hello, " 1", " 0", 1))
		}
	}()
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	for {
		if _, err := end.Device.Read(bufs, sizes, 0); err != nil {
			return 0
		}
	}
}

// alone gives the test a network namespace, which it leaves with its thread, or
// skips it.
func alone(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlock: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("network namespaces are for root: ", err)
	}
	if lo, err := netlink.LinkByName("lo"); err != nil || netlink.LinkSetUp(lo) != nil {
		t.Fatal("no loopback")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	if err := netlink.LinkAdd(tunLink(attrs)); err != nil {
		t.Skip("no tun here: ", err)
	}
}

type fixture struct {
	*Tunnel
	died    chan struct{}
	started []*exec.Cmd
}

func newFixture(t *testing.T, dir string) *fixture {
	f := &fixture{died: make(chan struct{}, 10)}
	f.Tunnel = New(Config{Link: "wg-test", Dir: dir, Means: Process, Died: func() { f.died <- struct{}{} }, Start: func(cmd *exec.Cmd) error {
		f.started = append(f.started, cmd)
		return cmd.Start()
	}})
	t.Cleanup(func() {
		f.Close()
		for _, cmd := range f.started { // those of a test that failed
			_ = cmd.Process.Kill()
		}
	})
	return f
}

// set tries again, as callers do: a process that was killed may still hold the
// link for a moment.
func (f *fixture) set(t *testing.T, d Device) (link netlink.Link) {
	t.Helper()
	var err error
	for range 200 {
		if link, err = f.Set(1420, d); err == nil {
			return link
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

func (f *fixture) says(t *testing.T) Device {
	t.Helper()
	conn, err := f.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d, err := newUAPI(conn).get()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestProcessOutlives(t *testing.T) {
	alone(t)
	dir := t.TempDir()
	d := Device{Key: key(0x40), Port: 51820, Source: netip.MustParseAddr("127.0.0.1"), Peers: map[Key]Peer{key(1): peerAt("127.0.0.2:51820", "10.244.1.0/24")}}
	first := newFixture(t, dir)
	link := first.set(t, d)
	if is := first.says(t); !is.to(d, false).empty() {
		t.Fatalf("it says %+v", is)
	}
	if link.Attrs().MTU != 1420 || !first.Well() {
		t.Errorf("the link is %+v", link.Attrs())
	}
	first.Close()

	// The next program adopts it, with what it has.
	second := newFixture(t, dir)
	if second.Well() {
		t.Error("it is known before anybody has looked")
	}
	same := second.set(t, d)
	if len(second.started) != 0 || same.Attrs().Index != link.Attrs().Index {
		t.Error("the process is started, or the link made, once more")
	}
	if err := first.started[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-second.died
	if second.Well() {
		t.Error("a process that was killed is well")
	}
	again := second.set(t, d)
	if again.Attrs().Index != link.Attrs().Index || len(second.started) != 1 {
		t.Error("it is not started again for the same link")
	}
	if is := second.says(t); !is.to(d, false).empty() {
		t.Errorf("it says %+v", is)
	}
	// A peer goes.
	d.Peers = map[Key]Peer{}
	second.set(t, d)
	if is := second.says(t); len(is.Peers) != 0 {
		t.Errorf("it says %+v", is)
	}

	// Who dies at once is not started for ever.
	if err := second.started[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-second.died
	if _, err := second.Set(1420, d); err == nil && time.Since(second.begun) < restartPause {
		second.mu.Lock()
		second.begun = time.Now()
		second.mu.Unlock()
		if err := second.started[len(second.started)-1].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-second.died
		_, err = second.Set(1420, d)
		if err == nil || !strings.Contains(err.Error(), "its process ended at once") {
			t.Errorf("the second death at once: %v", err)
		}
	}
	second.set(t, d)

	if err := second.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("wg-test"); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("the link: %v", err)
	}
	if _, err := second.dial(); err == nil {
		t.Error("the process is still there")
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
	if err := second.Remove(); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	alone(t)
	f := newFixture(t, t.TempDir())
	other, err := net.ListenPacket("udp", ":51820")
	if err != nil {
		t.Fatal(err)
	}
	d := Device{Key: key(0x40), Port: 51820}
	for range 2 {
		if _, err := f.Set(1420, d); err == nil || !strings.Contains(err.Error(), "another program has UDP port 51820") {
			t.Fatalf("the port is taken: %v", err)
		}
	}
	other.Close()
	f.set(t, d)
	if other, err := net.ListenPacket("udp", ":51820"); err == nil {
		other.Close()
		t.Error("it does not have the port")
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
}

// A process of a version that speaks otherwise is replaced.
func TestOtherVersion(t *testing.T) {
	alone(t)
	dir := t.TempDir()
	old := newFixture(t, dir)
	old.cfg.Start = func(cmd *exec.Cmd) error {
		cmd.Args[0] = oldName
		old.started = append(old.started, cmd)
		return cmd.Start()
	}
	if _, err := old.Set(1420, Device{}); err == nil || !strings.Contains(err.Error(), errOther.Error()) {
		t.Fatalf("it greets otherwise: %v", err)
	}
	f := newFixture(t, dir)
	d := Device{Key: key(0x40), Port: 51820}
	if link := f.set(t, d); link.Attrs().MTU != 1420 {
		t.Errorf("the link is %+v", link.Attrs())
	}
	if is := f.says(t); !is.to(d, false).empty() || len(f.started) != 1 {
		t.Errorf("it says %+v", is)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
}

func TestForeignLink(t *testing.T) {
	alone(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wg-test"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, filepath.Join(t.TempDir()))
	if _, err := f.Set(1420, Device{}); err == nil || !strings.Contains(err.Error(), "it is not ours to change") {
		t.Errorf("a bridge of that name: %v", err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("wg-test"); err != nil {
		t.Errorf("it has gone: %v", err)
	}
}
