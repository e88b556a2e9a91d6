package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"conclave/test/cluster"
)

// TestExamples runs nginx and redis from Debian's packages by the manifests in
// examples/, and uses them through their Services.
func TestExamples(t *testing.T) {
	c := three(t)
	t.Parallel()
	if err := c.Import(t.Context(), "nginx", "redis"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	for _, example := range []string{"nginx", "redis", "redis-replica"} {
		kubectl(t, c, "apply", "-n", ns, "-f", filepath.Join(c.Root, "examples", example+".yaml"))
	}
	kubectl(t, c, "-n", ns, "rollout", "status", "deployment/nginx", "--timeout=90s")
	kubectl(t, c, "-n", ns, "rollout", "status", "deployment/redis", "--timeout=90s")

	web := kubectl(t, c, "-n", ns, "get", "service", "nginx", "-o", "jsonpath={.spec.clusterIP}")
	for _, h := range c.Hosts {
		out, err := c.Fetch(t.Context(), h.Name, "http://"+web+"/")
		if err != nil {
			t.Fatal(err)
		}
		mustContain(t, "nginx from "+h.Name, out, "Served by nginx, as a pod of equals")
	}
	redis := strings.TrimSpace(kubectl(t, c, "-n", ns, "get", "pod", "-l", "app=redis", "-o", "name"))
	if out := kubectl(t, c, "-n", ns, "exec", redis, "--", "redis-cli", "-h", "redis", "set", "greeting", "hello"); strings.TrimSpace(out) != "OK" {
		t.Errorf("set through the Service's name: %q", out)
	}
	if out := kubectl(t, c, "-n", ns, "exec", redis, "--", "redis-cli", "get", "greeting"); strings.TrimSpace(out) != "hello" {
		t.Errorf("get: %q", out)
	}
	mustContain(t, "redis' user", kubectl(t, c, "-n", ns, "exec", redis, "--", "id"), "uid=999", "gid=999")

	// The page is a ConfigMap, and changes with it while nginx runs.
	kubectl(t, c, "-n", ns, "patch", "configmap", "nginx-page", "--type=merge", "-p", `{"data":{"index.html":"changed while it runs"}}`)
	for _, pod := range strings.Fields(kubectl(t, c, "-n", ns, "get", "pods", "-l", "app=nginx", "-o", "jsonpath={.items[*].status.podIP}")) {
		eventually(t, "the page of "+pod+" changes", func() error {
			out, err := c.Fetch(t.Context(), c.Hosts[0].Name, "http://"+pod+"/")
			if err == nil && strings.TrimSpace(out) != "changed while it runs" {
				err = fmt.Errorf("it is %q", out)
			}
			return err
		})
	}
	if out := kubectl(t, c, "-n", ns, "get", "pods", "-l", "app=nginx", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); strings.Trim(out, "0 ") != "" {
		t.Errorf("nginx was restarted: %q", out)
	}

	// What is written to the first of the pair is read from the second.
	kubectl(t, c, "-n", ns, "rollout", "status", "statefulset/redis-pair", "--timeout=90s")
	if out := kubectl(t, c, "-n", ns, "exec", "redis-pair-0", "--", "redis-cli", "set", "pair", "of equals"); strings.TrimSpace(out) != "OK" {
		t.Errorf("set: %q", out)
	}
	eventually(t, "the replica has it", func() error {
		out, err := c.Kubectl(t.Context(), "-n", ns, "exec", "redis-pair-1", "--", "redis-cli", "get", "pair")
		if err == nil && strings.TrimSpace(out) != "of equals" {
			err = fmt.Errorf("it has %q", out)
		}
		return err
	})
}

// databaseSession has psql on this machine, from the image's own files, work with
// a database by way of kubectl's port-forward: one session, several transactions,
// some megabytes each way.
func databaseSession(t *testing.T, c *cluster.Cluster, ns string) {
	t.Helper()
	file, err := cluster.Image(t.Context(), c.Root, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack := exec.CommandContext(t.Context(), "tar", "-x", "-C", root)
	content := mutate.Extract(must(tarball.ImageFromPath(file, nil)))
	defer content.Close()
	unpack.Stdin = content
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack the image: %v: %s", err, out)
	}
	line := running(t, c, "-n", ns, "port-forward", "statefulset/postgres", ":5432")
	found := regexp.MustCompile(`127\.0\.0\.1:([1-9][0-9]*) -> 5432`).FindStringSubmatch(line)
	if found == nil {
		t.Fatalf("port-forward says %q", line)
	}
	psql := exec.CommandContext(t.Context(), "chroot", root, "/bin/psql", "-h", "127.0.0.1", "-p", found[1], "-U", "postgres", "-tA", "-v", "ON_ERROR_STOP=1")
	psql.Stdin = strings.NewReader(`create temporary table session (n int, filler text);
begin; insert into session select n, repeat('x', 1000) from generate_series(1, 4000) n; commit;
begin; delete from session; rollback;
select count(*), sum(length(filler)) from session;
\copy (select * from session) to '/tmp/session'
\copy session from '/tmp/session'
select count(*), sum(n) from session;
`)
	out, err := psql.CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
	mustContain(t, "the session", string(out), "4000|4000000\n", "COPY 4000\nCOPY 4000\n8000|16004000\n")
}

// TestDatabase runs PostgreSQL from Debian's package on claims, of the class
// that every cluster has and of a CSI driver: what was written is there after
// the pod, our process and the host went and came back.
func TestDatabase(t *testing.T) {
	c := own(t, 1)
	t.Parallel()
	if err := c.Import(t.Context(), "postgres"); err != nil {
		t.Fatal(err)
	}
	withDriver(t, c)
	host := c.Hosts[0].Name
	raw, err := os.ReadFile(filepath.Join(c.Root, "examples", "postgres.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const claim = "      accessModes: [ReadWriteOnce]\n"
	if strings.Count(string(raw), claim) != 1 {
		t.Fatal("the example has not one claim")
	}
	namespaces := []string{}
	for _, class := range []string{"local-path", "csi-hostpath"} {
		ns := "db-" + class
		namespaces = append(namespaces, ns)
		kubectl(t, c, "create", "namespace", ns)
		if _, err := c.KubectlInput(t.Context(), strings.Replace(string(raw), claim, claim+"      storageClassName: "+class+"\n", 1), "apply", "-n", ns, "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(ns, query string) (string, error) {
		out, err := c.Kubectl(t.Context(), "-n", ns, "exec", "postgres-0", "--", "psql", "-tAc", query)
		return strings.TrimSpace(out), err
	}
	rows := 0
	check := func(when string) {
		t.Helper()
		for _, ns := range namespaces {
			eventually(t, ns+" answers "+when, func() error {
				out, err := ask(ns, "select count(*) from kept")
				if err == nil && out != fmt.Sprint(rows) {
					err = fmt.Errorf("there are %s rows, and were %d", out, rows)
				}
				return err
			})
			if _, err := ask(ns, "insert into kept values ('"+when+"')"); err != nil {
				t.Fatal(err)
			}
		}
		rows++
	}
	for _, ns := range namespaces {
		kubectl(t, c, "-n", ns, "rollout", "status", "statefulset/postgres", "--timeout=120s")
		if _, err := ask(ns, "create table kept (at text)"); err != nil {
			t.Fatal(err)
		}
	}
	check("at first")
	for _, ns := range namespaces {
		databaseSession(t, c, ns)
	}
	for _, ns := range namespaces {
		kubectl(t, c, "-n", ns, "delete", "pod", "postgres-0")
	}
	check("after the pod")
	if err := c.Kill(host); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(host, "up"); err != nil {
		t.Fatal(err)
	}
	check("after the process")
	if err := c.PowerOff(host); err != nil {
		t.Fatal(err)
	}
	boot(t, c, host)
	check("after the host")
}
