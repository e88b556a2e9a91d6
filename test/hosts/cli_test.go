package hosts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// running starts kubectl for as long as the test runs, and returns the first
// line that it prints.
func running(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "bin", "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "HOME="+c.Dir)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("kubectl %s printed nothing: %v", strings.Join(args, " "), err)
	}
	return line
}

// page reads a page of a server on this machine.
func page(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, answer.Status, err, body)
	}
	return string(body)
}

// socketClient speaks HTTP through a Unix socket, each question on a connection
// of its own.
func socketClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
}

// TestCommands shows what kubectl does with this cluster, command by command.
func TestCommands(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	account(t, c, ns, "default")
	k := func(t *testing.T, args ...string) string {
		t.Helper()
		return kubectl(t, c, append([]string{"-n", ns}, args...)...)
	}
	image := func(t *testing.T, pod string) string {
		t.Helper()
		return k(t, "get", "pod", pod, "-o", "jsonpath={.spec.containers[0].image}")
	}
	sleeping := func(t *testing.T, pod string) {
		t.Helper()
		k(t, "run", pod, "--image=conclave.test/busybox:1", "--restart=Never", "--labels=run="+pod, "--", "sleep", "3600")
	}
	for _, command := range []struct {
		name, codename string
		show           func(t *testing.T)
	}{
		{"api-versions", "[sig-cli] Kubectl client Kubectl api-versions should check if v1 is in available api versions [Conformance]", func(t *testing.T) {
			if !slices.Contains(strings.Fields(k(t, "api-versions")), "v1") {
				t.Error("v1 is missing")
			}
		}},
		{"cluster-info", "[sig-cli] Kubectl client Kubectl cluster-info should check if Kubernetes control plane services is included in cluster-info [Conformance]", func(t *testing.T) {
			colours := regexp.MustCompile(`\x1b\[[0-9;]*m`)
			mustContain(t, "cluster-info", colours.ReplaceAllString(k(t, "cluster-info"), ""), "Kubernetes control plane is running at https://")
		}},
		{"version", "[sig-cli] Kubectl client Kubectl version should check is all data is printed [Conformance]", func(t *testing.T) {
			mustContain(t, "version", k(t, "version"), "Client Version: v", "Kustomize Version: v", "Server Version: v")
			var both map[string]map[string]string
			var printed map[string]any
			if err := json.Unmarshal([]byte(k(t, "version", "-o", "json")), &printed); err != nil {
				t.Fatal(err)
			}
			delete(printed, "kustomizeVersion") // a word, not a table
			raw, err := json.Marshal(printed)
			if err == nil {
				err = json.Unmarshal(raw, &both)
			}
			if err != nil {
				t.Fatal(err)
			}
			// What a build says of its commit depends on where it was built.
			for field, pattern := range map[string]string{
				"major": `^\d+$`, "minor": `^\d+$`, "gitVersion": `^v\d+\.\d+\.\d+`, "goVersion": `^go\d`, "compiler": `^gc$`, "platform": `^linux/\w+$`,
			} {
				for _, side := range []string{"clientVersion", "serverVersion"} {
					if value := both[side][field]; !regexp.MustCompile(pattern).MatchString(value) {
						t.Errorf("%s of %s is %q", field, side, value)
					}
				}
			}
		}},
		{"run", "[sig-cli] Kubectl client Kubectl run pod should create a pod from an image when restart is Never [Conformance]", func(t *testing.T) {
			sleeping(t, "runs")
			pod, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), "runs", metav1.GetOptions{})
			if err != nil || pod.Spec.Containers[0].Image != "conclave.test/busybox:1" || pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
				t.Errorf("%v: %+v", err, pod.Spec)
			}
			k(t, "delete", "pod", "runs", "--now")
		}},
		{"label", "[sig-cli] Kubectl client Kubectl label should update the label on a resource [Conformance]", func(t *testing.T) {
			sleeping(t, "labelled")
			k(t, "label", "pods", "labelled", "testing-label=testing-value")
			mustContain(t, "get -L", k(t, "get", "pod", "labelled", "-L", "testing-label"), "testing-value")
			mustContain(t, "get -l", k(t, "get", "pods", "-l", "testing-label=testing-value", "-o", "name"), "pod/labelled")
			k(t, "label", "pods", "labelled", "testing-label-")
			if out := k(t, "get", "pod", "labelled", "-L", "testing-label"); strings.Contains(out, "testing-value") {
				t.Errorf("the label is still there: %s", out)
			}
			if out := k(t, "get", "pods", "-l", "testing-label=testing-value", "-o", "name"); strings.Contains(out, "labelled") {
				t.Errorf("the pod is still selected: %s", out)
			}
		}},
		{"replace", "[sig-cli] Kubectl client Kubectl replace should update a single-container pod's image [Conformance]", func(t *testing.T) {
			sleeping(t, "replaced")
			waitForPod(t, c, ns, "replaced", corev1.PodRunning)
			manifest := strings.ReplaceAll(k(t, "get", "pod", "replaced", "-o", "json"), "conclave.test/busybox:1", "conclave.test/tool:1")
			if _, err := c.KubectlInput(t.Context(), manifest, "-n", ns, "replace", "-f", "-"); err != nil {
				t.Fatal(err)
			}
			if got := image(t, "replaced"); got != "conclave.test/tool:1" {
				t.Errorf("the image is %s", got)
			}
		}},
		{"server-side dry-run", "[sig-cli] Kubectl client Kubectl server-side dry-run should check if kubectl can dry-run update Pods [Conformance]", func(t *testing.T) {
			sleeping(t, "dry")
			mustContain(t, "patch --dry-run", k(t, "patch", "pod", "dry", "--dry-run=server", "-p",
				`{"spec":{"containers":[{"name":"dry","image":"conclave.test/tool:1"}]}}`), "patched")
			if got := image(t, "dry"); got != "conclave.test/busybox:1" {
				t.Errorf("the image is %s", got)
			}
		}},
		{"diff", "[sig-cli] Kubectl client Kubectl diff should check if kubectl diff finds a difference for Deployments [Conformance]", func(t *testing.T) {
			manifest := strings.NewReplacer("tick", "differs", "replicas: 2", "replicas: 0").Replace(deployment)
			manifest, _, _ = strings.Cut(manifest, "\n---")
			apply(t, c, ns, manifest)
			changed := strings.ReplaceAll(manifest, "conclave.test/busybox:1", "conclave.test/tool:1")
			out, err := c.KubectlInput(t.Context(), changed, "-n", ns, "diff", "-f", "-")
			exit, failed := errors.AsType[*exec.ExitError](err)
			if !failed || exit.ExitCode() != 1 {
				t.Fatalf("diff of a change: %v", err)
			}
			mustContain(t, "diff", out, "-        image: conclave.test/busybox:1", "+        image: conclave.test/tool:1")
			if out, err := c.KubectlInput(t.Context(), manifest, "-n", ns, "diff", "-f", "-"); err != nil {
				t.Errorf("diff of no change: %v: %s", err, out)
			}
		}},
		{"logs", "[sig-cli] Kubectl logs logs should be able to retrieve and filter logs [Conformance]", func(t *testing.T) {
			k(t, "run", "says", "--image=conclave.test/busybox:1", "--restart=Never", "--", "sh", "-c", `for i in $(seq 20); do echo "line $i says something"; done; sleep 3600`)
			waitForPod(t, c, ns, "says", corev1.PodRunning)
			eventually(t, "all lines are there", func() error {
				if out := k(t, "logs", "says"); strings.Count(out, "\n") != 20 {
					return fmt.Errorf("the log is %q", out)
				}
				return nil
			})
			if out := k(t, "logs", "says", "says", "--tail=1"); out != "line 20 says something\n" {
				t.Errorf("--tail=1: %q", out)
			}
			if out := k(t, "logs", "says", "says", "--limit-bytes=1"); out != "l" {
				t.Errorf("--limit-bytes=1: %q", out)
			}
			stamped := strings.SplitN(k(t, "logs", "says", "--tail=1", "--timestamps"), " ", 2)
			if _, err := time.Parse(time.RFC3339Nano, stamped[0]); err != nil || len(stamped) != 2 || stamped[1] != "line 20 says something\n" {
				t.Errorf("--timestamps: %v: %q", err, stamped)
			}
			if out := k(t, "logs", "says", "--since=24h"); strings.Count(out, "\n") != 20 {
				t.Errorf("--since=24h: %q", out)
			}
			eventually(t, "--since=1s leaves out what is older", func() error {
				if out := k(t, "logs", "says", "--since=1s"); out != "" {
					return fmt.Errorf("it prints %q", out)
				}
				return nil
			})
		}},
		{"proxy on any port", "[sig-cli] Kubectl client Proxy server should support proxy with --port 0 [Conformance]", func(t *testing.T) {
			line := running(t, c, "proxy", "--port=0")
			found := regexp.MustCompile(`Starting to serve on (127\.0\.0\.1:[1-9][0-9]*)`).FindStringSubmatch(line)
			if found == nil {
				t.Fatalf("it says %q", line)
			}
			mustContain(t, "/api/", page(t, http.DefaultClient, "http://"+found[1]+"/api/"), `"APIVersions"`, `"v1"`)
		}},
		{"proxy on a socket", "[sig-cli] Kubectl client Proxy server should support --unix-socket=/path [Conformance]", func(t *testing.T) {
			socket := filepath.Join(c.Dir, "proxy.sock")
			mustContain(t, "proxy", running(t, c, "proxy", "--unix-socket="+socket), "Starting to serve on "+socket)
			mustContain(t, "/api/", page(t, socketClient(socket), "http://localhost/api/"), `"APIVersions"`, `"v1"`)
		}},
		{"guestbook", "[sig-cli] Kubectl client Guestbook application should create and stop a working application [Conformance]", func(t *testing.T) {
			showGuestbook(t, c, ns)
		}},
	} {
		t.Run(command.name, func(t *testing.T) {
			t.Parallel()
			conformance.Shows(t, command.codename)
			command.show(t)
		})
	}
}

// guestbookPart is a Service, and a Deployment of the pods behind it.
const guestbookPart = `
apiVersion: v1
kind: Service
metadata: {name: NAME, labels: {app: guestbook, tier: NAME}}
spec:
  ports: [{port: 80, targetPort: 3000}]
  selector: {app: guestbook, tier: NAME}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, labels: {app: guestbook, tier: NAME}}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: guestbook, tier: NAME}}
  template:
    metadata: {labels: {app: guestbook, tier: NAME}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: guestbook
        image: conclave.test/tool:1
        args: [guestbook, ARGS]
        readinessProbe: {tcpSocket: {port: 3000}, periodSeconds: 1}
`

// showGuestbook runs an application of three parts, writes to it and reads back.
func showGuestbook(t *testing.T, c *cluster.Cluster, ns string) {
	parts := map[string]string{}
	for name, of := range map[string][2]string{
		"frontend": {"3", "frontend, http://primary, http://replica"},
		"primary":  {"1", "primary"},
		"replica":  {"2", "replica, http://primary"},
	} {
		parts[name] = strings.NewReplacer("NAME", name, "REPLICAS", of[0], "ARGS", of[1]).Replace(guestbookPart)
		if out, err := c.KubectlInput(t.Context(), parts[name], "-n", ns, "create", "-f", "-"); err != nil {
			t.Fatal(err, out)
		}
	}
	for name := range parts {
		kubectl(t, c, "-n", ns, "rollout", "status", "deployment/"+name, "--timeout=90s")
	}
	through := func(verb string) (string, error) {
		raw, err := c.Client.CoreV1().RESTClient().Verb(verb).Namespace(ns).Resource("services").Name("frontend").SubResource("proxy").
			Param("value", "TestEntry").DoRaw(t.Context())
		return strings.TrimSpace(string(raw)), err
	}
	eventually(t, "the frontend answers", func() error {
		out, err := through(http.MethodGet)
		if err == nil && out != "[]" && out != "null" {
			err = fmt.Errorf("it answers %q", out)
		}
		return err
	})
	if out, err := through(http.MethodPost); err != nil {
		t.Fatal(err, out)
	}
	eventually(t, "the replicas tell of the entry", func() error {
		out, err := through(http.MethodGet)
		if err == nil && out != `["TestEntry"]` {
			err = fmt.Errorf("they tell %q", out)
		}
		return err
	})
	for name := range parts {
		if out, err := c.KubectlInput(t.Context(), parts[name], "-n", ns, "delete", "--grace-period=0", "--force", "-f", "-"); err != nil {
			t.Fatal(err, out)
		}
	}
	eventually(t, "nothing of it is left", func() error {
		if out := kubectl(t, c, "-n", ns, "get", "deployments,services,pods", "-l", "app=guestbook", "-o", "name"); strings.Contains(out, "/") {
			return fmt.Errorf("there is %s", out)
		}
		return nil
	})
}

// TestReachingIn uses a Deployment's pods from outside: exposed as a Service
// and forwarded to a local port.
func TestReachingIn(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	account(t, c, ns, "default")
	kubectl(t, c, "-n", ns, "create", "deployment", "hello", "--image=conclave.test/tool:1", "--replicas=2", "--", "/tool", "serve", "http:8080=hello")
	kubectl(t, c, "-n", ns, "rollout", "status", "deployment/hello", "--timeout=90s")
	mustContain(t, "expose", kubectl(t, c, "-n", ns, "expose", "deployment", "hello", "--port=80", "--target-port=8080"), "service/hello exposed")
	mustContain(t, "expose of a service", kubectl(t, c, "-n", ns, "expose", "service", "hello", "--name=again", "--port=81", "--target-port=8080"), "service/again exposed")
	for service, port := range map[string]int32{"hello": 80, "again": 81} {
		eventually(t, "endpoints of "+service, func() error {
			slices, err := c.Client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
			if err == nil && (len(slices.Items) != 1 || len(slices.Items[0].Endpoints) != 2 || *slices.Items[0].Ports[0].Port != 8080) {
				err = fmt.Errorf("they are %+v", slices.Items)
			}
			return err
		})
		got, err := c.Client.CoreV1().Services(ns).Get(t.Context(), service, metav1.GetOptions{})
		if err != nil || got.Spec.Ports[0].Port != port {
			t.Errorf("%v: %+v", err, got.Spec)
		}
	}
	for _, target := range []string{"deployment/hello", "service/hello"} {
		line := running(t, c, "-n", ns, "port-forward", target, ":"+map[string]string{"deployment/hello": "8080", "service/hello": "80"}[target])
		found := regexp.MustCompile(`127\.0\.0\.1:([0-9]+) -> 8080`).FindStringSubmatch(line)
		if found == nil {
			t.Fatalf("port-forward of %s says %q", target, line)
		}
		for range 3 { // several connections over one forwarding
			if got := page(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://127.0.0.1:"+found[1]+"/"); !strings.Contains(got, "hello") {
				t.Errorf("by way of %s: %q", target, got)
			}
		}
	}
}
