package hosts

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// TestAutoscaler makes pods work harder than they asked for, and rest again,
// behind what `kubectl autoscale` makes.
func TestAutoscaler(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	k := func(args ...string) string {
		t.Helper()
		return kubectl(t, c, append([]string{"-n", ns}, args...)...)
	}
	// No replicas are said: they are the autoscaler's. Each pod works until it is
	// told to rest, as fast as its limit allows: two and a half times its request.
	const manifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {round: "%d"}}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: works
        image: conclave.test/busybox:1
        command: [sh, -c, 'while [ ! -e /rest ]; do :; done; sleep 3600']
        resources: {requests: {cpu: 20m}, limits: {cpu: 50m}}
`
	apply(t, c, ns, fmt.Sprintf(manifest, 1))
	mustContain(t, "autoscale", k("autoscale", "deployment", "web", "--cpu=50%", "--min=1", "--max=3"), "horizontalpodautoscaler.autoscaling/web autoscaled")
	k("patch", "hpa", "web", "--type=merge", "-p", `{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":5}}}}`)
	replicas := func(want int32) {
		t.Helper()
		// A node is measured over a while that begins when the pod is ready, and
		// autoscalers look every 15 s.
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		if err := cluster.Eventually(ctx, func() error {
			d, err := c.Client.AppsV1().Deployments(ns).Get(ctx, "web", metav1.GetOptions{})
			if err == nil && (*d.Spec.Replicas != want || d.Status.ReadyReplicas != want) {
				err = fmt.Errorf("%d replicas are wanted, %d ready", *d.Spec.Replicas, d.Status.ReadyReplicas)
			}
			return err
		}); err != nil {
			t.Fatalf("%d replicas: %v\n%s", want, err, k("describe", "hpa", "web"))
		}
	}
	replicas(3)
	eventually(t, "the columns", func() error {
		f := strings.Fields(k("get", "hpa", "web", "--no-headers"))
		if len(f) != 8 || f[1] != "Deployment/web" || f[2] != "cpu:" || !strings.HasSuffix(f[3], "%/50%") || f[4] != "1" || f[5] != "3" || f[6] != "3" {
			return fmt.Errorf("%q", f)
		}
		return nil
	})
	mustContain(t, "header", k("get", "hpa"), "NAME", "REFERENCE", "TARGETS", "MINPODS", "MAXPODS", "REPLICAS", "AGE")
	mustContain(t, "all", k("get", "all"), "horizontalpodautoscaler.autoscaling/web")
	mustContain(t, "in v1", k("get", "horizontalpodautoscalers.v1.autoscaling", "web", "-o", "yaml"), "targetCPUUtilizationPercentage: 50", "autoscaling.alpha.kubernetes.io/behavior")
	apply(t, c, ns, fmt.Sprintf(manifest, 2))
	if n := k("get", "deployment", "web", "-o", "jsonpath={.spec.replicas} {.metadata.annotations.round}"); n != "3 2" {
		t.Errorf("after applying without replicas: %s", n)
	}
	for _, pod := range strings.Fields(k("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}")) {
		k("exec", pod, "--", "touch", "/rest")
	}
	replicas(1)
	eventually(t, "what is told of it", func() error {
		told := k("describe", "hpa", "web")
		for _, want := range []string{"ValidMetricFound", "SuccessfulRescale", "New size: 3; reason: cpu resource utilization (percentage of request) above target", "reason: All metrics below target"} {
			if !strings.Contains(told, want) {
				return fmt.Errorf("%q is missing:\n%s", want, told)
			}
		}
		return nil
	})
}
