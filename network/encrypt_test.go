package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/network/wireguard"
)

func wgKey(b byte) wireguard.Key { return wireguard.Key(bytes.Repeat([]byte{b}, 32)) }

func pfx(text string) netip.Prefix { return netip.MustParsePrefix(text) }

// Every other node is a peer that may use its own ranges and nothing else.
func TestTunnelDevice(t *testing.T) {
	c := hostConfig{
		Key: wgKey(9), Address: netip.MustParseAddr("192.0.2.1"), Range: ranges{pfx("10.244.0.0/24"), pfx("fd00::/64")},
		Peers: []peer{
			{Range: ranges{pfx("10.244.1.0/24"), pfx("fd00:0:0:1::/64")}, Address: netip.MustParseAddr("192.0.2.2"), Key: wgKey(1)},
			{Range: ranges{first: pfx("10.244.2.0/24")}, Address: netip.MustParseAddr("192.0.2.3"), Key: wgKey(2)},
		},
	}
	want := wireguard.Device{Key: wgKey(9), Port: 51820, Source: c.Address, Peers: map[wireguard.Key]wireguard.Peer{
		wgKey(1): {Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), Allowed: []netip.Prefix{pfx("10.244.1.0/24"), pfx("fd00:0:0:1::/64")}},
		wgKey(2): {Endpoint: netip.MustParseAddrPort("192.0.2.3:51820"), Allowed: []netip.Prefix{pfx("10.244.2.0/24")}},
	}}
	if got := c.device(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, not %+v", got, want)
	}
	c.Range.second = netip.Prefix{} // of a cluster of IPv4 alone
	if got := c.device().Peers[wgKey(1)].Allowed; len(got) != 1 {
		t.Errorf("without IPv6 a peer may use %v", got)
	}
}

// Nothing goes to a node without a key, and two nodes cannot have one.
func TestKeyedPeers(t *testing.T) {
	at := func(b byte, k wireguard.Key) peer {
		return peer{Range: ranges{first: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, b, 0}), 24)}, Key: k}
	}
	all := []peer{at(1, wireguard.Key{}), at(2, wgKey(2)), at(3, wgKey(3)), at(4, wgKey(2)), at(5, wireguard.Key{})}
	if got, want := keyed(all), []peer{at(2, wgKey(2)), at(3, wgKey(3))}; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestNodesKey(t *testing.T) {
	for value, want := range map[string]wireguard.Key{"": {}, "nonsense": {}, wgKey(7).String(): wgKey(7)} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{AnnotationWireGuardKey: value}}}
		if got := parseNode(n).key; got != want {
			t.Errorf("%q is read as %s", value, got)
		}
	}
	n := &Network{cfg: Config{Encrypt: &Encryption{}}, cluster: newCluster(func(string) {})}
	n.cluster.nodes["with"], n.cluster.nodes["without"] = node{key: wgKey(1)}, node{}
	if why := n.unkeyed("with"); why != "" {
		t.Errorf("of a node with a key: %s", why)
	}
	if why := n.unkeyed("without"); !strings.Contains(why, AnnotationWireGuardKey) {
		t.Errorf("of a node without one: %q", why)
	}
	n.cfg.Encrypt = nil
	if why := n.unkeyed("without"); why != "" {
		t.Errorf("where nobody encrypts: %s", why)
	}
}

func TestEncryptionWithDirectRoutes(t *testing.T) {
	if err := ProbeEncryption(true); err == nil || !strings.Contains(err.Error(), "leave --direct-routes away") {
		t.Errorf("both at once: %v", err)
	}
}

// Two nodes that encrypt: packets of both families go both ways, to nodes whose
// keys are known alone, and nothing is left after Teardown.
func TestTunnelBetweenNodes(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	if err := ProbeEncryption(false); err != nil {
		t.Skip(err)
	}
	l.encrypt, l.dual = true, true
	needIPv6(t)
	all := nodes{l.node(1), l.node(2)}
	objects := map[*testNode]*corev1.Node{}
	for _, n := range all {
		n.do(order{Do: "live", UID: "node1,node2"}) // it answers once it is made, and so is its key
		key, err := wireguard.OpenKey(filepath.Join(n.config.Dir, keyFile))
		if err != nil {
			t.Fatal(err)
		}
		objects[n] = n.object()
		objects[n].Annotations[AnnotationWireGuardKey] = key.Public().String()
	}
	for _, o := range objects {
		all.put(o)
	}
	for _, n := range all {
		n.do(order{Do: "ready"})
	}
	one, two := all[0], all[1]
	a, b := one.attach("a"), two.attach("b")
	a.serve("a", 80)
	b.serve("b", 80)
	b.serve6("b", 80)
	talk := func() {
		t.Helper()
		for _, network := range protocols {
			a.expect(network, b.addr.String()+":80", "b", a.addr.String())
			b.expect(network, a.addr.String()+":80", "a", b.addr.String())
			a.expect(network[:3]+"6", netip.AddrPortFrom(b.addr6, 80).String(), "b", a.addr6.String())
		}
	}
	paths := func(reasons ...string) {
		t.Helper()
		got := one.do(order{Do: "paths"}).Paths
		if len(got) != len(reasons) || len(got) > 0 && !strings.Contains(got[0].Reason, reasons[0]) {
			t.Errorf("the paths that fail are %q, not %q", got, reasons)
		}
	}
	talk()
	paths()
	one.in(func() error {
		if _, err := netlink.LinkByName(vxlanName); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("an overlay is there too: %v", err)
		}
		link, err := netlink.LinkByName(tunnelName)
		if err == nil && link.Attrs().MTU != 1500-tunnelOverhead {
			t.Errorf("the tunnel has the MTU %d", link.Attrs().MTU)
		}
		return err
	})

	// Nothing goes to a node that shows another key than it has, or none.
	shown := objects[two].Annotations[AnnotationWireGuardKey]
	objects[two].Annotations[AnnotationWireGuardKey] = wgKey(5).String()
	nodes{one}.put(objects[two])
	paths("UDP 51820 is dropped on the way, or one of the two does not know the other's key yet")
	delete(objects[two].Annotations, AnnotationWireGuardKey)
	nodes{one}.put(objects[two])
	paths(AnnotationWireGuardKey)
	objects[two].Annotations[AnnotationWireGuardKey] = shown
	nodes{one}.put(objects[two])
	paths()
	talk()

	for _, n := range all {
		n.do(order{Do: "teardown"})
		for _, dir := range []string{n.config.RunDir, n.config.Dir} {
			files, err := os.ReadDir(dir)
			if err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
			for _, f := range files {
				t.Errorf("left behind: %s", filepath.Join(dir, f.Name()))
			}
		}
		n.in(func() error {
			if _, err := netlink.LinkByName(tunnelName); !errors.As(err, &netlink.LinkNotFoundError{}) {
				t.Errorf("the tunnel after the end: %v", err)
			}
			return nil
		})
	}
}

// There is no way for pods' packets but the bridge and the tunnel, as the kernel
// says it.
func TestTunnelRules(t *testing.T) {
	inScratch(t, func() error {
		for _, base := range []Base{testBase, {PodCIDR: testPodCIDR6, ServiceCIDR: testServiceCIDR6}} {
			if base.ip() == ip6 {
				if err := probe([]*family{ip6}); err != nil {
					continue
				}
			}
			k := newKernel(base.ip())
			for _, tunnel := range []bool{false, true} {
				base.Tunnel = tunnel
				if err := k.apply(newRules(base)); err != nil {
					return err
				}
				for chain, rule := range map[string]string{
					"plain-in":  fmt.Sprintf("%s saddr %s iifname != \"conclave0\" iifname != \"conclave.wg\" iifname != \"lo\" drop", base.ip().name, base.PodCIDR),
					"plain-out": fmt.Sprintf("%s daddr %s oifname != \"conclave0\" oifname != \"conclave.wg\" oifname != \"lo\" drop", base.ip().name, base.PodCIDR),
				} {
					out, err := exec.Command("nft", "list", "chain", base.ip().name, tableName, chain).CombinedOutput()
					if tunnel && (err != nil || !strings.Contains(string(out), rule)) || !tunnel && err == nil {
						t.Errorf("with a tunnel (%v) the chain %s is, %v:\n%s", tunnel, chain, err, out)
					}
				}
			}
		}
		return nil
	})
}
