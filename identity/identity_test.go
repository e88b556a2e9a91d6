package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// found makes a cluster in a folder of the test.
func found(t *testing.T, name string) (*Node, *Authority) {
	t.Helper()
	n, err := Open(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := n.Found(t.Context(), FoundOptions{Name: name, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	if err != nil {
		t.Fatal(err)
	}
	return n, a
}

func fresh(t *testing.T) *Node {
	t.Helper()
	n, err := Open(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// selfSigning makes the Certificates of a master.
func selfSigning(t *testing.T, n *Node, a *Authority, clock func() time.Time) *Certificates {
	t.Helper()
	if clock == nil {
		clock = time.Now
	}
	c, err := NewCertificates(CertificatesConfig{Node: n, Now: clock,
		Renew: func(_ context.Context, csr []byte) ([]byte, error) {
			return a.SignNode(csr, n.Name(), nil, nil, n.NoMaster(), clock())
		}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve answers ProtoJoin on a loopback port until the test ends.
func serve(t *testing.T, config *tls.Config, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := tls.Server(raw, config)
				defer conn.Close()
				if conn.HandshakeContext(t.Context()) == nil {
					new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{Context: t.Context(), Handler: h})
				}
			}()
		}
	}()
	return l.Addr().String()
}

func joinMux(s JoinServer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(joinPath, JoinHandler(s))
	mux.Handle(renewPath, RenewHandler(s))
	return mux
}

func TestOpenKeepsTheKeyAndFoundCommitsOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	n, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := n.Cluster(); ok || n.Name() != "" || len(n.ID()) != 32 {
		t.Fatalf("a fresh node has id %q, name %q, cluster %v", n.ID(), n.Name(), ok)
	}
	if _, err := n.Found(t.Context(), FoundOptions{Name: "Bad_Name"}); err == nil {
		t.Fatal("founded with a name that no Node can have")
	}
	if _, err := n.Found(t.Context(), FoundOptions{Name: "a", NoMaster: true}); err == nil {
		t.Fatal("founded a cluster without a master")
	}
	a, err := n.Found(t.Context(), FoundOptions{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Found(t.Context(), FoundOptions{Name: "a"}); !errors.Is(err, ErrMember) {
		t.Fatalf("second Found: %v", err)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := again.Cluster()
	if !ok || again.ID() != n.ID() || again.Name() != "a" || c.ID != a.Cluster().ID {
		t.Fatalf("read back %+v of node %s named %q", c, again.ID(), again.Name())
	}
	if c.DNS.String() != "10.96.0.10" || c.Domain != "cluster.local" || len(c.JoinSecret) != 0 || len(a.Cluster().JoinSecret) == 0 {
		t.Fatalf("defaults: %+v", c)
	}
	err = filepath.Walk(filepath.Dir(dir), func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFoundAfterACrashTakesUpTheSameAuthority(t *testing.T) {
	n, a := found(t, "a")
	// The crash came before cluster.json.
	if err := os.Remove(filepath.Join(n.dir, clusterFile)); err != nil {
		t.Fatal(err)
	}
	n, err := Open(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Found(t.Context(), FoundOptions{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Cluster().ID != b.Cluster().ID {
		t.Fatal("the second attempt made another cluster")
	}
}

func TestBundleMakesAMaster(t *testing.T) {
	_, a := found(t, "a")
	dir := t.TempDir()
	if _, err := OpenAuthority(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("open nothing: %v", err)
	}
	if _, err := SaveBundle(dir, a.Bundle()); err != nil {
		t.Fatal(err)
	}
	b, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := a.Sealer().Seal([]byte("secret"), []byte("ns/name"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := b.Sealer().Open(sealed, []byte("ns/name")); err != nil || string(plain) != "secret" {
		t.Fatalf("the other master opens %q, %v", plain, err)
	}
	if _, err := b.Sealer().Open(sealed, []byte("ns/other")); err == nil {
		t.Fatal("a sealed value opened in another place")
	}
	for i := range sealed {
		bad := slices.Clone(sealed)
		bad[i] ^= 1
		if _, err := b.Sealer().Open(bad, []byte("ns/name")); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	// A bundle whose CA key is another's is refused.
	_, other := found(t, "b")
	var x, y bundle
	if json.Unmarshal(a.Bundle(), &x) != nil || json.Unmarshal(other.Bundle(), &y) != nil {
		t.Fatal("bundles are not JSON")
	}
	x.CAKey = y.CAKey
	mixed, _ := json.Marshal(x)
	if _, err := SaveBundle(dir, mixed); err == nil {
		t.Fatal("took a mixed bundle")
	}
}

func TestSignNode(t *testing.T) {
	_, a := found(t, "a")
	n := fresh(t)
	csr, err := n.CSR("b", nil)
	if err != nil {
		t.Fatal(err)
	}
	ips := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("127.0.0.1")}
	certPEM, err := a.SignNode(csr, "b", ips, nil, true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := parseCert(certPEM)
	if id, err := leafID(leaf); err != nil || id != n.ID() {
		t.Fatalf("id %s, %v", id, err)
	}
	if leafEligible(leaf) {
		t.Error("a --no-master node is eligible")
	}
	if len(leaf.IPAddresses) != 1 {
		t.Errorf("addresses %v: those of the API server or of everybody must not be a node's", leaf.IPAddresses)
	}
	for _, name := range []string{"kubernetes", "localhost", "kubernetes.default.svc", "UPPER", ""} {
		if _, err := a.SignNode(csr, name, nil, nil, false, time.Now()); err == nil {
			t.Errorf("signed for the name %q", name)
		}
	}
	if _, _, err := a.SignClient("system:node:b", nil, time.Hour); err == nil {
		t.Error("signed a client certificate that passes for a node")
	}
}

func TestServing(t *testing.T) {
	_, a := found(t, "a")
	now := time.Now()
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	get := a.serving([]string{"node-a", nodeURI("0123").String()}, func() []netip.Addr { return addrs }, func() time.Time { return now })
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Cluster().CA)
	mint := func() *x509.Certificate {
		c, err := get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	first := mint()
	for _, name := range []string{"kubernetes", "kubernetes.default.svc.cluster.local", "localhost", "127.0.0.1", "10.96.0.1", "192.0.2.1", "node-a"} {
		if _, err := first.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if id, _ := uriID(first); id != "0123" {
		t.Errorf("it names the node %q", id)
	}
	if mint() != first {
		t.Error("minted again without need")
	}
	addrs = append(addrs, netip.MustParseAddr("192.0.2.2"))
	second := mint()
	if second == first || second.VerifyHostname("192.0.2.2") != nil {
		t.Error("kept the certificate of the old addresses")
	}
	now = now.Add(servingLife)
	if third := mint(); third == second || !third.NotAfter.After(now) {
		t.Error("kept an old certificate")
	}
	now = time.Unix(0, 0) // the clock fell back to 1970
	if c := mint(); time.Now().After(c.NotAfter) {
		t.Error("issued into its own past")
	}
}

func TestJoinAndRenew(t *testing.T) {
	master, a := found(t, "a")
	certs := selfSigning(t, master, a, nil)
	live, gone := map[string]string{"a": master.ID()}, map[string]bool{}
	server := JoinServer{
		Authority: func() *Authority { return a },
		Admit: func(_ context.Context, name, id string, renews bool) error {
			if renews && gone[name] {
				return ErrRefused
			}
			if has := live[name]; has != "" && has != id {
				return ErrNameTaken
			}
			return nil
		},
		Peers: func() []string { return []string{"192.0.2.1:7946"} },
	}
	addr := serve(t, certs.Server(ProtoJoin), joinMux(server))
	// A node that is no master refers to one.
	server.Authority = func() *Authority { return nil }
	server.Masters = func() []string { return []string{addr} }
	via := serve(t, certs.Server(ProtoJoin), joinMux(server))

	_, otherA := found(t, "x")
	otherNode, otherAuthority := found(t, "y")
	otherAddr := serve(t, selfSigning(t, otherNode, otherAuthority, nil).Server(ProtoJoin),
		joinMux(JoinServer{Authority: func() *Authority { return otherAuthority }}))
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()

	wrong := a.Token([]string{addr})
	wrong.Secret = []byte("not the secret..")
	for _, test := range []struct {
		name  string
		token Token
		node  string
		want  error
	}{
		{"wrong secret", wrong, "b", ErrWrongToken},
		{"name of a live node", a.Token([]string{addr}), "a", ErrNameTaken},
		{"another cluster's address", a.Token([]string{otherAddr}), "b", ErrOtherCluster},
		{"another cluster's token", otherA.Token([]string{addr}), "b", ErrOtherCluster},
		{"nobody there", a.Token([]string{nobody}), "b", ErrUnreachable},
		{"no address", a.Token(nil), "b", ErrUnreachable},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := fresh(t)
			_, err := Join(t.Context(), JoinConfig{Token: test.token, Node: n, Name: test.node})
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the message has several lines: %q", err)
			}
			if _, ok := n.Cluster(); ok {
				t.Fatal("it is a member all the same")
			}
		})
	}

	n := fresh(t)
	reply, err := Join(t.Context(), JoinConfig{Token: a.Token([]string{nobody, otherAddr, via}), Node: n, Name: "b", NoMaster: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(reply.Peers, []string{"192.0.2.1:7946"}) {
		t.Errorf("peers %v", reply.Peers)
	}
	n, err = Open(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := n.Cluster()
	if !ok || n.Name() != "b" || !n.NoMaster() || c.ID != a.Cluster().ID || len(c.JoinSecret) != 0 {
		t.Fatalf("after joining: %q, %+v", n.Name(), c)
	}
	if _, err := Join(t.Context(), JoinConfig{Token: a.Token([]string{addr}), Node: n, Name: "b"}); !errors.Is(err, ErrMember) {
		t.Fatalf("second join: %v", err)
	}

	renew := RenewFrom(n, func() []string { return []string{nobody, via} })
	ip := netip.MustParseAddr("192.0.2.9")
	csr, _ := n.CSR("another-name", []netip.Addr{ip})
	certPEM, err := renew(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := parseCert(certPEM)
	if name, _ := leafName(leaf); name != "b" || leafEligible(leaf) || !covers(leaf, []netip.Addr{ip}) {
		t.Errorf("renewed as %s, eligible %v, for %v", name, leafEligible(leaf), leaf.IPAddresses)
	}
	// Another key does not get this node's certificate.
	thief, _ := fresh(t).CSR("b", nil)
	if _, err := renew(t.Context(), thief); !errors.Is(err, ErrRefused) {
		t.Errorf("another key: %v", err)
	}
	gone["b"] = true
	if _, err := renew(t.Context(), csr); !errors.Is(err, ErrRefused) {
		t.Errorf("renewal of a node that was removed: %v", err)
	}
	delete(gone, "b")
	live["b"] = "somebody else"
	if _, err := renew(t.Context(), csr); !errors.Is(err, ErrNameTaken) {
		t.Errorf("renewal of a node whose name another has: %v", err)
	}
}

// handshake connects two configs.
func handshake(t *testing.T, server, client *tls.Config, proto string) (sErr, cErr error, s, c tls.ConnectionState) {
	t.Helper()
	// Not net.Pipe: it has no buffer, and both ends may send an alert at once.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	client = client.Clone()
	client.NextProtos = []string{proto}
	done := make(chan error, 1)
	srv := tls.Server(a, server)
	go func() {
		err := srv.HandshakeContext(t.Context())
		if err == nil { // the client learns of a refusal only by reading
			_, err = srv.Write([]byte{1})
		}
		a.Close()
		done <- err
	}()
	cli := tls.Client(b, client)
	if cErr = cli.HandshakeContext(t.Context()); cErr == nil {
		_, cErr = cli.Read(make([]byte, 1))
	}
	b.Close()
	sErr = <-done
	return sErr, cErr, srv.ConnectionState(), cli.ConnectionState()
}

// joined makes a second member without a network.
func joined(t *testing.T, a *Authority, name string, now time.Time) *Node {
	t.Helper()
	n := fresh(t)
	csr, err := n.CSR(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.SignNode(csr, name, nil, nil, false, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.enter(membership{Name: name, Cluster: a.Cluster()}, cert); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestClocks(t *testing.T) {
	const proto = "conclave-node/1"
	na, a := found(t, "a")
	nb := joined(t, a, "b", time.Now())
	day := 24 * time.Hour
	for _, test := range []struct {
		name          string
		ours, theirs  time.Duration
		node, joining bool // does the handshake pass
	}{
		{"right clocks", 0, 0, true, true},
		{"one at 1970", -56 * 365 * day, 0, true, true},
		{"both at 1970", -56 * 365 * day, -56 * 365 * day, true, true},
		{"five days ahead", 5 * day, 0, true, true},
		{"ended within the grace", 7*day + 5*time.Minute, 0, true, true},
		{"a year ahead", 365 * day, 0, false, true},
		{"both a year ahead", 365 * day, 365 * day, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ca := selfSigning(t, na, a, func() time.Time { return time.Now().Add(test.ours) })
			cb := selfSigning(t, nb, a, func() time.Time { return time.Now().Add(test.theirs) })
			for proto, want := range map[string]bool{proto: test.node, ProtoJoin: test.joining} {
				sErr, cErr, s, _ := handshake(t, ca.Server(proto), cb.Client(na.ID()), proto)
				if ok := sErr == nil && cErr == nil; ok != want {
					t.Errorf("%s: passes: %v; server %v; client %v", proto, ok, sErr, cErr)
				}
				if id, ok := PeerID(&s); want && (ok != (proto != ProtoJoin) || ok && id != nb.ID()) {
					t.Errorf("%s: the peer is %q, %v", proto, id, ok)
				}
			}
		})
	}
}

func TestPeersAreToldApart(t *testing.T) {
	const proto = "conclave-raft/1"
	na, a := found(t, "a")
	nb := joined(t, a, "b", time.Now())
	ca, cb := selfSigning(t, na, a, nil), selfSigning(t, nb, a, nil)
	nx, x := found(t, "x")
	cx := selfSigning(t, nx, x, nil)

	if sErr, cErr, s, c := handshake(t, ca.Server(proto), cb.Client(na.ID()), proto); sErr != nil || cErr != nil || !PeerEligible(&s) {
		t.Fatalf("%v, %v", sErr, cErr)
	} else if name, _ := PeerName(&c); name != "a" {
		t.Fatalf("the server is %q", name)
	}
	if _, cErr, _, _ := handshake(t, ca.Server(proto), cb.Client(nb.ID()), proto); cErr == nil || !strings.Contains(cErr.Error(), na.ID()) {
		t.Errorf("the address of another node: %v", cErr)
	}
	if sErr, cErr, _, _ := handshake(t, ca.Server(proto), cx.Client(""), proto); sErr == nil && cErr == nil {
		t.Error("a node of another cluster connected")
	}
	if sErr, _, _, _ := handshake(t, ca.Server(proto), &tls.Config{InsecureSkipVerify: true}, proto); sErr == nil {
		t.Error("a peer without a certificate connected")
	}
	// An administrator is no node, on either end.
	certPEM, keyPEM, err := a.SignClient("admin", []string{"system:masters"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if sErr, _, _, _ := handshake(t, ca.Server(proto), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{admin}}, proto); sErr == nil {
		t.Error("an administrator passed for a node")
	}
	if _, cErr, _, _ := handshake(t, &tls.Config{Certificates: []tls.Certificate{admin}, NextProtos: []string{proto}}, cb.Client(""), proto); cErr == nil {
		t.Error("an administrator's certificate served as a node")
	}
	// The API's serving certificate serves the API, under the right id.
	for _, test := range []struct {
		names []string
		ok    bool
	}{{nil, true}, {[]string{nodeURI(na.ID()).String()}, true}, {[]string{nodeURI("other").String()}, false}} {
		serving, err := a.SignServing(test.names, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, cErr, _, _ := handshake(t, &tls.Config{Certificates: []tls.Certificate{*serving}, NextProtos: []string{"h2"}}, cb.Client(na.ID()), "h2")
		if (cErr == nil) != test.ok {
			t.Errorf("serving certificate for %v: %v", test.names, cErr)
		}
	}
}

func TestRunRenews(t *testing.T) {
	n, a := found(t, "a")
	var offset atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	var addrs atomic.Pointer[[]netip.Addr]
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.96.0.1")})
	renewed := make(chan *x509.Certificate)
	fail := make(chan struct{}, 1)
	c, err := NewCertificates(CertificatesConfig{Node: n, Now: clock,
		Addresses: func() []netip.Addr { return *addrs.Load() },
		Renew: func(ctx context.Context, csr []byte) ([]byte, error) {
			select {
			case <-fail:
				return nil, errors.New("no master")
			default:
			}
			data, err := a.SignNode(csr, n.Name(), *addrs.Load(), nil, false, clock())
			if err != nil {
				return nil, err
			}
			leaf, _ := parseCert(data)
			select {
			case renewed <- leaf:
			case <-ctx.Done():
			}
			return data, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	next := func(why string) *x509.Certificate {
		t.Helper()
		select {
		case leaf := <-renewed:
			return leaf
		case <-time.After(20 * time.Second):
			t.Fatalf("no renewal: %s", why)
			return nil
		}
	}
	// At start: the certificate lacks 10.96.0.1, which no authority gives; it
	// asks once.
	first := next("an address is missing")

	addrs.Store(&[]netip.Addr{netip.MustParseAddr("192.0.2.50")})
	fail <- struct{}{} // the first attempt fails; it is tried again
	c.Kick()
	if leaf := next("the address changed"); leaf.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Fatal("the same certificate again")
	}
	// The clock jumps forward past the end; the next handshake notices.
	offset.Store(int64(30 * 24 * time.Hour))
	deadline := time.Now().Add(10 * time.Second)
	for exp, _ := c.Expires(); exp.Before(clock()) && time.Now().Before(deadline); exp, _ = c.Expires() {
		if _, err := c.own(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-renewed:
		case <-time.After(time.Millisecond):
		}
	}
	if exp, _ := c.Expires(); exp.Before(clock()) {
		t.Fatal("the jump forward was not noticed")
	}
	// It jumps back to 1970: nothing is asked for, and the certificate still
	// passes.
	offset.Store(-int64(time.Since(time.Unix(0, 0))))
	if sErr, cErr, _, _ := handshake(t, c.Server("p"), c.Client(n.ID()), "p"); sErr != nil || cErr != nil {
		t.Fatalf("%v, %v", sErr, cErr)
	}
	offset.Store(0)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	again, err := Open(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := parseCert(again.certPEM())
	if exp, _ := c.Expires(); err != nil || !leaf.NotAfter.Equal(exp) {
		t.Fatalf("stored certificate: %v", err)
	}
}

func TestACertificateOfASlowClockIsDropped(t *testing.T) {
	n, a := found(t, "a")
	before, _ := parseCert(n.certPEM())
	c, err := NewCertificates(CertificatesConfig{Node: n, Renew: func(_ context.Context, csr []byte) ([]byte, error) {
		a.ca.NotBefore = time.Now().Add(-100 * 24 * time.Hour) // so that the floor does not help
		return a.SignNode(csr, "a", nil, nil, false, time.Now().Add(-6*24*time.Hour))
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.renew(t.Context()); err == nil {
		t.Fatal("took a certificate that ends sooner")
	}
	if exp, _ := c.Expires(); !exp.Equal(before.NotAfter) {
		t.Fatal("the certificate in use changed")
	}
}

func TestToken(t *testing.T) {
	_, a := found(t, "a")
	want := a.Token([]string{"192.0.2.1:6443", "[2001:db8::1]:6443", "host.example:6443"})
	text := want.String()
	got, err := ParseToken(" " + text + "\n")
	if err != nil || got.CAHash != want.CAHash || string(got.Secret) != string(want.Secret) || !slices.Equal(got.Addresses, want.Addresses) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := len(tokenPrefix); i < len(text); i++ {
		if _, err := ParseToken(text[:i]); !errors.Is(err, ErrTokenTruncated) {
			t.Fatalf("cut after %d: %v", i, err)
		}
		c := byte('A')
		if text[i] == c {
			c = 'B'
		}
		if _, err := ParseToken(text[:i] + string(c) + text[i+1:]); !errors.Is(err, ErrTokenTypo) && !errors.Is(err, ErrTokenTruncated) {
			t.Fatalf("typing error at %d: %v", i, err)
		}
	}
	for s, want := range map[string]error{
		"conclave2.AAAA": ErrTokenVersion, "conclave12.": ErrTokenVersion, "conclave": ErrTokenForm, "": ErrTokenForm,
		"kubeadm.abc": ErrTokenForm, "conclave1.": ErrTokenTruncated, text + "A": ErrTokenTypo, "conclave1.!!!!": ErrTokenTypo,
	} {
		if _, err := ParseToken(s); !errors.Is(err, want) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{Secret: []byte("0123456789abcdef"), Addresses: []string{"192.0.2.1:6443", "[::1]:1", "h:1"}}.String())
	f.Add("conclave1.AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(token.String())
		if err != nil {
			t.Fatalf("%q reads as %+v, whose text does not read: %v", s, token, err)
		}
		if again.CAHash != token.CAHash || string(again.Secret) != string(token.Secret) {
			t.Fatalf("%+v became %+v", token, again)
		}
	})
}

// What a node sealed opens after a restart, and on no other node.
func TestNodeSealer(t *testing.T) {
	n := fresh(t)
	s, err := n.Sealer()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal([]byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	for who, reader := range map[string]*Node{"itself": again, "another": fresh(t)} {
		s, err := reader.Sealer()
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := s.Open(sealed, nil); (err == nil && string(plain) == "secret") != (who == "itself") {
			t.Errorf("%s reads %q, %v", who, plain, err)
		}
	}
}

// A dual-stack cluster has unique local ranges of its own, unless it is given
// some; one without says nothing of IPv6.
func TestDualStackRanges(t *testing.T) {
	one := func(o FoundOptions) (Cluster, error) {
		o.Name = "a"
		dir := filepath.Join(t.TempDir(), "identity")
		n, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Found(t.Context(), o); err != nil {
			return Cluster{}, err
		}
		again, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := again.Cluster()
		return c, nil
	}
	single, err := one(FoundOptions{})
	if err != nil || single.PodCIDR6.IsValid() || single.ServiceCIDR6.IsValid() {
		t.Errorf("%v, %v, %v", single.PodCIDR6, single.ServiceCIDR6, err)
	}
	local := netip.MustParsePrefix("fd00::/8")
	seen := map[netip.Prefix]bool{}
	for range 3 {
		c, err := one(FoundOptions{DualStack: true})
		if err != nil {
			t.Fatal(err)
		}
		site := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), 48).Masked() }
		if c.PodCIDR6.Bits() != 56 || c.ServiceCIDR6.Bits() != 112 || !local.Contains(c.PodCIDR6.Addr()) || site(c.PodCIDR6) != site(c.ServiceCIDR6) || c.PodCIDR6.Overlaps(c.ServiceCIDR6) {
			t.Errorf("%v and %v", c.PodCIDR6, c.ServiceCIDR6)
		}
		seen[c.PodCIDR6] = true
	}
	if len(seen) != 3 {
		t.Errorf("three clusters have the ranges %v", seen)
	}
	given := FoundOptions{DualStack: true, PodCIDR6: netip.MustParsePrefix("fd00:1::1/56"), ServiceCIDR6: netip.MustParsePrefix("fd00:2::/112")}
	if c, err := one(given); err != nil || c.PodCIDR6.String() != "fd00:1::/56" || c.ServiceCIDR6 != given.ServiceCIDR6 {
		t.Errorf("%v and %v, %v", c.PodCIDR6, c.ServiceCIDR6, err)
	}
	// A founder that has IPv6 alone has random ranges of it, and so has one that
	// names but one range.
	for name, o := range map[string]FoundOptions{
		"by its address":  {Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")}},
		"by its pods":     {PodCIDR: netip.MustParsePrefix("fd00:1::/56")},
		"by its services": {Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")}, ServiceCIDR: netip.MustParsePrefix("fd00:2::/112")},
	} {
		c, err := one(o)
		if err != nil || !local.Contains(c.PodCIDR.Addr()) || !local.Contains(c.ServiceCIDR.Addr()) || c.DNS != nthAddr(c.ServiceCIDR, 10) || c.PodCIDR6.IsValid() || c.ServiceCIDR6.IsValid() ||
			o.PodCIDR.IsValid() && o.PodCIDR != c.PodCIDR || o.ServiceCIDR.IsValid() && o.ServiceCIDR != c.ServiceCIDR {
			t.Errorf("%s: %v, %v, %v, %v, %v, %v", name, c.PodCIDR, c.ServiceCIDR, c.PodCIDR6, c.ServiceCIDR6, c.DNS, err)
		}
	}
	six := netip.MustParsePrefix("fd00:1::/56")
	for name, o := range map[string]FoundOptions{
		"mixed":   {PodCIDR: six, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")},
		"dual":    {PodCIDR: six, DualStack: true},
		"second":  {PodCIDR: six, PodCIDR6: netip.MustParsePrefix("fd00:3::/56"), ServiceCIDR6: netip.MustParsePrefix("fd00:2::/112")},
		"overlap": {PodCIDR6: netip.MustParsePrefix("fd00::/56"), ServiceCIDR6: netip.MustParsePrefix("fd00::/112")},
		"one":     {DualStack: true, PodCIDR6: netip.MustParsePrefix("fd00::/56")},
	} {
		if _, err := one(o); err == nil {
			t.Errorf("%s: founded", name)
		}
	}
}
