package controller

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/robfig/cron/v3"
)

func runOnce(name string, edit func(*batchv1.JobSpec)) *batchv1.Job {
	t := template(name, "image:1")
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: batchv1.JobSpec{Template: t}}
	if edit != nil {
		edit(&j.Spec)
	}
	return j
}

// end lets every running pod of a Job end.
func (w *world) end(job string, phase corev1.PodPhase, code int32) {
	w.Helper()
	for _, p := range all[*corev1.Pod](w, pods, "default") {
		if p.Labels[batchv1.JobNameLabel] != job || podFinished(p) || p.DeletionTimestamp != nil {
			continue
		}
		change(w, pods, "default", p.Name, func(p *corev1.Pod) {
			p.Status.Phase = phase
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()}}}}
		}, "status")
	}
	w.settle(0)
}

func TestJobCountsOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, jobs, runOnce("j", func(s *batchv1.JobSpec) {
			s.Completions, s.Parallelism, s.BackoffLimit = ptr.To(int32(3)), ptr.To(int32(2)), ptr.To(int32(2))
		}))
		w.settle(0)
		if n := len(all[*corev1.Pod](w, pods, "default")); n != 2 {
			t.Fatalf("%d pods", n)
		}
		w.end("j", corev1.PodSucceeded, 0)
		s := read[*batchv1.Job](w, jobs, "default", "j").Status
		if s.Succeeded != 2 || s.Active != 1 || len(s.UncountedTerminatedPods.Succeeded) != 0 {
			t.Fatalf("status %+v", s)
		}
		w.settle(2 * time.Second)
		w.end("j", corev1.PodFailed, 1)
		if s = read[*batchv1.Job](w, jobs, "default", "j").Status; s.Failed != 1 || s.Active != 0 {
			t.Fatalf("status %+v", s)
		}
		w.settle(11 * time.Second) // of back-off
		w.end("j", corev1.PodSucceeded, 0)
		s = read[*batchv1.Job](w, jobs, "default", "j").Status
		if s.Succeeded != 3 || s.Failed != 1 || s.CompletionTime == nil || jobCondition(&s, batchv1.JobComplete) == nil {
			t.Fatalf("status %+v", s)
		}
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if tracked(p) {
				t.Errorf("pod %s is still held", p.Name)
			}
		}
	})
}

func TestJobFails(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, jobs, runOnce("j", func(s *batchv1.JobSpec) {
			s.BackoffLimit, s.TTLSecondsAfterFinished = ptr.To(int32(1)), ptr.To(int32(60))
		}))
		w.settle(0)
		w.end("j", corev1.PodFailed, 1)
		w.settle(11 * time.Second)
		w.end("j", corev1.PodFailed, 1)
		s := read[*batchv1.Job](w, jobs, "default", "j").Status
		if c := jobCondition(&s, batchv1.JobFailed); c == nil || c.Reason != batchv1.JobReasonBackoffLimitExceeded || s.Failed != 2 {
			t.Fatalf("status %+v", s)
		}
		w.settle(61 * time.Second)
		if w.exists(jobs, "default", "j") {
			t.Error("it has outlived its time")
		}
		create(w, jobs, runOnce("slow", func(s *batchv1.JobSpec) { s.ActiveDeadlineSeconds = ptr.To(int64(30)) }))
		w.settle(31 * time.Second)
		s = read[*batchv1.Job](w, jobs, "default", "slow").Status
		if c := jobCondition(&s, batchv1.JobFailed); c == nil || c.Reason != batchv1.JobReasonDeadlineExceeded {
			t.Errorf("status %+v", s)
		}
	})
}

func TestJobIsSuspended(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, jobs, runOnce("j", nil))
		w.settle(0)
		change(w, jobs, "default", "j", func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(true) })
		w.settle(time.Second)
		s := read[*batchv1.Job](w, jobs, "default", "j").Status
		if s.Active != 0 || s.StartTime != nil || jobCondition(&s, batchv1.JobSuspended) == nil || len(all[*corev1.Pod](w, pods, "default")) != 0 {
			t.Fatalf("status %+v", s)
		}
		change(w, jobs, "default", "j", func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(false) })
		w.settle(11 * time.Second)
		if s = read[*batchv1.Job](w, jobs, "default", "j").Status; s.Active != 1 || jobCondition(&s, batchv1.JobSuspended) != nil {
			t.Errorf("status %+v", s)
		}
		// Deleted without a word about them, its pods stay, and nothing holds them.
		if err := w.client.Delete(w.ctx, jobs, "default", "j", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle(time.Second)
		left := all[*corev1.Pod](w, pods, "default")
		if w.exists(jobs, "default", "j") || len(left) == 0 || slices.ContainsFunc(left, tracked) || metav1.GetControllerOfNoCopy(left[0]) != nil {
			t.Errorf("%d pods are left", len(left))
		}
	})
}

func TestDaemonSet(t *testing.T) {
	for _, surge := range []bool{false, true} {
		t.Run(fmt.Sprint("surge ", surge), func(t *testing.T) {
			inWorld(t, func(w *world) {
				for _, n := range []string{"a", "b", "c"} {
					w.addNode(n, func(n *corev1.Node) {
						if n.Name == "c" {
							n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
						}
					})
				}
				w.agent.set(func() { w.agent.pinned = true })
				d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "d"},
					Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "d"}}, Template: template("d", "image:1")}}
				if surge {
					d.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: ptr.To(intstr.FromInt32(1)), MaxUnavailable: ptr.To(intstr.FromInt32(0))}
				}
				create(w, daemonSets, d)
				w.settle(0)
				on := func() (nodes []string) {
					for _, p := range all[*corev1.Pod](w, pods, "default") {
						nodes = append(nodes, p.Spec.NodeName+" "+p.Spec.Containers[0].Image)
					}
					slices.Sort(nodes)
					return nodes
				}
				if got := on(); !slices.Equal(got, []string{"a image:1", "b image:1"}) {
					t.Fatalf("on %v", got)
				}
				if s := read[*appsv1.DaemonSet](w, daemonSets, "default", "d").Status; s.DesiredNumberScheduled != 2 || s.NumberAvailable != 2 || s.UpdatedNumberScheduled != 2 {
					t.Errorf("status %+v", s)
				}
				change(w, daemonSets, "default", "d", func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.Containers[0].Image = "image:2" })
				w.settle(time.Minute)
				if got := on(); !slices.Equal(got, []string{"a image:2", "b image:2"}) {
					t.Fatalf("on %v", got)
				}
				change(w, nodes, "", "b", func(n *corev1.Node) {
					n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}
				})
				w.settle(time.Minute)
				if got := on(); !slices.Equal(got, []string{"a image:2"}) {
					t.Errorf("on %v", got)
				}
			})
		})
	}
}

func TestBudget(t *testing.T) {
	now := time.Unix(1000, 0)
	pod := func(name string, ready bool, owner types.UID) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"a": "b"}}}
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if owner != "" {
			p.OwnerReferences = []metav1.OwnerReference{{UID: owner, Controller: ptr.To(true)}}
		}
		return p
	}
	scales := map[types.UID]int32{"rs": 4}
	scaleOf := func(_ *corev1.Pod, ref *metav1.OwnerReference) (types.UID, int32, error) {
		if n, ok := scales[ref.UID]; ok {
			return ref.UID, n, nil
		}
		return "", 0, fmt.Errorf("no scale")
	}
	three := []*corev1.Pod{pod("x", true, "rs"), pod("y", true, "rs"), pod("z", false, "rs")}
	at := func(v intstr.IntOrString) *intstr.IntOrString { return &v }
	for _, tc := range []struct {
		name                      string
		spec                      policyv1.PodDisruptionBudgetSpec
		pods                      []*corev1.Pod
		gone                      map[string]metav1.Time
		allowed, desired, healthy int32
	}{
		{"a number", policyv1.PodDisruptionBudgetSpec{MinAvailable: at(intstr.FromInt32(1))}, three, nil, 1, 1, 2},
		{"a share, of what there should be", policyv1.PodDisruptionBudgetSpec{MinAvailable: at(intstr.FromString("50%"))}, three, nil, 0, 2, 2},
		{"how many may be away", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: at(intstr.FromInt32(3))}, three, nil, 1, 1, 2},
		{"an evicted pod counts as gone", policyv1.PodDisruptionBudgetSpec{MinAvailable: at(intstr.FromInt32(1))}, three, map[string]metav1.Time{"x": metav1.NewTime(now)}, 0, 1, 1},
		{"but not for ever", policyv1.PodDisruptionBudgetSpec{MinAvailable: at(intstr.FromInt32(1))}, three, map[string]metav1.Time{"x": metav1.NewTime(now.Add(-time.Hour))}, 1, 1, 2},
		{"nothing is known of a controller", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: at(intstr.FromInt32(3))}, []*corev1.Pod{pod("x", true, "job")}, nil, 0, 0, 0},
		{"no pods", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: at(intstr.FromInt32(3))}, nil, nil, 0, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &policyv1.PodDisruptionBudget{Spec: tc.spec, Status: policyv1.PodDisruptionBudgetStatus{DisruptedPods: tc.gone}}
			expected, desired, err := expectedPods(b, tc.pods, scaleOf)
			s, _, _ := budgetStatus(b, tc.pods, expected, desired, err, now)
			if s.DisruptionsAllowed != tc.allowed || s.DesiredHealthy != tc.desired || s.CurrentHealthy != tc.healthy {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestCronMoments(t *testing.T) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	minutely, err := cron.ParseStandard("* * * * *")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		edit     func(*batchv1.CronJob)
		after    time.Duration
		last     time.Duration // -1: none
		manyMore bool
	}{
		{"not yet", nil, 59 * time.Second, -1, false},
		{"now", nil, time.Minute, time.Minute, false},
		{"the last of several", nil, 5*time.Minute + time.Second, 5 * time.Minute, false},
		{"of a year", nil, 365 * 24 * time.Hour, 365 * 24 * time.Hour, true},
		{"since the last", func(c *batchv1.CronJob) { c.Status.LastScheduleTime = &metav1.Time{Time: base.Add(5 * time.Minute)} }, 5*time.Minute + 30*time.Second, -1, false},
		{"within the deadline", func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = ptr.To(int64(10)) }, 5*time.Minute + 30*time.Second, -1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "c", CreationTimestamp: metav1.NewTime(base)}}
			if tc.edit != nil {
				tc.edit(c)
			}
			last, missed, _ := lastMoment(c, minutely, base.Add(tc.after))
			if tc.last < 0 && !last.IsZero() || tc.last >= 0 && !last.Equal(base.Add(tc.last)) || (missed > manyMissed) != tc.manyMore {
				t.Errorf("%v, %d missed", last, missed)
			}
		})
	}
}

func TestCronJob(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, cronJobs, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Spec: batchv1.CronJobSpec{
			Schedule: "* * * * *", ConcurrencyPolicy: batchv1.ForbidConcurrent, SuccessfulJobsHistoryLimit: ptr.To(int32(1)), JobTemplate: batchv1.JobTemplateSpec{Spec: runOnce("c", nil).Spec},
		}})
		w.settle(3*time.Minute + time.Second)
		have := all[*batchv1.Job](w, jobs, "default")
		if len(have) != 1 || !slices.ContainsFunc(w.events("c"), func(e string) bool { return len(e) > 16 && e[:16] == "JobAlreadyActive" }) {
			t.Fatalf("%d jobs, events %q", len(have), w.events("c"))
		}
		w.end(have[0].Name, corev1.PodSucceeded, 0)
		w.settle(2 * time.Minute)
		status := read[*batchv1.CronJob](w, cronJobs, "default", "c").Status
		if len(status.Active) != 1 || status.LastSuccessfulTime == nil || status.LastScheduleTime == nil {
			t.Errorf("status %+v", status)
		}
		next := read[*batchv1.Job](w, jobs, "default", status.Active[0].Name)
		w.end(next.Name, corev1.PodSucceeded, 0)
		w.settle(time.Minute)
		if w.exists(jobs, "default", have[0].Name) {
			t.Error("the history is longer than it may be")
		}
	})
}

func TestQuota(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, quotas, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"}, Spec: corev1.ResourceQuotaSpec{
			Hard: corev1.ResourceList{"secrets": resource.MustParse("2"), "count/secrets": resource.MustParse("5")},
		}})
		w.settle(0)
		used := func(want int64) {
			t.Helper()
			q := read[*corev1.ResourceQuota](w, quotas, "default", "q")
			if n := q.Status.Used["secrets"]; n.Value() != want {
				t.Errorf("%s are used, wanted %d", n.String(), want)
			}
		}
		secrets := corev1.SchemeGroupVersion.WithResource("secrets")
		used(0)
		for _, name := range []string{"a", "b"} {
			create(w, secrets, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
		}
		used(2)
		over := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}}
		if _, err := w.client.Create(w.ctx, secrets, "default", "c", over, metav1.CreateOptions{}); err == nil {
			t.Error("one more than there is room for")
		}
		w.remove(secrets, "default", "a", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		used(2) // what was charged last may be on its way yet
		w.settle(chargeTakes)
		used(1)
	})
}
