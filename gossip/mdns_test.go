package gossip

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

var testCA = bytes.Repeat([]byte{0xab}, 32)

// inNamespace starts a goroutine on a thread with a network namespace of its
// own, which ends with it, and runs there what is sent.
func inNamespace(t *testing.T) (netns.NsHandle, func(func() error) error) {
	t.Helper()
	type job struct {
		f    func() error
		done chan error
	}
	jobs := make(chan job)
	made := make(chan error)
	var ns netns.NsHandle
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		ns, err = netns.New()
		made <- err
		if err != nil {
			return
		}
		for j := range jobs {
			j.done <- j.f()
		}
	}()
	if err := <-made; err != nil {
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("network namespaces need root: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(jobs)
		ns.Close()
	})
	return ns, func(f func() error) error {
		j := job{f, make(chan error)}
		jobs <- j
		return <-j.done
	}
}

// setAddress gives a link of this thread's namespace an address.
func setAddress(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	parsed, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, parsed), netlink.LinkSetUp(l))
}

func TestTwoHostsFindEachOther(t *testing.T) {
	for name, tc := range map[string]struct {
		six    bool
		own    string
		places []string
	}{
		"IPv4": {false, "192.0.2.2/24", []string{"192.0.2.1/24", "192.0.2.7/24"}},
		// The second is of no network that the other is in, as DHCPv6 gives them.
		"IPv6": {true, "2001:db8::2/64", []string{"2001:db8::1/64", "2001:db8:1::7/128"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			findEachOther(t, tc.six, tc.own, tc.places)
		})
	}
}

func findEachOther(t *testing.T, six bool, own string, places []string) {
	nsA, onA := inNamespace(t)
	nsB, onB := inNamespace(t)
	err := onA(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan-a"}, PeerName: "lan-b"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("lan-b")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(peer, int(nsB))
	})
	if err != nil {
		t.Skipf("no veth links here: %v", err)
	}
	if err := onB(func() error { return setAddress("lan-b", own) }); err != nil {
		t.Fatal(err)
	}

	// A announces before it has an address.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		ended <- onA(func() error {
			close(started)
			return Announce(ctx, Beacon{ID: "0123", CAHash: testCA, Port: 6443, IPv6: six})
		})
	}()
	<-started
	discover := func(hash []byte) (found []netip.AddrPort) {
		t.Helper()
		err := onB(func() (err error) {
			found, err = Discover(t.Context(), hash)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	// Another thread gives A's interface its address, in A's namespace.
	a, err := netlink.NewHandleAt(nsA)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	move := func(from, to string) {
		t.Helper()
		link, err := a.LinkByName("lan-a")
		if err != nil {
			t.Fatal(err)
		}
		if from != "" {
			old, _ := netlink.ParseAddr(from)
			if err := a.AddrDel(link, old); err != nil {
				t.Fatal(err)
			}
		}
		addr, _ := netlink.ParseAddr(to)
		if err := errors.Join(a.AddrAdd(link, addr), a.LinkSetUp(link)); err != nil {
			t.Fatal(err)
		}
	}
	from := ""
	for _, to := range places {
		move(from, to)
		from = to
		want := netip.AddrPortFrom(netip.MustParsePrefix(to).Addr(), 6443)
		begin := time.Now()
		found := discover(testCA)
		for !slices.Equal(found, []netip.AddrPort{want}) && time.Since(begin) < 8*time.Second {
			found = discover(testCA) // the rescan takes its half second
		}
		if !slices.Equal(found, []netip.AddrPort{want}) {
			t.Fatalf("found %v, not %s", found, want)
		}
	}
	begin := time.Now()
	if found := discover(testCA); len(found) != 1 || time.Since(begin) > time.Second {
		t.Errorf("found %v after %s", found, time.Since(begin))
	}
	if found := discover(bytes.Repeat([]byte{1}, 32)); len(found) != 0 {
		t.Errorf("another cluster is found: %v", found)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Announce does not end")
	}
}

func TestReplies(t *testing.T) {
	b := Beacon{ID: "0123", CAHash: testCA, Port: 7443}
	six := netip.MustParseAddr("2001:db8::1")
	if data, err := b.reply(new(dns.Msg).SetQuestion(mdnsService, dns.TypePTR), six, true).Pack(); err != nil {
		t.Error(err)
	} else if a, port, ok := readReply(data, testCA); !ok || a != six || port != 7443 {
		t.Errorf("from %s: %s, %d, %t", six, a, port, ok)
	}
	own := netip.MustParseAddr("192.0.2.1")
	ask := func(name string, kind uint16) *dns.Msg {
		m := new(dns.Msg)
		m.SetQuestion(name, kind)
		return m
	}
	for name, m := range map[string]*dns.Msg{
		"another service": ask("_http._tcp.local.", dns.TypePTR),
		"another type":    ask(mdnsService, dns.TypeA),
		"an answer":       {MsgHdr: dns.MsgHdr{Response: true}, Question: ask(mdnsService, dns.TypePTR).Question},
	} {
		if b.reply(m, own, true) != nil {
			t.Errorf("replied to %s", name)
		}
	}
	question := ask("_Conclave._tcp.local.", dns.TypePTR)
	reply := b.reply(question, own, true)
	if reply == nil || reply.Id != question.Id || !slices.Equal(reply.Question, question.Question) {
		t.Fatalf("reply %v", reply)
	}
	data, err := reply.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		hash []byte
		want bool
	}{
		{"its own", testCA, true}, {"any", nil, true}, {"another", bytes.Repeat([]byte{1}, 32), false}, {"too little of it", testCA[:4], false},
	} {
		if _, port, ok := readReply(data, test.hash); ok != test.want || ok && port != 7443 {
			t.Errorf("%s: port %d, %v", test.name, port, ok)
		}
	}
	if _, _, ok := readReply(data[:len(data)/2], testCA); ok {
		t.Error("read half a reply")
	}
}

func FuzzReadReply(f *testing.F) {
	b := Beacon{ID: "0123", CAHash: testCA, Port: 7443}
	m := new(dns.Msg)
	m.SetQuestion(mdnsService, dns.TypePTR)
	data, err := b.reply(m, netip.MustParseAddr("192.0.2.1"), false).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, port, ok := readReply(data, testCA); ok && port == 0 {
			t.Fatal("found a node without a port")
		}
	})
}
