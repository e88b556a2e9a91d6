package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestMain lets the test binary play the other parts too: a host's init, and
// the daemon that the hosts run, which answers one word on port 99.
func TestMain(m *testing.M) {
	switch {
	case IsInit():
		os.Exit(Init())
	case len(os.Args) > 1 && os.Args[1] == "tell-time":
		tellTime()
	case len(os.Args) > 1 && os.Args[1] == "daemon":
		listener, err := net.Listen("tcp", ":99")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("listening as", os.Getenv("CONCLAVE_NAME"))
		for {
			conn, err := listener.Accept()
			if err != nil {
				os.Exit(1)
			}
			fmt.Fprint(conn, os.Getenv("CONCLAVE_NAME"))
			conn.Close()
		}
	case len(os.Args) > 1 && os.Args[1] == "hear": // one packet on port 98
		conn, err := net.ListenPacket("udp", ":98")
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			_, _, err = conn.ReadFrom(make([]byte, 1))
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) > 2 && os.Args[1] == "ask":
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(os.Args[2], "99"), time.Second)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		io.Copy(os.Stdout, conn)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newLab(t *testing.T, hosts int) *Lab {
	t.Helper()
	return newLabOf(t, hosts, Config{})
}

func newLabOf(t *testing.T, hosts int, c Config) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c.Name, c.Dir, c.Binary = fmt.Sprintf("t%d", os.Getpid()%1000000), t.TempDir(), self
	l, err := Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	for range hosts {
		h, err := l.Add()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Start(h.Name, "daemon"); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// ask asks one host's daemon from another, until an answer comes or refusals
// were wanted and one came.
func ask(t *testing.T, l *Lab, from, to string, wantAnswer bool) {
	t.Helper()
	target, err := l.Host(to)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		out.Reset()
		code, err := l.Exec(t.Context(), from, []string{l.Binary, "ask", target.Address.String()}, nil, &out, &out)
		if err != nil {
			t.Fatal(err)
		}
		if !wantAnswer && code != 0 {
			return
		}
		if wantAnswer && code == 0 {
			if out.String() != target.Name {
				t.Fatalf("%s answered %q", target.Name, out.String())
			}
			return
		}
	}
	t.Fatalf("asking %s from %s: want an answer: %v, got %q", to, from, wantAnswer, out.String())
}

func TestHostsTalkAndAreCutOff(t *testing.T) {
	for name, config := range map[string]Config{"IPv4": {}, "IPv6": {IPv6: true}} {
		t.Run(name, func(t *testing.T) { talkAndBeCutOff(t, newLabOf(t, 3, config)) })
	}
}

func talkAndBeCutOff(t *testing.T, l *Lab) {
	ask(t, l, "1", "2", true)
	if err := l.Partition([]string{"1"}); err != nil {
		t.Fatal(err)
	}
	ask(t, l, "1", "2", false)
	ask(t, l, "2", "1", false)
	ask(t, l, "2", "3", true)
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	ask(t, l, "1", "2", true)
	// One that hears nothing of another is still heard by it.
	if err := l.SetNetwork([]Cut{{From: l.Hosts[0].Name, To: l.Hosts[1].Name}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		from, to int
		code     int
	}{{0, 1, 1}, {1, 0, 0}} {
		conn, err := l.Hosts[way.from].Dial(t.Context(), "udp", net.JoinHostPort(l.Hosts[way.to].Address.String(), "98"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var speaking sync.WaitGroup
		speaking.Go(func() {
			for ctx.Err() == nil {
				_, _ = conn.Write([]byte("hello")) // a refusal may come back before the other listens
				time.Sleep(20 * time.Millisecond)
			}
		})
		code, err := l.Exec(t.Context(), l.Hosts[way.to].Name, []string{l.Binary, "hear"}, nil, nil, nil)
		if code != way.code || err != nil {
			t.Errorf("host %d speaks to host %d: exit %d, %v, want %d", way.from+1, way.to+1, code, err, way.code)
		}
		cancel()
		speaking.Wait()
		conn.Close()
	}
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := l.PowerOff("2"); err != nil {
		t.Fatal(err)
	}
	moved := nth(l.Subnet, 77)
	if err := l.Boot("2", moved); err != nil {
		t.Fatal(err)
	}
	if err := l.Start("2", "daemon"); err != nil {
		t.Fatal(err)
	}
	ask(t, l, "1", "2", true)
}

func TestKillAndStart(t *testing.T) {
	l := newLab(t, 2)
	ask(t, l, "1", "2", true)
	if err := l.Kill("2"); err != nil {
		t.Fatal(err)
	}
	if got := l.Status()[1].State; got != "stopped" {
		t.Fatalf("state after kill: %s", got)
	}
	ask(t, l, "1", "2", false)
	if err := l.Start("2", "daemon"); err != nil {
		t.Fatal(err)
	}
	ask(t, l, "1", "2", true)
	if err := l.Start("2", "daemon"); err == nil {
		t.Fatal("a second conclave was started on the same host")
	}
}

func TestPowerOffTakesMountsAndComesBackElsewhere(t *testing.T) {
	l := newLab(t, 2)
	h, _ := l.Host("2")
	data := l.DataDir(h)
	script := fmt.Sprintf("echo kept > %[1]s/kept && mkdir -p %[1]s/run && mount -t tmpfs none %[1]s/run && echo lost > %[1]s/run/lost && hostname", data)
	var out bytes.Buffer
	if code, err := l.Exec(t.Context(), "2", []string{"sh", "-c", script}, nil, &out, &out); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, out.String())
	}
	if strings.TrimSpace(out.String()) != h.Name {
		t.Errorf("host name is %q", out.String())
	}
	if _, err := os.Stat(filepath.Join(data, "run", "lost")); err == nil {
		t.Error("a mount made on the host shows on this machine")
	}
	if err := l.PowerOff("2"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Exec(context.Background(), "2", []string{"true"}, nil, nil, nil); err == nil {
		t.Error("a host that is off runs commands")
	}
	moved := nth(l.Subnet, 77)
	if err := l.Boot("2", moved); err != nil {
		t.Fatal(err)
	}
	if err := l.Start("2", "daemon"); err != nil {
		t.Fatal(err)
	}
	ask(t, l, "1", "2", true)
	if got := l.Status()[1].Address; got != moved {
		t.Errorf("address is %s, want %s", got, moved)
	}
	if _, err := os.Stat(filepath.Join(data, "kept")); err != nil {
		t.Error("the data folder did not survive:", err)
	}
}

// Neighbours remember hardware addresses: a host that goes must not take the
// gateway's along.
func TestGatewayKeepsItsHardwareAddress(t *testing.T) {
	l := newLab(t, 3)
	gateway := func() string {
		t.Helper()
		link, err := netlink.LinkByName(l.bridge())
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().HardwareAddr.String()
	}
	first := gateway()
	for _, h := range []string{"1", "3", "2"} {
		if err := l.PowerOff(h); err != nil {
			t.Fatal(err)
		}
		if now := gateway(); now != first {
			t.Errorf("without host %s the gateway is %s, was %s", h, now, first)
		}
	}
}

func TestDownLeavesNothing(t *testing.T) {
	l := newLab(t, 2)
	var pids []process
	for _, h := range l.Hosts {
		pids = append(pids, h.Init, h.Daemon)
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	for _, p := range pids {
		if p.alive() {
			t.Errorf("process %d is left", p.PID)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name := link.Attrs().Name; name == l.bridge() || strings.HasPrefix(name, "cl"+l.Name) {
			t.Errorf("link %s is left", name)
		}
	}
	if _, err := os.Stat(l.dir); err == nil {
		t.Error("the lab's folder is left")
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil { // Cleanup goes down once more
		t.Fatal(err)
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
}

func TestLabsMadeAtOnceHaveSubnetsOfTheirOwn(t *testing.T) {
	var made [6]*Lab
	var making sync.WaitGroup
	if os.Geteuid() != 0 {
		t.Skip("needs root to make links")
	}
	for i := range made {
		making.Go(func() {
			l, err := Create(Config{Name: fmt.Sprintf("m%d%c", os.Getpid()%1000000, 'a'+i), Dir: t.TempDir(), Binary: "/bin/true"})
			if err != nil {
				t.Error(err)
				return
			}
			made[i] = l
		})
	}
	making.Wait()
	owner := map[netip.Prefix]string{}
	for _, l := range made {
		if l == nil {
			continue
		}
		if other := owner[l.Subnet]; other != "" {
			t.Errorf("%s and %s are both on %s", other, l.Name, l.Subnet)
		}
		owner[l.Subnet] = l.Name
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, name := range []string{"", "UPPER", "much-too-long-a-name", "-x", "a/b"} {
		if _, err := Create(Config{Name: name, Dir: t.TempDir()}); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	if _, err := Open(t.TempDir(), "none"); err != ErrNoLab {
		t.Errorf("opening a lab that is not there: %v", err)
	}
}

func TestNth(t *testing.T) {
	if got := nth(netip.MustParsePrefix("10.88.3.0/24"), 11); got != netip.MustParseAddr("10.88.3.11") {
		t.Error(got)
	}
}
