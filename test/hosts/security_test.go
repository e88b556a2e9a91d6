package hosts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/test/cluster"
)

// eventOf waits for an event of a pod with this reason and text.
func eventOf(t *testing.T, c *cluster.Cluster, ns, pod, reason, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("event %s %q of pod %s", reason, text, pod), func() error {
		list, err := c.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod + ",reason=" + reason})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if strings.Contains(e.Message, text) {
				return nil
			}
			seen = append(seen, e.Message)
		}
		return fmt.Errorf("there are %q", seen)
	})
}

func TestRuntimeClass(t *testing.T) {
	t.Parallel()
	c := three(t)
	ns := namespace(t, c)
	classes, ctx := c.Client.NodeV1().RuntimeClasses(), t.Context()
	name := func(s string) string { return ns + "-" + s }
	create := func(class *nodev1.RuntimeClass) *nodev1.RuntimeClass {
		t.Helper()
		class.Labels = map[string]string{"of": ns}
		made, err := classes.Create(ctx, class, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	t.Cleanup(func() {
		if err := classes.DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "of=" + ns}); err != nil {
			t.Error(err)
		}
	})
	pod := func(pod, class string) *corev1.Pod {
		return edited(nodePod(pod, sh("main", "echo ran")), func(p *corev1.Pod) { p.Spec.RuntimeClassName = &class })
	}
	refused := func(t *testing.T, p *corev1.Pod) {
		t.Helper()
		if _, err := c.Client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "not found") {
			t.Errorf("a pod of a class that is not there: %v", err)
		}
	}
	shows(t, "[sig-node] RuntimeClass should reject a Pod requesting a non-existent RuntimeClass [Conformance] [NodeConformance]", func(t *testing.T) {
		refused(t, pod("nowhere", name("nowhere")))
	})
	shows(t, "[sig-node] RuntimeClass should reject a Pod requesting a deleted RuntimeClass [Conformance] [NodeConformance]", func(t *testing.T) {
		create(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name("deleted")}, Handler: "runc"})
		if err := classes.Delete(t.Context(), name("deleted"), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		refused(t, pod("deleted", name("deleted")))
	})
	shows(t, "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead [Conformance] [NodeConformance]", func(t *testing.T) {
		create(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name("plain")}, Handler: "runc"})
		if p := createPod(t, c, ns, pod("plain", name("plain"))); p.Spec.Overhead != nil {
			t.Errorf("its overhead is %v", p.Spec.Overhead)
		}
		waitForPod(t, c, ns, "plain", corev1.PodSucceeded)
	})
	shows(t, "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead [Conformance] [NodeConformance]", func(t *testing.T) {
		overhead := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("1Mi")}
		create(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name("heavy")}, Handler: "runc", Overhead: &nodev1.Overhead{PodFixed: overhead}})
		if p := createPod(t, c, ns, pod("heavy", name("heavy"))); p.Spec.Overhead.Cpu().Cmp(overhead[corev1.ResourceCPU]) != 0 || p.Spec.Overhead.Memory().Cmp(overhead[corev1.ResourceMemory]) != 0 {
			t.Errorf("its overhead is %v", p.Spec.Overhead)
		}
		waitForPod(t, c, ns, "heavy", corev1.PodSucceeded)
		// One that fits without its overhead alone finds no node.
		create(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name("huge")}, Handler: "runc", Overhead: &nodev1.Overhead{PodFixed: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10000")}}})
		createPod(t, c, ns, pod("huge", name("huge")))
		eventOf(t, c, ns, "huge", "FailedScheduling", "Insufficient cpu")
	})
	t.Run("an unknown handler", func(t *testing.T) {
		create(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name("gvisor")}, Handler: "runsc"})
		createPod(t, c, ns, pod("gvisor", name("gvisor")))
		eventOf(t, c, ns, "gvisor", "FailedCreatePodSandBox", `Failed to create pod sandbox: no runtime for "runsc" is configured`)
	})
	shows(t, "[sig-node] RuntimeClass should support RuntimeClasses API operations [Conformance]", func(t *testing.T) {
		runtimeClassOperations(t, c, ns)
	})
}

func runtimeClassOperations(t *testing.T, c *cluster.Cluster, ns string) {
	classes, ctx := c.Client.NodeV1().RuntimeClasses(), t.Context()
	groups, err := c.Client.Discovery().ServerGroups()
	if err != nil || !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool {
		return g.Name == "node.k8s.io" && slices.ContainsFunc(g.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.Version == "v1" })
	}) {
		t.Fatalf("node.k8s.io/v1 is not discovered: %v", err)
	}
	list, err := c.Client.Discovery().ServerResourcesForGroupVersion("node.k8s.io/v1")
	if err != nil || !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == "runtimeclasses" && !r.Namespaced }) {
		t.Fatalf("runtimeclasses are not discovered: %v %v", list, err)
	}
	selector := metav1.ListOptions{LabelSelector: "operations=" + ns}
	w, err := classes.Watch(ctx, selector)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	sees := func(what watch.EventType, fits func(*nodev1.RuntimeClass) bool) {
		t.Helper()
		for e := range w.ResultChan() {
			if class, ok := e.Object.(*nodev1.RuntimeClass); ok && e.Type == what && fits(class) {
				return
			}
		}
		t.Fatalf("the watch ended before it showed %s", what)
	}
	for i := range 3 {
		class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", ns, i), Labels: map[string]string{"operations": ns}}, Handler: "runc"}
		if _, err := classes.Create(ctx, class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		sees(watch.Added, func(c *nodev1.RuntimeClass) bool { return c.Name == class.Name })
	}
	first := ns + "-0"
	if _, err := classes.Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: first}, Handler: "runc"}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a second one of a name: %v", err)
	}
	if got, err := classes.Get(ctx, first, metav1.GetOptions{}); err != nil || got.UID == "" || got.Handler != "runc" {
		t.Errorf("get: %+v %v", got, err)
	}
	if got, err := classes.List(ctx, selector); err != nil || len(got.Items) != 3 {
		t.Errorf("list: %v %v", got, err)
	}
	patched, err := classes.Patch(ctx, first, types.MergePatchType, []byte(`{"metadata":{"annotations":{"patched":"true"}}}`), metav1.PatchOptions{})
	if err != nil || patched.Annotations["patched"] != "true" {
		t.Fatalf("patch: %+v %v", patched, err)
	}
	sees(watch.Modified, func(c *nodev1.RuntimeClass) bool { return c.Annotations["patched"] == "true" })
	patched.Annotations["updated"] = "true"
	if _, err := classes.Update(ctx, patched, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	sees(watch.Modified, func(c *nodev1.RuntimeClass) bool { return c.Annotations["updated"] == "true" })
	if err := classes.Delete(ctx, first, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	sees(watch.Deleted, func(c *nodev1.RuntimeClass) bool { return c.Name == first })
	if _, err := classes.Get(ctx, first, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a deleted one: %v", err)
	}
	if err := classes.DeleteCollection(ctx, metav1.DeleteOptions{}, selector); err != nil {
		t.Fatal(err)
	}
	if got, err := classes.List(ctx, selector); err != nil || len(got.Items) != 0 {
		t.Errorf("list after all were deleted: %v %v", got, err)
	}
	mustContain(t, "the table", kubectl(t, c, "get", "runtimeclasses", "-o", "wide"), "NAME", "HANDLER", "AGE")
}

// TestSecurityContext checks what securityContext allows and refuses, beyond
// what conformance asks for.
func TestSecurityContext(t *testing.T) {
	t.Parallel()
	c := three(t)
	ns := namespace(t, c)
	filter := func(kind corev1.SeccompProfileType, path string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			profile := &corev1.SeccompProfile{Type: kind}
			if path != "" {
				profile.LocalhostProfile = &path
			}
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: profile}
		}
	}
	const seccomp = "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null && echo made || echo refused"
	unconfined := sh("free", seccomp, security(corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}}))
	pods := []*corev1.Pod{
		edited(nodePod("default", sh("main", seccomp), unconfined), filter(corev1.SeccompProfileTypeRuntimeDefault, "")),
		nodePod("nothing", sh("main", seccomp)),
		edited(nodePod("missing", sh("main", "true")), filter(corev1.SeccompProfileTypeLocalhost, "nowhere.json")),
		edited(nodePod("groups", sh("main", "id -G", security(corev1.SecurityContext{RunAsUser: new(int64(1)), RunAsGroup: new(int64(7))}))), func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroupsPolicy: new(corev1.SupplementalGroupsPolicyStrict), SupplementalGroups: []int64{8}}
		}),
		edited(nodePod("unsafe", sh("main", "true")), func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax", Value: "65536"}}}
		}),
		edited(nodePod("apparmor", sh("main", "true")), func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("k8s-web")}}
		}),
		edited(nodePod("apparmor-annotation", sh("main", "true")), func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "main": "localhost/k8s-web"}
		}),
	}
	for _, p := range pods {
		createPod(t, c, ns, p)
	}
	for pod, want := range map[string]string{"default/main": "Seccomp:\t2\nrefused\n", "default/free": "Seccomp:\t0\nmade\n", "nothing/main": "Seccomp:\t0\nmade\n", "groups/main": "7 8\n"} {
		pod, container, _ := strings.Cut(pod, "/")
		waitForPod(t, c, ns, pod, corev1.PodSucceeded)
		if got := logOf(t, c, ns, pod, container); got != want {
			t.Errorf("%s of %s says %q, not %q", container, pod, got, want)
		}
	}
	eventOf(t, c, ns, "missing", "Failed", "cannot load seccomp profile")
	if p := waitForPod(t, c, ns, "missing", corev1.PodPending); p.Status.ContainerStatuses[0].State.Waiting == nil || p.Status.ContainerStatuses[0].State.Waiting.Reason != "CreateContainerError" {
		t.Errorf("without its profile: %s", shown(p.Status))
	}
	// Once the profile is there the container starts.
	node := waitForPod(t, c, ns, "missing", corev1.PodPending).Spec.NodeName
	host, err := c.Host(node)
	if err != nil {
		t.Fatal(err)
	}
	profiles := filepath.Join(c.DataDir(host), "seccomp")
	if err := os.MkdirAll(profiles, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(profiles, "nowhere.json"), []byte(`{"defaultAction": "SCMP_ACT_ALLOW"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	waitForPod(t, c, ns, "missing", corev1.PodSucceeded)

	for pod, want := range map[string][2]string{
		"unsafe":              {"SysctlForbidden", `Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"apparmor":            {"AppArmor", "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"},
		"apparmor-annotation": {"AppArmor", "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"},
	} {
		if _, err := os.Stat("/sys/module/apparmor"); strings.HasPrefix(pod, "apparmor") && err == nil {
			continue // this kernel has it
		}
		if p := waitForPod(t, c, ns, pod, corev1.PodFailed); p.Status.Reason != want[0] || p.Status.Message != want[1] {
			t.Errorf("%s: %s", pod, shown(p.Status))
		}
	}
}

// TestUserNamespaces: pods whose root is nobody on the host, with volumes of
// several kinds, their own network, and Services.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	c := three(t)
	ns := namespace(t, c)
	if _, err := c.Client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "page"}, Data: map[string]string{"index.html": "mapped\n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	user := func(name, node string) *corev1.Pod {
		serve := sh("web", "cat /proc/self/uid_map; id -u; echo x > /data/f && stat -c '%u' /data/f /disk /config/index.html; httpd -f -p 80 -h /config", func(c *corev1.Container) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: "memory", MountPath: "/data"}, {Name: "disk", MountPath: "/disk"}, {Name: "config", MountPath: "/config"}}
			c.SecurityContext = &corev1.SecurityContext{ProcMount: new(corev1.UnmaskedProcMount), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
		})
		return edited(nodePod(name, serve), func(p *corev1.Pod) {
			p.Spec.HostUsers, p.Spec.NodeName = new(false), node
			p.Spec.Volumes = []corev1.Volume{
				{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
				{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "page"}}}},
			}
		})
	}
	nodes, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node := &nodes.Items[0]
	if !slices.ContainsFunc(node.Status.RuntimeHandlers, func(h corev1.NodeRuntimeHandler) bool { return h.Name == "runc" && *h.Features.UserNamespaces }) {
		createPod(t, c, ns, user("a", node.Name))
		eventOf(t, c, ns, "a", "FailedCreatePodSandBox", "runtime does not support user namespaces")
		t.Skip("this kernel is too old for more")
	}
	host, err := c.Host(node.Name)
	if err != nil {
		t.Fatal(err)
	}
	openFolders(t, c.DataDir(host))
	maps := map[string]string{}
	for _, name := range []string{"a", "b"} {
		createPod(t, c, ns, user(name, node.Name))
	}
	for _, name := range []string{"a", "b"} {
		p := waitForPod(t, c, ns, name, corev1.PodRunning)
		eventually(t, "pod "+name+" serves", func() error {
			page, err := c.Fetch(t.Context(), nodes.Items[1].Name, "http://"+p.Status.PodIP+"/")
			if err == nil && page != "mapped\n" {
				err = fmt.Errorf("the page is %q", page)
			}
			return err
		})
		said := strings.Fields(logOf(t, c, ns, name, "web"))
		if len(said) != 7 || said[0] != "0" || said[1] == "0" || said[2] != "65536" || said[3] != "0" || slices.ContainsFunc(said[4:], func(s string) bool { return s != "0" }) {
			t.Errorf("pod %s says %q", name, said)
			continue
		}
		maps[said[1]] = name
		mustContain(t, "exec", kubectl(t, c, "exec", "-n", ns, name, "--", "id"), "uid=0")
		const masks = "grep -c ' /proc/' /proc/self/mountinfo || true"
		if out := kubectl(t, c, "exec", "-n", ns, name, "--", "sh", "-c", masks); out != "0\n" {
			t.Errorf("of an unmasked /proc so many parts are masked: %s", out)
		}
	}
	createPod(t, c, ns, nodePod("masked", sh("main", "grep -c ' /proc/' /proc/self/mountinfo")))
	waitForPod(t, c, ns, "masked", corev1.PodSucceeded)
	if out := logOf(t, c, ns, "masked", "main"); out == "0\n" {
		t.Error("nothing of an ordinary container's /proc is masked")
	}
	if len(maps) != 2 {
		t.Errorf("two pods have the same users: %v", maps)
	}
}

// openFolders lets the users of pods through to a lab's folder, as any node's
// data folder does.
func openFolders(t *testing.T, path string) {
	t.Helper()
	for ; path != "/"; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			err = os.Chmod(path, info.Mode().Perm()|0o011)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoAbstractSockets: pods of the host's network reach the abstract sockets of
// the host (CVE-2020-15257, by which they commanded containerd's shims). Ours has
// none.
func TestNoAbstractSockets(t *testing.T) {
	t.Parallel()
	c := three(t)
	ns := namespace(t, c)
	createPod(t, c, ns, edited(nodePod("on-host", sh("main", "cat /proc/net/unix; "+forever)), func(p *corev1.Pod) { p.Spec.HostNetwork = true }))
	node := waitForPod(t, c, ns, "on-host", corev1.PodRunning).Spec.NodeName
	owned, err := c.On(t.Context(), node, "sh", "-c", `for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in conclave*) ls -l $p/fd;; esac; done 2>/dev/null`)
	if err != nil || !strings.Contains(owned, "socket:[") {
		t.Fatalf("the sockets of conclave: %q %v", owned, err)
	}
	eventually(t, "the pod sees the host's sockets", func() error {
		said := logOf(t, c, ns, "on-host", "main")
		if !strings.Contains(said, "/run/") {
			return fmt.Errorf("it says %q", said)
		}
		for line := range strings.Lines(said) {
			if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@") && strings.Contains(owned, "socket:["+f[6]+"]") {
				t.Errorf("an abstract socket: %s", line)
			}
		}
		return nil
	})
}

// TestHostilePods: what pods do to the node itself, and to their own end. Each
// must go when it is deleted, and leave nothing.
func TestHostilePods(t *testing.T) {
	t.Parallel()
	c := three(t)
	ns := namespace(t, c)
	nodes, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node := nodes.Items[2].Name
	host, err := c.Host(node)
	if err != nil {
		t.Fatal(err)
	}
	shared := func(script string) *corev1.Pod {
		return edited(nodePod("", sh("main", script, func(ct *corev1.Container) {
			ct.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
			ct.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", MountPropagation: new(corev1.MountPropagationBidirectional)}}
		})), func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		})
	}
	cases := map[string]struct {
		pod  *corev1.Pod
		ends corev1.PodPhase
	}{
		// A terabyte costs the pod nothing, and bytes that are no text.
		"huge": {nodePod("", sh("main", "truncate -s 1099511627776 /etc/hosts /etc/resolv.conf /dev/termination-log && printf '\\377\\376end' >> /dev/termination-log")), corev1.PodSucceeded},
		// Real bytes, into what every pod may write: not into the node's memory.
		"fills": {nodePod("", sh("main", "for f in /etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log; do head -c 33554432 /dev/zero > $f; done; echo filled; "+forever)), corev1.PodRunning},
		// It mounts into what it shares with the host, and holds that open.
		"mounts": {shared("mkdir /v/a && mount -t tmpfs tmpfs /v/a && mkdir /v/a/b && mount -t tmpfs tmpfs /v/a/b && cd /v/a/b && echo mounted; " + forever), corev1.PodRunning},
		// A link to the host where the node will remove files.
		"links":    {shared("ln -s /etc/passwd /v/passwd; ln -s / /v/root; echo linked; " + forever), corev1.PodRunning},
		"stubborn": {edited(nodePod("", sh("main", "trap '' TERM; (trap '' TERM; "+forever+") & "+forever)), func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(1)) }), corev1.PodRunning},
	}
	runFolder := func() (kib int) {
		t.Helper()
		out, err := c.On(t.Context(), node, "sh", "-c", "df -k "+c.DataDir(host)+"/run | tail -n 1")
		if f := strings.Fields(out); err != nil || len(f) < 3 {
			t.Fatalf("df: %v %q", err, out)
		} else if kib, err = strconv.Atoi(f[2]); err != nil {
			t.Fatal(err)
		}
		return kib
	}
	before := runFolder()
	uids := map[string]string{}
	for name, k := range cases {
		k.pod.Name, k.pod.Spec.NodeName = name, node
		uids[name] = string(createPod(t, c, ns, k.pod).UID)
	}
	for name, k := range cases {
		waitForPod(t, c, ns, name, k.ends)
	}
	if s := waitForPod(t, c, ns, "huge", corev1.PodSucceeded).Status.ContainerStatuses[0].State.Terminated; s == nil || !strings.HasSuffix(s.Message, "end") || len(s.Message) > 3*4096 {
		t.Errorf("its message: %s", shown(s))
	}
	for name, line := range map[string]string{"fills": "filled\n", "mounts": "mounted\n", "links": "linked\n"} {
		eventually(t, name, func() error {
			if got := logOf(t, c, ns, name, "main"); got != line {
				return fmt.Errorf("it says %q", got)
			}
			return nil
		})
	}
	if after := runFolder(); after > before+64<<10 {
		t.Errorf("the node's run folder, which is in memory, held %d KiB and holds %d", before, after)
	}
	for name := range cases {
		if err := c.Client.CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for name := range cases {
		eventually(t, "pod "+name+" is gone", func() error {
			_, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("it is still there: %v", err)
		})
		eventually(t, "nothing is left of "+name, func() error {
			out, err := c.On(t.Context(), node, "sh", "-c", "cat /proc/self/mountinfo; find "+c.DataDir(host)+"/pods "+c.DataDir(host)+"/containers "+c.DataDir(host)+"/run -name '*"+uids[name]+"*'")
			if err != nil {
				return err
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, uids[name]) {
					return fmt.Errorf("%s", strings.TrimSpace(line))
				}
			}
			return nil
		})
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}
