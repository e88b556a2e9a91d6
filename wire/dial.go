package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
)

const (
	dialTimeout = 5 * time.Second
	// stagger is how long an address may be silent before the next is tried
	// as well.
	stagger = 250 * time.Millisecond
	// userTimeout ends a connection whose peer acknowledges nothing: its host
	// lost power. Nothing is sent while nothing is to be said, but for
	// keep-alives.
	userTimeout   = 10 * time.Second
	keepAliveIdle = 30 * time.Second
	callDial      = 10 * time.Second // bounds one attempt to make a connection for calls
	answerLimit   = 64 << 20
)

// Certs makes the TLS config for dialling the node with an id: it shows this
// node's certificate and accepts only that node.
type Certs interface {
	Client(expectID string) *tls.Config
}

// Dialer reaches nodes by id. Its fields are set before its first use; it must
// not be copied.
type Dialer struct {
	Certs Certs
	// Resolve says where the TLS port of a node may be, the likeliest first.
	Resolve func(id string) []netip.AddrPort
	Log     *slog.Logger

	mu    sync.Mutex
	peers map[string]*peer
}

// peer keeps what is kept of one node: its connections.
type peer struct {
	api *http2.Transport // h2
	old *http.Transport  // http/1.1, for requests that change the protocol
	// streams is conclave-stream/1. Its connections end when nothing was asked
	// for a while: what comes on them is rare and long.
	streams *http2.Transport
	// addrs is what the kept connections were dialled by.
	addrs []netip.AddrPort

	mu       sync.Mutex
	conns    map[net.Conn]struct{} // open ones of calls and api
	cut      bool                  // no more are kept
	dropped  bool                  // another has taken its place
	calls    *caller               // conclave-node/1; nil before the first call
	dialling *dialling             // how calls comes to be; nil if nobody dials
}

// dialling is an attempt that all who call meanwhile wait for.
type dialling struct {
	done chan struct{} // closed when conn and err are there
	conn *caller
	err  error
}

// pooledConn is one that its peer can cut.
type pooledConn struct {
	*tls.Conn
	peer *peer
}

func (c *pooledConn) Close() error {
	c.peer.mu.Lock()
	delete(c.peer.conns, c)
	c.peer.mu.Unlock()
	return c.Conn.Close()
}

// keep remembers a connection until it is closed.
func (p *peer) keep(conn *tls.Conn) (net.Conn, error) {
	c := &pooledConn{conn, p}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	p.conns[c] = struct{}{}
	return c, nil
}

// CallError is an answer with a status other than 2xx.
type CallError struct {
	Code int
	Body string
}

func (e *CallError) Error() string {
	if e.Body == "" {
		return fmt.Sprintf("status %d", e.Code)
	}
	return fmt.Sprintf("status %d: %s", e.Code, strings.TrimSpace(e.Body))
}

// ErrNoAddress says that gossip knows no address of a node.
var ErrNoAddress = errors.New("no address is known")

// Dial connects to a node, with a protocol by its ALPN name, at the first of
// its addresses where the machine with its key answers.
func (d *Dialer) Dial(ctx context.Context, id, proto string) (net.Conn, error) {
	conn, err := d.dial(ctx, id, proto)
	if err != nil {
		return nil, fmt.Errorf("reach node %s: %w", id, err)
	}
	return conn, nil
}

func (d *Dialer) dial(ctx context.Context, id, proto string) (*tls.Conn, error) {
	config := d.Certs.Client(id).Clone()
	config.NextProtos = []string{proto}
	return race(ctx, d.Resolve(id), func(ctx context.Context, addr netip.AddrPort) (*tls.Conn, error) {
		return d.dialAddr(ctx, addr, config, proto)
	})
}

// DialFirst connects to the first of some addresses that answers. It does not
// wait for a dead one before it tries the next.
func DialFirst(ctx context.Context, addrs []netip.AddrPort) (net.Conn, error) {
	return race(ctx, addrs, func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", addr.String())
	})
}

// race dials addresses in their order, the next one when the one before has
// failed or taken long, and returns the first connection.
func race[C net.Conn](ctx context.Context, addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (C, error)) (won C, err error) {
	if len(addrs) == 0 {
		return won, ErrNoAddress
	}
	ctx, cancel := context.WithCancel(ctx)
	type attempt struct {
		conn C
		err  error
	}
	attempts := make(chan attempt)
	running := 0
	defer func() { // wait for what was started
		cancel()
		for ; running > 0; running-- {
			if a := <-attempts; a.err == nil {
				a.conn.Close()
			}
		}
	}()
	start := func() {
		addr := addrs[0]
		addrs = addrs[1:]
		running++
		go func() {
			conn, err := dial(ctx, addr)
			if err != nil {
				err = fmt.Errorf("%s: %w", addr, err)
			}
			attempts <- attempt{conn, err}
		}()
	}
	next := time.NewTimer(stagger)
	defer next.Stop()
	start()
	var failures []string
	var last error
	for running > 0 {
		select {
		case <-next.C:
			if len(addrs) > 0 {
				start()
				next.Reset(stagger)
			}
		case a := <-attempts:
			running--
			if a.err == nil {
				return a.conn, nil
			}
			failures, last = append(failures, a.err.Error()), a.err
			if len(addrs) > 0 && ctx.Err() == nil {
				start()
				next.Reset(stagger)
			}
		}
	}
	if len(failures) == 1 {
		return won, last
	}
	return won, errors.New(strings.Join(failures, "; "))
}

func (d *Dialer) dialAddr(ctx context.Context, addr netip.AddrPort, config *tls.Config, proto string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	tcp := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: 5 * time.Second, Count: 3},
		ControlContext: func(_ context.Context, _, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
			})
			return errors.Join(err, failed)
		},
	}
	raw, err := tcp.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != proto {
		conn.Close()
		return nil, fmt.Errorf("it speaks %q, not %q", got, proto)
	}
	return conn, nil
}

// peer finds or makes what is kept of a node. Connections to addresses that it
// no longer has are dropped: they may take long to notice.
func (d *Dialer) peer(id string) *peer {
	addrs := d.Resolve(id)
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[id]
	if p != nil && slices.Equal(p.addrs, addrs) {
		return p
	}
	if p != nil {
		p.drop()
	}
	// The host of a URL says nothing; http2 needs it only as a key.
	p = &peer{addrs: slices.Clone(addrs), conns: map[net.Conn]struct{}{}}
	p.api = &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return d.keep(ctx, p, id, "h2")
		},
		// A peer that stops answering while something is asked of it is found
		// out; an idle connection costs nothing.
		WriteByteTimeout:   userTimeout,
		DisableCompression: true,
	}
	p.streams = &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return d.keep(ctx, p, id, ProtoStream)
		},
		WriteByteTimeout: userTimeout, ReadIdleTimeout: keepAliveIdle, PingTimeout: userTimeout, IdleConnTimeout: keepAliveIdle,
		DisableCompression: true,
	}
	p.old = &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.dial(ctx, id, "http/1.1")
		},
		DisableKeepAlives:  true, // the connection becomes the caller's
		DisableCompression: true,
	}
	if d.peers == nil {
		d.peers = map[string]*peer{}
	}
	d.peers[id] = p
	return p
}

// keep dials a connection that the peer can cut.
func (d *Dialer) keep(ctx context.Context, p *peer, id, proto string) (net.Conn, error) {
	conn, err := d.dial(ctx, id, proto)
	if err != nil {
		return nil, err
	}
	return p.keep(conn)
}

// caller is the peer's one connection for calls, dialled if there is none.
func (d *Dialer) caller(ctx context.Context, id string) (*caller, error) {
	p := d.peer(id)
	p.mu.Lock()
	if p.calls != nil && !p.calls.ended() {
		defer p.mu.Unlock()
		return p.calls, nil
	}
	a := p.dialling
	if a == nil {
		a = &dialling{done: make(chan struct{})}
		p.dialling = a
		go func() { // whoever asked first may go, others wait too
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callDial)
			defer cancel()
			conn, err := d.keep(ctx, p, id, ProtoNode)
			if err == nil {
				a.conn = newCaller(conn)
			}
			p.mu.Lock()
			a.err, p.calls, p.dialling = err, a.conn, nil
			dropped := p.dropped && a.conn != nil
			p.mu.Unlock()
			close(a.done)
			if dropped {
				a.conn.retire()
			}
		}()
	}
	p.mu.Unlock()
	select {
	case <-a.done:
		return a.conn, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// drop lets go of the connections: those in use end with what they are used for.
func (p *peer) drop() {
	p.mu.Lock()
	p.dropped = true
	calls := p.calls
	p.mu.Unlock()
	if calls != nil {
		calls.retire()
	}
	p.api.CloseIdleConnections()
	p.streams.CloseIdleConnections()
	p.old.CloseIdleConnections()
}

// Reset cuts the kept connections to a node that died, with all that is under
// way on them: nothing would come any more, and whoever waits, on a watch say,
// would only find out by keep-alives. Connections that became their caller's
// fail by themselves.
func (d *Dialer) Reset(id string) {
	d.mu.Lock()
	p := d.peers[id]
	delete(d.peers, id)
	d.mu.Unlock()
	if p == nil {
		return
	}
	p.drop()
	p.mu.Lock()
	p.cut = true
	open := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	for _, c := range open {
		_ = c.(*pooledConn).NetConn().Close() // first, for TLS says goodbye, and nobody listens
		_ = c.Close()
	}
}

// Close drops all kept connections.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		p.drop()
	}
	d.peers = nil
}

// Call posts body to a path of a node ("/conclave/v1/…") and returns the
// answer. A status that is no success is a *CallError.
func (d *Dialer) Call(ctx context.Context, id, path string, body []byte) ([]byte, error) {
	status, answer := 0, []byte(nil)
	conn, err := d.caller(ctx, id)
	if err == nil {
		status, answer, err = conn.call(ctx, path, body)
	}
	if err == nil && status/100 != 2 {
		err = &CallError{Code: status, Body: string(answer[:min(len(answer), 4<<10)])}
	}
	if err != nil {
		return nil, fmt.Errorf("call %s of node %s: %w", path, id, err)
	}
	return answer, nil
}

// HTTP is a RoundTripper for the Kubernetes API of a master, by its id, under
// this node's certificate. Requests that change the protocol (exec and the
// like) get an HTTP/1.1 connection of their own.
func (d *Dialer) HTTP(id string) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Header.Get("Upgrade") != "" {
			return d.peer(id).old.RoundTrip(req)
		}
		return d.peer(id).api.RoundTrip(req)
	})
}

// Stream asks a node, by GET of a path ("/conclave/v1/…"), for something long,
// which is read as it comes. A status that is no success is a *CallError.
func (d *Dialer) Stream(ctx context.Context, id, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://node"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := d.peer(id).streams.RoundTrip(req)
	if err == nil && res.StatusCode/100 != 2 {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // what came of the reason will do
		res.Body.Close()
		err = &CallError{Code: res.StatusCode, Body: string(body)}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s of node %s: %w", path, id, err)
	}
	return res.Body, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// StreamLayer is raft's transport over l (Port.Raft) as the node with an id.
// Raft's addresses are node ids.
func (d *Dialer) StreamLayer(l net.Listener, id string) raft.StreamLayer {
	return &streamLayer{Listener: l, dialer: d, id: id}
}

type streamLayer struct {
	net.Listener
	dialer *Dialer
	id     string
}

func (s *streamLayer) Addr() net.Addr { return idAddr(s.id) }

func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dialer.Dial(ctx, string(address), ProtoRaft)
}

// idAddr is a node's id as an address.
type idAddr string

func (a idAddr) Network() string { return "conclave" }
func (a idAddr) String() string  { return string(a) }
