package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

type probeKind string

const (
	liveness  probeKind = "Liveness"
	readiness probeKind = "Readiness"
	startup   probeKind = "Startup"
)

// probeKey is one probe of one start of a container.
type probeKey struct {
	id   string
	kind probeKind
}

// probeResult is what a probe has come to, after its thresholds, and how often
// it came out how.
type probeResult struct {
	known, good bool
	counts      map[string]uint64 // by the outcomes below
}

// The outcomes of one probe, as metrics name them.
const (
	probeSuccessful = "successful"
	probeFailed     = "failed"
	probeUnknown    = "unknown" // the probe itself did not work
)

// isReady says whether a running container's readiness probe is satisfied; one
// without a probe is ready.
func (w *podWorker) isReady(c *corev1.Container, id string) bool {
	if !probes(c.ReadinessProbe) {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.probes[probeKey{id, readiness}]
	return r != nil && r.good
}

// probes says whether a probe asks for anything that can be done.
func probes(p *corev1.Probe) bool {
	return p != nil && (p.Exec != nil || p.HTTPGet != nil || p.TCPSocket != nil || p.GRPC != nil)
}

// syncProbes makes the probers exactly those of the containers that run.
func (w *podWorker) syncProbes(o observed) {
	want := map[probeKey]bool{}
	for kind, c := range everyContainer(w.pod) {
		v := o.containers[c.Name]
		if kind == initial || kind == ephemeral || !v.running || v.hooking {
			continue
		}
		id := containerID(c.Name, v.attempt)
		if !v.up { // the other probes wait
			want[probeKey{id, startup}] = w.pod.DeletionTimestamp == nil
			continue
		}
		want[probeKey{id, readiness}] = probes(c.ReadinessProbe)
		want[probeKey{id, liveness}] = probes(c.LivenessProbe) && w.pod.DeletionTimestamp == nil
	}
	for k, stop := range w.probers {
		if !want[k] {
			stop()
			delete(w.probers, k)
			w.mu.Lock()
			delete(w.probes, k)
			w.mu.Unlock()
		}
	}
	for k, due := range want {
		if due && w.probers[k] == nil {
			w.startProber(k)
		}
	}
}

func (w *podWorker) startProber(k probeKey) {
	name, attempt, _ := splitContainerID(k.id)
	c := containerNamed(w.pod, name).DeepCopy()
	p, result := c.StartupProbe, &probeResult{}
	switch k.kind {
	case liveness:
		p, result.good = c.LivenessProbe, true
	case readiness:
		p = c.ReadinessProbe
		// One that an earlier process of ours found ready stays so until
		// its probe says otherwise.
		if s := statusOf(w.pod, name); s != nil && s.ContainerID == fullContainerID(w.pod, name, attempt) {
			result.good = s.Ready
		}
	}
	w.mu.Lock()
	w.probes[k] = result
	w.mu.Unlock()
	ctx, stop := context.WithCancel(w.ctx)
	w.probers[k] = stop
	started := w.a.cfg.Now()
	for _, s := range w.a.cfg.Runtime.Containers(string(w.uid)) {
		if s.ID == k.id && !s.StartedAt.IsZero() {
			started = s.StartedAt
		}
	}
	host := first(w.podIPs())
	w.wg.Go(func() {
		pr := prober{w: w, key: k, container: c, probe: p, podIP: host}
		pr.run(ctx, started.Add(time.Duration(p.InitialDelaySeconds)*time.Second))
	})
}

// prober runs one probe until its context ends.
type prober struct {
	w         *podWorker
	key       probeKey
	container *corev1.Container
	probe     *corev1.Probe
	podIP     string
}

func (p *prober) run(ctx context.Context, firstAt time.Time) {
	timer := time.NewTimer(max(firstAt.Sub(p.w.a.cfg.Now()), 0))
	defer timer.Stop()
	period := time.Duration(max(p.probe.PeriodSeconds, 1)) * time.Second
	if p.probe.PeriodSeconds == 0 {
		period = 10 * time.Second
	}
	streak, last := int32(0), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(period)
		good, output, err := p.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// Neither good nor bad: the probe itself did not work.
			p.w.countProbe(p.key, probeUnknown)
			p.w.event(p.container, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe errored: %v", p.key.kind, err))
			continue
		}
		if good {
			p.w.countProbe(p.key, probeSuccessful)
		} else {
			p.w.countProbe(p.key, probeFailed)
			p.w.event(p.container, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", p.key.kind, output))
		}
		if good != last {
			streak = 0
		}
		streak, last = streak+1, good
		threshold := max(p.probe.SuccessThreshold, 1)
		if !good {
			threshold = p.probe.FailureThreshold
			if threshold == 0 {
				threshold = 3
			}
		}
		if streak >= threshold {
			p.w.probed(p.key, good)
		}
	}
}

func (w *podWorker) countProbe(k probeKey, outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.probes[k]; r != nil {
		if r.counts == nil {
			r.counts = map[string]uint64{}
		}
		r.counts[outcome]++
	}
}

// probed takes in what a probe found.
func (w *podWorker) probed(k probeKey, good bool) {
	w.mu.Lock()
	r := w.probes[k]
	changed := r != nil && (!r.known || r.good != good)
	if r != nil {
		r.known, r.good = true, good
	}
	w.mu.Unlock()
	if changed {
		poke(w.wake)
	}
}

const probeMaxOutput = 10 << 10

func (p *prober) once(ctx context.Context) (good bool, output string, err error) {
	timeout := time.Duration(max(p.probe.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.probe.Exec != nil:
		return p.exec(ctx, timeout)
	case p.probe.HTTPGet != nil:
		return p.http(ctx)
	case p.probe.GRPC != nil:
		return p.grpc(ctx)
	}
	return p.tcp(ctx)
}

// limitedBuffer keeps the beginning of what is written.
type limitedBuffer struct {
	bytes.Buffer
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.Buffer.Write(p[:n])
	return len(p), nil
}

func (p *prober) exec(ctx context.Context, timeout time.Duration) (bool, string, error) {
	out := &limitedBuffer{left: probeMaxOutput}
	code, err := p.w.a.cfg.Runtime.Exec(ctx, string(p.w.uid), p.key.id, p.probe.Exec.Command, false, nil, out, out, nil)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false, fmt.Sprintf("command timed out: %q timed out after %v", strings.Join(p.probe.Exec.Command, " "), timeout), nil
	}
	if err != nil {
		return false, "", err
	}
	return code == 0, out.String(), nil
}

// probeDialer tries one address, once, and leaves no connection lingering.
var probeDialer = &net.Dialer{KeepAlive: -1}

func (p *prober) tcp(ctx context.Context) (bool, string, error) {
	port, err := portOf(p.container, p.probe.TCPSocket.Port)
	if err != nil {
		return false, "", err
	}
	host := p.probe.TCPSocket.Host
	if host == "" {
		host = p.podIP
	}
	conn, err := probeDialer.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return false, err.Error(), nil
	}
	return true, "", conn.Close()
}

func (p *prober) http(ctx context.Context) (bool, string, error) {
	get := p.probe.HTTPGet
	req, err := httpGetRequest(ctx, p.container, get, p.podIP, "kube-probe/1.37")
	if err != nil {
		return false, "", err
	}
	transport := probeTransport
	if p.probe.HTTPGet.Protocol != nil && *p.probe.HTTPGet.Protocol == corev1.HTTPProtocolHTTP2 {
		transport = http2Transport
	}
	client := &http.Client{
		Transport: transport,
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != via[0].URL.Hostname() || len(via) > 10 {
				return http.ErrUseLastResponse // elsewhere is not our business
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err.Error(), nil
	}
	defer resp.Body.Close()
	redirected := resp.StatusCode >= 300 && resp.StatusCode < 400 // elsewhere, or too far
	var body bytes.Buffer
	into := io.Discard
	if redirected {
		into = &body
	}
	if _, err := io.Copy(into, io.LimitReader(resp.Body, probeMaxOutput)); err != nil && ctx.Err() != nil {
		return false, err.Error(), nil
	}
	switch {
	case redirected:
		p.w.event(p.container, corev1.EventTypeWarning, "ProbeWarning", fmt.Sprintf("%s probe warning: Probe terminated redirects, Response body: %s", p.key.kind, body.String()))
		return true, "", nil
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return true, "", nil
	}
	return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

// probeTransport checks no certificate, for a pod's is nobody's business, and
// keeps no connection, for it would keep the pod's server awake.
var probeTransport = &http.Transport{
	DialContext:       probeDialer.DialContext,
	TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as Kubernetes does
	DisableKeepAlives: true,
}

func httpGetRequest(ctx context.Context, c *corev1.Container, get *corev1.HTTPGetAction, podIP, agent string) (*http.Request, error) {
	port, err := portOf(c, get.Port)
	if err != nil {
		return nil, err
	}
	host := get.Host
	if host == "" {
		host = podIP
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = "http", net.JoinHostPort(host, port)
	if get.Scheme != "" {
		u.Scheme = strings.ToLower(string(get.Scheme))
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range get.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	for name, value := range map[string]string{"User-Agent": agent, "Accept": "*/*"} {
		if req.Header.Get(name) == "" {
			req.Header.Set(name, value)
		}
	}
	return req, nil
}

// portOf is a port by number or by the name that the container gives it.
func portOf(c *corev1.Container, port intstr.IntOrString) (string, error) {
	n := port.IntValue()
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = int(p.ContainerPort)
			}
		}
	}
	if n < 1 || n > 65535 {
		return "", fmt.Errorf("container %q has no port %q", c.Name, port.String())
	}
	return strconv.Itoa(n), nil
}
