package hosts

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestExamples runs nginx and redis from Debian's packages by the manifests in
// examples/, and uses them through their Services.
func TestExamples(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "nginx", "redis"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	for _, example := range []string{"nginx", "redis"} {
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
}
