package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// wires is a network in memory: raft's streams over pipes, calls straight into
// the handlers. Cut hosts hear nothing and are not told so, as if the power
// had gone.
type wires struct {
	mu       sync.Mutex
	hosts    map[string]*host
	group    map[string]int // hosts of different groups do not reach each other
	changed  signal
	noMaster map[string]bool
	gone     map[string]bool // what gossip knows of the dead
	conf     func(h *host, c *Config)
	about    func(m *Member) // completes what gossip says
}

// host is one node's place on the network, which outlives the node's process.
type host struct {
	t    testing.TB
	w    *wires
	id   string
	dir  string
	log  *slog.Logger
	conf func(*Config)

	mu       sync.Mutex
	node     *Node
	stop     context.CancelFunc
	done     chan error
	accept   chan net.Conn
	conns    []*wire
	prepared bool
	retired  int
}

// wire is one end of a connection that can be cut.
type wire struct {
	net.Conn
	w        *wires
	from, to string
}

func (w *wires) reaches(from, to string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.group[from] == w.group[to]
}

// Write pretends that all is well: what is sent into a cut wire is lost.
func (c *wire) Write(b []byte) (int, error) {
	if !c.w.reaches(c.from, c.to) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

type listener struct {
	h      *host
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.h.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "address of " + l.h.id} }

func (l *listener) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	w := l.h.w
	w.mu.Lock()
	there := w.hosts[string(to)]
	w.mu.Unlock()
	if there == nil {
		return nil, fmt.Errorf("no host %s", to)
	}
	wait := time.After(timeout)
	if w.reaches(l.h.id, there.id) {
		if !there.alive() {
			return nil, errors.New("connection refused")
		}
		a, b := net.Pipe()
		select {
		case there.accept <- &wire{Conn: b, w: w, from: there.id, to: l.h.id}:
			return &wire{Conn: a, w: w, from: l.h.id, to: there.id}, nil
		case <-wait:
		}
	} else {
		<-wait
	}
	return nil, os.ErrDeadlineExceeded
}

func (h *host) alive() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node != nil
}

// ServerAddr: on this network an id is an address.
func (h *host) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

// Call posts straight into the other node's handler.
func (h *host) Call(ctx context.Context, id, path string, body []byte) ([]byte, error) {
	h.w.mu.Lock()
	there := h.w.hosts[id]
	h.w.mu.Unlock()
	if !h.w.reaches(h.id, id) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	there.mu.Lock()
	n := there.node
	there.mu.Unlock()
	if n == nil {
		return nil, errors.New("connection refused")
	}
	q := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://node"+path, bytes.NewReader(body))
	q.Header.Set("From", h.id)
	a := httptest.NewRecorder()
	answered := make(chan struct{})
	go func() { n.Handler().ServeHTTP(a, q); close(answered) }()
	select {
	case <-answered:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !h.w.reaches(id, h.id) { // the answer is lost
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if a.Code != http.StatusOK {
		return nil, fmt.Errorf("%d: %s", a.Code, a.Body)
	}
	return io.ReadAll(a.Body)
}

// members is gossip as everybody sees it here: at once and without mistakes.
func (w *wires) members() (out []Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.hosts {
		if !w.gone[id] {
			m := Member{ID: id, Name: "name-" + id, Alive: true, NoMaster: w.noMaster[id]}
			if w.about != nil {
				w.about(&m)
			}
			out = append(out, m)
		}
	}
	return out
}

func newWires() *wires {
	return &wires{hosts: map[string]*host{}, group: map[string]int{}, noMaster: map[string]bool{}, gone: map[string]bool{}}
}

func (w *wires) set(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.changed.fire()
}

// host adds a host whose process does not run yet.
func (w *wires) host(t testing.TB, id string) *host {
	h := &host{t: t, w: w, id: id, dir: filepath.Join(memoryDir(t), "raft"), accept: make(chan net.Conn), log: testLog(t, id)}
	w.set(func() { w.hosts[id] = h })
	return h
}

// memoryDir is a folder in memory where there is one: whole clusters of fsyncs
// are slow on a disk that others use too.
func memoryDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "consensus")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func testLog(t testing.TB, id string) *slog.Logger {
	if os.Getenv("CONSENSUS_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", id)
}

func (h *host) config() Config {
	c := Config{
		ID: h.id, Name: "name-" + h.id, Dir: h.dir,
		Stream: &listener{h: h, closed: make(chan struct{})}, Addresses: h, Codec: jsonCodec{}, Caller: h,
		PeerID:         func(r *http.Request) string { return r.Header.Get("From") },
		Members:        h.w.members,
		MembersChanged: h.w.changed.wait,
		Prepare: func(ctx context.Context, id string) error {
			h.w.mu.Lock()
			there := h.w.hosts[id]
			h.w.mu.Unlock()
			if !there.alive() {
				there.start(false)
			}
			return nil
		},
		Retired: func() { h.mu.Lock(); h.retired++; h.mu.Unlock() },
		Boot:    virtualBoot, Log: h.log,
	}
	if h.w.conf != nil {
		h.w.conf(h, &c)
	}
	if h.conf != nil {
		h.conf(&c)
	}
	return c
}

func (h *host) start(bootstrap bool) *Node {
	h.t.Helper()
	n, err := New(h.config())
	if err != nil {
		h.t.Fatalf("%s: %v", h.id, err)
	}
	if bootstrap {
		if err := n.Bootstrap(); err != nil {
			h.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h.mu.Lock()
	h.node, h.stop, h.done = n, cancel, done
	h.mu.Unlock()
	go func() { done <- n.Run(ctx) }()
	return n
}

// end stops the process in good order.
func (h *host) end() {
	h.t.Helper()
	h.mu.Lock()
	n, stop, done := h.node, h.stop, h.done
	h.node = nil
	h.mu.Unlock()
	if n == nil {
		return
	}
	stop()
	if err := <-done; err != nil {
		h.t.Errorf("%s: %v", h.id, err)
	}
	check(h.t, n.store)
}

// powerOff cuts the host off and then ends what runs there.
func (h *host) powerOff() {
	h.cut()
	h.end()
}

// cut lets nobody reach the host, nor the host anybody.
func (h *host) cut() { h.w.set(func() { h.w.group[h.id] = 1000 + int(h.id[len(h.id)-1]) }) }

func (h *host) powerOn() *Node {
	h.w.set(func() { h.w.group[h.id] = 0; delete(h.w.gone, h.id) })
	return h.start(false)
}

// until waits, in steps of virtual time, for something to be true.
func until(t testing.TB, what string, limit time.Duration, f func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !f() {
		if time.Since(began) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// cluster starts n hosts, the first of a new cluster and the rest by the
// leader's choice, and waits until there are as many voters.
func cluster(t *testing.T, w *wires, n, voters int) []*host {
	t.Helper()
	var hosts []*host
	for i := range n {
		hosts = append(hosts, w.host(t, fmt.Sprintf("n%d", i)))
	}
	hosts[0].start(true)
	until(t, "a cluster", 10*time.Second, func() bool { return votersOf(hosts) == voters })
	for _, h := range hosts { // the last change must have reached them, or it may yet be undone
		if n := h.get(); n != nil {
			until(t, "everybody to know", 10*time.Second, func() bool { return countVoters(n) == voters })
		}
	}
	return hosts
}

func endAll(hosts []*host) {
	for _, h := range hosts {
		h.end()
	}
}

func leaderOf(hosts []*host) *host {
	for _, h := range hosts {
		h.mu.Lock()
		n := h.node
		h.mu.Unlock()
		if n != nil && n.IsLeader() {
			return h
		}
	}
	return nil
}

// votersOf counts the voters in the leader's configuration.
func votersOf(hosts []*host) int {
	if l := leaderOf(hosts); l != nil {
		return countVoters(l.get())
	}
	return 0
}

func countVoters(n *Node) (count int) {
	for _, s := range n.Status().Servers {
		if s.Voter {
			count++
		}
	}
	return count
}

func (h *host) get() *Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node
}

// bubble runs a test in virtual time, with a network of its own.
func bubble(t *testing.T, f func(t *testing.T, w *wires)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWires()) })
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
