package hosts

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
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// TestNodeStreams speaks every protocol of exec, attach, logs and port-forward.
func TestNodeStreams(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	config, err := c.RESTConfig("")
	if err != nil {
		t.Fatal(err)
	}
	echo := func(c *corev1.Container) { c.Stdin = true }
	runCases(t, c, ns, []nodeCase{
		{
			"streams of client-go", edited(nodePod("streams", sh("main", "echo began; while read line; do echo got $line; done", echo), sh("web", "mkdir /www; echo page > /www/page; exec httpd -f -p 8080 -h /www")), always),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "ready", readyNow, nil)
				for name, executor := range map[string]func(path string, query url.Values) (remotecommand.Executor, error){
					"WebSocket": func(path string, q url.Values) (remotecommand.Executor, error) {
						return remotecommand.NewWebSocketExecutor(config, http.MethodGet, config.Host+path+"?"+q.Encode())
					},
					"SPDY": func(path string, q url.Values) (remotecommand.Executor, error) {
						u, err := url.Parse(config.Host + path + "?" + q.Encode())
						if err != nil {
							return nil, err
						}
						return remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
					},
				} {
					n.streams(name, executor)
				}
				n.forwards(config, pod.Name)
			},
		},
		{
			"[sig-node] Pods should support remote command execution over websockets [Conformance] [NodeConformance]", nodePod("ws-exec", sh("main", forever)),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "ready", readyNow, nil)
				got := n.messages(config, "/api/v1/namespaces/"+n.ns+"/pods/ws-exec/exec?command=echo&command=remote+execution+test&stdout=1&stderr=1&container=main", "v4.channel.k8s.io")
				channels := map[byte]string{}
				for _, m := range got {
					if len(m) > 0 {
						channels[m[0]] += string(m[1:])
					}
				}
				if channels[1] != "remote execution test\n" || channels[2] != "" || !strings.Contains(channels[3], `"status":"Success"`) {
					n.Errorf("%q", channels)
				}
			},
		},
		{
			"[sig-node] Pods should support retrieving logs from the container over websockets [Conformance] [NodeConformance]", nodePod("ws-log", sh("main", "echo container is alive; "+forever)),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "ready", readyNow, nil)
				eventually(n.T, "the log comes", func() error {
					got := string(bytes.Join(n.messages(config, "/api/v1/namespaces/"+n.ns+"/pods/ws-log/log?container=main", "binary.k8s.io"), nil))
					if got != "container is alive\n" {
						return fmt.Errorf("it is %q", got)
					}
					return nil
				})
			},
		},
	})
}

// streams runs commands and attaches by one protocol.
func (n *nodeTest) streams(protocol string, executor func(string, url.Values) (remotecommand.Executor, error)) {
	n.Helper()
	run := func(sub, stdin string, until string, query url.Values) (string, string, error) {
		n.Helper()
		query.Set("container", "main")
		query.Set("stdout", "true")
		query.Set("stdin", "true")
		query.Set("stderr", "true")
		e, err := executor("/api/v1/namespaces/"+n.ns+"/pods/streams/"+sub, query)
		if err != nil {
			n.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(n.Context(), 30*time.Second)
		defer cancel()
		var out, errs bytes.Buffer
		if until == "" {
			err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs})
			return out.String(), errs.String(), err
		}
		// What is attached to runs on: we leave once it has said enough.
		var said lines
		said.n, said.enough = 1, cancel
		in, typed := io.Pipe()
		defer typed.Close()
		go func() { _, _ = io.WriteString(typed, stdin) }()
		err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &said, Stderr: &errs})
		return strings.Join(said.all, "\n"), errs.String(), err
	}
	// cat ends only if the end of its input gets through.
	out, errs, err := run("exec", strings.Repeat("0123456789abcdef", 1<<14), "", url.Values{"command": {"sh", "-c", "echo complaint >&2; cat"}})
	if len(out) != 1<<18 || errs != "complaint\n" || err != nil {
		n.Errorf("%s: cat: %d bytes, %q, %v", protocol, len(out), errs, err)
	}
	_, _, err = run("exec", "", "", url.Values{"command": {"sh", "-c", "exit 7"}})
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		n.Errorf("%s: exit 7: %v", protocol, err)
	}
	// client-go takes it for success if a SPDY connection ends before the error
	// has come: so it may on a busy machine.
	for range 3 {
		if _, _, err = run("exec", "", "", url.Values{"command": {"/no/such/program"}}); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		n.Errorf("%s: a command that is not there: %v", protocol, err)
	}
	out, _, _ = run("attach", protocol+"\n", "got", url.Values{})
	if out != "got "+protocol {
		n.Errorf("%s: attach: %q", protocol, out)
	}
}

// forwards reaches a port of the pod by SPDY itself and through a WebSocket.
func (n *nodeTest) forwards(config *rest.Config, pod string) {
	n.Helper()
	u, err := url.Parse(config.Host + "/api/v1/namespaces/" + n.ns + "/pods/" + pod + "/portforward")
	if err != nil {
		n.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		n.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(u, config)
	if err != nil {
		n.Fatal(err)
	}
	for name, dialer := range map[string]httpstream.Dialer{"SPDY": spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), "WebSocket": tunnel} {
		stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
		if err != nil {
			n.Fatal(err)
		}
		go func() { done <- forwarder.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-done:
			n.Fatalf("%s: %v", name, err)
		}
		ports, err := forwarder.GetPorts()
		if err != nil {
			n.Fatal(err)
		}
		for range 3 {
			page, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/page", ports[0].Local))
			if err != nil {
				n.Fatalf("%s: %v", name, err)
			}
			text, err := io.ReadAll(page.Body)
			page.Body.Close()
			if string(text) != "page\n" || err != nil {
				n.Errorf("%s: %q %v", name, text, err)
			}
		}
		close(stop)
		if err := <-done; err != nil {
			n.Errorf("%s: %v", name, err)
		}
	}
}

// messages are all that a WebSocket gets.
func (n *nodeTest) messages(config *rest.Config, path, protocol string) [][]byte {
	n.Helper()
	security, err := rest.TLSConfigFor(config)
	if err != nil {
		n.Fatal(err)
	}
	security.NextProtos = []string{"http/1.1"}
	at, err := url.Parse(config.Host)
	if err != nil {
		n.Fatal(err)
	}
	ws, err := websocket.NewConfig("wss://"+at.Host+path, config.Host)
	if err != nil {
		n.Fatal(err)
	}
	ws.Protocol = []string{protocol}
	raw, err := (&tls.Dialer{NetDialer: &net.Dialer{}, Config: security}).DialContext(n.Context(), "tcp", at.Host)
	if err != nil {
		n.Fatal(err)
	}
	defer raw.Close()
	conn, err := websocket.NewClient(ws, raw)
	if err != nil {
		n.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		n.Fatal(err)
	}
	var all [][]byte
	for {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			if !errors.Is(err, io.EOF) {
				n.Error(err)
			}
			return all
		}
		all = append(all, message)
	}
}

// TestNodeHooks shows that hooks run when they should, by what a server hears.
func TestNodeHooks(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	server := &nodeTest{t, c, ns}
	server.create(edited(nodePod("server", sh("main", "mkdir /www; for f in poststart-exec poststart-http prestop-exec prestop-http prestop; do echo $f > /www/$f; done; exec httpd -f -vv -p 8080 -h /www")), always))
	ip := server.until("server", "ready", readyNow, nil).Status.PodIP
	heard := func(n *nodeTest, path string) error {
		if !strings.Contains(n.log("server", "main"), "url:/"+path+"\n") {
			return fmt.Errorf("nobody asked for %s", path)
		}
		return nil
	}
	command := func(path string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", fmt.Sprintf(`printf 'GET /%s HTTP/1.0\r\n\r\n' | nc %s 8080 | grep -q %[1]s`, path, ip)}}}
	}
	get := func(path string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Host: ip, Path: "/" + path, Port: intstr.FromInt32(8080)}}
	}
	hooked := func(name string, l corev1.Lifecycle) *corev1.Pod {
		return edited(nodePod(name, sh("main", polite, func(c *corev1.Container) { c.Lifecycle = &l })), always, func(p *corev1.Pod) {
			p.Spec.TerminationGracePeriodSeconds = new(int64(15))
		})
	}
	// Once the container is said to run, its hook has ended.
	started := func(path string) func(*nodeTest, *corev1.Pod) {
		return func(n *nodeTest, pod *corev1.Pod) {
			n.until(pod.Name, "ready", readyNow, nil)
			eventually(n.T, "the hook was heard", func() error { return heard(n, path) })
		}
	}
	// Once the pod is gone, so is its hook.
	stopped := func(path string) func(*nodeTest, *corev1.Pod) {
		return func(n *nodeTest, pod *corev1.Pod) {
			n.until(pod.Name, "ready", readyNow, nil)
			if err := heard(n, path); err == nil {
				n.Fatal("the hook was run too early")
			}
			w := n.watch("pod=" + pod.Name)
			if err := n.c.Client.CoreV1().Pods(n.ns).Delete(n.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(10))}); err != nil {
				n.Fatal(err)
			}
			n.gone(w)
			eventually(n.T, "the hook was heard", func() error { return heard(n, path) })
		}
	}
	const prefix = "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute "
	const suffix = " hook properly [Conformance] [NodeConformance]"
	runCases(t, c, ns, []nodeCase{
		{prefix + "poststart exec" + suffix, hooked("poststart-exec", corev1.Lifecycle{PostStart: command("poststart-exec")}), started("poststart-exec")},
		{prefix + "poststart http" + suffix, hooked("poststart-http", corev1.Lifecycle{PostStart: get("poststart-http")}), started("poststart-http")},
		{prefix + "prestop exec" + suffix, hooked("prestop-exec", corev1.Lifecycle{PreStop: command("prestop-exec")}), stopped("prestop-exec")},
		{prefix + "prestop http" + suffix, hooked("prestop-http", corev1.Lifecycle{PreStop: get("prestop-http")}), stopped("prestop-http")},
		{"[sig-node] PreStop should call prestop when killing a pod [Conformance]", hooked("prestop", corev1.Lifecycle{PreStop: command("prestop")}), stopped("prestop")},
		{
			"a failing postStart hook", edited(hooked("poststart-fails", corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}}), func(p *corev1.Pod) {
				p.Spec.RestartPolicy, p.Spec.TerminationGracePeriodSeconds = corev1.RestartPolicyNever, new(int64(1))
				p.Spec.Containers[0].Command = []string{"sh", "-c", forever} // ends by force, so it has failed
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "fails", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed }, func(p *corev1.Pod) string {
					if readyNow(p) {
						return "it was ready before its hook had ended"
					}
					return ""
				})
				mustContain(n.T, "describe", kubectl(n.T, n.c, "-n", n.ns, "describe", "pod", pod.Name), "FailedPostStartHook")
			},
		},
		{
			"a sleep", hooked("sleeps", corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3}}}),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "ready", readyNow, nil)
				w, began := n.watch("pod="+pod.Name), time.Now()
				if err := n.c.Client.CoreV1().Pods(n.ns).Delete(n.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
					n.Fatal(err)
				}
				n.gone(w)
				if took := time.Since(began); took < 3*time.Second {
					n.Errorf("the pod was gone after %v", took)
				}
			},
		},
	})
}
