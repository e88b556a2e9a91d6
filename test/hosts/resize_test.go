package hosts

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// amountsIn reads "cpu=100m memory=16Mi"; empty is none.
func amountsIn(text string) corev1.ResourceList {
	if text == "" {
		return nil
	}
	return amounts(strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '=' })...)
}

// sized is a container with requests and limits that runs until it is ended.
func sized(name, requests, limits string, edit ...func(*corev1.Container)) corev1.Container {
	c := sh(name, forever, edit...)
	c.Resources = corev1.ResourceRequirements{Requests: amountsIn(requests), Limits: amountsIn(limits)}
	return c
}

// inContainer are a container's cgroup settings, as read inside it, in the
// terms of cgroup version 1: shares, quota per 100 ms and memory limit.
func inContainer(t *testing.T, c *cluster.Cluster, ns, pod, container string) (shares, quota, memory int64, err error) {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "exec", "-n", ns, pod, "-c", container, "--", "sh", "-c",
		"cd /sys/fs/cgroup; if [ -f cpu.max ]; then cat cpu.weight cpu.max memory.max; else cat cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi")
	if err != nil {
		return 0, 0, 0, err
	}
	f := strings.Fields(out)
	if len(f) == 4 { // version 2: the weight of shares is not read back here
		f = []string{"0", f[1], f[3]}
	}
	if len(f) != 3 {
		return 0, 0, 0, fmt.Errorf("the cgroup says %q", out)
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 || n > 1<<62 {
			return -1 // none
		}
		return n
	}
	return number(f[0]), number(f[1]), number(f[2]), nil
}

// wantInForce checks that spec, status and cgroups of a resized pod agree, and
// that the kubelet is done with it.
func wantInForce(t *testing.T, c *cluster.Cluster, ns, name string) {
	t.Helper()
	eventually(t, name+" has its resources", func() error {
		pod, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if pod.Status.ObservedGeneration != pod.Generation {
			return fmt.Errorf("generation %d, observed %d", pod.Generation, pod.Status.ObservedGeneration)
		}
		for _, cond := range pod.Status.Conditions {
			if cond.Type == corev1.PodResizePending || cond.Type == corev1.PodResizeInProgress {
				return fmt.Errorf("condition %s: %s %s", cond.Type, cond.Reason, cond.Message)
			}
		}
		for i := range pod.Spec.Containers {
			want := &pod.Spec.Containers[i]
			at := slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == want.Name })
			if at < 0 || pod.Status.ContainerStatuses[at].Resources == nil {
				return fmt.Errorf("no resources of %s in %s", want.Name, shown(pod.Status))
			}
			has := pod.Status.ContainerStatuses[at]
			if !equality.Semantic.DeepEqual(has.Resources.Requests, want.Resources.Requests) || !equality.Semantic.DeepEqual(has.Resources.Limits, want.Resources.Limits) {
				return fmt.Errorf("%s has %s, not %s", want.Name, shown(has.Resources), shown(want.Resources))
			}
			if !equality.Semantic.DeepEqual(has.AllocatedResources, want.Resources.Requests) {
				return fmt.Errorf("%s was allocated %s, not %s", want.Name, shown(has.AllocatedResources), shown(want.Resources.Requests))
			}
			shares, quota, memory, err := inContainer(t, c, ns, name, want.Name)
			if err != nil {
				return err
			}
			r := want.Resources
			request := r.Requests.Cpu().MilliValue()
			if _, ok := r.Requests[corev1.ResourceCPU]; !ok {
				request = r.Limits.Cpu().MilliValue()
			}
			for _, f := range []struct {
				what      string
				got, want int64
			}{
				{"cpu shares", shares, max(request*1024/1000, 2)},
				{"cpu quota", quota, orNone(r.Limits.Cpu().MilliValue()*100, 1000)},
				{"memory limit", memory, orNone(r.Limits.Memory().Value(), 0)},
			} {
				if f.got != f.want && (f.what != "cpu shares" || f.got != 0) {
					return fmt.Errorf("%s: %s of the cgroup is %d, not %d", want.Name, f.what, f.got, f.want)
				}
			}
		}
		return nil
	})
}

func orNone(n, least int64) int64 {
	if n == 0 {
		return -1
	}
	return max(n, least)
}

// resizePatch is a strategic merge patch that gives containers these resources.
func resizePatch(containers ...corev1.Container) string {
	var parts []string
	for _, c := range containers {
		parts = append(parts, fmt.Sprintf(`{"name":%q,"resources":%s}`, c.Name, shown(c.Resources)))
	}
	return `{"spec":{"containers":[` + strings.Join(parts, ",") + `]}}`
}

// TestResize changes resources of running pods, and looks at what their
// containers see.
func TestResize(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	const group = "[sig-node] Pod InPlace Resize Container "
	for _, test := range []struct {
		name, codename string
		before, after  []corev1.Container
	}{
		{
			"six", group + "burstable pods - extended 6 containers - various operations performed (including adding limits and requests) [MinimumKubeletVersion:1.34] [Conformance]",
			[]corev1.Container{
				sized("c1", "cpu=20m memory=16Mi", "cpu=60m memory=32Mi"), sized("c2", "cpu=20m", ""), sized("c3", "", ""),
				sized("c4", "memory=16Mi", ""), sized("c5", "cpu=20m memory=24Mi", ""), sized("c6", "cpu=30m memory=24Mi", "cpu=60m memory=48Mi"),
			},
			[]corev1.Container{
				sized("c1", "cpu=30m memory=20Mi", "cpu=80m memory=40Mi"), sized("c2", "cpu=30m memory=16Mi", "cpu=70m"), sized("c3", "cpu=20m memory=16Mi", "memory=32Mi"),
				sized("c4", "cpu=10m memory=20Mi", "cpu=50m memory=40Mi"), sized("c5", "cpu=10m memory=16Mi", "cpu=50m memory=32Mi"), sized("c6", "cpu=20m memory=16Mi", "cpu=40m memory=32Mi"),
			},
		},
		{
			"equivalents", group + "burstable pods - extended resize with equivalents [MinimumKubeletVersion:1.34] [Conformance]",
			[]corev1.Container{sized("c1", "cpu=2m", "cpu=10m")}, []corev1.Container{sized("c1", "cpu=1m", "cpu=5m")},
		},
		{
			"increase", group + "guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, c2, decrease cpu & mem on c3 - net increase [MinimumKubeletVersion:1.34] [Conformance]",
			guaranteed("cpu=30m memory=24Mi", "cpu=30m memory=24Mi", "cpu=40m memory=32Mi"),
			guaranteed("cpu=60m memory=48Mi", "cpu=50m memory=40Mi", "cpu=30m memory=24Mi"),
		},
		{
			"decrease", group + "guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, decrease cpu & mem on c2, c3 - net decrease [MinimumKubeletVersion:1.34] [Conformance]",
			guaranteed("cpu=30m memory=24Mi", "cpu=60m memory=48Mi", "cpu=60m memory=48Mi"),
			guaranteed("cpu=40m memory=32Mi", "cpu=30m memory=24Mi", "cpu=20m memory=24Mi"),
		},
		{
			"mixed", group + "guaranteed pods with multiple containers 3 containers - increase: CPU (c1,c3), memory (c2, c3) ; decrease: CPU (c2) [MinimumKubeletVersion:1.34] [Conformance]",
			guaranteed("cpu=30m memory=24Mi", "cpu=60m memory=24Mi", "cpu=30m memory=24Mi"),
			guaranteed("cpu=50m memory=24Mi", "cpu=30m memory=40Mi", "cpu=40m memory=32Mi"),
		},
	} {
		shows(t, test.codename, func(t *testing.T) {
			pod := nodePod(test.name, test.before...)
			createPod(t, c, ns, pod)
			wantInForce(t, c, ns, pod.Name)
			before, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			kubectl(t, c, "patch", "pod", "-n", ns, pod.Name, "--subresource=resize", "-p", resizePatch(test.after...))
			wantInForce(t, c, ns, pod.Name)
			after, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if after.Generation != before.Generation+1 || after.Status.QOSClass != before.Status.QOSClass {
				t.Errorf("generation %d after %d, class %s after %s", after.Generation, before.Generation, after.Status.QOSClass, before.Status.QOSClass)
			}
			for i, s := range after.Status.ContainerStatuses {
				if s.RestartCount != 0 || s.ContainerID != before.Status.ContainerStatuses[i].ContainerID {
					t.Errorf("%s was restarted", s.Name)
				}
			}
			if want := test.after; !slices.EqualFunc(after.Spec.Containers, want, func(a, b corev1.Container) bool {
				return equality.Semantic.DeepEqual(a.Resources.Limits, b.Resources.Limits)
			}) {
				t.Errorf("the spec has %s", shown(after.Spec.Containers))
			}
		})
	}
	shows(t, group+"resize pod via the replace endpoint [MinimumKubeletVersion:1.34] [Conformance]", func(t *testing.T) {
		pod := createPod(t, c, ns, nodePod("replaced", sized("c1", "cpu=20m memory=24Mi", "cpu=40m memory=32Mi")))
		wantInForce(t, c, ns, pod.Name)
		for {
			got := &corev1.Pod{}
			if err := c.Client.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name(pod.Name).SubResource("resize").Do(t.Context()).Into(got); err != nil {
				t.Fatal(err)
			}
			plain, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got.UID != plain.UID || !equality.Semantic.DeepEqual(got.Spec, plain.Spec) {
				t.Fatalf("the subresource shows %s, the pod is %s", shown(got.Spec), shown(plain.Spec))
			}
			got.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amountsIn("cpu=30m memory=28Mi"), Limits: amountsIn("cpu=60m memory=40Mi")}
			_, err = c.Client.CoreV1().Pods(ns).UpdateResize(t.Context(), pod.Name, got, metav1.UpdateOptions{})
			if apierrors.IsConflict(err) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		wantInForce(t, c, ns, pod.Name)
		if out := kubectl(t, c, "get", "pod", "-n", ns, pod.Name, "-o", "jsonpath={.spec.containers[0].resources.limits.cpu}"); out != "60m" {
			t.Errorf("the pod's limit is %q", out)
		}
	})
	t.Run("restart", func(t *testing.T) {
		pod := createPod(t, c, ns, edited(nodePod("restart", sized("c1", "memory=24Mi", "memory=32Mi", func(c *corev1.Container) {
			c.ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
		})), always))
		wantInForce(t, c, ns, pod.Name)
		kubectl(t, c, "patch", "pod", "-n", ns, pod.Name, "--subresource=resize", "-p", resizePatch(sized("c1", "memory=32Mi", "memory=48Mi")))
		wantInForce(t, c, ns, pod.Name)
		if got := kubectl(t, c, "get", "pod", "-n", ns, pod.Name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "1" {
			t.Errorf("restarted %s times, not once", got)
		}
	})
	t.Run("infeasible", func(t *testing.T) {
		pod := createPod(t, c, ns, nodePod("much", sized("c1", "cpu=20m memory=24Mi", "")))
		wantInForce(t, c, ns, pod.Name)
		resize := func(cpu string) {
			kubectl(t, c, "patch", "pod", "-n", ns, pod.Name, "--subresource=resize", "-p", resizePatch(sized("c1", "cpu="+cpu+" memory=24Mi", "")))
		}
		resize("900")
		eventually(t, "it is infeasible", func() error {
			out := kubectl(t, c, "get", "pod", "-n", ns, pod.Name, "-o", `jsonpath={range .status.conditions[?(@.type=="PodResizePending")]}{.status} {.reason} {.message}{end} {.status.containerStatuses[0].resources.requests.cpu}`)
			if !strings.HasPrefix(out, "True Infeasible Node didn't have enough capacity: cpu, requested: 900000, capacity: ") || !strings.HasSuffix(out, " 20m") {
				return fmt.Errorf("it says %q", out)
			}
			return nil
		})
		resize("30m")
		wantInForce(t, c, ns, pod.Name)
	})
	t.Run("refused", func(t *testing.T) {
		pod := createPod(t, c, ns, nodePod("refused", sized("c1", "cpu=20m", "cpu=40m")))
		out, err := c.Kubectl(t.Context(), "patch", "pod", "-n", ns, pod.Name, "--subresource=resize", "-p", resizePatch(sized("c1", "cpu=40m memory=24Mi", "cpu=40m memory=24Mi")))
		if err == nil || !strings.Contains(err.Error()+out, "Pod QOS Class may not change as a result of resizing") {
			t.Errorf("another class: %v %s", err, out)
		}
	})
}

func guaranteed(amounts ...string) []corev1.Container {
	var out []corev1.Container
	for i, a := range amounts {
		out = append(out, sized(fmt.Sprintf("c%d", i+1), a, a))
	}
	return out
}
