package identity

import (
	"context"
	"crypto/hmac"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/time/rate"
)

// JoinServer is what JoinHandler and RenewHandler need.
type JoinServer struct {
	// Authority is nil while this node is no master: then the caller is
	// referred to Masters.
	Authority func() *Authority
	// Admit says whether the node with this name and id may become a member, or
	// where it renews, stay one: ErrNameTaken if the name is that of another
	// live node, ErrRefused if the node that renews was removed.
	Admit func(ctx context.Context, name, id string, renews bool) error
	// Peers are the gossip addresses that a new node is given.
	Peers func() []string
	// Masters are the TLS ports of masters, host:port.
	Masters func() []string
	Log     *slog.Logger
}

func (s *JoinServer) complete() {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Peers == nil {
		s.Peers = func() []string { return nil }
	}
	if s.Masters == nil {
		s.Masters = func() []string { return nil }
	}
}

// JoinHandler serves POST /conclave/v1/join, on ProtoJoin.
func JoinHandler(s JoinServer) http.Handler {
	s.complete()
	// A secret of 16 random bytes cannot be guessed; the limit spares the log.
	// It holds for wrong tokens only, so that nobody can keep others out.
	failures := rate.NewLimiter(5, 20)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := s.begin(w, r)
		if a == nil {
			return
		}
		var req JoinRequest
		if !readJSON(w, r, &req) {
			return
		}
		want, err := joinProof(a.cluster.JoinSecret, r.TLS, req.CSR, req.Name)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if !hmac.Equal(want, req.Proof) {
			if !failures.Allow() {
				http.Error(w, "too many joins failed: try again in some seconds", http.StatusTooManyRequests)
				return
			}
			s.Log.Warn("refused a join with a wrong token", "name", req.Name, "from", r.RemoteAddr)
			http.Error(w, ErrWrongToken.Error(), http.StatusUnauthorized)
			return
		}
		id, err := csrID(req.CSR)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if !s.admit(w, r, req.Name, id, false) {
			return
		}
		cert, err := a.SignNode(req.CSR, req.Name, req.Addresses, nil, req.NoMaster, time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply := JoinReply{Cert: cert, Cluster: a.Cluster(), Peers: s.Peers()}
		reply.Cluster.JoinSecret = nil
		s.Log.Info("a node joins", "name", req.Name, "id", id, "from", r.RemoteAddr)
		writeJSON(w, http.StatusOK, reply)
	})
}

// RenewHandler serves POST /conclave/v1/renew, on ProtoJoin: a node that shows
// its certificate gets the next one, for the same id, name and eligibility.
func RenewHandler(s JoinServer) http.Handler {
	s.complete()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := s.begin(w, r)
		if a == nil {
			return
		}
		leaf, err := renewable(a.ca, r.TLS, s.Admit == nil, time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		var req renewRequest
		if !readJSON(w, r, &req) {
			return
		}
		id, err := csrID(req.CSR)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if own, err := leafID(leaf); err != nil || own != id {
			http.Error(w, "the request is not of the key of the certificate shown", http.StatusForbidden)
			return
		}
		name, _ := leafName(leaf)
		if !s.admit(w, r, name, id, true) {
			return
		}
		cert, err := a.SignNode(req.CSR, name, req.Addresses, nil, !leafEligible(leaf), time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, http.StatusOK, renewReply{Cert: cert})
	})
}

// renewable returns the certificate that the caller shows, if it may be
// renewed. The TLS config checked it already where it is that of Certificates;
// it is checked again, because a handler cannot know.
func renewable(ca *x509.Certificate, cs *tls.ConnectionState, judgeAge bool, now time.Time) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("a renewal needs the certificate that is to be renewed")
	}
	leaf := cs.PeerCertificates[0]
	if err := verifyLeaf(ca, leaf, x509.ExtKeyUsageClientAuth, now, true); err != nil {
		return nil, err
	}
	if judgeAge && now.After(leaf.NotAfter.Add(renewGrace)) {
		return nil, errors.New("the certificate ended too long ago")
	}
	return leaf, nil
}

// begin checks what joins and renewals have in common. It answers and returns
// nil where the request ends here.
func (s *JoinServer) begin(w http.ResponseWriter, r *http.Request) *Authority {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST is served here", http.StatusMethodNotAllowed)
		return nil
	}
	if r.TLS == nil {
		http.Error(w, "only TLS is served here", http.StatusBadRequest)
		return nil
	}
	a := s.Authority()
	if a == nil {
		writeJSON(w, http.StatusMisdirectedRequest, elsewhere{s.Masters()})
	}
	return a
}

// admit asks Admit and answers if it refuses.
func (s *JoinServer) admit(w http.ResponseWriter, r *http.Request, name, id string, renews bool) bool {
	if s.Admit == nil {
		return true
	}
	err := s.Admit(r.Context(), name, id, renews)
	switch {
	case err == nil:
		return true
	case errors.Is(err, ErrNameTaken):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.Is(err, ErrRefused):
		http.Error(w, err.Error(), http.StatusForbidden)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
	s.Log.Warn("refused a node", "name", name, "id", id, "from", r.RemoteAddr, "err", err)
	return false
}

func csrID(der []byte) (string, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return "", err
	}
	if err := csr.CheckSignature(); err != nil {
		return "", err
	}
	return publicID(csr.PublicKey)
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		http.Error(w, "read the request: "+err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A caller that went away is no error of ours.
	_ = json.NewEncoder(w).Encode(value)
}
