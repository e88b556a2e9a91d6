package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testCerts is one node's credentials under a CA of the test; the id stands in
// the common name.
type testCerts struct {
	ca   *x509.CertPool
	cert tls.Certificate
}

func makeCerts(t testing.TB, ids ...string) map[string]*testCerts {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	all := map[string]*testCerts{}
	for i, id := range ids {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: id},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}, ca, own.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		all[id] = &testCerts{ca: pool, cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}}
	}
	return all
}

func (c *testCerts) verify(cs tls.ConnectionState, id string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: c.ca, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	if got := cs.PeerCertificates[0].Subject.CommonName; id != "" && got != id {
		return fmt.Errorf("%s answers there, not %s", got, id)
	}
	return nil
}

func (c *testCerts) Client(id string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error { return c.verify(cs, id) }}
}

func (c *testCerts) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, ClientAuth: tls.RequestClientCert,
		NextProtos: []string{ProtoRaft, ProtoNode, ProtoJoin, ProtoStream},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol == ProtoJoin {
				return nil
			}
			return c.verify(cs, "")
		}}
}

func (c *testCerts) apiServer() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, NextProtos: []string{"h2", "http/1.1"}}
}

func peerID(cs *tls.ConnectionState) (string, bool) {
	if len(cs.PeerCertificates) == 0 || cs.NegotiatedProtocol == ProtoJoin {
		return "", false
	}
	return cs.PeerCertificates[0].Subject.CommonName, true
}

// waits tells when a call of /wait begins and ends.
var waits = make(chan struct{})

// startPort runs a node's port with its API until the test ends.
func startPort(t testing.TB, c *testCerts, change func(*Config)) (*Port, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Listener: l, TLS: c.server, APITLS: c.apiServer, PeerID: peerID}
	if change != nil {
		change(&cfg)
	}
	p := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() {
		err := ServeNode(ctx, p.Node(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, ok := peerID(r.TLS)
			switch r.URL.Path {
			case "/refuse":
				http.Error(w, "no", http.StatusConflict)
			case "/panic":
				panic("as asked")
			case "/wait": // until nobody wants to know
				waits <- struct{}{}
				<-r.Context().Done()
				waits <- struct{}{}
			default:
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %v %s%s", id, ok, body, r.FormValue("say"))
			}
		}), nil)
		if err != nil {
			t.Errorf("ServeNode: %v", err)
		}
	})
	api := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Errorf("hijack: %v", err)
				return
			}
			defer conn.Close()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\nhello")
			rw.Flush()
			return
		}
		fmt.Fprint(w, r.Proto)
	})}
	wg.Go(func() { api.Serve(p.API()) })
	t.Cleanup(func() {
		cancel()
		api.Close()
		wg.Wait()
	})
	return p, l.Addr().(*net.TCPAddr).AddrPort()
}

func dialer(t testing.TB, c *testCerts, addrs ...netip.AddrPort) *Dialer {
	d := &Dialer{Certs: c, Resolve: func(string) []netip.AddrPort { return addrs }}
	t.Cleanup(d.Close)
	return d
}

func TestProtocolsAreToldApart(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	p, addr := startPort(t, certs["a"], nil)
	d := dialer(t, certs["b"], addr)

	if got, err := d.Call(t.Context(), "a", "/x", []byte("body")); err != nil || string(got) != "b true body" {
		t.Errorf("node call: %q, %v", got, err)
	}
	if got, err := d.Call(t.Context(), "a", "/x?say=more", []byte("body")); err != nil || string(got) != "b true bodymore" {
		t.Errorf("node call with a parameter: %q, %v", got, err)
	}
	var refused *CallError
	if _, err := d.Call(t.Context(), "a", "/refuse", nil); !errors.As(err, &refused) || refused.Code != 409 || refused.Body != "no\n" {
		t.Errorf("refused call: %v", err)
	}
	if r, err := d.Stream(t.Context(), "a", "/x?say=more"); err != nil {
		t.Errorf("stream: %v", err)
	} else if got, err := io.ReadAll(r); err != nil || string(got) != "b true more" {
		t.Errorf("stream: %q, %v", got, err)
	}
	if _, err := d.Stream(t.Context(), "a", "/refuse"); !errors.As(err, &refused) || refused.Code != 409 {
		t.Errorf("refused stream: %v", err)
	}
	if _, err := d.Stream(t.Context(), "b", "/x"); err == nil {
		t.Error("a stream from another node than was asked for")
	}
	get := func(rt http.RoundTripper, header http.Header) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://any/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != nil {
			req.Header = header
		}
		return rt.RoundTrip(req)
	}
	for name, test := range map[string]struct {
		rt     http.RoundTripper
		header http.Header
		want   string
	}{
		"by id":          {d.HTTP("a"), nil, "HTTP/2.0"},
		"upgrade by id":  {d.HTTP("a"), http.Header{"Connection": {"Upgrade"}, "Upgrade": {"test"}}, "hello"},
		"plain http/1.1": {&http.Transport{DialTLSContext: apiDial(addr, certs["b"], "http/1.1"), DisableKeepAlives: true}, nil, "HTTP/1.1"},
		"no ALPN at all": {&http.Transport{DialTLSContext: apiDial(addr, certs["b"]), DisableKeepAlives: true}, nil, "HTTP/1.1"},
	} {
		resp, err := get(test.rt, test.header)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != test.want {
			t.Errorf("%s: %q", name, body)
		}
	}

	// raft, by way of its stream layer, and again by that of a later master on
	// the same node, once the first is no longer one.
	for range 2 {
		layer := d.StreamLayer(p.Raft(), "b")
		if layer.Addr().String() != "b" {
			t.Errorf("raft's address is %s", layer.Addr())
		}
		conn, err := layer.Dial(raft.ServerAddress("a"), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		got, err := layer.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		fmt.Fprint(conn, "vote")
		buf := make([]byte, 4)
		if _, err := io.ReadFull(got, buf); err != nil || string(buf) != "vote" {
			t.Errorf("raft: %q, %v", buf, err)
		}
		if err := layer.Close(); err != nil {
			t.Error(err)
		}
		if conn, err := layer.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed layer accepts %v (%v)", conn, err)
		}
	}

	// The joining protocol is served without a certificate, the others not.
	for proto, want := range map[string]bool{ProtoJoin: true, ProtoNode: false, ProtoRaft: false} {
		c, err := tls.Dial("tcp", addr.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}})
		if err == nil {
			// A server's refusal arrives after the client's handshake.
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s without a certificate: %v", proto, err)
		}
	}
}

func apiDial(addr netip.AddrPort, c *testCerts, protos ...string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&tls.Dialer{Config: &tls.Config{RootCAs: c.ca, ServerName: "127.0.0.1", NextProtos: protos}}).DialContext(ctx, "tcp", addr.String())
	}
}

func TestConcurrentCallsShareAConnection(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	var mu sync.Mutex
	accepted := 0
	_, addr := startPort(t, certs["a"], func(c *Config) {
		c.Listener = countingListener{c.Listener, func() { mu.Lock(); accepted++; mu.Unlock() }}
	})
	d := dialer(t, certs["b"], addr)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 5 {
				if got, err := d.Call(t.Context(), "a", "/", fmt.Append(nil, i)); err != nil || string(got) != fmt.Sprintf("b true %d", i) {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if accepted != 1 {
		t.Errorf("320 calls used %d connections", accepted)
	}
}

type countingListener struct {
	net.Listener
	count func()
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.count()
	}
	return c, err
}

func TestAnAddressOfAnotherMachine(t *testing.T) {
	certs := makeCerts(t, "a", "b", "c")
	_, addrA := startPort(t, certs["a"], nil)
	_, addrC := startPort(t, certs["c"], nil)
	// The old address of c is a's now.
	d := dialer(t, certs["b"], addrA, addrC)
	if _, err := d.Call(t.Context(), "c", "/", nil); err != nil {
		t.Errorf("the second address was not tried: %v", err)
	}
	_, err := dialer(t, certs["b"], addrA).Dial(t.Context(), "c", ProtoRaft)
	if err == nil || !strings.Contains(err.Error(), "a answers there, not c") || !strings.Contains(err.Error(), addrA.String()) {
		t.Errorf("only a wrong address: %v", err)
	}
	if _, err := dialer(t, certs["b"]).Dial(t.Context(), "c", ProtoRaft); !errors.Is(err, ErrNoAddress) {
		t.Errorf("no address: %v", err)
	}
	strangers := makeCerts(t, "a")
	if _, err := dialer(t, strangers["a"], addrA).Call(t.Context(), "a", "/", nil); err == nil {
		t.Error("a node of another cluster was served")
	}
	// A silent address does not hold up the next for longer than the stagger.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	begin := time.Now()
	conn, err := dialer(t, certs["b"], silent.Addr().(*net.TCPAddr).AddrPort(), addrC).Dial(t.Context(), "c", ProtoRaft)
	if err != nil || time.Since(begin) > dialTimeout/2 {
		t.Fatalf("after %s: %v", time.Since(begin), err)
	}
	conn.Close()
}

func TestAMovedPeerIsDialledAnew(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	_, first := startPort(t, certs["a"], nil)
	_, second := startPort(t, certs["a"], nil)
	at := first
	d := &Dialer{Certs: certs["b"], Resolve: func(string) []netip.AddrPort { return []netip.AddrPort{at} }}
	defer d.Close()
	if _, err := d.Call(t.Context(), "a", "/", nil); err != nil {
		t.Fatal(err)
	}
	kept := d.peers["a"]
	at = second
	if _, err := d.Call(t.Context(), "a", "/", nil); err != nil || d.peers["a"] == kept {
		t.Fatalf("still by the old address: %v", err)
	}
	d.Reset("a")
	if _, err := d.Call(t.Context(), "a", "/", nil); err != nil {
		t.Fatal(err)
	}
}

// What is under way to a host that lost its power would go on for ever.
func TestResetEndsWhatIsUnderWay(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	_, at := startPort(t, certs["a"], nil)
	d := dialer(t, certs["b"], at)
	ended := make(chan error)
	go func() {
		_, err := d.Call(context.Background(), "a", "/wait", nil)
		ended <- err
	}()
	<-waits
	d.Reset("a")
	if err := <-ended; err == nil {
		t.Error("the call was answered")
	}
	<-waits // the handler ends too
	if _, err := d.Call(t.Context(), "a", "/", nil); err != nil {
		t.Errorf("a call afterwards: %v", err)
	}
}

func TestACallIsTakenBack(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	_, at := startPort(t, certs["a"], nil)
	d := dialer(t, certs["b"], at)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := d.Call(ctx, "a", "/wait", nil)
		ended <- err
	}()
	<-waits
	kept := d.peers["a"].calls
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller gave up: %v", err)
	}
	<-waits // its handler was told
	if got, err := d.Call(t.Context(), "a", "/", []byte("x")); err != nil || string(got) != "b true x" || d.peers["a"].calls != kept {
		t.Errorf("the next call on the connection: %q, %v", got, err)
	}
}

func TestCallsThatGoWrong(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	_, at := startPort(t, certs["a"], nil)
	d := dialer(t, certs["b"], at)
	for path, code := range map[string]int{"/panic": http.StatusInternalServerError, "/refuse": http.StatusConflict} {
		var refused *CallError
		if _, err := d.Call(t.Context(), "a", path, nil); !errors.As(err, &refused) || refused.Code != code {
			t.Errorf("%s: %v", path, err)
		}
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: more than one record, and than a frame that is trusted
	if got, err := d.Call(t.Context(), "a", "/", big); err != nil || !bytes.HasSuffix(got, big) {
		t.Errorf("a big body came back as %d bytes: %v", len(got), err)
	}
	if _, err := d.Call(t.Context(), "a", "/"+strings.Repeat("x", 1<<16), nil); err == nil {
		t.Error("a path of 64 KiB was called")
	}
}

// A connection in use ends with its last answer when its peer has moved.
func TestARetiredConnectionIsAnsweredFirst(t *testing.T) {
	here, there := net.Pipe()
	c := newCaller(here)
	got := make(chan error)
	go func() {
		_, answer, err := c.call(t.Context(), "/", []byte("x"))
		if err == nil && string(answer) != "late" {
			err = fmt.Errorf("%q", answer)
		}
		got <- err
	}()
	question, err := readFrame(there)
	if err != nil {
		t.Fatal(err)
	}
	c.retire()
	if _, err := there.Write(frame{number: question.number, word: 200}.encode([]byte("late"))); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if _, err := readFrame(there); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is still open: %v", err)
	}
	if _, _, err := c.call(t.Context(), "/", nil); err == nil {
		t.Error("a call on a connection that ended")
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frame{number: 7, word: 1}.encode([]byte("/"), []byte("body")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readFrame(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if again := got.encode(); !bytes.Equal(again, raw[:len(again)]) {
			t.Errorf("%x was read as %x", raw, again)
		}
	})
}

func BenchmarkCall(b *testing.B) {
	certs := makeCerts(b, "a", "b")
	_, at := startPort(b, certs["a"], nil)
	d := dialer(b, certs["b"], at)
	body := bytes.Repeat([]byte("x"), 512)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Call(b.Context(), "a", "/", body); err != nil {
			b.Fatal(err)
		}
	}
}

func TestSplice(t *testing.T) {
	certs := makeCerts(t, "master", "node", "admin")
	_, master := startPort(t, certs["master"], nil)
	mode := "splice"
	_, node := startPort(t, certs["node"], func(c *Config) {
		c.Splice = func(ctx context.Context) (net.Conn, error) {
			switch mode {
			case "splice":
				return (&net.Dialer{}).DialContext(ctx, "tcp", master.String())
			case "local":
				return nil, ErrLocal
			}
			return nil, errors.New("nobody there")
		}
	})
	serving := func(proto string) (string, *http.Response, []byte) {
		t.Helper()
		var served string
		transport := &http.Transport{ForceAttemptHTTP2: proto == "h2", DisableKeepAlives: true,
			DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := apiDial(node, certs["admin"], proto)(ctx, network, addr)
				if err == nil {
					served = c.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
				}
				return c, err
			}}
		defer transport.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1/api", nil)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s, %s: %v", mode, proto, err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return served, resp, body
	}
	for _, proto := range []string{"h2", "http/1.1"} {
		mode = "splice"
		if served, resp, _ := serving(proto); served != "master" || resp.StatusCode != 200 {
			t.Errorf("%s: %s answers %d", proto, served, resp.StatusCode)
		}
		mode = "local"
		if served, resp, _ := serving(proto); served != "node" || resp.StatusCode != 200 {
			t.Errorf("%s: %s answers %d", proto, served, resp.StatusCode)
		}
		mode = "nobody"
		served, resp, body := serving(proto)
		var status metav1.Status
		if err := json.Unmarshal(body, &status); err != nil || served != "node" || resp.StatusCode != 503 ||
			status.Kind != "Status" || status.Code != 503 || status.Reason != metav1.StatusReasonServiceUnavailable {
			t.Errorf("%s: %s answers %d %s", proto, served, resp.StatusCode, body)
		}
	}
	// Its own protocols never leave a node.
	mode = "splice"
	if got, err := dialer(t, certs["admin"], node).Call(t.Context(), "node", "/", nil); err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

// TestSplicePassesTheEnds has a client that closes its half and still reads.
func TestSplicePassesTheEnds(t *testing.T) {
	pair := func() (a, b net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if b, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		return a, b
	}
	client, nodeSide := pair()
	upstream, master := pair()
	done := make(chan struct{})
	go func() { splice(nodeSide, upstream, []byte("first ")); close(done) }()
	fmt.Fprint(client, "second")
	client.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(master); err != nil || string(got) != "first second" {
		t.Fatalf("%q, %v", got, err)
	}
	big := bytes.Repeat([]byte("x"), 1<<20)
	go func() { master.Write(big); master.Close() }()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	<-done
}

// TestForsake ends what was spliced to a dead host, and nothing else.
func TestForsake(t *testing.T) {
	certs := makeCerts(t, "one", "two", "node", "admin")
	_, one := startPort(t, certs["one"], nil)
	_, two := startPort(t, certs["two"], nil)
	next := []netip.AddrPort{one, two}
	p, node := startPort(t, certs["node"], func(c *Config) {
		c.Splice = func(ctx context.Context) (net.Conn, error) {
			to := next[0]
			next = next[1:]
			return DialFirst(ctx, []netip.AddrPort{to})
		}
	})
	var conns []net.Conn
	for range 2 {
		c, err := apiDial(node, certs["admin"], "http/1.1")(t.Context(), "tcp", node.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	p.Forsake(one)
	if _, err := conns[0].Read(make([]byte, 1)); err == nil {
		t.Error("a master that is forsaken says something")
	}
	fmt.Fprint(conns[1], "GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := conns[1].Read(make([]byte, 1)); err != nil {
		t.Errorf("the other master: %v", err)
	}
}

func TestGarbageAndSilence(t *testing.T) {
	certs := makeCerts(t, "a", "b")
	_, addr := startPort(t, certs["a"], nil)
	for name, say := range map[string][]byte{
		"http":      []byte("GET / HTTP/1.1\r\n\r\n"),
		"zeros":     make([]byte, 1000),
		"half":      {22, 3, 1, 2, 0, 1, 0},
		"too long":  bytes.Repeat(append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...), 8),
		"nothing":   nil,
		"wrong rec": {23, 3, 3, 0, 1, 0},
	} {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(say)
		conn.(*net.TCPConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("%s: the connection stays open", name)
		}
		conn.Close()
	}
	// Silent ones do not keep others out, and end with Run.
	for range 20 {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := dialer(t, certs["b"], addr).Call(t.Context(), "a", "/", nil); err != nil {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// TestASlowHelloIsCutOff drips a hello over a connection whose clock is the
// test's.
func TestASlowHelloIsCutOff(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	server.SetDeadline(time.Now().Add(50 * time.Millisecond))
	go func() {
		for _, err := client.Write([]byte{22}); err == nil; _, err = client.Write([]byte{3}) {
		}
	}()
	if _, _, err := readHello(server); err == nil {
		t.Fatal("read a hello out of a drip")
	}
	server.Close()
}

func FuzzReadHello(f *testing.F) {
	client, server := net.Pipe()
	go tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoRaft}}).Handshake()
	_, said, err := readHello(server)
	if err != nil {
		f.Fatal(err)
	}
	client.Close()
	f.Add(said)
	f.Add(said[:len(said)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		_, said, err := readHello(&bytesConn{r: bytes.NewReader(data)})
		if err == nil && !bytes.HasPrefix(data, said) {
			t.Fatal("what is replayed is not what was said")
		}
	})
}

// bytesConn reads bytes and ends.
type bytesConn struct {
	net.Conn
	r io.Reader
}

func (c *bytesConn) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c *bytesConn) Close() error                     { return nil }
func (c *bytesConn) SetWriteDeadline(time.Time) error { return nil }
func (c *bytesConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *bytesConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
