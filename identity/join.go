package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

const (
	joinPath  = "/conclave/v1/join"
	renewPath = "/conclave/v1/renew"

	dialTimeout = 5 * time.Second
	// exporterLabel and proofPrefix bind a proof to one TLS connection and one
	// purpose.
	exporterLabel = "EXPORTER-conclave-join"
	proofPrefix   = "conclave join 1\n"
	maxBody       = 1 << 20
)

// DialFunc opens a TCP connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// JoinRequest asks for membership. Proof shows that the joiner knows the
// token's secret without telling it: a node that lets somebody join through it
// learns nothing that would let it join others.
type JoinRequest struct {
	Proof     []byte       `json:"proof"`
	CSR       []byte       `json:"csr"` // DER
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	NoMaster  bool         `json:"noMaster,omitempty"`
}

// JoinReply is what makes a node a member.
type JoinReply struct {
	Cert    []byte   `json:"cert"`    // PEM
	Cluster Cluster  `json:"cluster"` // without JoinSecret
	Peers   []string `json:"peers"`   // gossip addresses
}

// renewRequest asks for the next certificate; the TLS connection says whose.
type renewRequest struct {
	CSR       []byte       `json:"csr"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

type renewReply struct {
	Cert []byte `json:"cert"`
}

// elsewhere is the body of 421 Misdirected Request: this node is no master,
// these are.
type elsewhere struct {
	Masters []string `json:"masters"`
}

// joinProof is what a joiner sends instead of the secret.
func joinProof(secret []byte, cs *tls.ConnectionState, csr []byte, name string) ([]byte, error) {
	channel, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("bind the join to its connection: %w", err)
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(proofPrefix))
	mac.Write(channel)
	mac.Write([]byte(name + "\n"))
	mac.Write(csr)
	return mac.Sum(nil), nil
}

// JoinConfig says who joins what.
type JoinConfig struct {
	Token     Token
	Node      *Node // in no cluster
	Name      string
	Addresses []netip.Addr // the node's own
	NoMaster  bool
	// Extra are addresses to try besides the token's: typed by the user, or
	// found on the LAN.
	Extra []string
	Dial  DialFunc // net.Dialer's by default
	// Accept may refuse the cluster, before this node is a member of it.
	Accept func(Cluster) error
}

// Join makes the node a member: it connects to every address at the same time,
// and asks the first one that shows the token's CA, then the others. Masters
// that a node refers to are asked too. When it returns without an error the
// membership is on the disk.
func Join(ctx context.Context, c JoinConfig) (*JoinReply, error) {
	if _, ok := c.Node.Cluster(); ok {
		return nil, ErrMember
	}
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	csr, err := c.Node.CSR(c.Name, c.Addresses)
	if err != nil {
		return nil, err
	}
	var caPEM []byte
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{ProtoJoin},
		// The pin replaces the names of hosts and the system's roots.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := verifyPinned(cs, c.Token.CAHash)
			return err
		},
	}
	var reply JoinReply
	err = askAny(ctx, slices.Concat(c.Token.Addresses, c.Extra), config, c.Dial, joinPath,
		func(cs *tls.ConnectionState) (any, error) {
			proof, err := joinProof(c.Token.Secret, cs, csr, c.Name)
			return JoinRequest{Proof: proof, CSR: csr, Name: c.Name, Addresses: c.Addresses, NoMaster: c.NoMaster}, err
		},
		func(cs *tls.ConnectionState, body []byte) error {
			ca, err := verifyPinned(*cs, c.Token.CAHash)
			if err != nil {
				return err
			}
			caPEM = certToPEM(ca.Raw)
			reply = JoinReply{}
			return json.Unmarshal(body, &reply)
		})
	if err != nil {
		return nil, fmt.Errorf("join the cluster: %w", err)
	}
	// The CA is the one that was pinned, whatever the reply says.
	reply.Cluster.CA, reply.Cluster.JoinSecret = caPEM, nil
	if len(reply.Cluster.GossipKey) != 32 || reply.Cluster.ID == "" {
		return nil, errors.New("join the cluster: the answer says too little of the cluster")
	}
	leaf, err := parseCert(reply.Cert)
	if err != nil {
		return nil, fmt.Errorf("join the cluster: read the certificate in the answer: %w", err)
	}
	if id, err := leafID(leaf); err != nil || id != c.Node.ID() {
		return nil, fmt.Errorf("join the cluster: the certificate in the answer is not this node's")
	}
	if c.Accept != nil {
		if err := c.Accept(reply.Cluster); err != nil {
			return nil, err
		}
	}
	m := membership{Name: c.Name, NoMaster: c.NoMaster, Cluster: reply.Cluster}
	if err := c.Node.enter(m, reply.Cert); err != nil {
		return nil, err
	}
	return &reply, nil
}

// verifyPinned checks that the peer is a node of the cluster whose CA has this
// hash, and returns the CA's certificate. The times are not judged: a joining
// node's clock may be anything.
func verifyPinned(cs tls.ConnectionState, caHash [32]byte) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("the peer shows no certificate")
	}
	for _, ca := range cs.PeerCertificates[1:] {
		if sum := sha256.Sum256(ca.Raw); subtle.ConstantTimeCompare(sum[:], caHash[:]) != 1 {
			continue
		}
		if err := verifyLeaf(ca, cs.PeerCertificates[0], x509.ExtKeyUsageServerAuth, time.Time{}, true); err != nil {
			return nil, err
		}
		_, err := leafID(cs.PeerCertificates[0])
		return ca, err
	}
	return nil, ErrOtherCluster
}

// RenewFrom is a CertificatesConfig.Renew for a node that is no master: it
// asks masters (host:port of TLS ports) to sign.
func RenewFrom(n *Node, masters func() []string) func(ctx context.Context, csrDER []byte) ([]byte, error) {
	return func(ctx context.Context, csrDER []byte) ([]byte, error) {
		cluster, ok := n.Cluster()
		if !ok {
			return nil, errors.New("renew: the node is in no cluster")
		}
		csr, err := x509.ParseCertificateRequest(csrDER)
		if err != nil {
			return nil, fmt.Errorf("renew: read the request: %w", err)
		}
		config := &tls.Config{
			MinVersion:         tls.VersionTLS13,
			NextProtos:         []string{ProtoJoin},
			InsecureSkipVerify: true, // as in Join
			VerifyConnection: func(cs tls.ConnectionState) error {
				_, err := verifyPinned(cs, cluster.CAHash())
				return err
			},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				leaf, err := parseCert(n.certPEM())
				if err != nil {
					return nil, fmt.Errorf("read the certificate to renew: %w", err)
				}
				return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: n.key, Leaf: leaf}, nil
			},
		}
		req := renewRequest{CSR: csrDER}
		for _, ip := range csr.IPAddresses {
			if a, ok := netip.AddrFromSlice(ip); ok {
				req.Addresses = append(req.Addresses, a.Unmap())
			}
		}
		var reply renewReply
		err = askAny(ctx, masters(), config, nil, renewPath,
			func(*tls.ConnectionState) (any, error) { return req, nil },
			func(_ *tls.ConnectionState, body []byte) error {
				reply = renewReply{}
				return json.Unmarshal(body, &reply)
			})
		if err != nil {
			return nil, fmt.Errorf("renew the node's certificate: %w", err)
		}
		return reply.Cert, nil
	}
}

// refusals are the answers that every master of the cluster would give, by
// status code.
var refusals = map[int]error{
	http.StatusUnauthorized: ErrWrongToken,
	http.StatusConflict:     ErrNameTaken,
	http.StatusForbidden:    ErrRefused,
	http.StatusBadRequest:   nil, // the body says it
}

// askAny connects to all addresses at once, and posts a request over one
// connection after the other, in the order in which they came up, until one is
// answered. A 421 adds the masters that it names to the addresses.
func askAny(ctx context.Context, addrs []string, config *tls.Config, dial DialFunc, path string,
	request func(*tls.ConnectionState) (any, error), accept func(*tls.ConnectionState, []byte) error) error {

	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithCancel(ctx)
	type attempt struct {
		addr string
		conn *tls.Conn
		err  error
	}
	attempts := make(chan attempt)
	seen := map[string]bool{}
	running := 0
	start := func(addrs []string) {
		for _, addr := range addrs {
			if seen[addr] || len(seen) > 256 {
				continue
			}
			seen[addr] = true
			running++
			go func() {
				conn, err := dialTLS(ctx, dial, addr, config)
				attempts <- attempt{addr, conn, err}
			}()
		}
	}
	defer func() { // wait for what was started
		cancel()
		for ; running > 0; running-- {
			if a := <-attempts; a.conn != nil {
				a.conn.Close()
			}
		}
	}()
	start(addrs)
	if running == 0 {
		return fmt.Errorf("%w: there is no address to ask; give one after the token", ErrUnreachable)
	}
	var failures []error
	for running > 0 {
		a := <-attempts
		running--
		if a.err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", a.addr, a.err))
			continue
		}
		err := ask(ctx, a.conn, path, request, accept)
		a.conn.Close()
		if err == nil {
			return nil
		}
		var refused *refusal
		if errors.As(err, &refused) {
			return fmt.Errorf("%s: %w", a.addr, err)
		}
		var other *elsewhereError
		if errors.As(err, &other) {
			start(other.masters)
		}
		failures = append(failures, fmt.Errorf("%s: %w", a.addr, err))
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w (%w)", errors.Join(failures...), err)
	}
	// Another cluster's answer is the most telling of several failures.
	for _, err := range failures {
		if errors.Is(err, ErrOtherCluster) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, joinLines(failures))
}

// joinLines puts errors into one line.
func joinLines(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

func dialTLS(ctx context.Context, dial DialFunc, addr string, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// refusal is an answer that asking somebody else would not change.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// elsewhereError is the answer of a node that is no master.
type elsewhereError struct{ masters []string }

func (e *elsewhereError) Error() string {
	if len(e.masters) == 0 {
		return "it is no master and knows none"
	}
	return "it is no master; it names " + strings.Join(e.masters, ", ")
}

// ask posts one request over a connection that was made for it.
func ask(ctx context.Context, conn *tls.Conn, path string,
	request func(*tls.ConnectionState) (any, error), accept func(*tls.ConnectionState, []byte) error) error {

	cs := conn.ConnectionState()
	value, err := request(&cs)
	if err != nil {
		return err
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	client, err := new(http2.Transport).NewClientConn(conn)
	if err != nil {
		return err
	}
	defer client.Close()
	// A master may have to commit something before it answers.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://conclave"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return accept(&cs, body)
	}
	if resp.StatusCode == http.StatusMisdirectedRequest {
		var e elsewhere
		if err := json.Unmarshal(body, &e); err != nil {
			return fmt.Errorf("read who the masters are: %w", err)
		}
		return &elsewhereError{e.Masters}
	}
	text := strings.TrimSpace(string(body))
	known, definite := refusals[resp.StatusCode]
	switch {
	case known != nil:
		return &refusal{known}
	case definite:
		return &refusal{errors.New(text)}
	}
	return fmt.Errorf("it answers %s: %s", resp.Status, text)
}
