package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

var listAll = metav1.ListOptions{}

// websocketExec collects what each channel of an exec over a WebSocket says.
func websocketExec(t *testing.T, base *url.URL, path string) map[byte]string {
	t.Helper()
	config, err := websocket.NewConfig("ws://"+base.Host+path, base.String())
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	conn, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			return got
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
	}
}

// What new kubectl speaks, without falling back to SPDY: v5, which can end
// stdin.
func TestExecOverWebSocket(t *testing.T) {
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
	run := func(path string, stdin io.Reader) (string, string, error) {
		t.Helper()
		executor, err := remotecommand.NewWebSocketExecutor(&rest.Config{Host: server.URL}, http.MethodGet, server.URL+path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var out, errs bytes.Buffer
		o := remotecommand.StreamOptions{Stdin: stdin, Stdout: &out}
		if strings.Contains(path, "error=1") {
			o.Stderr = &errs
		}
		err = executor.StreamWithContext(ctx, o)
		return out.String(), errs.String(), err
	}
	out, errs, err := run("/exec/default/a/web?command=cat&input=1&output=1&error=1", strings.NewReader("hello"))
	if out != "hello" || errs != "cat" || err != nil {
		t.Errorf("exec: %q %q %v", out, errs, err)
	}
	_, errs, err = run("/exec/default/a/web?command=a&command=b&command=c&output=1&error=1", nil)
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 2 || errs != "a,b,c" {
		t.Errorf("exit status: %v %q", err, errs)
	}
	if _, _, err = run("/exec/default/a/web?command=broken&output=1&error=1", nil); err == nil || !strings.Contains(err.Error(), "it does not work") {
		t.Errorf("broken: %v", err)
	}
	if out, _, err = run("/attach/default/a/web?input=1&output=1", strings.NewReader("typed")); out != "typed" || err != nil {
		t.Errorf("attach: %q %v", out, err)
	}
}

// kubectl tunnels SPDY through a WebSocket to forward ports.
func TestPortForwardThroughWebSocket(t *testing.T) {
	_, server := kubelet(t, func(*world) {}, pod("a"))
	u, err := url.Parse(server.URL + "/portForward/default/a")
	if err != nil {
		t.Fatal(err)
	}
	dialer, err := portforward.NewSPDYOverWebsocketDialer(u, &rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	forwardsAndShouts(t, dialer)
}
