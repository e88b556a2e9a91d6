package network

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

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
	if err := errors.Join(inNewNamespace(path, func() error {
		var k kernel
		base := Base{testPodCIDR, testServiceCIDR, testDNS}
		start := time.Now()
		r := c.rules(base, "node1", nil)
		computed := time.Since(start)
		if err := k.apply(r); err != nil {
			return err
		}
		b.Logf("all rules: computed in %s, in the kernel after %s; %.1f MiB of objects seen, %.1f MiB of rules", computed, time.Since(start),
			float64(seenHeap-before)/(1<<20), float64(heapNow()-seenHeap)/(1<<20))
		h := c.handlers()["endpointslices"]
		b.ReportAllocs()
		var compute, apply time.Duration
		for i := 0; b.Loop(); i++ {
			n := i % manyServices
			ends := []ep{manyEndpoint(n, 0), manyEndpoint(n, 1), manyEndpoint(n, 2)}
			if i/manyServices%2 == 1 {
				ends = ends[:1]
			}
			start := time.Now()
			h.Apply(watch.Modified, sliceOf(fmt.Sprintf("service-%05d", n), manyTargets, ends...))
			r := c.rules(base, "node1", nil)
			middle := time.Now()
			if err := k.apply(r); err != nil {
				return err
			}
			compute += middle.Sub(start)
			apply += time.Since(middle)
		}
		b.ReportMetric(float64(compute.Microseconds())/float64(b.N), "µs-compute")
		b.ReportMetric(float64(apply.Microseconds())/float64(b.N), "µs-apply")
		return nil
	}), removeNamespace(path)); err != nil {
		b.Fatal(err)
	}
	runtime.KeepAlive(objects)
}

func needRootB(b *testing.B) {
	if err := probe(); err != nil {
		b.Skipf("needs namespaces, links and nftables: %v", err)
	}
}
