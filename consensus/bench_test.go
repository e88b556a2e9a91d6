package consensus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// tlsStream is a stream layer as the product has it: mutual TLS on loopback.
type tlsStream struct {
	net.Listener
	conf *tls.Config
	w    *realWires
}

// realWires are hosts with real connections, and the calls of cluster_test.
type realWires struct {
	*wires
	conf *tls.Config
	mu   sync.Mutex
	addr map[string]string
}

func (s *tlsStream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	s.w.mu.Lock()
	address := s.w.addr[string(to)]
	s.w.mu.Unlock()
	return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", address, s.conf)
}

func newRealWires(b *testing.B) *realWires {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)},
		&x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	return &realWires{wires: newWires(), addr: map[string]string{}, conf: &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		InsecureSkipVerify: true, // what is measured is the cost of the cipher
		ClientAuth:         tls.RequireAnyClientCert,
	}}
}

func (w *realWires) cluster(b *testing.B, n, voters int) []*host {
	var hosts []*host
	for i := range n {
		h := w.wires.host(b, fmt.Sprintf("n%d", i))
		h.dir = filepath.Join(b.TempDir(), "raft") // with real fsyncs
		h.conf = func(c *Config) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", w.conf)
			if err != nil {
				b.Fatal(err)
			}
			w.mu.Lock()
			w.addr[c.ID] = l.Addr().String()
			w.mu.Unlock()
			c.Stream = &tlsStream{Listener: l, conf: w.conf, w: w}
		}
		hosts = append(hosts, h)
	}
	b.Cleanup(func() { endAll(hosts) })
	hosts[0].start(true)
	until(b, "a cluster", 20*time.Second, func() bool { return votersOf(hosts) == voters })
	return hosts
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIdle reports the CPU seconds that three idle nodes take together
// in a minute.
func BenchmarkIdle(b *testing.B) {
	newRealWires(b).cluster(b, 3, 3)
	time.Sleep(2 * time.Second)
	for b.Loop() {
		cpu, began := cpuTime(), time.Now()
		time.Sleep(5 * time.Second)
		b.ReportMetric((cpuTime()-cpu).Seconds()*float64(time.Minute)/float64(time.Since(began)), "cpu-s/min")
	}
}

// BenchmarkWrite measures writes of 512 bytes through the leader and through
// a follower, by one client and by 64.
func BenchmarkWrite(b *testing.B) {
	for _, clients := range []int{1, 64} {
		for _, where := range []string{"leader", "follower"} {
			b.Run(fmt.Sprintf("%s/%d", where, clients), func(b *testing.B) {
				hosts := newRealWires(b).cluster(b, 3, 3)
				at := leaderOf(hosts)
				if where == "follower" {
					at = hosts[(slices.Index(hosts, at)+1)%3]
				}
				n, text := at.get(), string(make([]byte, 512))
				var next atomic.Int64
				b.SetParallelism((clients + 1) / 2) // times GOMAXPROCS, two here
				if clients == 1 {
					for b.Loop() {
						if _, err := n.Write(b.Context(), create("n", fmt.Sprint(next.Add(1)), text)); err != nil {
							b.Fatal(err)
						}
					}
				} else {
					b.RunParallel(func(p *testing.PB) {
						for p.Next() {
							if _, err := n.Write(b.Context(), create("n", fmt.Sprint(next.Add(1)), text)); err != nil {
								b.Error(err)
							}
						}
					})
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
			})
		}
	}
}

// BenchmarkSync measures linearizable reads at a follower.
func BenchmarkSync(b *testing.B) {
	hosts := newRealWires(b).cluster(b, 3, 3)
	at := hosts[(slices.Index(hosts, leaderOf(hosts))+1)%3]
	for b.Loop() {
		if err := at.get().Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFanOut measures one write until a thousand watchers have it.
func BenchmarkFanOut(b *testing.B) {
	s := NewStore()
	const watchers = 1000
	var got sync.WaitGroup
	for range watchers {
		w, err := s.Watch("things", "", 0)
		if err != nil {
			b.Fatal(err)
		}
		go func() {
			for {
				events, _, err := w.Next(b.Context())
				if err != nil {
					return
				}
				for range events {
					got.Done()
				}
			}
		}()
	}
	revision := uint64(0)
	for b.Loop() {
		got.Add(watchers)
		revision++
		if _, err := s.Apply(revision, create("n", fmt.Sprint(revision), "x")); err != nil {
			b.Fatal(err)
		}
		got.Wait()
	}
}

// BenchmarkApply is one update in a store of ten thousand objects, without a log:
// what each replica does for each write. B/record is what the store takes for
// each object beside the object.
func BenchmarkApply(b *testing.B) {
	const objects = 10_000
	s := newStore(0, 0) // the least window
	var writes [objects]Write
	for i := range writes {
		writes[i] = create("namespace", fmt.Sprintf("object-%d", i), "")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	revision := uint64(0)
	for i, w := range writes {
		revision++
		s.apply(revision, w, requestID{}, 0)
		writes[i].Verb = Update
	}
	s.finish(revision)
	runtime.GC()
	runtime.ReadMemStats(&after)
	for b.Loop() {
		revision++
		s.apply(revision, writes[revision%objects], requestID{}, 0)
		s.finish(revision)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/objects, "B/record")
}
