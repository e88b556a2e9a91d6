package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

const (
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second
)

// serve answers the kubelet API until ctx ends.
func (a *Agent) serve(ctx context.Context) error {
	server := &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       3 * time.Minute, // anybody may connect
		BaseContext:       func(net.Listener) context.Context { return ctx },
		// Streams take the connection over, which HTTP/2 does not know.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	listener := a.cfg.Listener
	if a.cfg.TLS != nil {
		config := a.cfg.TLS.Clone()
		config.NextProtos = []string{"http/1.1"}
		listener = tls.NewListener(listener, config)
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("agent: serve the kubelet API: %w", err)
	}
	return nil
}

// Handler is the kubelet API.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /pods", a.servePods)
	mux.HandleFunc("GET /pods/", a.servePods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.serveLogs)
	for _, verb := range []struct {
		name  string
		serve http.HandlerFunc
	}{{"exec", a.serveExec}, {"attach", a.serveAttach}} {
		mux.HandleFunc("/"+verb.name+"/{namespace}/{pod}/{container}", verb.serve)
		mux.HandleFunc("/"+verb.name+"/{namespace}/{pod}/{uid}/{container}", verb.serve)
	}
	mux.HandleFunc("/portForward/{namespace}/{pod}", a.servePortForward)
	mux.HandleFunc("/portForward/{namespace}/{pod}/{uid}", a.servePortForward)
	mux.HandleFunc("GET /stats/summary", a.serveSummary)
	mux.HandleFunc("GET /metrics/resource", a.serveResourceMetrics)
	mux.HandleFunc("GET /metrics/cadvisor", a.serveContainerMetrics)
	mux.HandleFunc("GET /metrics/probes", a.serveProbeMetrics)
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code, err := a.admitCaller(r); err != nil {
			http.Error(w, err.Error(), code)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (a *Agent) servePods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
	for _, v := range a.views() {
		list.Items = append(list.Items, *v.pod)
	}
	writeJSONAnswer(w, &list)
}

func writeJSONAnswer(w http.ResponseWriter, answer any) {
	data, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // nobody is left to tell
}

// find is the pod and container that a request names.
func (a *Agent) find(r *http.Request) (*podWorker, podView, *corev1.Container, error) {
	namespace, name, uid := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid")
	for _, w := range a.allWorkers() {
		v := w.view()
		if v.pod.Namespace != namespace || v.pod.Name != name || uid != "" && uid != string(v.pod.UID) {
			continue
		}
		container := r.PathValue("container")
		if container == "" {
			return w, v, nil, nil
		}
		c := containerNamed(v.pod, container)
		if c == nil {
			return nil, v, nil, fmt.Errorf("container %q not found in pod %q", container, name)
		}
		return w, v, c, nil
	}
	return nil, podView{}, nil, fmt.Errorf("pod %q does not exist", name)
}

// serveLogs writes a container's log.
func (a *Agent) serveLogs(rw http.ResponseWriter, r *http.Request) {
	w, v, c, err := a.find(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	o, previous, err := parseLogOptions(r, a.cfg.Now())
	if err != nil {
		http.Error(rw, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	attempt, err := logOf(v, c, previous)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	path := w.dirs.log(c.Name, attempt)
	if !o.follow && !logExists(path) {
		http.Error(rw, fmt.Sprintf("the log of container %q in pod %q is not there", c.Name, v.pod.Name), http.StatusInternalServerError)
		return
	}
	o.follow = o.follow && !previous
	changed, done := a.watchPod(w.uid)
	defer done()
	ended := func() bool {
		if a.worker(w.uid) != w {
			return true
		}
		return w.view().running[c.Name] != containerID(c.Name, attempt)
	}
	rw.Header().Set("Content-Type", "text/plain")
	out := io.Writer(rw)
	if o.follow {
		rw.WriteHeader(http.StatusOK)
		if f, ok := rw.(http.Flusher); ok {
			f.Flush()
		}
	}
	if err := readLog(r.Context(), path, o, out, changed, ended); err != nil {
		w.log.Debug("a log could not be written whole", "container", c.Name, "err", err)
	}
}

// logOf is the start whose log is meant.
func logOf(v podView, c *corev1.Container, previous bool) (int, error) {
	rec := v.rec.Containers[c.Name]
	if previous && (rec == nil || rec.Attempt < 0) {
		return 0, fmt.Errorf("previous terminated container %q in pod %q not found", c.Name, v.pod.Name)
	}
	if rec == nil || rec.Attempt < 0 {
		reason := waitCreating
		if s := statusOf(v.pod, c.Name); s != nil && s.State.Waiting != nil {
			reason = s.State.Waiting.Reason
		}
		switch reason {
		case "ErrImagePull":
			reason = "image can't be pulled"
		case "ImagePullBackOff":
			reason = "trying and failing to pull image"
		}
		return 0, fmt.Errorf("container %q in pod %q is waiting to start: %s", c.Name, v.pod.Name, reason)
	}
	if !previous {
		return rec.Attempt, nil
	}
	// While the next start waits, the one before is the last that ended.
	if v.running[c.Name] == "" && rec.End != nil {
		if s := statusOf(v.pod, c.Name); s != nil && s.State.Waiting != nil {
			return rec.Attempt, nil
		}
	}
	if rec.Last == nil || rec.Attempt == 0 {
		return 0, fmt.Errorf("previous terminated container %q in pod %q not found", c.Name, v.pod.Name)
	}
	return rec.Attempt - 1, nil
}

func parseLogOptions(r *http.Request, now time.Time) (o logOptions, previous bool, err error) {
	q := r.URL.Query()
	o = logOptions{tail: -1, limit: -1}
	flag := func(name string, into *bool) {
		if s := q.Get(name); s != "" && err == nil {
			if *into, err = strconv.ParseBool(s); err != nil {
				err = fmt.Errorf("%s: %q is neither true nor false", name, s)
			}
		}
	}
	number := func(name string, least int64, into *int64) {
		if s := q.Get(name); s != "" && err == nil {
			if *into, err = strconv.ParseInt(s, 10, 64); err != nil || *into < least {
				err = fmt.Errorf("%s: %q must be a number of at least %d", name, s, least)
			}
		}
	}
	flag("follow", &o.follow)
	flag("previous", &previous)
	flag("timestamps", &o.timestamps)
	number("tailLines", 0, &o.tail)
	number("limitBytes", 1, &o.limit)
	seconds := int64(0)
	number("sinceSeconds", 1, &seconds)
	if seconds > 0 {
		o.since = now.Add(-time.Duration(seconds) * time.Second)
	}
	if s := q.Get("sinceTime"); s != "" && err == nil {
		if o.since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			err = fmt.Errorf("sinceTime: %w", err)
		}
	}
	switch s := q.Get("stream"); s {
	case "", "All":
	case "Stdout", "Stderr":
		o.stream = strings.ToLower(s)
	default:
		err = errors.Join(err, fmt.Errorf("stream: %q must be All, Stdout or Stderr", s))
	}
	return o, previous, err
}

// streamOptions accepts the kubelet's own parameters and those of the API's
// PodExecOptions.
func streamOptions(r *http.Request) (*remotecommand.Options, error) {
	on := func(names ...string) bool {
		for _, n := range names {
			if s := r.FormValue(n); s == "1" || s == "true" {
				return true
			}
		}
		return false
	}
	o := &remotecommand.Options{Stdin: on("input", "stdin"), Stdout: on("output", "stdout"), Stderr: on("error", "stderr"), TTY: on("tty")}
	o.Stderr = o.Stderr && !o.TTY
	if !o.Stdin && !o.Stdout && !o.Stderr {
		return nil, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

// session is one stream into a container: what the streaming packages call.
type session struct {
	a       *Agent
	podID   string
	id      string // of the container
	options *remotecommand.Options
}

// newSession finds the running container of a request.
func (a *Agent) newSession(rw http.ResponseWriter, r *http.Request) (*session, *corev1.Container) {
	w, v, c, err := a.find(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return nil, nil
	}
	id := v.running[c.Name]
	if id == "" {
		http.Error(rw, fmt.Sprintf("container not found (%q)", c.Name), http.StatusInternalServerError)
		return nil, nil
	}
	o, err := streamOptions(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return nil, nil
	}
	return &session{a: a, podID: string(w.uid), id: id, options: o}, c
}

func (a *Agent) serveExec(rw http.ResponseWriter, r *http.Request) {
	rw, r, done := followConnection(rw, r)
	defer done()
	s, _ := a.newSession(rw, r)
	if s == nil {
		return
	}
	if wsstream.IsWebSocketRequest(r) {
		s.serveChannels(rw, r, func(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return s.ExecInContainer(ctx, "", "", "", r.Form["command"], in, out, err, s.options.TTY, resize, 0)
		})
		return
	}
	remotecommand.ServeExec(rw, r, s, r.PathValue("pod"), s.podID, s.id, r.Form["command"], s.options, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (a *Agent) serveAttach(rw http.ResponseWriter, r *http.Request) {
	rw, r, done := followConnection(rw, r)
	defer done()
	s, c := a.newSession(rw, r)
	if s == nil {
		return
	}
	s.options.TTY = c.TTY
	if wsstream.IsWebSocketRequest(r) {
		s.serveChannels(rw, r, func(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return s.AttachContainer(ctx, "", "", "", in, out, err, s.options.TTY, resize)
		})
		return
	}
	remotecommand.ServeAttach(rw, r, s, r.PathValue("pod"), s.podID, s.id, s.options, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

// ExecInContainer runs a command.
func (s *session) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdin, stdout, stderr := s.streams(in, out, err)
	code, failed := s.a.cfg.Runtime.Exec(ctx, s.podID, s.id, cmd, tty, stdin, stdout, stderr, sizes(ctx, resize))
	if failed != nil {
		return failed
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// AttachContainer joins the container's own streams.
func (s *session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdin, stdout, stderr := s.streams(in, out, err)
	return s.a.cfg.Runtime.Attach(ctx, s.podID, s.id, stdin, stdout, stderr, sizes(ctx, resize))
}

// streams are the ones that the client asked for; the others stay nil.
func (s *session) streams(in io.Reader, out, err io.WriteCloser) (io.Reader, io.Writer, io.Writer) {
	var stdin io.Reader
	var stdout, stderr io.Writer
	if s.options.Stdin {
		stdin = in
	}
	if s.options.Stdout {
		stdout = out
	}
	if s.options.Stderr && !s.options.TTY {
		stderr = err
	}
	return stdin, stdout, stderr
}

// sizes passes window sizes on until ctx ends.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan [2]uint16 {
	if in == nil {
		return nil
	}
	out := make(chan [2]uint16)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- [2]uint16{s.Width, s.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func (a *Agent) servePortForward(rw http.ResponseWriter, r *http.Request) {
	rw, r, done := followConnection(rw, r)
	defer done()
	w, v, _, err := a.find(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	if len(v.running) == 0 {
		http.Error(rw, fmt.Sprintf("pod %q is not running", v.pod.Name), http.StatusInternalServerError)
		return
	}
	f := &forwarder{a, v.pod}
	if wsstream.IsWebSocketRequest(r) && offers(r, []string{tunnelProtocol}) {
		serveTunnel(rw, r, f, string(w.uid))
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(rw, r, f, v.pod.Name, string(w.uid), options, streamIdle, streamCreation, portforward.SupportedProtocols)
}

// forwarder connects to ports of one pod, from inside its network.
type forwarder struct {
	a   *Agent
	pod *corev1.Pod
}

// PortForward copies both ways between a stream and a port of the pod.
func (f *forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	netns := ""
	if !f.pod.Spec.HostNetwork {
		var err error
		if netns, _, err = f.a.cfg.Network.Attach(ctx, f.pod); err != nil {
			return fmt.Errorf("find the network of pod %q: %w", f.pod.Name, err)
		}
	}
	conn, err := dialInside(ctx, netns, port)
	if err != nil {
		return fmt.Errorf("failed to connect to port %d of pod %q: %w", port, f.pod.Name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(conn, stream) // either end may just go away
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	_, err = io.Copy(stream, conn)
	stream.Close()
	<-sent
	if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("port %d of pod %q: %w", port, f.pod.Name, err)
	}
	return nil
}

// dialInside connects to a port of localhost in a network namespace ("" is
// ours). The thread that enters the namespace is never used for anything else:
// its goroutine ends locked to it, and the runtime ends the thread with it.
func dialInside(ctx context.Context, netns string, port int32) (net.Conn, error) {
	dial := func() (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if six, err6 := d.DialContext(ctx, "tcp6", fmt.Sprintf("[::1]:%d", port)); err6 == nil {
				return six, nil
			}
		}
		return conn, err
	}
	if netns == "" {
		return dial()
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		f, err := os.Open(netns)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("enter %s: %w", netns, err)}
			return
		}
		conn, err := dial()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// hostUsage is the processor time, in nanoseconds, and the memory that the host
// has in use.
func hostUsage() (cpu, memory uint64, err error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	const idle, iowait, guest, perTick = 4, 5, 9, 10_000_000 // USER_HZ is 100 everywhere
	for i, f := range strings.Fields(line) {
		if i == 0 || i == idle || i == iowait || i >= guest {
			continue
		}
		ticks, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read /proc/stat: %w", err)
		}
		cpu += ticks * perTick
	}
	m, err := meminfo()
	if err != nil {
		return 0, 0, err
	}
	return cpu, uint64(max(m["MemTotal"]-cmp.Or(m["MemAvailable"], m["MemFree"]), 0)), nil
}

func bootTime(now time.Time) time.Time {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return now
	}
	return now.Add(-time.Duration(info.Uptime) * time.Second)
}

// cgroupUsage is the processor time, in nanoseconds, and the memory that a
// cgroup uses with all below it, in either version of cgroups. The page cache
// that is not in use does not count.
func cgroupUsage(mount, group string) (cpu, memory uint64, err error) {
	if group == "" {
		return 0, 0, errors.New("no cgroup is known")
	}
	cpuFile, cpuKey, scale := filepath.Join(mount, group, "cpu.stat"), "usage_usec", uint64(1000)
	memoryFile, statFile, inactive := filepath.Join(mount, group, "memory.current"), filepath.Join(mount, group, "memory.stat"), "inactive_file"
	if _, err := os.Stat(cpuFile); err != nil {
		cpuFile, cpuKey, scale = filepath.Join(mount, "cpuacct", group, "cpuacct.usage"), "", 1
		memoryFile, statFile, inactive = filepath.Join(mount, "memory", group, "memory.usage_in_bytes"), filepath.Join(mount, "memory", group, "memory.stat"), "total_inactive_file"
	}
	if cpu, err = cgroupValue(cpuFile, cpuKey); err != nil {
		return 0, 0, err
	}
	if memory, err = cgroupValue(memoryFile, ""); err != nil {
		return 0, 0, err
	}
	unused, err := cgroupValue(statFile, inactive)
	return cpu * scale, memory - min(unused, memory), err
}

// cgroupValue reads a number, or the one behind a key.
func cgroupValue(path, key string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		value := strings.TrimSpace(line)
		if key != "" {
			var ok bool
			if value, ok = strings.CutPrefix(value, key+" "); !ok {
				continue
			}
		}
		return strconv.ParseUint(value, 10, 64)
	}
	return 0, fmt.Errorf("%s has no %q", path, key)
}
