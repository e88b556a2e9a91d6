package network

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// Whatever is reserved, released and restarted: no two pods have one address,
// a pod keeps its own, all are of the range and none is the node's, and an
// address rests as long as there is another.
func TestAddressesAreNeverShared(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		dir := t.TempDir()
		prefix := netip.MustParsePrefix("10.244.1.0/28") // 13 addresses of pods
		now := time.Unix(0, 0)
		open := func() *ipam {
			p, err := openIPAM(dir, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			p.now = func() time.Time { return now }
			if _, err := p.setRange(ranges{first: prefix}); err != nil {
				t.Fatal(err)
			}
			return p
		}
		p := open()
		has := map[types.UID]netip.Addr{}
		released := map[netip.Addr]time.Time{} // since the last restart
		for step := range 300 {
			now = now.Add(time.Second)
			uid := types.UID(fmt.Sprintf("uid-%d", rnd.IntN(20)))
			switch rnd.IntN(10) {
			case 0:
				p, released = open(), map[netip.Addr]time.Time{}
			case 1, 2, 3, 4:
				if err := p.release(uid); err != nil {
					t.Fatal(err)
				}
				if a, held := has[uid]; held {
					released[a] = now
				}
				delete(has, uid)
			default:
				pod := &corev1.Pod{}
				pod.UID = uid
				r, err := p.reserve(pod)
				was, had := has[uid]
				switch {
				case err != nil && (had || len(has) < 13):
					t.Fatalf("seed %d, step %d: %d addresses are taken: %v", seed, step, len(has), err)
				case err != nil:
					continue
				case had && r.Address != was:
					t.Fatalf("seed %d, step %d: %s had %s and gets %s", seed, step, uid, was, r.Address)
				}
				if !had {
					for other, a := range has {
						if a == r.Address {
							t.Fatalf("seed %d, step %d: %s and %s both have %s", seed, step, uid, other, a)
						}
					}
					if at, rested := released[r.Address]; rested {
						for a := netip.MustParseAddr("10.244.1.2"); a != netip.MustParseAddr("10.244.1.15"); a = a.Next() {
							since, was := released[a]
							if _, taken := p.used[a]; !taken && a != r.Address && (!was || since.Before(at)) {
								t.Fatalf("seed %d, step %d: %s is used again, although %s rests longer", seed, step, r.Address, a)
							}
						}
					}
				}
				if !prefix.Contains(r.Address) || r.Address == gatewayOf(prefix) || r.Address == prefix.Addr() || r.Address == lastOf(prefix) {
					t.Fatalf("seed %d, step %d: %s is no address for a pod", seed, step, r.Address)
				}
				has[uid] = r.Address
				delete(released, r.Address)
			}
			if all := p.all(); len(all) != len(has) {
				t.Fatalf("seed %d, step %d: %d reservations, want %d", seed, step, len(all), len(has))
			}
		}
	}
}

// A file that a power cut left may hold anything.
func FuzzReservation(f *testing.F) {
	good, err := json.Marshal(reservation{UID: "a", Namespace: "n", Name: "p", Address: addr("10.244.1.2"), HostPorts: []hostPort{{addr("127.0.0.1"), tcp, 80, 8080}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{good, nil, {0}, []byte("{}"), []byte(`{"uid":"a","address":"::1"}`), []byte(`{"uid":"b","address":"10.244.1.2"}`), good[:len(good)-3]} {
		f.Add(b, "10.244.1.0/24\n")
	}
	f.Add(good, "::/0")
	f.Add([]byte(`{"uid":"a","address":"fd00::2"}`), "fd00::/64,fd01::/64")
	f.Fuzz(func(t *testing.T, file []byte, prefix string) {
		dir := t.TempDir()
		for path, b := range map[string][]byte{"pods/a": file, "pods/b": file, "range": []byte(prefix), "policies": file} {
			path = filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := openIPAM(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if len(p.byUID) > 1 {
			t.Errorf("two pods have one file: %v", p.byUID)
		}
		for uid, r := range p.byUID {
			if uid != "a" && uid != "b" || r.UID != uid || !r.Address.IsValid() || p.used[r.Address] != uid {
				t.Errorf("%s: %+v", uid, r)
			}
		}
		s, err := openPolicies(dir, testDNS, func() {})
		if err != nil {
			t.Fatal(err)
		}
		s.compile(ip4, p.all())
	})
}

// However a node came to know of policies and pods, it does the same.
func TestPolicyStateForgetsNothing(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		s, err := openPolicies(t.TempDir(), testDNS, func() {})
		if err != nil {
			t.Fatal(err)
		}
		var last spec
		for step := range 6 {
			is := randomSpec(rnd)
			tell(s, is, last, step == 0 || rnd.IntN(4) == 0, rnd)
			last = is
		}
		fresh, err := openPolicies(t.TempDir(), testDNS, func() {})
		if err != nil {
			t.Fatal(err)
		}
		tell(fresh, last, spec{}, true, rnd)
		var local []reservation
		for _, p := range last.pods {
			if p.node == "node1" {
				local = append(local, reservation{UID: types.UID(p.namespace + "-" + p.name), Namespace: p.namespace, Name: p.name, Address: addr(p.addr)})
			}
		}
		got, _ := s.compile(ip4, local)
		want, _ := fresh.compile(ip4, local)
		if got.String() != want.String() {
			t.Fatalf("seed %d: after changes\n%s\nfrom the start\n%s", seed, got, want)
		}
	}
}

// tell brings a state from one world to another: as a whole, or by what
// differs, in any order.
func tell(s *policyState, is, was spec, whole bool, rnd *rand.Rand) {
	type source struct {
		h       api.Handler
		objects func(spec) map[string]api.Object
	}
	podsOf := func(own bool) func(spec) map[string]api.Object {
		return func(w spec) map[string]api.Object {
			out := map[string]api.Object{}
			for _, p := range w.pods {
				if p.node == "" || own && p.node != "node1" {
					continue
				}
				pod := &corev1.Pod{}
				pod.Namespace, pod.Name, pod.UID, pod.Labels = p.namespace, p.name, types.UID(p.namespace+"-"+p.name), p.labels
				pod.Status.PodIP = p.addr
				for _, port := range p.ports {
					pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{{
						Name: port.name, ContainerPort: int32(port.port), Protocol: map[protocol]corev1.Protocol{tcp: corev1.ProtocolTCP, udp: corev1.ProtocolUDP}[port.proto]}}})
				}
				out[p.namespace+"/"+p.name] = pod
			}
			return out
		}
	}
	sources := []source{
		{s.policyHandler(), func(w spec) map[string]api.Object {
			out := map[string]api.Object{}
			for _, n := range w.policies {
				out[keyOf(n).String()] = n
			}
			return out
		}},
		{s.namespaceHandler(), func(w spec) map[string]api.Object {
			out := map[string]api.Object{}
			for name, l := range w.namespaces {
				ns := &corev1.Namespace{}
				ns.Name, ns.Labels = name, l
				out[name] = ns
			}
			return out
		}},
		{s.ownHandler(), podsOf(true)}, {s.peerHandler(), podsOf(false)},
	}
	rnd.Shuffle(len(sources), func(i, j int) { sources[i], sources[j] = sources[j], sources[i] })
	for _, from := range sources {
		now, before := from.objects(is), from.objects(was)
		if whole {
			from.h.Replace(slices.Collect(maps.Values(now)))
			continue
		}
		for key, o := range before {
			if _, stays := now[key]; !stays {
				from.h.Apply(watch.Deleted, o)
			}
		}
		for _, o := range now {
			from.h.Apply(watch.Modified, o)
		}
	}
}
