package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

const manyServices, perService = 10000, 5

func manyEndpoint(service, i int) ep {
	n := service*perService + i
	return ep{addr: netip.AddrFrom4([4]byte{10, 244, byte(n / 250), byte(n%250 + 1)}), node: fmt.Sprintf("node%d", n%100)}
}

var manyTargets = []discoveryv1.EndpointPort{{Name: ptr(""), Protocol: ptr(corev1.ProtocolTCP), Port: ptr[int32](8080)}}

func manyObjects(services int) (all []api.Object) {
	for i := range services {
		name := fmt.Sprintf("service-%05d", i)
		all = append(all, serviceOf(name, fmt.Sprintf("10.96.%d.%d", 1+i/250, i%250+1), func(s *corev1.Service) {
			s.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
		}, corev1.ServicePort{Protocol: corev1.ProtocolTCP, Port: 80}))
		var ends []ep
		for j := range perService {
			ends = append(ends, manyEndpoint(i, j))
		}
		all = append(all, sliceOf(name, manyTargets, ends...))
	}
	return all
}

func heapNow() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What one change costs among 10,000 services with 50,000 endpoints: to see it,
// to compute the rules, and to have them in the kernel.
func BenchmarkOneChange(b *testing.B) {
	needRootB(b)
	objects := manyObjects(manyServices)
	before := heapNow()
	c := seen(objects...)
	seenHeap := heapNow()
	path := filepath.Join(b.TempDir(), "ns")
	if err := errors.Join(inNewNamespace(path, "", func() error {
		k := newKernel(ip4)
		base := testBase
		start, used := time.Now(), cpuTime()
		p := newProxy(base, "node1")
		was, is := p.take(c, nil)
		computed := time.Since(start)
		if err := k.change(was, is, p.rules); err != nil {
			return err
		}
		b.Logf("all rules: computed in %s, in the kernel after %s (%s of CPU); %.1f MiB of objects seen, %.1f MiB of rules", computed, time.Since(start), cpuTime()-used,
			float64(seenHeap-before)/(1<<20), float64(heapNow()-seenHeap)/(1<<20))
		h := c.handlers()["endpointslices"]
		b.ReportAllocs()
		var compute, apply time.Duration
		used = cpuTime()
		for i := 0; b.Loop(); i++ {
			n := i % manyServices
			// One of five endpoints goes, and comes back the next time.
			ends := []ep{manyEndpoint(n, 0), manyEndpoint(n, 1), manyEndpoint(n, 2), manyEndpoint(n, 3), manyEndpoint(n, 4)}
			if i/manyServices%2 == 0 {
				ends = ends[:4]
			}
			start := time.Now()
			h.Apply(watch.Modified, sliceOf(fmt.Sprintf("service-%05d", n), manyTargets, ends...))
			was, is := p.take(c, nil)
			middle := time.Now()
			if err := k.change(was, is, p.rules); err != nil {
				return err
			}
			compute += middle.Sub(start)
			apply += time.Since(middle)
		}
		b.ReportMetric(float64((cpuTime()-used).Microseconds())/float64(b.N), "µs-cpu")
		b.ReportMetric(float64(compute.Microseconds())/float64(b.N), "µs-compute")
		b.ReportMetric(float64(apply.Microseconds())/float64(b.N), "µs-apply")
		return nil
	}), removeNamespace(path)); err != nil {
		b.Fatal(err)
	}
	runtime.KeepAlive(objects)
}

// What the first packet of a connection pays for there being services: it is
// sent by this host to a service among so many, and led to this host.
func BenchmarkFirstPacket(b *testing.B) {
	needRootB(b)
	for _, services := range []int{0, 1, 100, manyServices} {
		name := fmt.Sprintf("services=%d", services)
		if services == 0 {
			name = "no-table"
		}
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "ns")
			if err := errors.Join(inNewNamespace(path, "", func() error { return firstPackets(b, services) }), removeNamespace(path)); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func firstPackets(b *testing.B, services int) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	server := netip.MustParseAddrPort("10.244.255.1:8080")
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(single(server.Addr()))})); err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	defer conn.Close()
	to := server
	if services > 0 {
		to = netip.MustParseAddrPort("10.96.255.1:80")
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(testServiceCIDR), Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
		last := serviceOf("last", to.Addr().String(), nil, corev1.ServicePort{Protocol: corev1.ProtocolUDP, Port: 80})
		targets := []discoveryv1.EndpointPort{{Name: ptr(""), Protocol: ptr(corev1.ProtocolUDP), Port: ptr[int32](8080)}}
		c := seen(append(manyObjects(services-1), last, sliceOf("last", targets, ep{addr: server.Addr()}))...)
		p := newProxy(testBase, "node1")
		was, is := p.take(c, nil)
		if err := newKernel(ip4).change(was, is, p.rules); err != nil {
			return err
		}
	}
	packet := make([]byte, 64)
	used := cpuTime()
	for b.Loop() {
		client, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		if _, err := client.Write(packet); err != nil {
			return errors.Join(err, client.Close())
		}
		if _, _, err := conn.ReadFromUDPAddrPort(packet); err != nil {
			return errors.Join(err, client.Close())
		}
		client.Close()
	}
	b.ReportMetric(float64((cpuTime()-used).Nanoseconds())/1000/float64(b.N), "µs-cpu")
	return nil
}

// cpuTime is what this process used so far: where other work shares the
// machine it says more than the clock.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func needRootB(b *testing.B) {
	if err := probe([]*family{ip4}); err != nil {
		b.Skipf("needs namespaces, links and nftables: %v", err)
	}
}
