package cli

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"conclave/api/csi"
	"conclave/identity"
)

const longestDriverCall = 4 << 20

// callDriver makes a call of a CSI driver that runs on a node.
func (s *Server) callDriver(ctx context.Context, _, id, driver, method string, request []byte) ([]byte, error) {
	if id == s.node.ID() {
		return s.agent.CallDriver(ctx, driver, method, request)
	}
	answer, err := s.dialer.Call(ctx, id, "/conclave/v1/csi?"+url.Values{"driver": {driver}, "method": {method}}.Encode(), request)
	if err != nil {
		return nil, err
	}
	return csi.Unpack(answer)
}

// serveDriver makes such a call for the leader. The request may hold secrets,
// and the driver whatever the cluster's data is: only a node that may lead is
// listened to.
func (s *Server) serveDriver(w http.ResponseWriter, r *http.Request) {
	if peerOf(r) == "" || !identity.PeerEligible(r.TLS) {
		http.Error(w, "only a master may call a driver", http.StatusForbidden)
		return
	}
	request, err := io.ReadAll(http.MaxBytesReader(w, r.Body, longestDriverCall))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := csi.Pack(s.agent.CallDriver(r.Context(), r.URL.Query().Get("driver"), r.URL.Query().Get("method"), request))
	if _, err := w.Write(answer); err != nil {
		s.log.Debug("the answer of a driver was not delivered", "err", err)
	}
}
