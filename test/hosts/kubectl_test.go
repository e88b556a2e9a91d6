package hosts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"conclave/test/cluster"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tick
  labels: {app: tick}
spec:
  replicas: 2
  selector: {matchLabels: {app: tick}}
  template:
    metadata: {labels: {app: tick}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: tick
        image: conclave.test/busybox:1
        command: [sh, -c, 'i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done']
        env: [{name: VERSION, value: "one"}]
---
apiVersion: v1
kind: Service
metadata: {name: tick}
spec:
  selector: {app: tick}
  ports: [{port: 80}]
`

// TestKubectl walks the verbs of kubectl as a user would.
func TestKubectl(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	k := func(args ...string) string { t.Helper(); return kubectl(t, c, append([]string{"-n", ns}, args...)...) }

	out := k("get", "nodes", "-o", "wide")
	mustContain(t, "get nodes -o wide", out, "INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME", c.Hosts[0].Address.String())
	if n := strings.Count(out, " Ready "); n != 3 {
		t.Errorf("%d nodes are Ready:\n%s", n, out)
	}
	if out := k("get", "--raw", "/readyz"); strings.TrimSpace(out) != "ok" {
		t.Errorf("readyz: %q", out)
	}

	mustContain(t, "apply", apply(t, c, ns, deployment), "deployment.apps/tick created", "service/tick created")
	mustContain(t, "apply again", apply(t, c, ns, deployment), "deployment.apps/tick unchanged", "service/tick unchanged")
	mustContain(t, "rollout status", k("rollout", "status", "deployment/tick", "--timeout=60s"), "successfully rolled out")

	out = k("get", "all")
	mustContain(t, "get all", out, "pod/tick-", "service/tick", "deployment.apps/tick", "replicaset.apps/tick-", "2/2", "1/1")
	mustContain(t, "describe deployment", k("describe", "deployment", "tick"), "StrategyType:", "RollingUpdate", "NewReplicaSet", "ScalingReplicaSet", "Available      True")
	mustContain(t, "describe node", k("describe", "node", c.Hosts[0].Name), "Conditions:", "Allocatable:", "Non-terminated Pods:", "KubeletReady")

	pod := strings.TrimPrefix(strings.Fields(k("get", "pods", "-l", "app=tick", "-o", "name"))[0], "pod/")
	mustContain(t, "describe pod", k("describe", "pod", pod), "Successfully assigned", "Container image", "Started", "Node:", "IP:")
	mustContain(t, "explain", k("explain", "deployment.spec.strategy"), "FIELDS:", "rollingUpdate", "RollingUpdateDeployment", "DESCRIPTION:")

	mustContain(t, "scale", k("scale", "deployment/tick", "--replicas=3"), "scaled")
	k("wait", "deployment/tick", "--for=jsonpath={.status.readyReplicas}=3", "--timeout=60s")

	// Logs that follow: the lines come as they are printed.
	followed := follow(t, c, 5, "-n", ns, "logs", "-f", pod)
	for i := range 5 {
		if want := fmt.Sprintf("tick %d", i); followed[i] != want {
			t.Errorf("line %d of logs -f is %q, want %q", i, followed[i], want)
		}
	}
	if out := k("logs", pod, "--tail=1", "--timestamps"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT[\d:.]+\S* tick \d+\n$`).MatchString(out) {
		t.Errorf("logs --tail=1 --timestamps: %q", out)
	}

	mustContain(t, "exec", k("exec", pod, "--", "sh", "-c", "echo $VERSION; hostname"), "one", pod)
	if out, err := c.Kubectl(t.Context(), "-n", ns, "exec", pod, "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("exec of a command that exits 7: %v, %q", err, out)
	}
	out, err := c.KubectlInput(t.Context(), "hello from stdin", "-n", ns, "exec", "-i", pod, "--", "cat")
	if err != nil || out != "hello from stdin" {
		t.Errorf("exec -i cat: %q, %v", out, err)
	}
	terminal(t, c, ns, pod)

	edit(t, c, ns)
	k("rollout", "status", "deployment/tick", "--timeout=60s")
	mustContain(t, "rollout history", k("rollout", "history", "deployment/tick"), "REVISION", "1", "2")
	mustContain(t, "rollout history of a revision", k("rollout", "history", "deployment/tick", "--revision=1"), "VERSION:", "one")
	mustContain(t, "rollout undo", k("rollout", "undo", "deployment/tick"), "rolled back")
	k("rollout", "status", "deployment/tick", "--timeout=60s")
	if got := k("get", "deployment", "tick", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}"); got != "one" {
		t.Errorf("after undo, VERSION is %q", got)
	}

	mustContain(t, "rollout pause", k("rollout", "pause", "deployment/tick"), "paused")
	k("set", "env", "deployment/tick", "VERSION=paused")
	if out := k("get", "replicasets", "-o", "jsonpath={.items[*].spec.template.spec.containers[0].env[0].value}"); strings.Contains(out, "paused") {
		t.Errorf("a paused deployment made a replica set: %s", out)
	}
	k("rollout", "resume", "deployment/tick")
	k("rollout", "status", "deployment/tick", "--timeout=60s")

	changed := strings.Replace(deployment, `"one"`, `"changed"`, 1)
	diff, err := c.KubectlInput(t.Context(), changed, "-n", ns, "diff", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("diff of a change: %v", err)
	}
	mustContain(t, "diff", diff, "+          value: changed")

	serverSide(t, c, ns)
	drain(t, c, ns)

	mustContain(t, "delete", k("delete", "deployment,service", "tick", "--timeout=60s"), `deployment.apps "tick" deleted`, `service "tick" deleted`)
	k("wait", "pod", "-l", "app=tick", "--for=delete", "--timeout=60s")
	if out := k("get", "all"); !strings.Contains(out, "No resources found") {
		t.Errorf("after delete:\n%s", out)
	}
}

// follow runs kubectl until it has printed n lines, and ends it.
func follow(t *testing.T, c *cluster.Cluster, n int, args ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "bin", "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	var out lines
	out.n, out.enough = n, cancel
	cmd.Stdout, cmd.WaitDelay = &out, time.Second
	_ = cmd.Run() // it is killed once it has said enough
	if len(out.all) < n {
		t.Fatalf("kubectl %s printed only %q", strings.Join(args, " "), out.all)
	}
	return out.all
}

// lines collects whole lines and says when there are enough.
type lines struct {
	rest   []byte
	all    []string
	n      int
	enough func()
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest, l.all = rest, append(l.all, string(line))
		if len(l.all) == l.n {
			l.enough()
		}
	}
}

// terminal runs exec -it under script(1), which gives kubectl a terminal.
func terminal(t *testing.T, c *cluster.Cluster, ns, pod string) {
	t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		t.Fatal("script is missing: it comes with bsdutils")
	}
	// The size follows the start of the command: until then there is none.
	const shell = `tty; until stty size 2>/dev/null | grep -v "^0 0"; do sleep 0.1; done`
	line := fmt.Sprintf("stty rows 33 cols 101; %s/bin/kubectl -n %s exec -it %s -- sh -c '%s'", c.Root, ns, pod, shell)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, script, "-qec", line, "/dev/null")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "TERM=xterm", "SHELL=/bin/sh")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("exec -it: %v: %s", err, out)
	}
	mustContain(t, "exec -it", string(out), "/dev/pts/", "33 101")
}

// edit changes the deployment by kubectl edit, with sed for an editor.
func edit(t *testing.T, c *cluster.Cluster, ns string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(c.Root, "bin", "kubectl"), "-n", ns, "edit", "deployment/tick")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "KUBE_EDITOR=sed -i 's/value: one/value: two/'")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("edit: %v: %s", err, out)
	}
	mustContain(t, "edit", string(out), "deployment.apps/tick edited")
	if got := kubectl(t, c, "-n", ns, "get", "deployment", "tick", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}"); got != "two" {
		t.Errorf("after edit, VERSION is %q", got)
	}
}

// serverSide applies as two managers that want different things.
func serverSide(t *testing.T, c *cluster.Cluster, ns string) {
	t.Helper()
	config := func(value string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {key: " + value + "}\n"
	}
	mustContain(t, "apply --server-side", apply(t, c, ns, config("a"), "--server-side", "--field-manager=first"), "serverside-applied")
	_, err := c.KubectlInput(t.Context(), config("b"), "apply", "-n", ns, "-f", "-", "--server-side", "--field-manager=second")
	if err == nil || !strings.Contains(err.Error(), `conflict with "first"`) || !strings.Contains(err.Error(), ".data.key") {
		t.Errorf("a conflicting apply: %v", err)
	}
	apply(t, c, ns, config("b"), "--server-side", "--field-manager=second", "--force-conflicts")
	if got := kubectl(t, c, "-n", ns, "get", "configmap", "shared", "-o", "jsonpath={.data.key}"); got != "b" {
		t.Errorf("after a forced apply, key is %q", got)
	}
	owners := kubectl(t, c, "-n", ns, "get", "configmap", "shared", "--show-managed-fields", "-o", "jsonpath={.metadata.managedFields[*].manager}")
	if strings.TrimSpace(owners) != "second" {
		t.Errorf("the fields are managed by %q", owners)
	}
}

// drain empties a node and gives it back.
func drain(t *testing.T, c *cluster.Cluster, ns string) {
	t.Helper()
	node := kubectl(t, c, "-n", ns, "get", "pods", "-l", "app=tick", "-o", "jsonpath={.items[0].spec.nodeName}")
	mustContain(t, "cordon", kubectl(t, c, "cordon", node), "cordoned")
	mustContain(t, "a cordoned node", kubectl(t, c, "get", "node", node), "SchedulingDisabled")
	mustContain(t, "drain", kubectl(t, c, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s"), "drained")
	if left := kubectl(t, c, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o", "name"); strings.TrimSpace(left) != "" {
		t.Errorf("pods on a drained node: %s", left)
	}
	kubectl(t, c, "-n", ns, "rollout", "status", "deployment/tick", "--timeout=60s")
	mustContain(t, "uncordon", kubectl(t, c, "uncordon", node), "uncordoned")
}

// TestEveryNodeAnswers uses the cluster by way of each host.
func TestEveryNodeAnswers(t *testing.T) {
	c := three(t)
	for _, h := range c.Hosts {
		config := filepath.Join(t.TempDir(), "kubeconfig")
		text, err := c.On(t.Context(), h.Name, c.Binary, "kubeconfig")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, "https://"+h.Address.String()+":6443") {
			t.Errorf("the kubeconfig of %s names another host:\n%s", h.Name, text)
		}
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := c.Kubectl(t.Context(), "--kubeconfig", config, "get", "nodes", "-o", "name")
		if err != nil || strings.Count(out, "node/") != 3 {
			t.Errorf("by way of %s: %v: %s", h.Name, err, out)
		}
	}
}
