package hosts

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"conclave/test/cluster"
)

// bulk is how many MiB the tests of streams move; the environment may ask for
// more.
func bulk(t *testing.T) int {
	t.Helper()
	text := os.Getenv("CONCLAVE_TEST_BULK_MIB")
	if text == "" {
		return 24
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// executors make executors of a command in a pod, by protocol.
func (n *nodeTest) executors(config *rest.Config, pod string) map[string]func(sub string, q url.Values) (remotecommand.Executor, error) {
	at := config.Host + "/api/v1/namespaces/" + n.ns + "/pods/" + pod + "/"
	return map[string]func(sub string, q url.Values) (remotecommand.Executor, error){
		"WebSocket": func(sub string, q url.Values) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(config, http.MethodGet, at+sub+"?"+q.Encode())
		},
		"SPDY": func(sub string, q url.Values) (remotecommand.Executor, error) {
			u, err := url.Parse(at + sub + "?" + q.Encode())
			if err != nil {
				return nil, err
			}
			return remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
		},
	}
}

// dialers make connections for port-forward, by protocol.
func (n *nodeTest) dialers(config *rest.Config, pod string) map[string]httpstream.Dialer {
	n.Helper()
	u := must(url.Parse(config.Host + "/api/v1/namespaces/" + n.ns + "/pods/" + pod + "/portforward"))
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		n.Fatal(err)
	}
	return map[string]httpstream.Dialer{
		"SPDY":      spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u),
		"WebSocket": must(portforward.NewSPDYOverWebsocketDialer(u, config)),
	}
}

// TestPortForward forwards several ports at once, much both ways, with an end
// of what the client says before the answer; and a port where nobody listens.
func TestPortForward(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	// One server answers with the hash of all it was told, once that has ended;
	// the other says as much itself as it is asked for.
	n.create(edited(nodePod("ports", sh("main", `nc -ll -p 9001 -e sha256sum & nc -ll -p 9002 -e sh -c 'read n; dd if=/dev/zero bs=1048576 count=$n 2>/dev/null' & `+forever)), always))
	n.until("ports", "runs", readyNow, nil)
	config := must(c.RESTConfig(""))
	size := bulk(t)
	data := make([]byte, size<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	for protocol, dialer := range n.dialers(config, "ports") {
		t.Run(protocol, func(t *testing.T) {
			stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			var said bytes.Buffer
			f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:9001", "0:9002", "0:9003"}, stop, ready, io.Discard, &said)
			if err != nil {
				t.Fatal(err)
			}
			go func() { done <- f.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatal(err)
			}
			ports := must(f.GetPorts())
			dial := func(i int) *net.TCPConn {
				conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", ports[i].Local), 10*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
					t.Fatal(err)
				}
				return conn.(*net.TCPConn)
			}
			// Both at once.
			answers := make(chan error, 2)
			hashed, told := dial(0), dial(1)
			defer hashed.Close()
			defer told.Close()
			go func() {
				_, err := hashed.Write(data)
				err = errors.Join(err, hashed.CloseWrite())
				answer, readErr := io.ReadAll(hashed)
				if !strings.HasPrefix(string(answer), hex.EncodeToString(sum[:])) {
					err = errors.Join(err, fmt.Errorf("the hash of what was sent is %q", answer))
				}
				answers <- errors.Join(err, readErr)
			}()
			go func() {
				_, err := fmt.Fprintf(told, "%d\n", size)
				got, readErr := io.Copy(io.Discard, told)
				if got != int64(size)<<20 {
					err = errors.Join(err, fmt.Errorf("%d bytes came", got))
				}
				answers <- errors.Join(err, readErr)
			}()
			for range 2 {
				if err := <-answers; err != nil {
					t.Error(err)
				}
			}
			// Nobody listens: the connection ends at once. kubectl then gives
			// up, as it does against Kubernetes.
			refused := dial(2)
			defer refused.Close()
			if got, err := io.ReadAll(refused); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("where nobody listens: %q %v", got, err)
			}
			select {
			case err := <-done:
				if !errors.Is(err, portforward.ErrLostConnectionToPod) {
					t.Errorf("after a refusal: %v", err)
				}
			case <-time.After(20 * time.Second):
				close(stop)
				t.Error("a refusal was not told")
			}
		})
	}
}

// sizes hands out terminal sizes, each after the one before was seen.
type sizes struct {
	next chan remotecommand.TerminalSize
}

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s.next
	if !ok {
		return nil
	}
	return &size
}

// TestTerminalResize has a terminal follow its client's size.
func TestTerminalResize(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	n.create(edited(nodePod("term", sh("main", `trap 'stty size' WINCH; while true; do sleep 0.2; done`, func(c *corev1.Container) { c.TTY, c.Stdin = true, true })), always))
	n.until("term", "runs", readyNow, nil)
	config := must(c.RESTConfig(""))
	for protocol, executor := range n.executors(config, "term") {
		for _, sub := range []string{"exec", "attach"} {
			t.Run(protocol+" "+sub, func(t *testing.T) {
				q := url.Values{"container": {"main"}, "stdin": {"true"}, "stdout": {"true"}, "tty": {"true"}}
				if sub == "exec" {
					q["command"] = []string{"sh", "-c", "trap 'stty size' WINCH; stty size; while true; do sleep 0.2; done"} // it may have its size before the trap
				}
				e, err := executor(sub, q)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				in, typed := io.Pipe()
				defer typed.Close()
				queue := sizes{make(chan remotecommand.TerminalSize, 1)}
				wanted := []string{"33 101", "44 202", "55 50"}
				out := lines{}
				seen := make(chan string, 16)
				go func() {
					defer close(queue.next)
					for _, want := range wanted {
						var size remotecommand.TerminalSize
						if _, err := fmt.Sscan(want, &size.Height, &size.Width); err != nil {
							return
						}
						queue.next <- size
						for got := ""; got != want; {
							select {
							case got = <-seen:
							case <-ctx.Done():
								return
							}
						}
					}
					cancel()
				}()
				err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: writer(func(p []byte) (int, error) {
					before := len(out.all)
					got, err := out.Write(p)
					for _, line := range out.all[before:] {
						seen <- strings.TrimSpace(line)
					}
					return got, err
				}), Tty: true, TerminalSizeQueue: queue})
				got := strings.Join(out.all, "\n")
				for _, want := range wanted {
					if !strings.Contains(got, want) {
						t.Errorf("the terminal never was %q (%v):\n%s", want, err, got)
					}
				}
			})
		}
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestCopy copies a file and a folder into a pod and out again.
func TestCopy(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	n.create(edited(nodePod("copy", sh("main", forever)), always, mountShared))
	n.until("copy", "runs", readyNow, nil)
	dir := t.TempDir()
	f := must(os.Create(filepath.Join(dir, "there")))
	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, hash), rand.Reader, int64(bulk(t))<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(hash.Sum(nil))
	k := func(args ...string) string { return kubectl(t, c, append([]string{"-n", ns}, args...)...) }
	k("cp", f.Name(), "copy:/v/there")
	if got := k("exec", "copy", "--", "sha256sum", "/v/there"); !strings.HasPrefix(got, want) {
		t.Errorf("in the pod its hash is %s, not %s", got, want)
	}
	back := filepath.Join(dir, "back")
	k("cp", "copy:/v/there", back)
	again := sha256.New()
	f = must(os.Open(back))
	defer f.Close()
	if _, err := io.Copy(again, f); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(again.Sum(nil)); got != want {
		t.Errorf("back again its hash is %s, not %s", got, want)
	}
	// A pod whose tar says what it likes writes nothing beside what was asked for
	// (CVE-2018-1002100, CVE-2019-1002101, CVE-2019-11246, CVE-2019-11249: kubectl's).
	outside := filepath.Join(dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	hostile := filepath.Join(dir, "hostile.tar")
	if err := os.WriteFile(hostile, hostileTar(t, outside), 0o600); err != nil {
		t.Fatal(err)
	}
	k("cp", hostile, "copy:/v/hostile.tar")
	k("exec", "copy", "--", "sh", "-c", `mv /bin/tar /v/tar && printf '#!/bin/sh\ncat /v/hostile.tar\n' > /bin/tar && chmod +x /bin/tar`)
	out, err := c.Kubectl(t.Context(), "-n", ns, "cp", "copy:/v/there", filepath.Join(dir, "into", "it"))
	t.Logf("kubectl cp of a hostile tar: %q %v", out, err)
	if left := must(os.ReadDir(outside)); len(left) > 0 {
		t.Errorf("a hostile tar wrote %v", left)
	}
	for _, path := range must(filepath.Glob(filepath.Join(dir, "*evil*"))) {
		t.Errorf("a hostile tar wrote %s", path)
	}
	k("exec", "copy", "--", "mv", "/v/tar", "/bin/tar")
	// A folder, with what folders hold.
	folder := filepath.Join(dir, "folder")
	if err := errors.Join(os.MkdirAll(filepath.Join(folder, "deep", "er"), 0o755), os.WriteFile(filepath.Join(folder, "deep", "er", "a file"), []byte("text\n"), 0o640), os.WriteFile(filepath.Join(folder, "empty"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	k("cp", folder, "copy:/v/folder", "-c", "main")
	k("cp", "copy:/v/folder", filepath.Join(dir, "folder2"))
	if text, err := os.ReadFile(filepath.Join(dir, "folder2", "deep", "er", "a file")); string(text) != "text\n" || err != nil {
		t.Errorf("a file deep in a folder: %q %v", text, err)
	}
}

// hostileTar would write into a folder beside where it is unpacked.
func hostileTar(t *testing.T, outside string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{
		{Name: "v/there", Typeflag: tar.TypeSymlink, Linkname: outside},
		{Name: "v/there/evil-1", Mode: 0o644, Size: 1},
		{Name: "v/there/../../evil-2", Mode: 0o644, Size: 1},
		{Name: "../evil-3", Mode: 0o644, Size: 1},
		{Name: filepath.Join(outside, "evil-4"), Mode: 0o644, Size: 1},
		{Name: "v/link", Typeflag: tar.TypeLink, Linkname: filepath.Join(outside, "evil-5")},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestLogOptions shows every option of kubectl logs.
func TestLogOptions(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	n.create(edited(nodePod("talks", sh("one", "for i in 1 2 3 4 5; do echo one $i; sleep 1; done; "+forever), sh("two", "echo two out; echo two err >&2; "+forever)), inits(sh("init", "echo init")), always))
	n.create(edited(nodePod("again", sh("main", `if [ -e /v/n ]; then echo second; `+forever+`; fi; echo first; echo > /v/n; exit 1`)), mountShared, always))
	// 30 MB in lines of 100 bytes: the log is rotated twice while it is read.
	n.create(nodePod("much", sh("main", `sleep 3; awk 'BEGIN { for (i = 1; i <= 300000; i++) printf "%07d %s\n", i, "`+manyWords+`" }'; sleep 2`)))
	n.until("much", "runs", func(p *corev1.Pod) bool { return statusOfContainer(p, "main").ContainerID != "" }, nil)
	followed := make(chan error, 1)
	go func() { followed <- followWhole(t.Context(), c, ns) }()

	n.until("talks", "runs", readyNow, nil)
	k := func(args ...string) string { return kubectl(t, c, append([]string{"-n", ns, "logs"}, args...)...) }
	eventually(t, "all is said", func() error {
		if out := k("talks", "-c", "one"); out != "one 1\none 2\none 3\none 4\none 5\n" {
			return fmt.Errorf("it is %q", out)
		}
		return nil
	})
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	want("tail", k("talks", "-c", "one", "--tail=2"), "one 4\none 5\n")
	want("tail of more than there is", k("talks", "-c", "one", "--tail=99"), "one 1\none 2\none 3\none 4\none 5\n")
	want("tail of nothing", k("talks", "-c", "one", "--tail=0"), "")
	want("limit-bytes", k("talks", "-c", "one", "--limit-bytes=8"), "one 1\non")
	want("prefix", k("talks", "-c", "one", "--prefix", "--tail=1"), "[pod/talks/one] one 5\n")
	want("init container", k("talks", "-c", "init"), "init\n")
	want("default container", strings.ReplaceAll(k("talks", "--tail=1"), `Defaulted container "one" out of: one, two, init (init)`+"\n", ""), "one 5\n")
	all := strings.Split(strings.TrimSpace(k("talks", "--all-containers", "--prefix")), "\n")
	slices.Sort(all)
	want("all containers", strings.Join(all, "|"), "[pod/talks/init] init|[pod/talks/one] one 1|[pod/talks/one] one 2|[pod/talks/one] one 3|[pod/talks/one] one 4|[pod/talks/one] one 5|[pod/talks/two] two err|[pod/talks/two] two out")
	want("by label", k("-l", "pod=talks", "-c", "one", "--tail=1"), "one 5\n")

	// The times that it shows are those that it can be asked by.
	stamped := strings.Split(strings.TrimSpace(k("talks", "-c", "one", "--timestamps")), "\n")
	if len(stamped) != 5 {
		t.Fatalf("timestamps: %q", stamped)
	}
	var at []time.Time
	for i, line := range stamped {
		stamp, text, _ := strings.Cut(line, " ")
		when, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || text != fmt.Sprintf("one %d", i+1) {
			t.Errorf("timestamps: %q %v", line, err)
		}
		at = append(at, when)
	}
	since := k("talks", "-c", "one", "--since-time="+at[3].Truncate(time.Second).Format(time.RFC3339))
	if !strings.HasSuffix(since, "one 4\none 5\n") || strings.Contains(since, "one 2") {
		t.Errorf("since-time: %q", since)
	}
	want("since-time to come", k("talks", "-c", "one", "--since-time="+time.Now().Add(time.Hour).Format(time.RFC3339)), "")
	want("since long ago", k("talks", "-c", "one", "--since=1h"), "one 1\none 2\none 3\none 4\none 5\n")
	want("since just now", k("talks", "-c", "one", "--since=1s", "--tail=-1"), "")

	n.until("again", "is restarted", func(p *corev1.Pod) bool { return restarts(p) == 1 && readyNow(p) }, nil)
	want("previous", k("again", "--previous"), "first\n")
	want("the present", k("again"), "second\n")
	if out, err := c.Kubectl(t.Context(), "-n", ns, "logs", "talks", "-c", "one", "--previous"); err == nil || !strings.Contains(out, `previous terminated container "one" in pod "talks" not found`) {
		t.Errorf("previous of one that was never restarted: %q", out)
	}
	for stream, text := range map[string]string{"Stdout": "two out\n", "Stderr": "two err\n"} {
		raw, err := c.Client.CoreV1().Pods(ns).GetLogs("talks", &corev1.PodLogOptions{Container: "two", Stream: &stream}).DoRaw(t.Context())
		if err != nil {
			t.Error(err)
		}
		want(stream, string(raw), text)
	}
	if err := <-followed; err != nil {
		t.Error("following: ", err)
	}
	n.phase("much", corev1.PodSucceeded)
	path := filepath.Join(c.DataDir(hostNamed(t, c, n.pod("much").Spec.NodeName)), "pods", string(n.pod("much").UID), "logs", "main")
	if files := must(os.ReadDir(path)); len(files) < 3 {
		t.Errorf("the log was not rotated: %v", files)
	}
}

var manyWords = strings.Repeat("word ", 18)

// followWhole follows the log of the pod that says much, and wants each line.
func followWhole(ctx context.Context, c *cluster.Cluster, ns string) error {
	body, err := c.Client.CoreV1().Pods(ns).GetLogs("much", &corev1.PodLogOptions{Follow: true}).Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	last := 0
	rest := []byte(nil)
	buf := make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		rest = append(rest, buf[:n]...)
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				break
			}
			rest = after
			if last++; string(line) != fmt.Sprintf("%07d %s", last, manyWords) {
				return fmt.Errorf("line %d is %q", last, line)
			}
		}
		rest = slices.Clone(rest)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if last != 300000 || len(rest) > 0 {
		return fmt.Errorf("%d lines came, and %q", last, rest)
	}
	return nil
}

// usage is what the node's conclave and a pod's processes hold.
type usage struct{ goroutines, files, podFiles, processes int }

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d files; of the pod's process %d files, %d processes in the pod", u.goroutines, u.files, u.podFiles, u.processes)
}

// TestExecsLeakNothing runs one command after the other.
func TestExecsLeakNothing(t *testing.T) {
	t.Parallel()
	c := own(t, 1)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	n.create(edited(nodePod("execs", sh("main", "echo marker-of-execs >/dev/null; "+forever)), always))
	pod := n.until("execs", "runs", readyNow, nil)
	config := must(c.RESTConfig(""))
	executors := n.executors(config, "execs")
	run := func(protocol string, i int) {
		var out bytes.Buffer
		e, err := executors[protocol]("exec", url.Values{"container": {"main"}, "stdout": {"true"}, "stderr": {"true"}, "stdin": {"true"}, "command": {"sh", "-c", fmt.Sprintf("cat; exit %d", i%3)}})
		if err != nil {
			t.Fatal(err)
		}
		err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &out, Stderr: io.Discard})
		if out.String() != "input" || (err != nil) != (i%3 > 0) {
			t.Fatalf("the %d-th command: %q %v", i, out.String(), err)
		}
	}
	look := func() usage { return usageOf(t, c, string(pod.UID)) }
	for i := range 10 {
		run([]string{"WebSocket", "SPDY"}[i%2], i)
	}
	before := look()
	count := 150
	if text := os.Getenv("CONCLAVE_TEST_EXECS"); text != "" {
		count = must(strconv.Atoi(text))
	}
	for i := range count {
		run([]string{"WebSocket", "SPDY"}[i%2], i)
	}
	// Commands whose client goes away in the middle.
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		e, err := executors[[]string{"WebSocket", "SPDY"}[i%2]]("exec", url.Values{"container": {"main"}, "stdout": {"true"}, "command": {"sleep", "3600"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
			t.Error("a command whose client went away succeeded")
		}
		cancel()
	}
	var after usage
	eventually(t, "all is as before", func() error {
		after = look()
		const slack = 6 // connections of the cluster's own come and go
		if after.goroutines > before.goroutines+slack || after.files > before.files+slack || after.podFiles > before.podFiles || after.processes > before.processes {
			return fmt.Errorf("before: %s; after %d commands: %s", before, count, after)
		}
		return nil
	})
	t.Logf("before: %s; after %d commands: %s", before, count, after)
}

// usageOf looks at the first host and at one pod of its.
func usageOf(t *testing.T, c *cluster.Cluster, uid string) (u usage) {
	t.Helper()
	h := c.Hosts[0]
	text := page(t, socketClient(c.Socket(h)), "http://conclave/debug/pprof/goroutine?debug=1")
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &u.goroutines); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, dir := range must(filepath.Glob("/proc/[0-9]*")) {
		raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		line := string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil {
			continue
		}
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil {
			continue
		}
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		switch {
		case strings.Contains(line, uid): // the small process of the pod has it among its arguments
			u.podFiles += len(fds)
		case strings.Contains(string(groups), uid):
			u.processes++
		case strings.Contains(line, "conclave") && bytes.Contains(environ, []byte(c.DataDir(h))):
			u.files += len(fds)
		}
	}
	if u.files == 0 || u.podFiles == 0 || u.processes == 0 {
		t.Fatalf("the processes were not found: %s", u)
	}
	return u
}

// TestStreamsEnd: every stream into a pod ends when the pod does, and when the
// node's own process does; who waits at the other end is not left waiting.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	c := own(t, 2)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	n := &nodeTest{t, c, metav1.NamespaceDefault}
	config := must(c.RESTConfig(c.Hosts[0].Name))
	victim := c.Hosts[1].Name
	for _, end := range []struct {
		name string
		do   func(pod string)
	}{
		{"the pod is deleted", func(pod string) { kubectl(t, c, "delete", "pod", pod, "--wait=false") }},
		{"the node's process is killed", func(string) {
			if err := c.Kill(victim); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		pod := "ends-" + strings.ReplaceAll(strings.Fields(end.name)[1], "'s", "")
		n.create(edited(nodePod(pod, sh("main", "nc -ll -p 9001 -e sleep 3600 & until grep -q :2329 /proc/net/tcp*; do sleep 0.1; done; echo begins; "+forever)), always, func(p *corev1.Pod) { p.Spec.NodeName = victim }))
		n.until(pod, "runs", readyNow, nil)
		eventually(t, "its port is there", func() error {
			out, err := c.Kubectl(t.Context(), "logs", "-n", n.ns, pod)
			if err == nil && !strings.Contains(out, "begins") {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
		type over struct {
			what string
			err  error
		}
		ended, begun := make(chan over), make(chan string, 16)
		streams := 0
		run := func(what string, f func() error) {
			streams++
			go func() { ended <- over{what, f()} }()
		}
		said := func(what string) io.Writer {
			return writer(func(p []byte) (int, error) {
				select {
				case begun <- what:
				default:
				}
				return len(p), nil
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		for protocol, executor := range n.executors(config, pod) {
			in, typed := io.Pipe()
			defer typed.Close()
			e := must(executor("exec", url.Values{"container": {"main"}, "stdin": {"true"}, "stdout": {"true"}, "command": {"sh", "-c", "echo begins; sleep 3600"}}))
			run("exec by "+protocol, func() error {
				return e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: said("exec")})
			})
			a := must(executor("attach", url.Values{"container": {"main"}, "stdout": {"true"}}))
			run("attach by "+protocol, func() error {
				return a.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard})
			})
		}
		run("logs -f", func() error {
			body, err := c.Client.CoreV1().Pods(n.ns).GetLogs(pod, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(said("logs"), body)
			return err
		})
		for protocol, dialer := range n.dialers(config, pod) {
			stop, ready := make(chan struct{}), make(chan struct{})
			f := must(portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:9001"}, stop, ready, io.Discard, io.Discard))
			go func() { _ = f.ForwardPorts() }()
			t.Cleanup(func() { close(stop) })
			<-ready
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", must(f.GetPorts())[0].Local))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			run("a forwarded connection by "+protocol, func() error {
				_, err := io.Copy(io.Discard, conn)
				return err
			})
		}
		for range 3 { // both commands, and the log
			select {
			case <-begun:
			case o := <-ended:
				t.Fatalf("%s ended before %s: %v", o.what, end.name, o.err)
			case <-ctx.Done():
				t.Fatal("the streams did not begin")
			}
		}
		end.do(pod)
		for range streams {
			o := <-ended
			if ctx.Err() != nil {
				t.Errorf("when %s, %s does not end", end.name, o.what)
			}
			t.Logf("when %s, %s ends: %v", end.name, o.what, o.err)
		}
	}
}
