package hosts

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/lab"
)

// TestNodeLife shows how pods change and end.
func TestNodeLife(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	const deadline = "[sig-node] Pods should allow activeDeadlineSeconds to be updated [Conformance] [NodeConformance]"
	const monotonic = "[sig-node] Probing container should have monotonically increasing restart count [Conformance] [NodeConformance]"
	sick := edited(nodePod("sick", sh("main", forever, func(c *corev1.Container) {
		c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}, PeriodSeconds: 1, FailureThreshold: 1}
	})), always)
	resources := corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("16Mi")}
	// The restarts of the sick one are ever further apart, so it is looked at last.
	if _, err := c.Client.CoreV1().Pods(ns).Create(t.Context(), sick, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	runCases(t, c, ns, []nodeCase{
		{
			deadline, edited(nodePod("deadline", sh("main", forever)), always, func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(10000)) }),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "runs", readyNow, nil)
				n.update(pod.Name, func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(2)) })
				p := n.phase(pod.Name, corev1.PodFailed)
				if p.Status.Reason != "DeadlineExceeded" {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"[sig-node] Pods should get a host IP [Conformance] [NodeConformance]", nodePod("host-ip", sh("main", forever)),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "has a host IP", func(p *corev1.Pod) bool { return p.Status.HostIP != "" }, nil)
				if !slices.ContainsFunc(n.c.Hosts, func(h *lab.Host) bool {
					return h.Name == p.Spec.NodeName && h.Address == netip.MustParseAddr(p.Status.HostIP)
				}) {
					n.Errorf("host IP %s of node %s", p.Status.HostIP, p.Spec.NodeName)
				}
			},
		},
		{
			"[sig-node] Pods should be updated [Conformance] [NodeConformance]", edited(nodePod("updated", sh("main", forever)), always),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "runs", readyNow, nil)
				n.update(pod.Name, func(p *corev1.Pod) { p.Labels["time"] = "now" })
				list, err := n.c.Client.CoreV1().Pods(n.ns).List(n.Context(), metav1.ListOptions{LabelSelector: "time=now"})
				if err != nil || len(list.Items) != 1 || restarts(&list.Items[0]) != 0 || !readyNow(&list.Items[0]) {
					n.Error(shown(list), err)
				}
			},
		},
		{
			"[sig-node] Pods should patch a pod status [Conformance]", nodePod("patched", sh("main", forever)),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "runs", readyNow, nil)
				p, err := n.c.Client.CoreV1().Pods(n.ns).Patch(n.Context(), pod.Name, types.StrategicMergePatchType, []byte(`{"status":{"message":"patched","reason":"Test"}}`), metav1.PatchOptions{}, "status")
				if err != nil || p.Status.Message != "patched" || p.Status.Reason != "Test" || p.Status.Phase != corev1.PodRunning {
					n.Error(shown(p), err)
				}
			},
		},
		{
			"[sig-node] Pods Extended Pods Set QOS Class should be set on Pods with matching resource requests and limits for memory and cpu [Conformance]",
			nodePod("qos", sh("main", forever, func(c *corev1.Container) {
				c.Resources = corev1.ResourceRequirements{Requests: resources, Limits: resources}
			})),
			func(n *nodeTest, pod *corev1.Pod) {
				if p := n.pod(pod.Name); p.Status.QOSClass != corev1.PodQOSGuaranteed {
					n.Error(shown(p.Status))
				}
			},
		},
		{"[sig-node] Pods should be submitted and removed [Conformance] [NodeConformance]", nil, submittedAndRemoved},
		{"[sig-node] Pods should run through the lifecycle of Pods and PodStatus [Conformance]", nil, podLifecycle},
		{"[sig-node] Pods should delete a collection of pods [Conformance]", nil, podCollection},
		{"[sig-node] Pods should contain environment variables for services [Conformance] [NodeConformance]", nil, serviceVariables},
		{"[sig-node] Pods Extended (pod generation) Pod Generation pod generation should start at 1 and increment per update [MinimumKubeletVersion:1.34] [Conformance]", edited(nodePod("generation", sh("main", forever)), always), generationFollows},
		{"[sig-node] Pods Extended (pod generation) Pod Generation custom-set generation on new pods and graceful delete [Conformance]", nil, generationCustom},
		{
			"[sig-node] Pods Extended (pod generation) Pod Generation issue 500 podspec updates and verify generation and observedGeneration eventually converge [MinimumKubeletVersion:1.34] [Conformance]",
			edited(nodePod("often", sh("main", forever)), always, func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(100000)) }), generation500,
		},
		{"refusals of logs", nodePod("two", sh("a", forever), sh("b", forever)), logRefusals},
		{
			monotonic, nil,
			func(n *nodeTest, _ *corev1.Pod) {
				last := int32(0)
				n.until(sick.Name, "is restarted five times", func(p *corev1.Pod) bool { return restarts(p) >= 5 }, func(p *corev1.Pod) string {
					if len(p.Status.ContainerStatuses) == 0 {
						return ""
					}
					if restarts(p) < last {
						return fmt.Sprintf("it had been restarted %d times", last)
					}
					last = restarts(p)
					return ""
				})
			},
		},
	})
}

// update changes a pod, again if somebody else did meanwhile.
func (n *nodeTest) update(name string, change func(*corev1.Pod)) *corev1.Pod {
	n.Helper()
	for {
		pod := n.pod(name)
		change(pod)
		updated, err := n.c.Client.CoreV1().Pods(n.ns).Update(n.Context(), pod, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			n.Fatal(err)
		}
		return updated
	}
}

// seen follows a watch until an event is as it should be.
func (n *nodeTest) seen(w watch.Interface, what string, is func(watch.Event, *corev1.Pod) bool) {
	n.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case <-limit:
			n.Fatalf("no event shows: %s", what)
		case e, ok := <-w.ResultChan():
			if !ok {
				n.Fatalf("the watch ended before it showed: %s", what)
			}
			if pod, ok := e.Object.(*corev1.Pod); ok && is(e, pod) {
				return
			}
		}
	}
}

// gone waits for a watch to show that its pod was removed.
func (n *nodeTest) gone(w watch.Interface) {
	n.Helper()
	n.seen(w, "deleted", func(e watch.Event, _ *corev1.Pod) bool { return e.Type == watch.Deleted })
}

func (n *nodeTest) watch(selector string) watch.Interface {
	n.Helper()
	w, err := n.c.Client.CoreV1().Pods(n.ns).Watch(n.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(w.Stop)
	return w
}

func (n *nodeTest) create(pod *corev1.Pod) *corev1.Pod {
	n.Helper()
	made, err := n.c.Client.CoreV1().Pods(n.ns).Create(n.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		n.Fatal(err)
	}
	return made
}

func submittedAndRemoved(n *nodeTest, _ *corev1.Pod) {
	pods := n.c.Client.CoreV1().Pods(n.ns)
	w := n.watch("pod=submitted")
	n.create(edited(nodePod("submitted", sh("main", forever)), always))
	list, err := pods.List(n.Context(), metav1.ListOptions{LabelSelector: "pod=submitted"})
	if err != nil || len(list.Items) != 1 {
		n.Fatal(shown(list), err)
	}
	n.seen(w, "added", func(e watch.Event, _ *corev1.Pod) bool { return e.Type == watch.Added })
	n.seen(w, "running", func(e watch.Event, p *corev1.Pod) bool {
		return e.Type == watch.Modified && p.Status.Phase == corev1.PodRunning
	})
	if err := pods.Delete(n.Context(), "submitted", metav1.DeleteOptions{GracePeriodSeconds: new(int64(2))}); err != nil {
		n.Fatal(err)
	}
	n.seen(w, "being deleted", func(e watch.Event, p *corev1.Pod) bool {
		return e.Type == watch.Modified && p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 2
	})
	n.seen(w, "deleted", func(e watch.Event, p *corev1.Pod) bool { return e.Type == watch.Deleted && p.DeletionTimestamp != nil })
	if _, err := pods.Get(n.Context(), "submitted", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		n.Error(err)
	}
}

func podLifecycle(n *nodeTest, _ *corev1.Pod) {
	pods := n.c.Client.CoreV1().Pods(n.ns)
	w := n.watch("pod=lifecycle")
	n.create(edited(nodePod("lifecycle", sh("main", forever)), always))
	n.seen(w, "ready", func(_ watch.Event, p *corev1.Pod) bool { return readyNow(p) })
	p, err := pods.Patch(n.Context(), "lifecycle", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}},"spec":{"containers":[{"name":"main","image":"conclave.test/tool:1"}]}}`), metav1.PatchOptions{})
	if err != nil || p.Labels["patched"] != "yes" || p.Spec.Containers[0].Image != "conclave.test/tool:1" {
		n.Fatal(shown(p), err)
	}
	n.seen(w, "patched", func(e watch.Event, p *corev1.Pod) bool {
		return e.Type == watch.Modified && p.Labels["patched"] == "yes"
	})
	// Replace the status by way of its own path.
	replaced := corev1.PodCondition{Type: "conclave.test/Replaced", Status: corev1.ConditionTrue, Reason: "Test", Message: "replaced"}
	for {
		p, err := pods.Get(n.Context(), "lifecycle", metav1.GetOptions{})
		if err != nil {
			n.Fatal(err)
		}
		p.Status.Conditions = append(p.Status.Conditions, replaced)
		if _, err = pods.UpdateStatus(n.Context(), p, metav1.UpdateOptions{}); err == nil {
			break
		}
		if !apierrors.IsConflict(err) {
			n.Fatal(err)
		}
	}
	n.seen(w, "the replaced status", func(_ watch.Event, p *corev1.Pod) bool { return conditionOf(p, replaced.Type) == corev1.ConditionTrue })
	all, err := n.c.Client.CoreV1().Pods("").List(n.Context(), metav1.ListOptions{LabelSelector: "patched=yes,pod=lifecycle"})
	if err != nil || len(all.Items) != 1 {
		n.Fatal(shown(all), err)
	}
	if err := pods.DeleteCollection(n.Context(), metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))}, metav1.ListOptions{LabelSelector: "pod=lifecycle"}); err != nil {
		n.Fatal(err)
	}
	n.seen(w, "deleted", func(e watch.Event, _ *corev1.Pod) bool { return e.Type == watch.Deleted })
}

func podCollection(n *nodeTest, _ *corev1.Pod) {
	pods := n.c.Client.CoreV1().Pods(n.ns)
	for i := range 3 {
		n.create(edited(nodePod("collected-"+strconv.Itoa(i), sh("main", forever)), func(p *corev1.Pod) { p.Labels["set"] = "collected" }))
	}
	options := metav1.ListOptions{LabelSelector: "set=collected"}
	if err := pods.DeleteCollection(n.Context(), metav1.DeleteOptions{}, options); err != nil {
		n.Fatal(err)
	}
	eventually(n.T, "the pods are gone", func() error {
		list, err := pods.List(n.Context(), options)
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
}

func serviceVariables(n *nodeTest, _ *corev1.Pod) {
	s, err := n.c.Client.CoreV1().Services(n.ns).Create(n.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "foo-service"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 8765, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		n.Fatal(err)
	}
	ip := s.Spec.ClusterIP
	want := []string{
		"FOO_SERVICE_SERVICE_HOST=" + ip, "FOO_SERVICE_SERVICE_PORT=8765", "FOO_SERVICE_PORT=tcp://" + ip + ":8765",
		"FOO_SERVICE_PORT_8765_TCP=tcp://" + ip + ":8765", "FOO_SERVICE_PORT_8765_TCP_PROTO=tcp", "FOO_SERVICE_PORT_8765_TCP_PORT=8765", "FOO_SERVICE_PORT_8765_TCP_ADDR=" + ip,
	}
	// A node hears of a service a moment after it was made: what counts is that a
	// later pod is told.
	i := 0
	eventually(n.T, "a pod is told of the service", func() error {
		i++
		name := "told-" + strconv.Itoa(i)
		n.create(nodePod(name, sh("main", "env")))
		n.phase(name, corev1.PodSucceeded)
		have := strings.Split(n.log(name, "main"), "\n")
		for _, w := range want {
			if !slices.Contains(have, w) {
				return fmt.Errorf("%q lacks %s", have, w)
			}
		}
		return nil
	})
}

func generationFollows(n *nodeTest, pod *corev1.Pod) {
	if p := n.pod(pod.Name); p.Generation != 1 {
		n.Errorf("it began at %d", p.Generation)
	}
	observed := func(want int64) {
		n.Helper()
		n.until(pod.Name, fmt.Sprint("generation ", want), func(p *corev1.Pod) bool {
			return p.Generation == want && p.Status.ObservedGeneration == want
		}, nil)
	}
	observed(1)
	for i, change := range []func(*corev1.Pod){
		func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(5000)) },
		func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists})
		},
		func(p *corev1.Pod) { p.Spec.Containers[0].Image = "conclave.test/tool:1" },
	} {
		if p := n.update(pod.Name, change); p.Generation != int64(i+2) {
			n.Errorf("after update %d it is %d", i+1, p.Generation)
		}
		observed(int64(i + 2))
	}
	if p := n.update(pod.Name, func(p *corev1.Pod) { p.Labels["more"] = "yes" }); p.Generation != 4 {
		n.Errorf("a label made it %d", p.Generation)
	}
}

func generationCustom(n *nodeTest, _ *corev1.Pod) {
	pods := n.c.Client.CoreV1().Pods(n.ns)
	w := n.watch("pod=custom")
	made := n.create(edited(nodePod("custom", sh("main", "trap : TERM; "+forever)), always, func(p *corev1.Pod) { p.Generation = 100 }))
	if made.Generation != 1 {
		n.Errorf("it began at %d", made.Generation)
	}
	n.seen(w, "running", func(_ watch.Event, p *corev1.Pod) bool { return readyNow(p) })
	if err := pods.Delete(n.Context(), "custom", metav1.DeleteOptions{GracePeriodSeconds: new(int64(2))}); err != nil {
		n.Fatal(err)
	}
	n.seen(w, "a bump by the deletion", func(_ watch.Event, p *corev1.Pod) bool { return p.DeletionTimestamp != nil && p.Generation == 2 })
}

func generation500(n *nodeTest, pod *corev1.Pod) {
	pods := n.c.Client.CoreV1().Pods(n.ns)
	for i := range 499 {
		patch := fmt.Sprintf(`{"spec":{"activeDeadlineSeconds":%d}}`, 99999-i)
		if _, err := pods.Patch(n.Context(), pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			n.Fatal(err)
		}
	}
	n.until(pod.Name, "converges", func(p *corev1.Pod) bool { return p.Generation == 500 && p.Status.ObservedGeneration == 500 }, nil)
}

// logRefusals are what kubectl shows when there is no log to show.
func logRefusals(n *nodeTest, pod *corev1.Pod) {
	n.until(pod.Name, "ready", readyNow, nil)
	n.create(nodePod("no-image", corev1.Container{Name: "web", Image: "conclave.test/none:1", ImagePullPolicy: corev1.PullNever}))
	n.create(nodePod("no-registry", corev1.Container{Name: "web", Image: "127.0.0.1:1/none:1"}))
	n.create(edited(nodePod("chosen", sh("a", "echo from a"), sh("b", "echo from b")), func(p *corev1.Pod) {
		p.Annotations = map[string]string{"kubectl.kubernetes.io/default-container": "b"}
	}))
	n.phase("chosen", corev1.PodSucceeded)
	waitsFor := func(name, reason string) {
		n.Helper()
		n.until(name, reason, func(p *corev1.Pod) bool {
			s := p.Status.ContainerStatuses
			return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == reason
		}, nil)
	}
	waitsFor("no-image", "ErrImageNeverPull")
	waitsFor("no-registry", "ImagePullBackOff")
	for _, k := range []struct{ args, want string }{
		{"two", `Defaulted container "a" out of: a, b`},
		{"two -c c", "container c is not valid for pod two"},
		{"two -c a --previous", `previous terminated container "a" in pod "two" not found`},
		{"none", `pods "none" not found`},
		{"no-image", `container "web" in pod "no-image" is waiting to start: ErrImageNeverPull`},
		{"no-registry", `container "web" in pod "no-registry" is waiting to start: trying and failing to pull image`},
		{"chosen", "from b"},
	} {
		out, _ := n.c.Kubectl(n.Context(), append([]string{"-n", n.ns, "logs"}, strings.Fields(k.args)...)...)
		if !strings.Contains(out, k.want) {
			n.Errorf("kubectl logs %s: %q, want %q", k.args, out, k.want)
		}
	}
	_, err := n.c.Client.CoreV1().Pods(n.ns).GetLogs("no-image", &corev1.PodLogOptions{}).DoRaw(n.Context())
	if !apierrors.IsBadRequest(err) {
		n.Errorf("a refusal is %v", err)
	}
	out, err := n.c.Kubectl(n.Context(), "-n", n.ns, "exec", "no-image", "--", "true")
	if err == nil || !strings.Contains(out, `container not found ("web")`) {
		n.Errorf("exec: %q %v", out, err)
	}
}

// TestNodeObjects shows the API objects that are the node area's: ConfigMaps,
// Secrets, Leases and Nodes.
func TestNodeObjects(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	runCases(t, c, ns, []nodeCase{
		{"[sig-node] ConfigMap should update ConfigMap successfully [Conformance] [NodeConformance]", nil, func(n *nodeTest, _ *corev1.Pod) {
			maps := n.c.Client.CoreV1().ConfigMaps(n.ns)
			cm, err := maps.Create(n.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "updated"}}, metav1.CreateOptions{})
			if err != nil {
				n.Fatal(err)
			}
			cm.Data = map[string]string{"data": "value"}
			if _, err := maps.Update(n.Context(), cm, metav1.UpdateOptions{}); err != nil {
				n.Fatal(err)
			}
			if got, err := maps.Get(n.Context(), "updated", metav1.GetOptions{}); err != nil || got.Data["data"] != "value" {
				n.Error(shown(got), err)
			}
		}},
		{"[sig-node] ConfigMap should fail to create ConfigMap with empty key [Conformance]", nil, func(n *nodeTest, _ *corev1.Pod) {
			_, err := n.c.Client.CoreV1().ConfigMaps(n.ns).Create(n.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "empty"}, Data: map[string]string{"": "value"}}, metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				n.Error(err)
			}
		}},
		{"[sig-node] Secrets should fail to create secret due to empty secret key [Conformance]", nil, func(n *nodeTest, _ *corev1.Pod) {
			_, err := n.c.Client.CoreV1().Secrets(n.ns).Create(n.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "empty"}, Data: map[string][]byte{"": []byte("value")}}, metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				n.Error(err)
			}
		}},
		{"[sig-node] ConfigMap should run through a ConfigMap lifecycle [Conformance]", nil, configMapLifecycle},
		{"[sig-node] Secrets should patch a secret [Conformance]", nil, secretLifecycle},
		{"[sig-node] Lease lease API should be available [Conformance]", nil, leaseLifecycle},
		{"[sig-node] Node Lifecycle should run through the lifecycle of a node [Conformance]", nil, nodeLifecycle},
		{"[sig-node] Sysctls [LinuxOnly] should reject invalid sysctls [Conformance] [NodeConformance]", nil, func(n *nodeTest, _ *corev1.Pod) {
			bad := []string{"foo-", "kernel.shmmax/", "safe-and-unsafe/-", "bar.."}
			pod := edited(nodePod("sysctls", sh("main", "true")), func(p *corev1.Pod) {
				p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.shmmax", Value: "1"}}}
				for _, name := range bad {
					p.Spec.SecurityContext.Sysctls = append(p.Spec.SecurityContext.Sysctls, corev1.Sysctl{Name: name, Value: "1"})
				}
			})
			_, err := n.c.Client.CoreV1().Pods(n.ns).Create(n.Context(), pod, metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				n.Fatal(err)
			}
			for _, name := range bad {
				if !strings.Contains(err.Error(), fmt.Sprintf("Invalid value: %q", name)) {
					n.Errorf("%q is not refused: %v", name, err)
				}
			}
			if strings.Contains(err.Error(), `"kernel.shmmax"`) {
				n.Error("a good name is refused: ", err)
			}
		}},
	})
}

func configMapLifecycle(n *nodeTest, _ *corev1.Pod) {
	cms := n.c.Client.CoreV1().ConfigMaps(n.ns)
	selector := metav1.ListOptions{LabelSelector: "test=lifecycle"}
	_, err := cms.Create(n.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "lifecycle", Labels: map[string]string{"test": "lifecycle"}}, Data: map[string]string{"valueName": "value"}}, metav1.CreateOptions{})
	if err != nil {
		n.Fatal(err)
	}
	if _, err := cms.Patch(n.Context(), "lifecycle", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}},"data":{"valueName":"value1"}}`), metav1.PatchOptions{}); err != nil {
		n.Fatal(err)
	}
	if cm, err := cms.Get(n.Context(), "lifecycle", metav1.GetOptions{}); err != nil || cm.Data["valueName"] != "value1" || cm.Labels["patched"] != "yes" {
		n.Error(shown(cm), err)
	}
	list := func() int {
		n.Helper()
		all, err := n.c.Client.CoreV1().ConfigMaps("").List(n.Context(), selector)
		if err != nil {
			n.Fatal(err)
		}
		return len(all.Items)
	}
	if got := list(); got != 1 {
		n.Errorf("%d are listed", got)
	}
	if err := cms.DeleteCollection(n.Context(), metav1.DeleteOptions{}, selector); err != nil {
		n.Fatal(err)
	}
	if got := list(); got != 0 {
		n.Errorf("%d are left", got)
	}
}

func secretLifecycle(n *nodeTest, _ *corev1.Pod) {
	secrets := n.c.Client.CoreV1().Secrets(n.ns)
	selector := metav1.ListOptions{LabelSelector: "test=secret"}
	_, err := secrets.Create(n.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "patched", Labels: map[string]string{"test": "secret"}}, Data: map[string][]byte{"key": []byte("value")}}, metav1.CreateOptions{})
	if err != nil {
		n.Fatal(err)
	}
	list := func() []corev1.Secret {
		n.Helper()
		all, err := n.c.Client.CoreV1().Secrets("").List(n.Context(), selector)
		if err != nil {
			n.Fatal(err)
		}
		return all.Items
	}
	if got := list(); len(got) != 1 || got[0].Namespace != n.ns {
		n.Error(shown(got))
	}
	if _, err := secrets.Patch(n.Context(), "patched", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}},"data":{"key":"dmFsdWUx"}}`), metav1.PatchOptions{}); err != nil {
		n.Fatal(err)
	}
	if s, err := secrets.Get(n.Context(), "patched", metav1.GetOptions{}); err != nil || string(s.Data["key"]) != "value1" || s.Labels["patched"] != "yes" {
		n.Error(shown(s), err)
	}
	if err := secrets.DeleteCollection(n.Context(), metav1.DeleteOptions{}, selector); err != nil {
		n.Fatal(err)
	}
	if got := list(); len(got) != 0 {
		n.Error(shown(got))
	}
}

func leaseLifecycle(n *nodeTest, _ *corev1.Pod) {
	leases := n.c.Client.CoordinationV1().Leases(n.ns)
	at := metav1.NewMicroTime(time.Now().Truncate(time.Microsecond))
	spec := func(holder string, transitions int32) coordinationv1.LeaseSpec {
		return coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(30)), AcquireTime: &at, RenewTime: &at, LeaseTransitions: &transitions}
	}
	is := func(l *coordinationv1.Lease, err error, holder string, transitions int32) {
		n.Helper()
		if err != nil {
			n.Fatal(err)
		}
		if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != holder || *l.Spec.LeaseTransitions != transitions || !l.Spec.AcquireTime.Equal(&at) || *l.Spec.LeaseDurationSeconds != 30 {
			n.Error(shown(l))
		}
	}
	labels := map[string]string{"test": "lease"}
	l, err := leases.Create(n.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "one", Labels: labels}, Spec: spec("holder", 0)}, metav1.CreateOptions{})
	is(l, err, "holder", 0)
	l, err = leases.Get(n.Context(), "one", metav1.GetOptions{})
	is(l, err, "holder", 0)
	l.Spec = spec("second", 1)
	l, err = leases.Update(n.Context(), l, metav1.UpdateOptions{})
	is(l, err, "second", 1)
	l, err = leases.Patch(n.Context(), "one", types.StrategicMergePatchType, []byte(`{"spec":{"holderIdentity":"third","leaseTransitions":2}}`), metav1.PatchOptions{})
	is(l, err, "third", 2)
	if _, err := leases.Create(n.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "two", Labels: labels}, Spec: spec("other", 0)}, metav1.CreateOptions{}); err != nil {
		n.Fatal(err)
	}
	count := func(want int) {
		n.Helper()
		list, err := leases.List(n.Context(), metav1.ListOptions{LabelSelector: "test=lease"})
		if err != nil || len(list.Items) != want {
			n.Errorf("want %d leases: %s %v", want, shown(list), err)
		}
	}
	count(2)
	if err := leases.Delete(n.Context(), "two", metav1.DeleteOptions{}); err != nil {
		n.Error(err)
	}
	count(1)
	if err := leases.DeleteCollection(n.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test=lease"}); err != nil {
		n.Error(err)
	}
	count(0)
}

func nodeLifecycle(n *nodeTest, _ *corev1.Pod) {
	nodes := n.c.Client.CoreV1().Nodes()
	name := "fake-" + n.ns
	n.Cleanup(func() {
		if err := nodes.Delete(context.WithoutCancel(n.Context()), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			n.Error(err)
		}
	})
	made, err := nodes.Create(n.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"test": name}},
		Spec:       corev1.NodeSpec{Unschedulable: true},
		Status:     corev1.NodeStatus{Phase: corev1.NodeRunning},
	}, metav1.CreateOptions{})
	if err != nil || made.Name != name {
		n.Fatal(err)
	}
	if got, err := nodes.Get(n.Context(), name, metav1.GetOptions{}); err != nil || got.UID != made.UID {
		n.Fatal(shown(got), err)
	}
	if got, err := nodes.Patch(n.Context(), name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil || got.Labels["patched"] != "yes" {
		n.Fatal(shown(got), err)
	}
	listed := func() []corev1.Node {
		n.Helper()
		list, err := nodes.List(n.Context(), metav1.ListOptions{LabelSelector: "patched=yes,test=" + name})
		if err != nil {
			n.Fatal(err)
		}
		return list.Items
	}
	if got := listed(); len(got) != 1 {
		n.Error(shown(got))
	}
	for {
		got, err := nodes.Get(n.Context(), name, metav1.GetOptions{})
		if err != nil {
			n.Fatal(err)
		}
		got.Labels["updated"] = "yes"
		if got, err = nodes.Update(n.Context(), got, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
			continue
		}
		if err != nil || got.Labels["updated"] != "yes" {
			n.Fatal(shown(got), err)
		}
		break
	}
	if err := nodes.DeleteCollection(n.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test=" + name}); err != nil {
		n.Fatal(err)
	}
	eventually(n.T, "the node is gone", func() error {
		if got := listed(); len(got) != 0 {
			return errors.New(shown(got))
		}
		return nil
	})
}
