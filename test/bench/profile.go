package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"conclave/lab"
	"conclave/test/cluster"
)

// profiled does something and keeps what a host's conclave spent its processor
// time on meanwhile and a moment longer, as NAME-cpu, and what its memory is
// made of afterwards, as NAME-heap, if profiles are asked for:
//
//	go tool pprof -top bin/conclave DIR/NAME-cpu
func (b *bench) profiled(ctx context.Context, c *cluster.Cluster, h *lab.Host, name string, do func() error) error {
	if b.profiles == "" {
		return do()
	}
	const within = 4 * time.Second // of the burst; whole seconds, as the server takes them
	profile := make(chan error, 1)
	go func() {
		profile <- b.keep(ctx, c, h, fmt.Sprintf("profile?seconds=%d", int(within.Seconds())), name+"-cpu")
	}()
	if err := do(); err != nil {
		return err
	}
	if err := <-profile; err != nil {
		return err
	}
	return b.keep(ctx, c, h, "heap?gc=1", name+"-heap")
}

// keep asks a host's conclave for a profile and writes it to a file.
func (b *bench) keep(ctx context.Context, c *cluster.Cluster, h *lab.Host, what, file string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Socket(h))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://conclave/debug/pprof/"+what, nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the profile %s of %s: %s", what, h.Name, resp.Status)
	}
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(b.profiles, file))
	if err != nil {
		return err
	}
	if _, err := out.ReadFrom(resp.Body); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
