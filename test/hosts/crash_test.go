package hosts

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/lab"
	"conclave/test/cluster"
)

// TestCrashWalk has conclave die at each labelled step of a pod's start and
// end. The pod runs and ends as if nothing had been, no container starts twice,
// and nothing is left.
func TestCrashWalk(t *testing.T) {
	needRoot(t)
	t.Parallel()
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "conclave")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "faults", "-trimpath", "-gcflags=k8s.io/api/...=-l", "-gcflags=github.com/google/gnostic-models/...=-l", "-gcflags=k8s.io/kube-openapi/...=-l", "-o", binary, ".")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a conclave that dies on demand: %v: %s", err, out)
	}
	c := ownOf(t, cluster.Config{Hosts: 1, Binary: binary})
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	w := &crashWalk{&nodeTest{t, c, metav1.NamespaceDefault}, c.Hosts[0], t.TempDir(), 0, false}

	// The first pod's life tells which steps there are.
	seen := filepath.Join(c.DataDir(w.host), "faults-seen")
	var labels []string
	walk := func() {
		t.Helper()
		w.live("", "")
		raw, err := os.ReadFile(seen)
		if err != nil {
			t.Fatal(err)
		}
		var fresh []string
		for label := range strings.FieldsSeq(string(raw)) {
			if !slices.Contains(labels, label) {
				labels, fresh = append(labels, label), append(fresh, label)
			}
		}
		t.Logf("%d steps: %s", len(fresh), fresh)
		for _, label := range fresh {
			// Some steps are of both, or happen again at the end.
			for _, when := range []string{"start", "end"} {
				w.live(label, when)
			}
		}
	}
	walk()
	wanted := []string{"network.attached", "pod.spawned", "container.started", "container.ran", "container.stopping", "stop.killed", "network.detached", "object.deleted"}
	// One that has users of its own has further steps, where the kernel can do it.
	node, err := c.Client.CoreV1().Nodes().Get(t.Context(), w.host.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(node.Status.RuntimeHandlers, func(h corev1.NodeRuntimeHandler) bool { return *h.Features.UserNamespaces }) {
		openFolders(t, c.DataDir(w.host))
		openFolders(t, w.dir)
		w.ownUsers = true
		walk()
		wanted = append(wanted, "pod.isolating")
	}
	for _, must := range wanted {
		if !slices.Contains(labels, must) {
			t.Errorf("there is no step %s", must)
		}
	}
}

type crashWalk struct {
	*nodeTest
	host *lab.Host
	dir  string
	n    int

	ownUsers bool // the pods have users of their own
}

// live has a pod live once, and conclave die at one step of its start or its
// end, if that comes by there.
func (w *crashWalk) live(label, when string) {
	w.Helper()
	w.n++
	name, what := fmt.Sprintf("walk-%d", w.n), fmt.Sprintf("a crash at %s in the pod's %s", label, when)
	diary := filepath.Join(w.dir, name)
	if err := os.MkdirAll(diary, 0o777); err != nil {
		w.Fatal(err)
	}
	pod := edited(nodePod(name, sh("main", "echo main begins >> /v/diary; trap 'echo main ends >> /v/diary; exit 0' TERM; while true; do sleep 0.1; done", func(c *corev1.Container) {
		c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
	})), inits(sh("init", "echo init >> /v/diary")), func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(20)) }, mountShared, func(p *corev1.Pod) {
		p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: diary}}
		p.Spec.HostUsers = new(!w.ownUsers)
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}})
	})
	if when == "start" {
		w.arm(label)
	}
	_, err := w.c.Client.CoreV1().Pods(w.ns).Create(w.Context(), pod, metav1.CreateOptions{})
	w.answered(err, when == "start")
	if when == "start" {
		w.crash(what, func() bool { p, err := w.try(name); return err == nil && readyNow(p) })
	}
	p := w.until(name, "runs despite "+what, readyNow, nil)
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.RestartCount != 0 {
			w.Errorf("%s: %s", what, shown(s))
		}
	}
	if when == "end" {
		w.arm(label)
	}
	err = w.c.Client.CoreV1().Pods(w.ns).Delete(w.Context(), name, metav1.DeleteOptions{})
	w.answered(err, when == "end")
	gone := func() bool { _, err := w.try(name); return apierrors.IsNotFound(err) }
	if when == "end" {
		w.crash(what, gone)
	}
	uid := string(p.UID)
	eventually(w.T, "nothing is left after "+what, func() error {
		if !gone() {
			return errors.New("the API has the pod")
		}
		return w.leftovers(uid)
	})
	raw, err := os.ReadFile(filepath.Join(diary, "diary"))
	if got := string(raw); err != nil || got != "init\nmain begins\nmain ends\n" {
		w.Errorf("%s: the pod's diary: %q %v", what, got, err)
	}
}

// answered ends the test if a question failed, unless conclave may have died of
// it before the answer was out: that answer is lost, what was asked is done.
func (w *crashWalk) answered(err error, dies bool) {
	w.Helper()
	if lost := dies && apierrors.ReasonForError(err) == metav1.StatusReasonUnknown; err != nil && !lost {
		w.Fatal(err)
	}
}

func (w *crashWalk) try(name string) (*corev1.Pod, error) {
	return w.c.Client.CoreV1().Pods(w.ns).Get(w.Context(), name, metav1.GetOptions{})
}

func (w *crashWalk) faultFile() string { return filepath.Join(w.c.DataDir(w.host), "fault") }

func (w *crashWalk) arm(label string) {
	w.Helper()
	if label == "" {
		return
	}
	if err := os.WriteFile(w.faultFile(), []byte(label), 0o600); err != nil {
		w.Fatal(err)
	}
}

// crash waits until conclave has died where it was told to, and starts it
// again; or until all is done without its having come by there.
func (w *crashWalk) crash(what string, done func() bool) {
	w.Helper()
	eventually(w.T, what, func() error {
		if _, err := os.Stat(w.faultFile()); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if done() {
			return nil
		}
		return errors.New("it has not come by there")
	})
	if err := os.Remove(w.faultFile()); err == nil {
		return // it never came by
	}
	eventually(w.T, "conclave is dead after "+what, func() error {
		conn, err := net.Dial("unix", w.c.Socket(w.host))
		if err == nil {
			conn.Close()
			return errors.New("it answers")
		}
		return nil
	})
	eventually(w.T, "conclave starts again after "+what, func() error { return w.c.Start(w.host.Name, "up") })
	eventually(w.T, "the API answers again after "+what, func() error { return w.c.Connect(w.Context()) })
}

// leftovers says what there is of a pod that ended.
func (w *crashWalk) leftovers(uid string) error {
	var left []string
	for _, dir := range must(filepath.Glob("/proc/[0-9]*")) {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if groups, groupErr := os.ReadFile(filepath.Join(dir, "cgroup")); err == nil && groupErr == nil && (bytes.Contains(line, []byte(uid)) || bytes.Contains(groups, []byte(uid))) {
			left = append(left, fmt.Sprintf("process %s %q", dir, line))
		}
	}
	mounts, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(w.host.Init.PID), "mountinfo"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, uid) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	inside := filepath.Join("/proc", fmt.Sprint(w.host.Init.PID), "root", w.c.DataDir(w.host))
	for _, pattern := range []string{"pods/*", "containers/*", "run/*/*", "run/*/*/*", "log/*/*"} {
		for _, path := range must(filepath.Glob(filepath.Join(inside, pattern))) {
			to, _ := os.Readlink(path) // empty if it is no link
			if strings.Contains(filepath.Base(path), uid) || strings.Contains(to, uid) {
				left = append(left, "file "+strings.TrimPrefix(path, inside))
			}
		}
	}
	groups := exec.CommandContext(w.Context(), "find", "/sys/fs/cgroup", "-type", "d", "-name", "*"+uid+"*")
	if out, err := groups.Output(); err != nil || len(out) > 0 {
		left = append(left, fmt.Sprintf("cgroups %s %v", out, err))
	}
	if len(left) > 0 {
		return errors.New(strings.Join(left, "; "))
	}
	return nil
}
