package network

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func openTestIPAM(t *testing.T, dir string) *ipam {
	t.Helper()
	p, err := openIPAM(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func reserveAll(t *testing.T, p *ipam, names ...string) []string {
	t.Helper()
	var out []string
	for _, n := range names {
		r, err := p.reserve(podNamed(n))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.Address.String())
	}
	return out
}

func expectAddresses(t *testing.T, got []string, want string) {
	t.Helper()
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	p := openTestIPAM(t, dir)
	if _, err := p.reserve(podNamed("early")); err == nil {
		t.Error("an address was given before there was a range")
	}
	now := time.Unix(1000, 0)
	p.now = func() time.Time { now = now.Add(time.Second); return now }
	set := func(p *ipam, prefix string, want bool) {
		t.Helper()
		if changed, err := p.setRange(ranges{first: netip.MustParsePrefix(prefix)}); err != nil || changed != want {
			t.Errorf("setRange %s: %v, %v", prefix, changed, err)
		}
	}
	set(p, "10.244.1.0/29", true)
	set(p, "10.244.1.0/29", false)
	// The first address is this node's, the last the broadcast address.
	expectAddresses(t, reserveAll(t, p, "a", "b", "a"), "10.244.1.2 10.244.1.3 10.244.1.2")
	release := func(names ...string) {
		for _, n := range names {
			if err := p.release(types.UID("uid-" + n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	release("a", "never")
	expectAddresses(t, reserveAll(t, p, "c", "d", "e"), "10.244.1.4 10.244.1.5 10.244.1.6")
	release("d", "b")
	// What was given back first is used again first.
	expectAddresses(t, reserveAll(t, p, "f", "g", "h"), "10.244.1.2 10.244.1.5 10.244.1.3")
	if r, err := p.reserve(podNamed("i")); err == nil {
		t.Errorf("a sixth pod got %s", r.Address)
	}
	release("g")

	// All of it survives a restart, and what was just given back waits.
	p = openTestIPAM(t, dir)
	set(p, "10.244.1.0/29", false)
	expectAddresses(t, reserveAll(t, p, "c", "e", "f", "h"), "10.244.1.4 10.244.1.6 10.244.1.2 10.244.1.3")

	// A new range: who comes again gets an address of it.
	set(p, "10.244.7.0/24", true)
	expectAddresses(t, reserveAll(t, p, "c", "c", "x"), "10.244.7.2 10.244.7.2 10.244.7.3")
	if n := len(p.all()); n != 5 {
		t.Errorf("%d reservations, want 5", n)
	}
}

// Of a range of IPv6 so many addresses are in use that each rests for long, and
// so few that remembering it costs little. What tells nodes and pods apart is in
// their hardware addresses.
func TestAddresses6(t *testing.T) {
	dir := t.TempDir()
	p := openTestIPAM(t, dir)
	alone := ranges{first: netip.MustParsePrefix("fd00:77:0:f01::/64")}
	if _, err := p.setRange(alone); err != nil {
		t.Fatal(err)
	}
	first := ""
	for i := range places6 + 10 {
		name := fmt.Sprint("p", i)
		got := reserveAll(t, p, name)[0]
		if i == 0 {
			first = got
		}
		if i > 0 && got == first && i < places6-2 {
			t.Fatalf("the first address is used again after %d others", i-1)
		}
		if err := p.release(types.UID("uid-" + name)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.released); n != places6-2 {
		t.Errorf("%d addresses are remembered", n)
	}
	got := reserveAll(t, p, "stays")
	p = openTestIPAM(t, dir)
	if p.node() != alone || reserveAll(t, p, "stays")[0] != got[0] {
		t.Errorf("after a restart: %v", p.node())
	}
	if r, _ := p.get("uid-stays"); r.address(ip6) != r.Address || r.address(ip4).IsValid() || len(r.addresses()) != 1 {
		t.Errorf("%+v", r)
	}
	macs := map[string]string{}
	for _, text := range []string{"fd00:77:0:f00::/64", "fd00:77:0:f01::/64", "fd00:77:1:f01::/64", "10.244.1.0/24", "10.244.2.0/24"} {
		r := netip.MustParsePrefix(text)
		if other := macs[overlayMAC(r).String()]; other != "" || len(overlayMAC(r)) != 6 {
			t.Errorf("%s has the hardware address of %s", r, other)
		}
		macs[overlayMAC(r).String()] = text
		if other := macs[overlayLocal(r).String()]; other != "" {
			t.Errorf("%s has the link-local address of %s", r, other)
		}
		macs[overlayLocal(r).String()] = text
		if mac := podMAC(gatewayOf(r)); len(mac) != 6 || mac[5] != 1 {
			t.Errorf("%s", mac)
		}
	}
}

func TestReservationsSurviveDamage(t *testing.T) {
	dir := t.TempDir()
	p := openTestIPAM(t, dir)
	if _, err := p.setRange(ranges{first: netip.MustParsePrefix("10.244.1.0/24")}); err != nil {
		t.Fatal(err)
	}
	reserveAll(t, p, "a", "b", "c")
	good, err := os.ReadFile(filepath.Join(p.podDir(), "uid-a"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"uid-b": nil, "uid-c": []byte("{"), "uid-other": good, "zzz": []byte(strings.Replace(string(good), "uid-a", "zzz", 1))} {
		if err := os.WriteFile(filepath.Join(p.podDir(), name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p = openTestIPAM(t, dir)
	if all := p.all(); len(all) != 1 || all[0].UID != "uid-a" || all[0].Address != addr("10.244.1.2") {
		t.Errorf("left: %v", all)
	}
	files, err := os.ReadDir(p.podDir())
	if err != nil || len(files) != 1 {
		t.Errorf("files left: %v, %v", files, err)
	}
}

func TestUIDsStayInTheirFolder(t *testing.T) {
	p := openTestIPAM(t, t.TempDir())
	if _, err := p.setRange(ranges{first: netip.MustParsePrefix("10.244.1.0/24")}); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []types.UID{"", ".", "..", "../x", "a/b", "a\x00", types.UID(strings.Repeat("a", 200))} {
		pod := podNamed("x")
		pod.UID = uid
		if r, err := p.reserve(pod); err == nil {
			t.Errorf("UID %q got %s", uid, r.Address)
		}
	}
	if err := fs.WalkDir(os.DirFS(p.podDir()), ".", func(path string, d fs.DirEntry, err error) error {
		if path != "." {
			t.Errorf("there is %s", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestHostPortsOfPods(t *testing.T) {
	pod := podNamed("x",
		corev1.ContainerPort{ContainerPort: 1},
		corev1.ContainerPort{ContainerPort: 2, HostPort: 20},
		corev1.ContainerPort{ContainerPort: 2, HostPort: 20, Protocol: corev1.ProtocolUDP, HostIP: "0.0.0.0"},
		corev1.ContainerPort{ContainerPort: 3, HostPort: 30, HostIP: "127.0.0.1"},
		corev1.ContainerPort{ContainerPort: 3, HostPort: 30, HostIP: "::1"},
	)
	pod.Spec.InitContainers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 4, HostPort: 40, Protocol: corev1.ProtocolSCTP}, {ContainerPort: 2, HostPort: 20}}}}
	want := []hostPort{{netip.Addr{}, sctp, 40, 4}, {netip.Addr{}, tcp, 20, 2}, {netip.Addr{}, udp, 20, 2}, {addr("127.0.0.1"), tcp, 30, 3}}
	got := hostPortsOf(pod)
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %v, want %v", i, got[i], want[i])
		}
	}
}
