package hosts

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"conclave/lab"
	"conclave/test/cluster"
)

// TestMetrics reads what nodes and pods use as people and their tools do.
func TestMetrics(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	pod := nodePod("busy", sh("spins", "while :; do :; done", func(c *corev1.Container) { c.Resources.Limits = amountsIn("cpu=50m memory=32Mi") }), sh("rests", forever, func(c *corev1.Container) {
		c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}, PeriodSeconds: 1}
	}))
	pod.Labels = map[string]string{"app": "busy"}
	claim := claimOf("data", "local-path", nil)
	if _, err := c.Client.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	pod.Spec.Containers[1].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	createPod(t, c, ns, pod)
	createPod(t, c, ns, nodePod("other", sh("rests", forever)))
	waitForPod(t, c, ns, "busy", corev1.PodRunning)
	waitForPod(t, c, ns, "other", corev1.PodRunning)
	node := nodeOf(t, c, ns, "busy").Name

	out := kubectl(t, c, "top", "nodes", "--no-headers")
	for _, h := range c.Hosts {
		mustContain(t, "top nodes", out, h.Name)
	}
	// A container that has just started has no rate yet.
	eventually(t, "top pods -l app=busy", func() error {
		out, err := c.Kubectl(t.Context(), "top", "pods", "-n", ns, "--containers", "--no-headers", "-l", "app=busy")
		if lines := strings.Split(strings.TrimSpace(out), "\n"); err == nil && (len(lines) != 2 || strings.Contains(out, "other")) {
			err = fmt.Errorf("it prints %q", out)
		}
		return err
	})
	// It spins as fast as its limit allows.
	eventually(t, "the rate is that of the limit", func() error {
		out := kubectl(t, c, "top", "pods", "-n", ns, "--containers", "--no-headers", "-l", "app=busy")
		for _, line := range strings.Split(out, "\n") {
			if f := strings.Fields(line); len(f) == 4 && f[1] == "spins" {
				var milli int
				if _, err := fmt.Sscanf(f[2], "%dm", &milli); err == nil && milli > 20 && milli < 80 {
					return nil
				}
			}
		}
		return fmt.Errorf("top says\n%s", out)
	})
	raw := kubectl(t, c, "get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/"+ns+"/pods/busy")
	mustContain(t, "the pod's metrics", raw, `"kind":"PodMetrics","apiVersion":"metrics.k8s.io/v1beta1"`, `"window":"`, `"name":"rests"`)
	if out, err := c.Kubectl(t.Context(), "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/nobody"); err == nil {
		t.Errorf("a node that is not there has metrics: %s", out)
	}
	mustContain(t, "the table", kubectl(t, c, "get", "nodes.metrics.k8s.io", node), "NAME", "CPU", "MEMORY", "WINDOW", node)

	proxy := "/api/v1/nodes/" + node + "/proxy"
	mustContain(t, "the summary", kubectl(t, c, "get", "--raw", proxy+"/stats/summary"), `"usageNanoCores":`, `"imageFs":`, `"rxBytes":`, `"rootfs":`, `"logs":`, `"ephemeral-storage":`, `"maxpid":`,
		fmt.Sprintf(`"name":"data","pvcRef":{"name":"data","namespace":%q}`, ns))
	mustContain(t, "resource metrics", kubectl(t, c, "get", "--raw", proxy+"/metrics/resource"),
		fmt.Sprintf(`container_cpu_usage_seconds_total{container="spins",namespace=%q,pod="busy"} `, ns), "node_memory_working_set_bytes ")
	mustContain(t, "container metrics", kubectl(t, c, "get", "--raw", proxy+"/metrics/cadvisor"),
		`container_memory_working_set_bytes{container="spins",`, fmt.Sprintf(`container_network_receive_bytes_total{interface="eth0",namespace=%q,pod="busy"} `, ns),
		`container_spec_cpu_quota{container="spins",`, `container_cpu_cfs_throttled_periods_total{container="spins",`, "machine_memory_bytes ")
	mustContain(t, "the kubelet's metrics", kubectl(t, c, "get", "--raw", proxy+"/metrics"), "kubelet_running_pods ", "process_resident_memory_bytes ",
		fmt.Sprintf(`kubelet_volume_stats_available_bytes{namespace=%q,persistentvolumeclaim="data"} `, ns), fmt.Sprintf(`kubelet_volume_stats_inodes_used{namespace=%q,persistentvolumeclaim="data"} `, ns))
	eventually(t, "the probes are counted", func() error {
		out, err := c.Kubectl(t.Context(), "get", "--raw", proxy+"/metrics/probes")
		counted := regexp.MustCompile(`(?m)^prober_probe_total\{container="rests",namespace="` + ns + `",pod="busy",pod_uid="[0-9a-f-]{36}",probe_type="Readiness",result="successful"\} [1-9]`)
		if err == nil && !counted.MatchString(out) {
			err = fmt.Errorf("they are\n%s", out)
		}
		return err
	})
	mustContain(t, "a master's metrics", kubectl(t, c, "get", "--raw", "/metrics"), "conclave_leader ", "conclave_applied_index ", "conclave_ready_seconds ")
	for _, page := range []string{"/metrics", proxy + "/metrics", proxy + "/metrics/resource", proxy + "/metrics/cadvisor", proxy + "/metrics/probes"} {
		if err := readExposition(kubectl(t, c, "get", "--raw", page)); err != nil {
			t.Errorf("%s: %v", page, err)
		}
	}
}

// TestMetricsByToken asks nodes directly, as programs do that scrape them: with the
// token of a service account that has the right to.
func TestMetricsByToken(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	for _, args := range [][]string{
		{"-n", ns, "create", "serviceaccount", "scrapes"}, {"-n", ns, "create", "serviceaccount", "nobody"},
		{"create", "clusterrole", ns, "--verb=get", "--resource=nodes/metrics,nodes/stats"},
		{"create", "clusterrolebinding", ns, "--clusterrole=" + ns, "--serviceaccount=" + ns + ":scrapes"},
	} {
		kubectl(t, c, args...)
	}
	t.Cleanup(func() {
		cleanUp(t, c.Client.RbacV1().ClusterRoleBindings().Delete, ns)
		cleanUp(t, c.Client.RbacV1().ClusterRoles().Delete, ns)
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	ask := func(host *lab.Host, method, path, token string) (int, string) {
		t.Helper()
		r := must(http.NewRequestWithContext(t.Context(), method, "https://"+net.JoinHostPort(host.Address.String(), "10250")+path, nil))
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, string(must(io.ReadAll(resp.Body)))
	}
	scrapes, nobody := strings.TrimSpace(kubectl(t, c, "-n", ns, "create", "token", "scrapes")), strings.TrimSpace(kubectl(t, c, "-n", ns, "create", "token", "nobody"))
	for _, h := range c.Hosts {
		for path, text := range map[string]string{"/metrics": "kubelet_running_pods ", "/metrics/resource": "node_memory_working_set_bytes ", "/metrics/cadvisor": "machine_memory_bytes ", "/metrics/probes": "prober_probe_total", "/stats/summary?only_cpu_and_memory=true": `"nodeName"`} {
			if code, out := ask(h, http.MethodGet, path, scrapes); code != http.StatusOK || !strings.Contains(out, text) {
				t.Errorf("%s of %s: %d %.300s", path, h.Name, code, out)
			}
		}
		for what, want := range map[[3]string]int{
			{http.MethodGet, "/metrics", ""}:                           http.StatusUnauthorized,
			{http.MethodGet, "/metrics", "no.token.ofours"}:            http.StatusUnauthorized,
			{http.MethodGet, "/metrics", nobody}:                       http.StatusForbidden,
			{http.MethodGet, "/pods", scrapes}:                         http.StatusForbidden,
			{http.MethodGet, "/containerLogs/default/a/b", scrapes}:    http.StatusForbidden,
			{http.MethodPost, "/exec/default/a/b?command=id", scrapes}: http.StatusForbidden,
			{http.MethodGet, "/exec/default/a/b?command=id", scrapes}:  http.StatusForbidden,
			{http.MethodGet, "/metrics/../exec/default/a/b", scrapes}:  http.StatusForbidden,
			{http.MethodGet, "//exec/default/a/b", scrapes}:            http.StatusForbidden,
			{http.MethodPost, "/metrics", scrapes}:                     http.StatusForbidden,
		} {
			if code, out := ask(h, what[0], what[1], what[2]); code != want {
				t.Errorf("%s %s of %s: %d %.300s", what[0], what[1], h.Name, code, out)
			}
		}
	}
	_, out := ask(c.Hosts[0], http.MethodGet, "/metrics", nobody)
	if want := fmt.Sprintf("Forbidden (user=system:serviceaccount:%s:nobody, verb=get, resource=nodes, subresource(s)=[metrics])\n", ns); out != want {
		t.Errorf("a refusal: %q", out)
	}
	// With the right to get nodes/proxy a log may be read, and no command run.
	kubectl(t, c, "create", "clusterrole", ns+"-proxy", "--verb=get", "--resource=nodes/proxy")
	kubectl(t, c, "create", "clusterrolebinding", ns+"-proxy", "--clusterrole="+ns+"-proxy", "--serviceaccount="+ns+":nobody")
	t.Cleanup(func() {
		cleanUp(t, c.Client.RbacV1().ClusterRoleBindings().Delete, ns+"-proxy")
		cleanUp(t, c.Client.RbacV1().ClusterRoles().Delete, ns+"-proxy")
	})
	eventually(t, "a right that was given holds", func() error {
		if code, out := ask(c.Hosts[0], http.MethodGet, "/pods", nobody); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, out)
		}
		return nil
	})
	if code, out := ask(c.Hosts[0], http.MethodGet, "/exec/default/a/b?command=id", nobody); code != http.StatusForbidden {
		t.Errorf("a command, by the right to get: %d %s", code, out)
	}
	// Nor by way of the API.
	for _, verb := range []string{"exec", "attach", "portForward", "/exec", "./exec"} {
		out, err := c.Kubectl(t.Context(), "--token", nobody, "--kubeconfig", withoutUser(t, c), "get", "--raw", "/api/v1/nodes/"+c.Hosts[0].Name+"/proxy/"+verb+"/default/a/b?command=id")
		if err == nil || !strings.Contains(out, "Forbidden") && !strings.Contains(out, "forbidden") {
			t.Errorf("%s by the right to get nodes/proxy: %s", verb, out)
		}
	}
	if out, err := c.Kubectl(t.Context(), "--token", nobody, "--kubeconfig", withoutUser(t, c), "get", "--raw", "/api/v1/nodes/"+c.Hosts[0].Name+"/proxy/healthz"); err != nil || out != "ok" {
		t.Errorf("healthz by the right to get nodes/proxy: %s %v", out, err)
	}
	// A token that was made for somebody else is nobody's here.
	vault := strings.TrimSpace(kubectl(t, c, "-n", ns, "create", "token", "scrapes", "--audience=vault"))
	if code, out := ask(c.Hosts[0], http.MethodGet, "/metrics", vault); code != http.StatusUnauthorized {
		t.Errorf("a token for another audience: %d %s", code, out)
	}
}

// withoutUser is a kubeconfig of the cluster that names nobody.
func withoutUser(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	config := must(clientcmd.LoadFromFile(c.Kubeconfig))
	for _, user := range config.AuthInfos {
		*user = clientcmdapi.AuthInfo{}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	metricType = regexp.MustCompile(`^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary|untyped)$`)
	metricHelp = regexp.MustCompile(`^# HELP [a-zA-Z_:][a-zA-Z0-9_:]* .`)
	metricLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\]|\\.)*",?)*\})? (\S+)( -?[0-9]+)?$`)
)

// readExposition reads a page as Prometheus does: its text-based exposition
// format, version 0.0.4.
func readExposition(text string) error {
	family, kind, seen, sample := "", "", map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := metricType.FindStringSubmatch(line); m != nil {
			if family, kind = m[1], m[2]; seen[family] {
				return fmt.Errorf("%s is there twice", family)
			}
			seen[family] = true
			continue
		}
		if strings.HasPrefix(line, "#") {
			if !metricHelp.MatchString(line) {
				return fmt.Errorf("neither TYPE nor HELP: %s", line)
			}
			continue
		}
		m := metricLine.FindStringSubmatch(line)
		if m == nil {
			return fmt.Errorf("no sample: %s", line)
		}
		suffix, of := strings.CutPrefix(m[1], family)
		parts := map[string]string{"summary": "_sum _count", "histogram": "_sum _count _bucket"}[kind]
		if !of || suffix != "" && !slices.Contains(strings.Fields(parts), suffix) {
			return fmt.Errorf("not of the %s %s: %s", kind, family, line)
		}
		if _, err := strconv.ParseFloat(m[5], 64); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
		if sample[m[1]+m[2]] {
			return fmt.Errorf("twice: %s", line)
		}
		sample[m[1]+m[2]] = true
	}
	return nil
}
