package hosts

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"conclave/lab"
	"conclave/test/cluster"
)

// copies is a StatefulSet of one pod, which stamps a file that all hosts share
// as long as a copy of it runs.
type copies struct {
	*testing.T
	c      *cluster.Cluster
	folder string
	client *kubernetes.Clientset // by way of a host that is not cut off
}

const onlyPod = "only-0"

func onlyOne(t *testing.T, c *cluster.Cluster) *copies {
	t.Helper()
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	folder, err := c.Shared("stamps")
	if err != nil {
		t.Fatal(err)
	}
	p := toolPod("", "", map[string]string{"app": "only"}, "stamp", "/stamps/log", "$(UID)")
	p.Spec.Volumes = []corev1.Volume{{Name: "stamps", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "stamps", MountPath: "/stamps"}}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "UID", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.uid"}}}}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "only"}, Spec: appsv1.StatefulSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: p.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec},
	}}
	if _, err := c.Client.AppsV1().StatefulSets("default").Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return &copies{T: t, c: c, folder: folder, client: c.Client}
}

// run is one process that stamped, from its first stamp to its last, as time
// since boot.
type run struct {
	id          string
	first, last time.Duration
}

// runs are all that stamped so far, in the order in which they began.
func (o *copies) runs() []run {
	o.Helper()
	f, err := os.Open(filepath.Join(o.folder, "log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		o.Fatal(err)
	}
	defer f.Close()
	byID := map[string]*run{}
	var all []run
	for lines := bufio.NewScanner(f); lines.Scan(); {
		id, at, ok := strings.Cut(lines.Text(), " ")
		nanos, err := strconv.ParseInt(at, 10, 64)
		if !ok || err != nil {
			continue // one that is being written, or whose writer was killed
		}
		r := byID[id]
		if r == nil {
			r = &run{id: id, first: time.Duration(nanos)}
			byID[id] = r
		}
		r.last = time.Duration(nanos)
	}
	for _, r := range byID {
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	return all
}

// overlap is for how long two ran at the same time, at most; negative if they
// never did.
func overlap(all []run) time.Duration {
	longest := -time.Hour
	for i := 1; i < len(all); i++ {
		longest = max(longest, all[i-1].last-all[i].first)
	}
	return longest
}

// running waits until a pod whose UID is not old's runs and stamps.
func (o *copies) running(old *corev1.Pod) (p *corev1.Pod) {
	o.Helper()
	eventually(o.T, "the pod runs", func() (err error) {
		p, err = o.client.CoreV1().Pods("default").Get(o.Context(), onlyPod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if old != nil && p.UID == old.UID || !podReady(p) {
			return fmt.Errorf("pod %s on %s is %s", p.UID, p.Spec.NodeName, p.Status.Phase)
		}
		if !slices.ContainsFunc(o.runs(), func(r run) bool { return strings.HasPrefix(r.id, string(p.UID)) }) {
			return errors.New("it has not stamped yet")
		}
		return nil
	})
	return p
}

// lose cuts the pod's host off, after breaking it further, and waits until
// another copy runs elsewhere.
func (o *copies) lose(p *corev1.Pod, also func(host string) error) *corev1.Pod {
	o.Helper()
	host := p.Spec.NodeName
	o.client = clientsOf(o.T, o.c, 10*time.Second, others(o.c, host)[0])[0]
	if also != nil {
		if err := also(host); err != nil {
			o.Fatal(err)
		}
	}
	if err := o.c.Partition([]string{host}); err != nil {
		o.Fatal(err)
	}
	began := time.Now()
	next := o.running(p)
	o.Logf("the pod of %s runs on %s %.2f s after %s was cut off", host, next.Spec.NodeName, time.Since(began).Seconds(), host)
	return next
}

func (o *copies) allReady() {
	o.Helper()
	eventually(o.T, "all nodes are ready", func() error {
		all, err := o.client.CoreV1().Nodes().List(o.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range all.Items {
			if !nodeReady(&n) || len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s has the taints %v, the annotations %v and the conditions %v", n.Name, n.Spec.Taints, n.Annotations, n.Status.Conditions)
			}
		}
		return nil
	})
}

// TestAtMostOne cuts off the host of a pod that must not run twice, with its
// conclave running, stopped and killed: another copy begins only when the first
// has ended, though nobody can tell it to, and the first never comes back.
func TestAtMostOne(t *testing.T) {
	t.Parallel()
	t.Run("with the fence", func(t *testing.T) {
		t.Parallel()
		o := onlyOne(t, own(t, 3))
		p := o.running(nil)
		for _, way := range []struct {
			what        string
			also, after func(host string) error
		}{
			{"cut off", nil, nil},
			{"its conclave stopped", o.c.Pause, o.c.Resume},
			{"its conclave killed", o.c.Kill, func(host string) error { return o.c.Start(host, "up") }},
		} {
			old := p
			p = o.lose(p, way.also)
			all := o.runs()
			if n := len(all); n < 2 || overlap(all) >= 0 {
				t.Fatalf("%s: two copies at once: %+v", way.what, all)
			}
			t.Logf("%s: between the copies were %s", way.what, -overlap(all[len(all)-2:]))
			if err := o.c.Heal(); err != nil {
				t.Fatal(err)
			}
			if way.after != nil {
				if err := way.after(old.Spec.NodeName); err != nil {
					t.Fatal(err)
				}
			}
			o.allReady()
			eventually(t, "the node knows that its copy is no more", func() error {
				left, err := filepath.Glob(filepath.Join(o.c.DataDir(hostNamed(t, o.c, old.Spec.NodeName)), "pods", string(old.UID)))
				if len(left) > 0 {
					err = fmt.Errorf("it has %v", left)
				}
				return err
			})
			if again := o.runs(); len(again) != len(all) {
				t.Fatalf("%s: after the host came back there are the runs %+v, before %+v", way.what, again, all)
			}
		}
	})
	// The same with a build whose agents fence nothing: if this did not show two
	// copies, the test above would prove nothing.
	t.Run("without the fence two copies run", func(t *testing.T) {
		t.Parallel()
		needRoot(t)
		root, err := cluster.Root()
		if err != nil {
			t.Fatal(err)
		}
		binary := filepath.Join(t.TempDir(), "conclave")
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X conclave/agent.unfenced=yes", "-o", binary, ".")
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build without the fence: %v: %s", err, out)
		}
		o := onlyOne(t, ownOf(t, cluster.Config{Hosts: 3, Binary: binary}))
		o.lose(o.running(nil), nil)
		eventually(t, "two copies run at once", func() error {
			if d := overlap(o.runs()); d < time.Second {
				return fmt.Errorf("they overlap by %s", d)
			}
			return nil
		})
	})
}

func hostNamed(t *testing.T, c *cluster.Cluster, name string) *lab.Host {
	t.Helper()
	h, err := c.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
