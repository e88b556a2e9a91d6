package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"

	"conclave/agent"
	"conclave/agent/agenttest"
)

// kubelet is a running pod behind a real HTTP server.
func kubelet(t *testing.T, edit func(*world), pods ...*corev1.Pod) (*world, *httptest.Server) {
	t.Helper()
	w := newWorld(t, edit)
	server := httptest.NewServer(w.agent.Handler())
	t.Cleanup(server.Close)
	for _, p := range pods {
		w.create(p)
		deadline := time.After(20 * time.Second)
		watcher, err := w.client.Watch(context.Background(), podsGVR, p.Namespace, listAll)
		if err != nil {
			t.Fatal(err)
		}
		for running := false; !running; {
			select {
			case e := <-watcher.ResultChan():
				got, ok := e.Object.(*corev1.Pod)
				running = ok && got.Name == p.Name && (got.Status.Phase == corev1.PodRunning || got.Status.Phase == corev1.PodSucceeded)
			case <-deadline:
				t.Fatalf("pod %s does not run: %s", p.Name, show(w.get(p.Name)))
			}
		}
		watcher.Stop()
	}
	return w, server
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestKubeletReads(t *testing.T) {
	_, server := kubelet(t, func(w *world) {
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{Log: "one\ntwo\nthree\n"} }
		w.config.Authorize = func(r *http.Request) error {
			if r.Header.Get("X-Stranger") != "" {
				return errors.New("only masters")
			}
			return nil
		}
	}, pod("a"))
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/healthz":                                                    {200, "ok"},
		"/containerLogs/default/a/web":                                {200, "one\ntwo\nthree\n"},
		"/containerLogs/default/a/web?tailLines=1":                    {200, "three\n"},
		"/containerLogs/default/a/web?limitBytes=5":                   {200, "one\nt"},
		"/containerLogs/default/a/web?sinceSeconds=3600":              {200, "one\ntwo\nthree\n"},
		"/containerLogs/default/a/web?sinceTime=2200-01-01T00:00:00Z": {200, ""},
		"/containerLogs/default/a/web?previous=true":                  {400, "previous terminated container \"web\" in pod \"a\" not found\n"},
		"/containerLogs/default/a/web?tailLines=x":                    {422, "tailLines: \"x\" must be a number of at least 0\n"},
		"/containerLogs/default/a/none":                               {404, "container \"none\" not found in pod \"a\"\n"},
		"/containerLogs/default/none/web":                             {404, "pod \"none\" does not exist\n"},
	} {
		if code, body := fetch(t, server.URL+path); code != want.code || body != want.body {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	for path, want := range map[string][]string{
		"/pods":             {`"kind":"PodList"`, `"phase":"Running"`},
		"/stats/summary":    {`"nodeName":"n1"`, `"name":"web"`, `"workingSetBytes":2097152`},
		"/metrics/resource": {`container_cpu_usage_seconds_total{container="web",namespace="default",pod="a"} 1.5 `, `pod_memory_working_set_bytes{namespace="default",pod="a"} 2097152 `, "node_cpu_usage_seconds_total ", "resource_scrape_error 0\n"},
	} {
		code, body := fetch(t, server.URL+path)
		for _, s := range want {
			if code != 200 || !strings.Contains(body, s) {
				t.Errorf("%s: %d lacks %s: %s", path, code, s, body)
			}
		}
	}
	r, err := http.NewRequest(http.MethodGet, server.URL+"/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Stranger", "1")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a stranger got %d", resp.StatusCode)
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	w, server := kubelet(t, func(w *world) {
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{Log: "line\n"} }
	}, pod("a", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }))
	resp, err := http.Get(server.URL + "/containerLogs/default/a/web?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "line\n" {
		t.Fatalf("%q %v", got, err)
	}
	w.runtime.Exit(string(w.get("a").UID), "web_0", 0)
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Errorf("%q %v", rest, err)
	}
}

// Both of the protocols that kubectl speaks, through client-go.
func TestExecAndAttach(t *testing.T) {
	_, server := kubelet(t, func(w *world) {
		w.runtime.OnExec = func(_ context.Context, _, _ string, cmd []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
			if cmd[0] == "broken" {
				return 0, errors.New("it does not work")
			}
			if stdin != nil {
				if _, err := io.Copy(stdout, stdin); err != nil {
					return 0, err
				}
			}
			fmt.Fprint(stderr, strings.Join(cmd, ","))
			return len(cmd) - 1, nil
		}
	}, pod("a", func(p *corev1.Pod) { p.Spec.Containers[0].Stdin = true }))
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, path, query, stdin string) (stdout, stderr string, err error) {
		t.Helper()
		u := *base
		u.Path, u.RawQuery = path, query
		executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: server.URL}, http.MethodPost, &u)
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		o := remotecommand.StreamOptions{Stdout: &out, Stdin: strings.NewReader(stdin)}
		if strings.Contains(query, "error=1") {
			o.Stderr = &errs
		}
		err = executor.StreamWithContext(ctx, o)
		return out.String(), errs.String(), err
	}
	out, errs, err := run(t, "/exec/default/a/web", "command=echo&input=1&output=1&error=1", "hello")
	if out != "hello" || errs != "echo" || err != nil {
		t.Errorf("exec: %q %q %v", out, errs, err)
	}
	_, errs, err = run(t, "/exec/default/a/web", "command=a&command=b&command=c&input=1&output=1&error=1", "")
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 2 || errs != "a,b,c" {
		t.Errorf("exit status: %v %q", err, errs)
	}
	if _, _, err = run(t, "/exec/default/a/web", "command=broken&input=1&output=1&error=1", ""); err == nil || !strings.Contains(err.Error(), "it does not work") {
		t.Errorf("broken: %v", err)
	}
	if out, _, err = run(t, "/attach/default/a/web", "input=1&output=1&error=1", "typed"); out != "typed" || err != nil {
		t.Errorf("attach: %q %v", out, err)
	}
	for path, want := range map[string]int{"/exec/default/a/web?command=x": 400, "/exec/default/none/web?command=x&output=1": 404} {
		if code, body := fetch(t, server.URL+path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	t.Run("websocket", func(t *testing.T) {
		got := websocketExec(t, base, "/exec/default/a/web?command=echo&output=1&error=1")
		if !strings.Contains(got[2], "echo") || !strings.Contains(got[3], `"status":"Success"`) {
			t.Errorf("channels: %q", got)
		}
	})
}

func TestPortForward(t *testing.T) {
	_, server := kubelet(t, func(*world) {}, pod("a"))
	u, err := url.Parse(server.URL + "/portForward/default/a")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	forwardsAndShouts(t, spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u))
}

// forwardsAndShouts forwards a port to a server that answers in capitals.
func forwardsAndShouts(t *testing.T, dialer httpstream.Dialer) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				data, err := io.ReadAll(conn)
				if err == nil {
					_, _ = conn.Write(bytes.ToUpper(data))
				}
			}()
		}
	}()
	stop, ready := make(chan struct{}), make(chan struct{})
	target := netip.MustParseAddrPort(listener.Addr().String()).Port()
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", target)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	<-ready
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("through")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "THROUGH" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	conn.Close()
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
