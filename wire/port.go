package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The ALPN names of the node protocols.
const (
	ProtoRaft = "conclave-raft/1"
	ProtoNode = "conclave-node/1"
	ProtoJoin = "conclave-join/1" // joining and renewal
	// ProtoStream carries what is too long for a call.
	ProtoStream = "conclave-stream/1"
)

const (
	helloTimeout = 10 * time.Second
	helloLimit   = 64 << 10
	helloMost    = 1024
	// acceptTimeout is how long a finished connection waits for its acceptor:
	// a node that is no master accepts nothing from Raft().
	acceptTimeout = 10 * time.Second
)

// ErrLocal is returned by Config.Splice where API connections are served here.
var ErrLocal = errors.New("the API is served here")

// Config makes a Port.
type Config struct {
	Listener net.Listener
	// TLS is the config of the node protocols; it refuses whom it does not
	// know. It also serves API clients who have to be told that no master is
	// there.
	TLS func() *tls.Config
	// APITLS is the config of the Kubernetes API, where it is served here.
	APITLS func() *tls.Config
	// PeerID is the verified node id at the other end. If it is set, raft
	// connections without one are closed.
	PeerID func(*tls.ConnectionState) (string, bool)
	// Splice connects to a master's port. Nil, or ErrLocal from it: API
	// connections are served here.
	Splice func(ctx context.Context) (net.Conn, error)
	// Unavailable answers API clients when Splice fails; by default with 503
	// and a Status that says so.
	Unavailable http.Handler
	Log         *slog.Logger
}

// Port is the one TLS port.
type Port struct {
	cfg                   Config
	raft, node, api, away *listener // away: API clients while there is no master
	// hellos holds a token for each connection whose handshake is not done.
	hellos chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]struct{} // those that Run has to close; nil once it ends
	closed bool
}

// New makes a Port. It accepts nothing before Run.
func New(c Config) *Port {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Unavailable == nil {
		c.Unavailable = http.HandlerFunc(unavailable)
	}
	p := &Port{cfg: c, hellos: make(chan struct{}, helloMost), open: map[net.Conn]struct{}{}}
	addr := c.Listener.Addr()
	p.raft, p.node, p.api, p.away = newListener(addr), newListener(addr), newListener(addr), newListener(addr)
	return p
}

// Raft yields raft connections of nodes until it is closed, which ends this
// listener alone: a node that was a master once may become one again, and asks
// for another.
func (p *Port) Raft() net.Listener { return &turn{listener: p.raft, closed: make(chan struct{})} }

// Node yields connections of HTTP between nodes, for ServeNode.
func (p *Port) Node() net.Listener { return p.node }

// API yields connections of Kubernetes clients, for an http.Server's Serve.
func (p *Port) API() net.Listener { return p.api }

// Run accepts connections until ctx ends. It closes the listener given and
// those handed out.
func (p *Port) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		p.cfg.Listener.Close()
		p.closeAll()
	})
	defer stop()
	defer p.wg.Wait()
	defer func() {
		cancel()
		p.closeAll()
		for _, l := range []*listener{p.raft, p.node, p.api, p.away} {
			l.Close()
		}
	}()
	sorry := p.sorry()
	defer sorry.Close()
	p.wg.Go(func() { sorry.Serve(p.away) })
	pause := time.Duration(0)
	for {
		conn, err := p.cfg.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", p.cfg.Listener.Addr(), err)
			}
			// Out of file descriptors, or the peer gave up while it waited:
			// both pass.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.cfg.Log.Warn("cannot accept a connection", "retry", pause, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		select {
		case p.hellos <- struct{}{}:
		default:
			conn.Close() // somebody holds a thousand silent connections
			continue
		}
		if !p.track(conn) {
			<-p.hellos
			conn.Close()
			return nil
		}
		p.wg.Go(func() { p.serve(ctx, conn) })
	}
}

func (p *Port) track(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.open[conn] = struct{}{}
	return true
}

func (p *Port) untrack(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
}

// Forsake ends what is spliced to an address, because its host is dead: it would
// be silent for long.
func (p *Port) Forsake(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.open {
		if to, ok := conn.RemoteAddr().(*net.TCPAddr); ok && to.AddrPort() == addr {
			conn.Close()
		}
	}
}

func (p *Port) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for conn := range p.open {
		conn.Close()
	}
}

// serve takes one connection to whom it wants.
func (p *Port) serve(ctx context.Context, raw net.Conn) {
	defer p.untrack(raw)
	waiting := sync.OnceFunc(func() { <-p.hellos })
	defer waiting()
	raw.SetDeadline(time.Now().Add(helloTimeout))
	offered, said, err := readHello(raw)
	if err != nil {
		raw.Close()
		return // scanners, health checks and garbage are not worth a line
	}
	conn := &replayConn{Conn: raw, said: said}
	if target := p.target(offered); target != nil {
		p.deliver(ctx, tls.Server(conn, p.cfg.TLS()), target, waiting)
		return
	}
	if p.cfg.Splice == nil {
		p.deliver(ctx, tls.Server(conn, p.cfg.APITLS()), p.api, waiting)
		return
	}
	upstream, err := p.cfg.Splice(ctx)
	switch {
	case errors.Is(err, ErrLocal):
		p.deliver(ctx, tls.Server(conn, p.cfg.APITLS()), p.api, waiting)
	case err != nil:
		p.cfg.Log.Debug("no master for an API client", "client", raw.RemoteAddr(), "err", err)
		p.refuse(ctx, conn, waiting)
	case !p.track(upstream):
		upstream.Close()
		raw.Close()
	default:
		defer p.untrack(upstream)
		waiting()
		raw.SetDeadline(time.Time{})
		splice(raw, upstream, said)
	}
}

// target is the listener of a node protocol, nil for the API's.
func (p *Port) target(offered []string) *listener {
	switch {
	case slices.Contains(offered, ProtoRaft):
		return p.raft
	case slices.Contains(offered, ProtoNode), slices.Contains(offered, ProtoJoin), slices.Contains(offered, ProtoStream):
		return p.node
	}
	return nil
}

// deliver finishes a handshake and hands the connection to its acceptor.
func (p *Port) deliver(ctx context.Context, conn *tls.Conn, to *listener, waiting func()) {
	if err := conn.HandshakeContext(ctx); err != nil {
		p.cfg.Log.Debug("a TLS handshake failed", "client", conn.RemoteAddr(), "err", err)
		conn.Close()
		return
	}
	if to == p.raft && p.cfg.PeerID != nil {
		cs := conn.ConnectionState()
		if _, ok := p.cfg.PeerID(&cs); !ok {
			conn.Close()
			return
		}
	}
	conn.SetDeadline(time.Time{})
	waiting()
	if !to.offer(ctx, conn) {
		conn.Close()
	}
}

// refuse sends an API client to the server that says that no master is there.
func (p *Port) refuse(ctx context.Context, conn net.Conn, waiting func()) {
	config := p.cfg.TLS().Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	config.ClientAuth, config.VerifyConnection = tls.NoClientCert, nil
	p.deliver(ctx, tls.Server(conn, config), p.away, waiting)
}

// sorry is the server of refuse. Each answer ends its connection: see Refuse.
func (p *Port) sorry() *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			p.cfg.Unavailable.ServeHTTP(w, r)
		}),
		ReadTimeout: helloTimeout, WriteTimeout: helloTimeout, IdleTimeout: time.Second, MaxHeaderBytes: helloLimit,
		ErrorLog: slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// unavailable is the default of Config.Unavailable.
func unavailable(w http.ResponseWriter, _ *http.Request) {
	Refuse(w, "this node reaches no master of its cluster: until one answers, nothing can be read or written here; what runs goes on. If the masters are lost for good, run `conclave recover`")
}

// Refuse answers an API client for whom nothing can be done right now, and
// nothing was. It ends the connection, so that the client comes back by a new
// one and finds the master that there may be then.
func Refuse(w http.ResponseWriter, message string) {
	status := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonServiceUnavailable,
		Code: http.StatusServiceUnavailable, Message: message,
	}
	data, err := json.Marshal(status)
	w.Header().Set("Connection", "close")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	w.Write(data)
}

// errPeeked ends the handshake that only served to read the hello.
var errPeeked = errors.New("the hello was read")

// readHello reads a ClientHello with crypto/tls's own parser. It returns the
// protocols offered and all bytes read.
func readHello(conn net.Conn) (offered []string, said []byte, err error) {
	record := &recordConn{Conn: conn}
	heard := false
	err = tls.Server(record, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			heard = true
			offered = slices.Clone(hello.SupportedProtos)
			return nil, errPeeked
		},
	}).Handshake()
	if !heard {
		return nil, nil, err
	}
	return offered, record.said.Bytes(), nil
}

// recordConn remembers what is read, up to a limit, and says nothing.
type recordConn struct {
	net.Conn
	said bytes.Buffer
}

func (c *recordConn) Read(b []byte) (int, error) {
	room := helloLimit - c.said.Len()
	if room <= 0 {
		return 0, errors.New("the hello is too long")
	}
	n, err := c.Conn.Read(b[:min(len(b), room)])
	c.said.Write(b[:n])
	return n, err
}

// Write swallows the alert about errPeeked.
func (c *recordConn) Write(b []byte) (int, error) { return len(b), nil }

// replayConn reads first what was read before.
type replayConn struct {
	net.Conn
	said []byte
}

func (c *replayConn) Read(b []byte) (int, error) {
	if len(c.said) > 0 {
		n := copy(b, c.said)
		c.said = c.said[n:]
		if len(c.said) == 0 {
			c.said = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

// turn accepts from a listener for as long as one user wants to.
type turn struct {
	*listener
	closed chan struct{}
	once   sync.Once
}

func (t *turn) Accept() (net.Conn, error) {
	select {
	case <-t.closed: // first: the next connection is for whoever comes next
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-t.conns:
		return conn, nil
	case <-t.closed:
	case <-t.listener.closed:
	}
	return nil, net.ErrClosed
}

func (t *turn) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// listener hands out connections that somebody else accepted.
type listener struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newListener(addr net.Addr) *listener {
	return &listener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// offer waits for an acceptor.
func (l *listener) offer(ctx context.Context, conn net.Conn) bool {
	select {
	case l.conns <- conn:
		return true
	default:
	}
	timer := time.NewTimer(acceptTimeout)
	defer timer.Stop()
	select {
	case l.conns <- conn:
		return true
	case <-l.closed:
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
