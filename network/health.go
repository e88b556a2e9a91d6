package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// healthServer tells load balancers in front of the cluster, at the health
// check ports of services whose externalTrafficPolicy is Local, whether this
// node has an endpoint. Its answers are kube-proxy's.
type healthServer struct {
	log     *slog.Logger
	healthy func() bool // of the rules

	mu     sync.Mutex
	checks map[uint16]healthCheck
	served map[uint16]*http.Server
	all    sync.WaitGroup
}

func newHealthServer(log *slog.Logger, healthy func() bool) *healthServer {
	return &healthServer{log: log, healthy: healthy, served: map[uint16]*http.Server{}}
}

// set makes the ports be those of checks, and says whether one could not be
// opened.
func (h *healthServer) set(checks map[uint16]healthCheck) (failed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = checks
	for port, server := range h.served {
		if _, wanted := checks[port]; !wanted {
			_ = server.Close() // nothing of it is worth waiting for
			delete(h.served, port)
		}
	}
	for port, check := range checks {
		if h.served[port] != nil {
			continue
		}
		l, err := net.Listen("tcp", ":"+strconv.Itoa(int(port)))
		if err != nil {
			failed = true
			h.log.Warn("a service's health check port cannot be served", "service", check.service, "port", port, "err", err)
			continue
		}
		server := &http.Server{
			Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { h.answer(w, port) }),
			ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second,
			ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		}
		h.served[port] = server
		h.all.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				h.log.Warn("serving a health check port ended", "port", port, "err", err)
				h.mu.Lock()
				defer h.mu.Unlock()
				if h.served[port] == server {
					delete(h.served, port)
				}
			}
		})
	}
	return failed
}

func (h *healthServer) answer(w http.ResponseWriter, port uint16) {
	h.mu.Lock()
	check, ok := h.checks[port]
	h.mu.Unlock()
	if !ok {
		return
	}
	healthy := h.healthy()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(check.local))
	if check.local == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %t\n}",
		check.service.Namespace, check.service.Name, check.local, healthy)
}

// close ends all ports and waits for their servers.
func (h *healthServer) close() {
	h.set(nil)
	h.all.Wait()
}
