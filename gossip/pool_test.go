package gossip

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"conclave/gossip/gossiptest"
)

// bubble is a cluster in a synctest bubble.
type bubble struct {
	t     *testing.T
	net   *gossiptest.Switch
	nodes []*node
}

// node is one pool and its host.
type node struct {
	*Pool
	host *gossiptest.Host
	addr netip.AddrPort
	stop func()
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

func hostAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 7946)
}

// run starts a pool; it stops with the bubble.
func (b *bubble) run(i int, addr netip.AddrPort, change func(*Config)) *node {
	b.t.Helper()
	n := &node{host: b.net.Host(addr), addr: addr}
	cfg := Config{
		ID: fmt.Sprintf("id%02d", i), Bind: addr, Key: testKey, Transport: n.host,
		Log: slog.New(slog.NewTextHandler(testWriter{b.t}, &slog.HandlerOptions{Level: slog.LevelInfo})), Meta: Meta{Name: fmt.Sprintf("node-%d", i), Role: RoleNode, APIPort: 6443, Addresses: []netip.Addr{addr.Addr()}},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Pool, err = New(cfg); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	b.t.Cleanup(n.stop)
	return n
}

// cluster starts n nodes that know each other.
func cluster(t *testing.T, n int) *bubble {
	b := &bubble{t: t, net: gossiptest.New(1)}
	// After the pools stopped, memberlist's goroutines end by their timers.
	t.Cleanup(func() { time.Sleep(time.Minute) })
	for i := range n {
		b.nodes = append(b.nodes, b.run(i, hostAddr(i), nil))
		if i > 0 {
			if got, err := b.nodes[i].Join(t.Context(), []string{hostAddr(0).String()}); err != nil || got != 1 {
				t.Fatalf("node %d joins: %d, %v", i, got, err)
			}
		}
	}
	b.wait("everybody is known", 5*time.Second, func() bool { return b.agree(Alive, n) })
	return b
}

// wait lets virtual time pass until something holds, and returns how much.
func (b *bubble) wait(what string, most time.Duration, holds func() bool) time.Duration {
	b.t.Helper()
	begin := time.Now()
	for !holds() {
		if time.Since(begin) > most {
			for _, n := range b.nodes {
				b.t.Logf("%s sees %v", n.cfg.ID, states(n.Pool))
			}
			b.t.Fatalf("%s: not within %s", what, most)
		}
		time.Sleep(20 * time.Millisecond) // of the bubble's clock
	}
	return time.Since(begin)
}

func states(p *Pool) map[string]State {
	m := map[string]State{}
	for _, member := range p.Members() {
		m[member.ID] = member.State
	}
	return m
}

// agree says whether every node sees this many in a state.
func (b *bubble) agree(s State, count int, except ...int) bool {
	for i, n := range b.nodes {
		skip := false
		for _, e := range except {
			skip = skip || e == i
		}
		if skip {
			continue
		}
		got := 0
		for _, state := range states(n.Pool) {
			if state == s {
				got++
			}
		}
		if got != count {
			return false
		}
	}
	return true
}

func (b *bubble) sees(observer, id int, s State) bool {
	got, ok := states(b.nodes[observer].Pool)[fmt.Sprintf("id%02d", id)]
	return ok && got == s
}

func TestADeadHostIsSuspectedAndDies(t *testing.T) {
	for _, size := range []int{2, 3, 5, 20} {
		t.Run(fmt.Sprint(size, " nodes"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := cluster(t, size)
				b.net.Delay(200*time.Microsecond, 300*time.Microsecond)
				const rounds = 4
				var firstMost, everyMost, firstSum, everySum time.Duration
				for round := range rounds {
					// Time for everybody's confidence in themselves to return,
					// and another phase of the probes.
					time.Sleep(20*time.Second + time.Duration(round)*130*time.Millisecond)
					victim := size - 1
					hints, cancel := b.nodes[0].Subscribe()
					for len(hints) > 0 {
						<-hints
					}
					b.net.Kill(hostAddr(victim).Addr())
					first := b.wait("somebody suspects", 3*time.Second, func() bool {
						for i := range size - 1 {
							if b.sees(i, victim, Suspect) {
								return true
							}
						}
						return false
					})
					every := first + b.wait("everybody knows the death", 6*time.Second, func() bool { return b.agree(Dead, 1, victim) })
					firstMost, everyMost = max(firstMost, first), max(everyMost, every)
					firstSum, everySum = firstSum+first, everySum+every
					if len(hints) == 0 {
						t.Error("no hint")
					}
					cancel()
					b.net.Revive(hostAddr(victim).Addr())
					b.wait("it is back", 15*time.Second, func() bool { return b.agree(Alive, size) })
				}
				t.Logf("suspected after %s, at most %s; dead everywhere after %s, at most %s",
					firstSum/rounds, firstMost, everySum/rounds, everyMost)
				// Whom a node probes next is chance: the means are promised,
				// the worst case is only bounded.
				if firstSum/rounds > 1500*time.Millisecond || everySum/rounds > 3500*time.Millisecond {
					t.Error("too slow on average")
				}
				if firstMost > 3200*time.Millisecond || everyMost > 6*time.Second {
					t.Error("too slow at worst")
				}
			})
		})
	}
}

func TestASuspectThatAnswersIsAliveAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 3)
		b.net.Kill(hostAddr(2).Addr())
		b.wait("it is suspected", 3*time.Second, func() bool { return b.sees(0, 2, Suspect) && b.sees(1, 2, Suspect) })
		b.net.Revive(hostAddr(2).Addr())
		// If the tap missed its answer, acquit finds out: at most 4.6 s after.
		b.wait("it is alive again", 5*time.Second, func() bool { return b.agree(Alive, 3) })
		time.Sleep(time.Minute)
		if !b.agree(Alive, 3) {
			t.Error("it did not stay alive")
		}
	})
}

func TestLossAndOneWayCutsAccuseNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 5)
		b.net.Loss(0.1)
		b.net.Delay(5*time.Millisecond, 40*time.Millisecond)
		// Two that cannot hear each other are vouched for by the others.
		b.net.Cut(hostAddr(0).Addr(), hostAddr(1).Addr())
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if !b.agree(Dead, 0) {
				t.Fatal("somebody was declared dead")
			}
		}
	})
}

func TestPartitionAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 10)
		var left, right []netip.Addr
		for i := range 10 {
			if i < 4 {
				left = append(left, hostAddr(i).Addr())
			} else {
				right = append(right, hostAddr(i).Addr())
			}
		}
		b.net.Partition(left, right)
		b.wait("both sides know", 30*time.Second, func() bool { return b.sees(0, 9, Dead) && b.sees(9, 0, Dead) })
		// Longer than memberlist gossips to the dead or keeps them in mind.
		time.Sleep(2 * time.Minute)
		if !b.agree(Dead, 6, 4, 5, 6, 7, 8, 9) {
			t.Error("the smaller side does not see the larger one dead")
		}
		b.net.Heal()
		took := b.wait("all are back", 30*time.Second, func() bool { return b.agree(Alive, 10) })
		t.Logf("whole again after %s", took)
	})
}

func TestANodeWhoseAddressChangedIsBackByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 4)
		moved := b.nodes[3]
		to := hostAddr(50)
		moved.host.Move(to)
		moved.SetAdvertise(to.Addr())
		took := b.wait("everybody has the new address", 5*time.Second, func() bool {
			for _, n := range b.nodes {
				if m, ok := n.Member("id03"); !ok || m.Addr != to.Addr() || m.State != Alive {
					return false
				}
			}
			return true
		})
		t.Logf("known at its new address after %s", took)
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if !b.agree(Alive, 4) {
				t.Fatal("the old address's death was taken for the node's")
			}
		}
		// And back to the old one, which the others hold for dead.
		moved.host.Move(hostAddr(3))
		moved.SetAdvertise(hostAddr(3).Addr())
		b.wait("everybody has the old address again", 5*time.Second, func() bool {
			m, ok := b.nodes[0].Member("id03")
			return ok && m.Addr == hostAddr(3).Addr() && b.agree(Alive, 4)
		})
		time.Sleep(30 * time.Second)
		if !b.agree(Alive, 4) {
			t.Error("it did not stay alive")
		}
	})
}

// TestWhatWasSaidMeanwhileIsHeard: a node is away for a moment, in which another one
// changes its address; and in which a third one comes, who is asked for by name.
func TestWhatWasSaidMeanwhileIsHeard(t *testing.T) {
	for name, meanwhile := range map[string]func(b *bubble) func() bool{
		"another address": func(b *bubble) func() bool {
			moved, to := b.nodes[3], hostAddr(50)
			moved.host.Move(to)
			moved.SetAdvertise(to.Addr())
			return func() bool {
				m, ok := b.nodes[0].Member("id03")
				return ok && m.State == Alive && m.Addr == to.Addr()
			}
		},
		"another node": func(b *bubble) func() bool {
			come := b.run(7, hostAddr(7), nil)
			if _, err := come.Join(b.t.Context(), []string{hostAddr(1).String()}); err != nil {
				b.t.Fatal(err)
			}
			b.nodes = append(b.nodes, come)
			return func() bool {
				m, ok := b.nodes[0].Member("id07")
				return ok && m.State == Alive
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := cluster(t, 4)
				time.Sleep(time.Second)
				b.net.Partition([]netip.Addr{hostAddr(0).Addr()}, []netip.Addr{hostAddr(1).Addr(), hostAddr(2).Addr(), hostAddr(3).Addr(), hostAddr(50).Addr(), hostAddr(7).Addr()})
				heard := meanwhile(b)
				time.Sleep(1200 * time.Millisecond)
				b.net.Heal()
				t.Logf("heard after %s", b.wait("it is heard", 20*time.Second, heard))
			})
		})
	}
}

func TestAnAddressTakenByAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 3)
		b.nodes[2].stop()
		b.wait("it is dead", 6*time.Second, func() bool { return b.agree(Dead, 1, 2) })
		b.nodes[2] = b.run(7, hostAddr(2), nil)
		if _, err := b.nodes[2].Join(t.Context(), []string{hostAddr(0).String()}); err != nil {
			t.Fatal(err)
		}
		b.wait("the new one is known, the old one still dead", 5*time.Second, func() bool {
			return b.sees(0, 7, Alive) && b.sees(1, 7, Alive) && b.sees(0, 2, Dead)
		})
		b.nodes[0].Forget("id02")
		if _, ok := b.nodes[0].Member("id02"); ok {
			t.Error("a forgotten member is listed")
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 2)
		dir := t.TempDir()
		persistent := func(c *Config) { c.Dir = dir }
		b.nodes = append(b.nodes, b.run(2, hostAddr(2), persistent))
		if _, err := b.nodes[2].Join(t.Context(), []string{hostAddr(1).String()}); err != nil {
			t.Fatal(err)
		}
		b.wait("three", 5*time.Second, func() bool { return b.agree(Alive, 3) })
		time.Sleep(10 * time.Second) // so that it was written
		before, err := os.ReadFile(filepath.Join(dir, peersFile))
		if err != nil || !strings.Contains(string(before), hostAddr(0).String()) {
			t.Fatalf("remembered: %s, %v", before, err)
		}
		info, _ := os.Stat(filepath.Join(dir, peersFile))
		time.Sleep(10 * time.Minute)
		if again, _ := os.Stat(filepath.Join(dir, peersFile)); !os.SameFile(info, again) || again.ModTime() != info.ModTime() {
			t.Error("written at idle")
		}

		// A quick restart, noticed by nobody; then one from another address,
		// after the others saw it die. Nobody is told whom to join.
		b.nodes[2].stop()
		b.nodes[2] = b.run(2, hostAddr(2), func(c *Config) { c.Dir, c.Meta.Zone = dir, "second life" })
		b.wait("its second life is known", 5*time.Second, func() bool {
			m, ok := b.nodes[0].Member("id02")
			return ok && m.Zone == "second life" && b.agree(Alive, 3)
		})
		b.nodes[2].stop()
		b.wait("it is dead", 6*time.Second, func() bool { return b.agree(Dead, 1, 2) })
		b.nodes[2] = b.run(2, hostAddr(60), persistent)
		b.wait("it is back from another address", 5*time.Second, func() bool {
			m, ok := b.nodes[0].Member("id02")
			return ok && m.Addr == hostAddr(60).Addr() && b.agree(Alive, 3)
		})

		// Everything stops, and starts again.
		for _, n := range b.nodes[:2] {
			n.stop()
		}
		b.nodes[0], b.nodes[1] = b.run(0, hostAddr(0), nil), b.run(1, hostAddr(1), nil)
		b.wait("all are back", 15*time.Second, func() bool { return b.agree(Alive, 3) })
	})
}

// A node whose power is cut soon after it joined has nothing but its file.
func TestANewPeerIsRememberedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 2)
		dir := t.TempDir()
		b.nodes = append(b.nodes, b.run(2, hostAddr(2), func(c *Config) { c.Dir = dir }))
		if _, err := b.nodes[2].Join(t.Context(), []string{hostAddr(1).String()}); err != nil {
			t.Fatal(err)
		}
		b.wait("three", 5*time.Second, func() bool { return b.agree(Alive, 3) })
		b.wait("both peers are in the file", time.Second, func() bool {
			data, err := os.ReadFile(filepath.Join(dir, peersFile))
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(string(data), hostAddr(0).String()) && strings.Contains(string(data), hostAddr(1).String())
		})
	})
}

// Nor does a node find back that has lost its file, unless it asks.
func TestTheLANIsAskedByANodeWithoutMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 1)
		asked := 0
		discover := func(found ...netip.AddrPort) func(c *Config) {
			return func(c *Config) {
				c.Discover = func(context.Context) ([]netip.AddrPort, error) { asked++; return found, nil }
			}
		}
		b.nodes = append(b.nodes, b.run(1, hostAddr(1), discover(hostAddr(0))))
		b.wait("found", 10*time.Second, func() bool { return b.agree(Alive, 2) })
		asked = 0
		b.run(9, hostAddr(9), discover()) // the only node there is
		time.Sleep(time.Hour)
		if asked != searchBlind {
			t.Errorf("the LAN was asked %d times in an hour", asked)
		}
	})
}

func TestTheLANIsAskedWhenNobodyIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 1)
		dir := t.TempDir()
		data, _ := json.Marshal(storeFile{Epoch: 1, Peers: map[string]netip.AddrPort{"id00": hostAddr(99)}})
		if err := os.WriteFile(filepath.Join(dir, peersFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		b.nodes = append(b.nodes, b.run(1, hostAddr(1), func(c *Config) {
			c.Dir = dir
			c.Discover = func(context.Context) ([]netip.AddrPort, error) { return []netip.AddrPort{hostAddr(0)}, nil }
		}))
		b.wait("found", 10*time.Second, func() bool { return b.agree(Alive, 2) })
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 3)
		wrong := false
		hints, cancel := b.nodes[0].Subscribe()
		defer cancel()
		go func() {
			for range hints {
				wrong = wrong || b.sees(0, 2, Dead)
				if b.sees(0, 2, Left) {
					return
				}
			}
		}()
		if err := b.nodes[2].Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.nodes[2].stop()
		b.wait("they know", 5*time.Second, func() bool { return b.sees(0, 2, Left) && b.sees(1, 2, Left) })
		synctest.Wait()
		if wrong {
			t.Error("it was taken for dead")
		}
		if n := len(b.nodes[0].missing()); n != 0 {
			t.Errorf("%d peers are looked for", n)
		}
		// The last but one leaves, too.
		if err := b.nodes[1].Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.wait("the last one knows", 5*time.Second, func() bool { return b.sees(0, 1, Left) })
	})
}

func TestSetMetaSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 5)
		hints, cancel := b.nodes[4].Subscribe()
		defer cancel()
		for len(hints) > 0 {
			<-hints
		}
		b.nodes[0].SetMeta(func(m *Meta) { m.Role, m.DiskLatency = RoleMaster, 3*time.Millisecond })
		took := b.wait("everybody knows", 3*time.Second, func() bool {
			for _, n := range b.nodes {
				if m, _ := n.Member("id00"); m.Role != RoleMaster || m.DiskLatency != 3*time.Millisecond {
					return false
				}
			}
			return true
		})
		t.Logf("known everywhere after %s", took)
		if len(hints) == 0 {
			t.Error("no hint")
		}
		b.nodes[0].SetMeta(func(m *Meta) { m.Zone = strings.Repeat("z", 600) })
		if b.nodes[0].Local().Zone != "" {
			t.Error("took what does not fit")
		}
	})
}

func TestAWrongKeyIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := cluster(t, 2)
		other := b.run(9, hostAddr(9), func(c *Config) { c.Key = []byte("ffffffffffffffffffffffffffffffff") })
		if n, err := other.Join(t.Context(), []string{hostAddr(0).String()}); err == nil || n != 0 {
			t.Errorf("joined %d, %v", n, err)
		}
		if n, err := b.nodes[0].Join(t.Context(), []string{hostAddr(9).String()}); err == nil || n != 0 {
			t.Errorf("joined %d the other way, %v", n, err)
		}
		time.Sleep(time.Minute)
		if len(other.Members()) != 1 || len(b.nodes[0].Members()) != 2 {
			t.Error("they know each other")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	s := gossiptest.New(1)
	good := func() Config {
		return Config{ID: "a", Bind: hostAddr(0), Key: testKey, Transport: s.Host(hostAddr(0))}
	}
	for name, change := range map[string]func(*Config){
		"a short key":     func(c *Config) { c.Key = c.Key[:16] },
		"no id":           func(c *Config) { c.ID = "" },
		"an id with @":    func(c *Config) { c.ID = "a@b" },
		"no address":      func(c *Config) { c.Bind = netip.MustParseAddrPort("0.0.0.0:7946") },
		"a zone too long": func(c *Config) { c.Meta.Zone = strings.Repeat("z", 600) },
	} {
		c := good()
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("took %s", name)
		}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
}

// TestRealSockets runs three pools over loopback, without a bubble.
func TestRealSockets(t *testing.T) {
	var pools []*Pool
	for i := range 3 {
		p, err := New(Config{ID: fmt.Sprint("id", i), Bind: netip.MustParseAddrPort("127.0.0.1:0"), Key: testKey,
			Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		pools = append(pools, p)
	}
	for _, p := range pools[1:] {
		m := pools[0].Local()
		if n, err := p.Join(t.Context(), []string{netip.AddrPortFrom(m.Addr, m.Port).String()}); err != nil || n != 1 {
			t.Fatalf("%d, %v", n, err)
		}
	}
	hints, cancel := pools[1].Subscribe()
	defer cancel()
	limit := time.After(10 * time.Second)
	for len(pools[1].Members()) != 3 {
		select {
		case <-hints:
		case <-limit:
			t.Fatalf("only %v", pools[1].Members())
		}
	}
	if os.Getenv("GOSSIP_IDLE") == "" {
		return
	}
	// How much an idle cluster costs; by hand, because it takes a minute.
	var before, after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	<-time.After(time.Minute)
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	t.Logf("three idle pools used %s in a minute", spent)
	if spent > 300*time.Millisecond {
		t.Error("too much")
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func TestMeta(t *testing.T) {
	full := Meta{
		Name: "node-1", Zone: "z", Role: RoleMaster, NoMaster: true, Memory: 8 << 30, CPU: 3.5,
		Started: time.UnixMilli(1234567890123), APIPort: 6443, KubeletPort: 10250, DiskLatency: 1500 * time.Microsecond,
		Addresses:   []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Incarnation: 3, IncarnationID: 1 << 63, Replica: true, Bare: true, Holds: NewFilter([]string{"a", "b"}),
		epoch: 77, leaving: true,
	}
	for _, m := range []Meta{full, {Role: RoleNode}} {
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		for _, later := range [][]byte{b, append(append([]byte{}, b...), "fields of a later version"...)} {
			if got, err := decodeMeta(later); err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("%+v became %+v, %v", m, got, err)
			}
		}
		for i := range b {
			earlier := i == len(b)-len(m.Holds)-1 // versions that told nothing of images
			if _, err := decodeMeta(b[:i]); err == nil != earlier {
				t.Errorf("read %d of %d bytes", i, len(b))
			}
		}
	}
	for range 60 {
		full.Addresses = append(full.Addresses, netip.MustParseAddr("2001:db8::2"))
	}
	full.Name = strings.Repeat("n", 253)
	b, err := full.encode()
	if err != nil || len(b) > metaLimit {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err := decodeMeta(b); err != nil || len(got.Addresses) < 5 || got.Addresses[0] != full.Addresses[0] {
		t.Errorf("of too many addresses these remain: %v, %v", got.Addresses, err)
	}
}

func FuzzDecodeMeta(f *testing.F) {
	m := Meta{Name: "n", Zone: "z", Role: RoleMaster, CPU: 2, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	b, _ := m.encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeMeta(data)
		if err != nil {
			return
		}
		packed := m.pack(m.Addresses)
		again, err := decodeMeta(packed)
		if err != nil || !reflect.DeepEqual(m.Addresses, again.Addresses) || m.Name != again.Name || m.epoch != again.epoch {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzTap(f *testing.F) {
	f.Add([]byte{wireCompound, 1, 0, 2, wireSuspect, 0x80})
	f.Add([]byte{wireCRC, 0, 0, 0, 0, wireDead, 0x81, 0xa4, 'N', 'o', 'd', 'e', 0xa1, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		plain, err := newTap(nil, func(r rumour) {
			if r.kind != wireSuspect && r.kind != wireAlive && r.kind != wireDead {
				t.Fatalf("heard %+v", r)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		plain.packet(data)
	})
}

// TestSeedsAreTriedUntilSomebodyAnswers: also by the next process of a node that
// was told of them once.
func TestSeedsAreTriedUntilSomebodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, net: gossiptest.New(1)}
		t.Cleanup(func() { time.Sleep(time.Minute) })
		dir := t.TempDir()
		newcomer := func(seeds ...string) *node {
			return b.run(1, hostAddr(1), func(c *Config) { c.Dir, c.Seeds = dir, seeds })
		}
		first := newcomer(hostAddr(0).String())
		time.Sleep(time.Minute) // nobody answers
		first.stop()
		b.nodes = append(b.nodes, newcomer())
		time.Sleep(time.Minute)
		b.nodes = append([]*node{b.run(0, hostAddr(0), nil)}, b.nodes...)
		b.wait("the two know each other", 15*time.Second, func() bool { return b.agree(Alive, 2) })
		time.Sleep(10 * time.Second)
		if left := b.nodes[1].store.unmet(); left != nil {
			t.Errorf("%v are still tried", left)
		}
	})
}

// TestNewcomersDoNotStopAtEachOther: two that join while they are cut off from
// the cluster, one by way of the other, find the rest when the cut is healed.
func TestNewcomersDoNotStopAtEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, net: gossiptest.New(1)}
		t.Cleanup(func() { time.Sleep(time.Minute) })
		old := hostAddr(0).String()
		b.nodes = append(b.nodes,
			b.run(1, hostAddr(1), func(c *Config) { c.Seeds = []string{old} }),
			b.run(2, hostAddr(2), func(c *Config) { c.Seeds = []string{old, hostAddr(1).String()} }))
		b.wait("the two know each other", 15*time.Second, func() bool { return b.agree(Alive, 2) })
		time.Sleep(time.Minute) // the old one is out of reach
		b.nodes = append([]*node{b.run(0, hostAddr(0), nil)}, b.nodes...)
		b.wait("all know each other", 2*time.Minute, func() bool { return b.agree(Alive, 3) })
	})
}
