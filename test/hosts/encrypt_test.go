package hosts

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
)

// secret is what a pod serves, and nobody between the nodes is to read.
const secret = "sesame-open-thou-what-nobody-on-the-way-may-read"

// tap reads all that passes the network of a cluster's hosts, until it is asked
// what that was.
type tap struct {
	stop   context.CancelFunc
	reader sync.WaitGroup // one for each host's port

	mu       sync.Mutex
	secret   bool // the secret was seen
	tunnel   int  // packets to or from the port of WireGuard
	overlays int  // and of VXLAN
}

// htons is what the kernel calls a protocol of Ethernet.
func htons(p uint16) uint16 { return p<<8 | p>>8 }

func tapInto(t *testing.T, c *cluster.Cluster) *tap {
	t.Helper()
	bridge, err := netlink.LinkByName("clab-" + c.Name)
	if err != nil {
		t.Fatal(err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	w := &tap{stop: stop}
	t.Cleanup(w.end)
	for _, l := range links {
		if l.Attrs().MasterIndex != bridge.Attrs().Index {
			continue
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.reader.Go(func() {
			<-ctx.Done()
			defer unix.Close(fd)
			w.read(fd)
		})
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Protocol: htons(unix.ETH_P_ALL)}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// read takes in what a socket has kept.
func (w *tap) read(fd int) {
	frame := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(fd, frame, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		w.mu.Lock()
		w.look(frame[:n])
		w.mu.Unlock()
	}
}

func (w *tap) look(f []byte) {
	w.secret = w.secret || bytes.Contains(f, []byte(secret))
	const ethernet, udpPorts = 14, 14 + 20 // of IPv4 without options
	if len(f) < udpPorts+4 || f[12] != 8 || f[13] != 0 || f[ethernet]&15 != 5 || f[ethernet+9] != unix.IPPROTO_UDP {
		return
	}
	switch source, dest := binary.BigEndian.Uint16(f[udpPorts:]), binary.BigEndian.Uint16(f[udpPorts+2:]); {
	case source == 51820 || dest == 51820:
		w.tunnel++
	case dest == 8472:
		w.overlays++
	}
}

// end reads what has passed.
func (w *tap) end() {
	w.stop()
	w.reader.Wait()
}

// encryptServers runs a pod on every host that serves its name, and the secret.
func encryptServers(t *testing.T, w *world) {
	t.Helper()
	var pods []*corev1.Pod
	for i, h := range w.c.Hosts {
		pods = append(pods, toolPod(fmt.Sprintf("net-%d", i), h.Name, netLabels, "serve", "http:8080", "udp:8081", "http:8082="+secret))
	}
	w.pods = runPods(t, w.c, w.ns, pods...)
}

// Without encryption everybody on the way can read: what TestEncrypt looks for
// is there to be found.
func TestPlainBetweenNodes(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: namespace(t, c)}
	encryptServers(t, w)
	seen := tapInto(t, c)
	w.wantAnswers(t, w.pods[0], []string{secret}, "get", pageAt(w.pods[1].Status.PodIP, 8082))
	seen.end()
	if !seen.secret || seen.overlays == 0 || seen.tunnel != 0 {
		t.Errorf("the secret seen: %v, %d packets of the overlay, %d of the tunnel", seen.secret, seen.overlays, seen.tunnel)
	}
	if out, err := c.On(t.Context(), c.Hosts[0].Name, c.Binary, "status"); err != nil || strings.Contains(out, "encrypt") {
		t.Errorf("the status of a cluster that does not encrypt: %v: %s", err, out)
	}
}

// tunnelPID is the process on a host that encrypts.
func tunnelPID(t *testing.T, c *cluster.Cluster, host string) string {
	t.Helper()
	out, err := c.On(t.Context(), host, "sh", "-c", `for p in /proc/[0-9]*; do grep -qs ^conclave-wireguard $p/cmdline && echo ${p#/proc/}; done; true`)
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(out)
	if len(f) > 1 {
		t.Fatalf("%s has the processes %v", host, f)
	}
	if len(f) == 0 {
		return ""
	}
	return f[0]
}

// talker is a pod that keeps one TCP connection to another and has it send back
// a line after another, which it logs. It ends when the connection does.
func talker(t *testing.T, w *world, from, to string) (log func() int) {
	t.Helper()
	pod := func(name, host, script string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{
				NodeSelector: map[string]string{corev1.LabelHostname: host}, RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr.To(int64(0)),
				Containers: []corev1.Container{{Name: "nc", Image: "conclave.test/busybox:1", Command: []string{"sh", "-c", script}}},
			},
		}
	}
	echo := runPods(t, w.c, w.ns, pod("echo", to, "nc -l -p 7000 -e cat"))[0]
	runPods(t, w.c, w.ns, pod("talker", from, fmt.Sprintf("while sleep 0.1; do echo line; done | nc %s 7000; echo over", echo.Status.PodIP)))
	return func() int {
		t.Helper()
		out, err := w.c.Kubectl(t.Context(), "logs", "-n", w.ns, "talker")
		if err != nil {
			return -1 // its host's conclave may be away
		}
		if strings.Contains(out, "over") {
			t.Fatalf("the connection has ended:\n%s", out)
		}
		return strings.Count(out, "line")
	}
}

// goesOn waits for more to come over a connection than had when it was called.
func goesOn(t *testing.T, when string, log func() int) {
	t.Helper()
	was := -1
	eventually(t, "the connection goes on "+when, func() error {
		is := log()
		if was < 0 {
			was = is
		}
		if was < 0 || is < was+3 {
			return fmt.Errorf("%d lines, and %d before", is, was)
		}
		return nil
	})
}

// What --encrypt promises: pods of different nodes talk as ever, nobody on the
// way reads it, nothing stops it, and there is no way back.
func TestEncrypt(t *testing.T) {
	c := ownOf(t, cluster.Config{Hosts: 3, Up: []string{"--encrypt", "--dual-stack"}})
	ctx := t.Context()
	if err := c.Import(ctx, "tool", "busybox"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: "encrypt"}
	kubectl(t, c, "create", "namespace", w.ns)
	encryptServers(t, w)
	a, b := w.pods[0], w.pods[1]
	one, two, three := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	wellPaths := func(t *testing.T, host string) {
		t.Helper()
		eventually(t, "all paths are well", func() error {
			out, err := c.On(ctx, host, c.Binary, "status")
			if err == nil && strings.Contains(out, "problem:") {
				err = errors.New(out)
			}
			return err
		})
	}
	wellPaths(t, two.Name)

	t.Run("pods talk", func(t *testing.T) {
		for _, from := range w.pods {
			for _, to := range w.pods {
				for _, ip := range ipsOf(to) {
					w.wantAnswers(t, from, names(to), "get", pageAt(ip, 8080))
					w.wantAnswers(t, from, names(to), "reach", "udp:"+hostPort(ip, 8081))
				}
			}
		}
		s := w.service(t, "all", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
		w.wantAnswers(t, a, w.names(), "get", "-n", "60", pageAt(s.Spec.ClusterIP, 80))
		for _, h := range c.Hosts { // from the hosts themselves, to pods and node ports
			eventually(t, h.Name+" reaches pods", func() error {
				for _, at := range []string{pageAt(a.Status.PodIP, 8080), pageAt(b.Status.PodIP, 8080), pageAt(one.Address.String(), s.Spec.Ports[0].NodePort)} {
					if _, err := c.Fetch(ctx, h.Name, at); err != nil {
						return err
					}
				}
				return nil
			})
		}
	})
	t.Run("nobody reads it", func(t *testing.T) {
		seen := tapInto(t, c)
		for _, to := range w.pods[1:] {
			for _, ip := range ipsOf(to) {
				w.wantAnswers(t, a, []string{secret}, "get", pageAt(ip, 8082))
			}
		}
		seen.end()
		if seen.secret || seen.tunnel == 0 || seen.overlays != 0 {
			t.Errorf("the secret seen: %v, %d packets of the overlay, %d of the tunnel", seen.secret, seen.overlays, seen.tunnel)
		}
	})
	t.Run("it says so", func(t *testing.T) {
		for _, h := range c.Hosts {
			out, err := c.On(ctx, h.Name, c.Binary, "status")
			if err != nil {
				t.Fatal(err)
			}
			mustContain(t, "the status of "+h.Name, out, "what pods say is encrypted; here by WireGuard in ")
			node, err := c.Client.CoreV1().Nodes().Get(ctx, h.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if key := node.Annotations["conclave.io/wireguard-key"]; len(key) != 44 {
				t.Errorf("%s shows the key %q", h.Name, key)
			}
			// The private half is in one place, for root alone.
			mode, err := c.On(ctx, h.Name, "stat", "-c", "%a %U", c.DataDir(h)+"/network/wireguard.key")
			if err != nil || strings.TrimSpace(mode) != "600 root" {
				t.Errorf("the key's file is %q, %v", mode, err)
			}
		}
	})
	t.Run("a path that fails", func(t *testing.T) {
		if _, err := c.On(ctx, three.Name, "nft", "add table ip lossy; add chain ip lossy raw { type filter hook prerouting priority raw; }; add rule ip lossy raw ip saddr "+one.Address.String()+" udp dport 51820 drop"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pair is named", func() error {
			out, err := c.On(ctx, two.Name, c.Binary, "status")
			want := fmt.Sprintf("%s and %s cannot reach each other's pods: UDP 51820 is dropped on the way", one.Name, three.Name)
			if err == nil && (!strings.Contains(out, want) || strings.Count(out, "problem:") != 1) {
				err = errors.New(out)
			}
			return err
		})
		if _, err := c.On(ctx, three.Name, "nft", "delete table ip lossy"); err != nil {
			t.Fatal(err)
		}
		wellPaths(t, two.Name)
	})

	log := talker(t, w, one.Name, two.Name)
	goesOn(t, "at first", log)
	t.Run("conclave is killed", func(t *testing.T) {
		was := tunnelPID(t, c, two.Name)
		if err := c.Kill(two.Name); err != nil {
			t.Fatal(err)
		}
		goesOn(t, "without conclave", log)
		if err := c.Start(two.Name, "up"); err != nil {
			t.Fatal(err)
		}
		wellPaths(t, two.Name)
		goesOn(t, "with another conclave", log)
		if is := tunnelPID(t, c, two.Name); is != was {
			t.Errorf("the process that encrypts was %q and is %q", was, is)
		}
	})
	t.Run("the process is killed", func(t *testing.T) {
		was := tunnelPID(t, c, two.Name)
		if was == "" {
			t.Skip("the kernel encrypts here")
		}
		if _, err := c.On(ctx, two.Name, "kill", "-9", was); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is back", func() error {
			if is := tunnelPID(t, c, two.Name); is == "" || is == was {
				return fmt.Errorf("it was %q and is %q", was, is)
			}
			return nil
		})
		goesOn(t, "with another process", log)
		w.wantAnswers(t, w.pods[2], names(b), "get", pageAt(b.Status.PodIP, 8080))
	})
	t.Run("both are killed", func(t *testing.T) {
		was := tunnelPID(t, c, two.Name)
		if was == "" {
			t.Skip("the kernel encrypts here")
		}
		if err := c.Kill(two.Name); err != nil {
			t.Fatal(err)
		}
		if _, err := c.On(ctx, two.Name, "kill", "-9", was); err != nil {
			t.Fatal(err)
		}
		// Nothing goes another way meanwhile.
		seen := tapInto(t, c)
		if out, err := w.ask(t, a, "get", pageAt(b.Status.PodIP, 8082)); err == nil {
			t.Errorf("without a tunnel a pod is answered %q", out)
		}
		seen.end()
		if seen.secret {
			t.Error("without a tunnel a pod's answer goes as it is")
		}
		if err := c.Start(two.Name, "up"); err != nil {
			t.Fatal(err)
		}
		w.wantAnswers(t, a, names(b), "get", pageAt(b.Status.PodIP, 8080))
		goesOn(t, "after all", log)
	})
	t.Run("what pretends to be a pod", func(t *testing.T) { forge(t, c, a, b) })
	t.Run("another key", func(t *testing.T) {
		key := func() string {
			return kubectl(t, c, "get", "node", two.Name, "-o", `jsonpath={.metadata.annotations.conclave\.io/wireguard-key}`)
		}
		was := key()
		if err := c.Stop(two.Name); err != nil {
			t.Fatal(err)
		}
		if _, err := c.On(ctx, two.Name, "rm", c.DataDir(two)+"/network/wireguard.key"); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(two.Name, "up"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its Node shows another key", func() error {
			if is := key(); is == was || is == "" {
				return fmt.Errorf("it was %s and is %s", was, is)
			}
			return nil
		})
		wellPaths(t, two.Name)
		w.wantAnswers(t, a, names(b), "get", pageAt(b.Status.PodIP, 8080))
	})
	t.Run("another address", func(t *testing.T) {
		moved := two.Address
		for range 100 {
			moved = moved.Next()
		}
		pids := tunnelPID(t, c, one.Name) + " " + tunnelPID(t, c, three.Name)
		if err := c.PowerOff(two.Name); err != nil {
			t.Fatal(err)
		}
		if err := c.Boot(two.Name, moved); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(two.Name, "up"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the node is back at "+moved.String(), func() error {
			node, err := c.Client.CoreV1().Nodes().Get(ctx, two.Name, metav1.GetOptions{})
			if err == nil && (node.Status.Addresses[0].Address != moved.String() || !isReady(node)) {
				err = fmt.Errorf("its status is %+v", node.Status.Addresses)
			}
			return err
		})
		wellPaths(t, one.Name)
		later := runPods(t, c, w.ns, toolPod("later", two.Name, nil, "serve", "http:8080"))[0]
		for _, ip := range ipsOf(later) {
			w.wantAnswers(t, a, names(later), "get", pageAt(ip, 8080))
		}
		if now := tunnelPID(t, c, one.Name) + " " + tunnelPID(t, c, three.Name); now != pids {
			t.Errorf("the processes of the others were %s and are %s", pids, now)
		}
	})
	t.Run("what cannot be", func(t *testing.T) { refuseToEncrypt(t, c, a) })
}

func isReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// forge sends the second host packets for its pod as they are: some that say to
// be from pods of other hosts, and after each one from an address that is no
// pod's, which shows that they arrive.
func forge(t *testing.T, c *cluster.Cluster, a, b *corev1.Pod) {
	ctx, host := t.Context(), c.Hosts[1]
	const port = 4242
	if _, err := c.On(ctx, host.Name, "nft", fmt.Sprintf("add table ip seen; add chain ip seen before { type filter hook prerouting priority -400; }; add rule ip seen before udp dport %d counter;"+
		" add chain ip seen after { type filter hook forward priority 100; }; add rule ip seen after udp dport %d counter", port, port)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := c.On(ctx, host.Name, "nft", "delete", "table", "ip", "seen"); err != nil {
			t.Error(err)
		}
	}()
	counted := func() (n [2]int) {
		for i, chain := range []string{"before", "after"} {
			out, err := c.On(ctx, host.Name, "nft", "list", "chain", "ip", "seen", chain)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(out, "packets ")
			number, _, _ := strings.Cut(rest, " ")
			if n[i], err = strconv.Atoi(number); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
		}
		return n
	}
	bridge, err := netlink.LinkByName("clab-" + c.Name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.On(ctx, host.Name, "ip", "-brief", "link", "show", "eth0")
	if err != nil || len(strings.Fields(out)) < 3 {
		t.Fatalf("%s, %v", out, err)
	}
	to, err := net.ParseMAC(strings.Fields(out)[2])
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	send := func(from string) {
		t.Helper()
		frame := udpFrame(to, bridge.Attrs().HardwareAddr, netip.MustParseAddr(from), netip.MustParseAddr(b.Status.PodIP), port)
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: bridge.Attrs().Index, Protocol: htons(unix.ETH_P_IP), Halen: 6}); err != nil {
			t.Fatal(err)
		}
	}
	for _, pod := range []string{a.Status.PodIP, "10.244.200.7"} { // of the first host, and of none
		was := counted()
		send(pod)
		send(c.Gateway().String()) // no pod's: it may pass, and comes last
		eventually(t, "two packets arrive, and the honest one is passed on", func() error {
			if is := counted(); is[0] != was[0]+2 || is[1] == was[1] {
				return fmt.Errorf("%v packets, and %v before", is, was)
			}
			return nil
		})
		if is := counted(); is[1] != was[1]+1 {
			t.Errorf("what says to be from %s is passed on", pod)
		}
	}
}

// udpFrame is a packet of UDP over IPv4 in Ethernet, without the checksum that
// UDP may do without.
func udpFrame(to, via net.HardwareAddr, source, dest netip.Addr, port uint16) []byte {
	payload := []byte("forged")
	f := append(append(append([]byte{}, to...), via...), 8, 0)
	ip := make([]byte, 20, 64)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(20+8+len(payload)))
	copy(ip[12:], source.AsSlice())
	copy(ip[16:], dest.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	ip = binary.BigEndian.AppendUint16(ip, port)
	ip = binary.BigEndian.AppendUint16(ip, port)
	ip = binary.BigEndian.AppendUint16(ip, uint16(8+len(payload)))
	ip = binary.BigEndian.AppendUint16(ip, 0)
	return append(append(f, ip...), payload...)
}

// refuseToEncrypt has a fourth host join, which is refused as long as it cannot
// encrypt or is not to, and leave again.
func refuseToEncrypt(t *testing.T, c *cluster.Cluster, a *corev1.Pod) {
	ctx := t.Context()
	guest, err := c.Add()
	if err != nil {
		t.Fatal(err)
	}
	before := traces(t, c, guest.Name)
	token, err := c.Ask(ctx, "token", "--bare")
	if err != nil {
		t.Fatal(err)
	}
	token = strings.TrimSpace(token)
	refused := func(why string, args ...string) {
		t.Helper()
		limited, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		out, err := c.On(limited, guest.Name, append([]string{c.Binary}, args...)...)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v: %v, %s", args, err, out)
		}
		if entries, err := os.ReadDir(c.DataDir(guest) + "/identity"); err == nil {
			for _, e := range entries {
				if e.Name() == "cluster.json" {
					t.Errorf("%v has made it a member all the same", args)
				}
			}
		}
	}
	refused("leave --direct-routes away", "join", token, "--direct-routes")
	if kernel := tunnelPID(t, c, c.Hosts[0].Name) == ""; !kernel {
		if _, err := c.On(ctx, guest.Name, "mount", "--bind", "/dev/null", "/dev/net/tun"); err != nil {
			t.Fatal(err)
		}
		refused("this node cannot encrypt: its kernel has no WireGuard", "join", token)
		refused("this node cannot encrypt: its kernel has no WireGuard", "up", "--encrypt")
		if _, err := c.On(ctx, guest.Name, "umount", "/dev/net/tun"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Start(guest.Name, "join", token); err != nil {
		t.Fatal(err)
	}
	routes := func() string {
		out, err := c.On(ctx, c.Hosts[0].Name, "ip", "route", "show", "dev", "conclave.wg")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	others := strings.Count(routes(), "/24")
	eventually(t, "the fourth host has come", func() error {
		node, err := c.Client.CoreV1().Nodes().Get(ctx, guest.Name, metav1.GetOptions{})
		if err == nil && !isReady(node) {
			err = errors.New("it is not ready")
		}
		return err
	})
	w := &world{c: c, ns: a.Namespace}
	if _, err := c.On(ctx, guest.Name, c.Binary, "image", "import", c.Root+"/bin/images/tool.tar"); err != nil {
		t.Fatal(err)
	}
	p := runPods(t, c, a.Namespace, toolPod("guest", guest.Name, nil, "serve", "http:8080"))[0]
	w.wantAnswers(t, a, names(p), "get", pageAt(p.Status.PodIP, 8080))
	if n := strings.Count(routes(), "/24"); n != others+1 {
		t.Errorf("with a fourth host there are %d routes, and %d before:\n%s", n, others, routes())
	}
	if out, err := c.On(ctx, guest.Name, c.Binary, "leave"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, "nothing of conclave is on the host", func() error {
		after := traces(t, c, guest.Name)
		for what := range before {
			if got, want := fmt.Sprint(after[what]), fmt.Sprint(before[what]); got != want {
				return fmt.Errorf("%s were\n%s\nand are\n%s", what, strings.Join(before[what], "\n"), strings.Join(after[what], "\n"))
			}
		}
		return nil
	})
	eventually(t, "the others have forgotten it", func() error {
		if n := strings.Count(routes(), "/24"); n != others {
			return fmt.Errorf("there are %d routes, and %d before: %s", n, others, routes())
		}
		return nil
	})
}
