package hosts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"conclave/test/conformance"
)

// show runs behaviours side by side in one namespace.
func show(t *testing.T, w *world, all []behaviour) {
	t.Helper()
	for _, b := range all {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			conformance.Shows(t, b.codename)
			b.show(t, w)
		})
	}
}

// job is one of shell commands, of pods that go at once.
func job(name, script string, change func(*batchv1.JobSpec)) *batchv1.Job {
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}},
		Spec: batchv1.JobSpec{
			Parallelism: ptr.To(int32(2)), Completions: ptr.To(int32(3)),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"job": name}},
				Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr.To(int64(0)),
					Containers: []corev1.Container{{Name: "c", Image: idle, Command: []string{"sh", "-c", script}}},
				},
			},
		},
	}
	if change != nil {
		change(&j.Spec)
	}
	return j
}

func indexed(completions, parallelism int32, more func(*batchv1.JobSpec)) func(*batchv1.JobSpec) {
	return func(s *batchv1.JobSpec) {
		s.CompletionMode = ptr.To(batchv1.IndexedCompletion)
		s.Completions, s.Parallelism = &completions, &parallelism
		if more != nil {
			more(s)
		}
	}
}

func (w *world) run(t *testing.T, j *batchv1.Job) *batchv1.Job {
	t.Helper()
	made, err := w.c.Client.BatchV1().Jobs(w.ns).Create(t.Context(), j, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// ends waits until a Job has a condition, for a reason, and returns it.
func (w *world) ends(t *testing.T, name string, how batchv1.JobConditionType, reason string) *batchv1.Job {
	t.Helper()
	var j *batchv1.Job
	eventually(t, fmt.Sprintf("job %s is %s", name, how), func() (err error) {
		if j, err = w.c.Client.BatchV1().Jobs(w.ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
			return c.Type == how && c.Status == corev1.ConditionTrue && (reason == "" || c.Reason == reason)
		}) {
			return fmt.Errorf("its status is %+v", j.Status)
		}
		return nil
	})
	return j
}

func (w *world) jobPods(t *testing.T, name string) []corev1.Pod {
	t.Helper()
	list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + name})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// running waits until so many of a Job's pods run.
func (w *world) running(t *testing.T, name string, n int) (found []corev1.Pod) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d pods of %s run", n, name), func() error {
		found = nil
		all := w.jobPods(t, name)
		for _, p := range all {
			if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				found = append(found, p)
			}
		}
		if len(found) != n {
			return fmt.Errorf("%d do, of %d", len(found), len(all))
		}
		return nil
	})
	return found
}

func exits(codes ...int32) *batchv1.PodFailurePolicyOnExitCodesRequirement {
	return &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: codes}
}

func counted(t *testing.T, j *batchv1.Job, completed, failed string) {
	t.Helper()
	if got := ptr.Deref(j.Status.FailedIndexes, ""); j.Status.CompletedIndexes != completed || got != failed {
		t.Errorf("completed %q, failed %q; wanted %q and %q", j.Status.CompletedIndexes, got, completed, failed)
	}
	if u := j.Status.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
		t.Errorf("uncounted are %+v", u)
	}
	if j.Status.Active != 0 || ptr.Deref(j.Status.Ready, 0) != 0 || ptr.Deref(j.Status.Terminating, 0) != 0 {
		t.Errorf("it has ended, and yet: %+v", j.Status)
	}
}

// TestJobs shows what Kubernetes asks of Jobs.
func TestJobs(t *testing.T) {
	c := three(t)
	show(t, &world{c: c, ns: namespace(t, c)}, jobBehaviours)
}

var jobBehaviours = []behaviour{
	{"orphans", "[sig-apps] Job should adopt matching orphans and release non-matching pods [Conformance]", func(t *testing.T, w *world) {
		made := w.run(t, job("adopting", "sleep 1000", func(s *batchv1.JobSpec) { s.Completions = ptr.To(int32(2)) }))
		pods := w.c.Client.CoreV1().Pods(w.ns)
		pod := w.running(t, "adopting", 2)[0].Name
		controlled := func(want bool) {
			t.Helper()
			eventually(t, fmt.Sprintf("the pod is the job's: %t", want), func() error {
				p, err := pods.Get(t.Context(), pod, metav1.GetOptions{})
				if err == nil && metav1.IsControlledBy(p, made) != want {
					err = fmt.Errorf("its owners are %v", p.OwnerReferences)
				}
				return err
			})
		}
		patch := func(what string) {
			t.Helper()
			if _, err := pods.Patch(t.Context(), pod, types.MergePatchType, []byte(what), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		controlled(true)
		patch(`{"metadata":{"ownerReferences":null}}`)
		controlled(true)
		patch(`{"metadata":{"labels":null}}`)
		controlled(false)
		deletePod(t, w.c, w.ns, pod) // nothing holds it
		w.running(t, "adopting", 2)
	}},
	{"disruptions are ignored", "[sig-apps] Job should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("disrupted", "trap 'exit 1' TERM; if [ -e /go ]; then exit 0; fi; while [ ! -e /go ]; do sleep 0.1; done", func(s *batchv1.JobSpec) {
			s.Parallelism, s.Completions, s.BackoffLimit = ptr.To(int32(1)), ptr.To(int32(1)), ptr.To(int32(0))
			s.Template.Spec.TerminationGracePeriodSeconds = ptr.To(int64(5))
			s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
				Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}},
			}}}
		}))
		first := w.running(t, "disrupted", 1)[0]
		evictPod(t, w, first.Name)
		var second corev1.Pod
		eventually(t, "another pod runs", func() error {
			for _, p := range w.jobPods(t, "disrupted") {
				if p.UID != first.UID && p.Status.Phase == corev1.PodRunning {
					second = p
					return nil
				}
			}
			return errors.New("none does")
		})
		kubectl(t, w.c, "-n", w.ns, "exec", second.Name, "--", "touch", "/go")
		if j := w.ends(t, "disrupted", batchv1.JobComplete, ""); j.Status.Failed != 0 {
			t.Errorf("%d failures", j.Status.Failed)
		}
	}},
	{"an exit code fails the job", "[sig-apps] Job should allow to use the pod failure policy on exit code to fail the job early [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("exiting", "exit 42", func(s *batchv1.JobSpec) {
			s.BackoffLimit = ptr.To(int32(100))
			s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: exits(42)}}}
		}))
		w.ends(t, "exiting", batchv1.JobFailureTarget, batchv1.JobReasonPodFailurePolicy)
		w.ends(t, "exiting", batchv1.JobFailed, batchv1.JobReasonPodFailurePolicy)
	}},
	{"status", "[sig-apps] Job should apply changes to a job status [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("told", "sleep 1000", nil))
		w.running(t, "told", 2)
		jobs := w.c.Client.BatchV1().Jobs(w.ns)
		at := metav1.Now().Rfc3339Copy()
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"conditions":[{"type":"CustomPatched","status":"True","lastTransitionTime":%q}]}}`, at.UTC().Format(time.RFC3339))
		if _, err := jobs.Patch(t.Context(), "told", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		w.ends(t, "told", "CustomPatched", "")
		eventually(t, "the status is updated", func() error {
			j, err := jobs.Get(t.Context(), "told", metav1.GetOptions{})
			if err != nil {
				return err
			}
			j.Status.Conditions = append(j.Status.Conditions, batchv1.JobCondition{Type: "CustomUpdated", Status: corev1.ConditionTrue, LastTransitionTime: at})
			_, err = jobs.UpdateStatus(t.Context(), j, metav1.UpdateOptions{})
			return err
		})
		w.ends(t, "told", "CustomUpdated", "")
		if out := kubectl(t, w.c, "-n", w.ns, "get", "job", "told", "--subresource=status", "-o", "jsonpath={.status.conditions[*].type}"); !strings.Contains(out, "CustomPatched") {
			t.Errorf("the status subresource shows %q", out)
		}
	}},
	{"indexes", "[sig-apps] Job should create pods for an Indexed job with completion indexes and specified hostname [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("indexed", `test "$(hostname)" = "indexed-$JOB_COMPLETION_INDEX"`, indexed(4, 2, nil)))
		counted(t, w.ends(t, "indexed", batchv1.JobComplete, batchv1.JobReasonCompletionsReached), "0-3", "")
		var seen []string
		for _, p := range w.jobPods(t, "indexed") {
			if p.Status.Phase == corev1.PodSucceeded {
				seen = append(seen, p.Annotations[batchv1.JobCompletionIndexAnnotation])
			}
		}
		if slices.Sort(seen); !slices.Equal(seen, []string{"0", "1", "2", "3"}) {
			t.Errorf("indexes %v", seen)
		}
	}},
	{"delete", "[sig-apps] Job should delete a job [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("deleted", "sleep 1000", nil))
		w.running(t, "deleted", 2)
		kubectl(t, w.c, "-n", w.ns, "delete", "job", "deleted")
		eventually(t, "its pods are gone", func() error {
			if n := len(w.jobPods(t, "deleted")); n > 0 {
				return fmt.Errorf("%d are there", n)
			}
			return nil
		})
	}},
	{"every index is tried", "[sig-apps] Job should execute all indexes despite some failing when using backoffLimitPerIndex [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("per-index", "exit $((JOB_COMPLETION_INDEX % 2 == 0))", indexed(4, 4, func(s *batchv1.JobSpec) { s.BackoffLimitPerIndex = ptr.To(int32(1)) })))
		j := w.ends(t, "per-index", batchv1.JobFailed, batchv1.JobReasonFailedIndexes)
		counted(t, j, "1,3", "0,2")
		if j.Status.Failed != 4 || j.Status.Succeeded != 2 {
			t.Errorf("%d failed, %d succeeded", j.Status.Failed, j.Status.Succeeded)
		}
	}},
	{"lifecycle", "[sig-apps] Job should manage the lifecycle of a job [Conformance]", func(t *testing.T, w *world) {
		jobs := w.c.Client.BatchV1().Jobs(w.ns)
		w.run(t, job("lived", "sleep 1000", func(s *batchv1.JobSpec) { s.Suspend = ptr.To(true) }))
		w.ends(t, "lived", batchv1.JobSuspended, "JobSuspended")
		if n := len(w.jobPods(t, "lived")); n != 0 {
			t.Errorf("%d pods of a suspended job", n)
		}
		if _, err := jobs.Patch(t.Context(), "lived", types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"true"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is resumed", func() error {
			j, err := jobs.Get(t.Context(), "lived", metav1.GetOptions{})
			if err == nil {
				j.Spec.Suspend = ptr.To(false)
				_, err = jobs.Update(t.Context(), j, metav1.UpdateOptions{})
			}
			return err
		})
		w.running(t, "lived", 2)
		all, err := w.c.Client.BatchV1().Jobs("").List(t.Context(), metav1.ListOptions{LabelSelector: "of=lived,patched=true"})
		if err != nil || len(all.Items) != 1 {
			t.Fatalf("everywhere are %v (%v)", all, err)
		}
		if err := jobs.DeleteCollection(t.Context(), metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}, metav1.ListOptions{LabelSelector: "of=lived"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "job and pods are gone", func() error {
			if _, err := jobs.Get(t.Context(), "lived", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("the job: %v", err)
			}
			if n := len(w.jobPods(t, "lived")); n > 0 {
				return fmt.Errorf("%d pods", n)
			}
			return nil
		})
	}},
	{"an index fails at once", "[sig-apps] Job should mark indexes as failed when the FailIndex action is matched in podFailurePolicy [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("fail-index", "[ $JOB_COMPLETION_INDEX = 0 ] && exit 42; exit 0", indexed(2, 2, func(s *batchv1.JobSpec) {
			s.BackoffLimitPerIndex = ptr.To(int32(5))
			s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionFailIndex, OnExitCodes: exits(42)}}}
		})))
		j := w.ends(t, "fail-index", batchv1.JobFailed, batchv1.JobReasonFailedIndexes)
		counted(t, j, "1", "0")
		if j.Status.Failed != 1 {
			t.Errorf("%d failed", j.Status.Failed)
		}
	}},
	{"restarts in place", "[sig-apps] Job should run a job to completion when tasks sometimes fail and are locally restarted [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("restarted", "[ -e /data/seen ] && exit 0; touch /data/seen; exit 1", func(s *batchv1.JobSpec) {
			s.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
			s.Template.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			s.Template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		}))
		if j := w.ends(t, "restarted", batchv1.JobComplete, ""); j.Status.Succeeded != 3 {
			t.Errorf("%d succeeded", j.Status.Succeeded)
		}
	}},
	{"too many failed indexes", "[sig-apps] Job should terminate job execution when the number of failed indexes exceeds maxFailedIndexes [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("max-failed", "[ $JOB_COMPLETION_INDEX = 0 ] && exit 1; sleep 1000", indexed(4, 4, func(s *batchv1.JobSpec) {
			s.BackoffLimitPerIndex, s.MaxFailedIndexes = ptr.To(int32(0)), ptr.To(int32(0))
		})))
		counted(t, w.ends(t, "max-failed", batchv1.JobFailed, batchv1.JobReasonMaxFailedIndexesExceeded), "", "0")
	}},
	{"success of all", "[sig-apps] Job with successPolicy should succeeded when all indexes succeeded [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("all-succeed", "true", indexed(2, 2, func(s *batchv1.JobSpec) {
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("0-1")}}}
		})))
		w.ends(t, "all-succeed", batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy)
		counted(t, w.ends(t, "all-succeed", batchv1.JobComplete, batchv1.JobReasonSuccessPolicy), "0,1", "")
	}},
	{"success of some", "[sig-apps] Job with successPolicy succeededCount rule should succeeded even when some indexes remain pending [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("some-succeed", "[ $JOB_COMPLETION_INDEX = 0 ] && exit 0; sleep 1000", indexed(5, 2, func(s *batchv1.JobSpec) {
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededCount: ptr.To(int32(1))}}}
		})))
		counted(t, w.ends(t, "some-succeed", batchv1.JobComplete, batchv1.JobReasonSuccessPolicy), "0", "")
	}},
	{"success of one index", "[sig-apps] Job with successPolicy succeededIndexes rule should succeeded even when some indexes remain pending [Conformance]", func(t *testing.T, w *world) {
		w.run(t, job("index-succeeds", "[ $JOB_COMPLETION_INDEX = 0 ] && exit 0; sleep 1000", indexed(5, 2, func(s *batchv1.JobSpec) {
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("0")}}}
		})))
		counted(t, w.ends(t, "index-succeeds", batchv1.JobComplete, batchv1.JobReasonSuccessPolicy), "0", "")
	}},
}

// cronJob is one whose schedule comes every few seconds.
func cronJob(name string, policy batchv1.ConcurrencyPolicy, suspend bool) *batchv1.CronJob {
	j := job(name, "sleep 1000", func(s *batchv1.JobSpec) { s.Parallelism, s.Completions = ptr.To(int32(1)), ptr.To(int32(1)) })
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: batchv1.CronJobSpec{
			Schedule: "@every 2s", ConcurrencyPolicy: policy, Suspend: &suspend,
			JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"cron": name}}, Spec: j.Spec},
		},
	}
}

func (w *world) schedule(t *testing.T, c *batchv1.CronJob) {
	t.Helper()
	if _, err := w.c.Client.BatchV1().CronJobs(w.ns).Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = w.c.Client.BatchV1().CronJobs(w.ns).Delete(ctx, c.Name, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)})
	})
}

func (w *world) cronned(t *testing.T, name string) []batchv1.Job {
	t.Helper()
	list, err := w.c.Client.BatchV1().Jobs(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "cron=" + name})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// cronEvent waits for an event about a CronJob.
func (w *world) cronEvent(t *testing.T, name, reason string) {
	t.Helper()
	eventually(t, "an event "+reason+" of "+name, func() error {
		events, err := w.c.Client.CoreV1().Events(w.ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name + ",reason=" + reason})
		if err == nil && len(events.Items) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
}

// TestCronJobs shows what Kubernetes asks of CronJobs, by schedules of seconds.
func TestCronJobs(t *testing.T) {
	c := three(t)
	show(t, &world{c: c, ns: namespace(t, c)}, cronBehaviours)
}

var cronBehaviours = []behaviour{
	{"suspended", "[sig-apps] CronJob should not schedule jobs when suspended [Conformance] [Slow]", func(t *testing.T, w *world) {
		w.schedule(t, cronJob("suspended", batchv1.AllowConcurrent, true))
		// Another of the same schedule, made later, shows that its time has come.
		w.schedule(t, cronJob("witness", batchv1.AllowConcurrent, false))
		eventually(t, "the other has made two jobs", func() error {
			if n := len(w.cronned(t, "witness")); n < 2 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		if n := len(w.cronned(t, "suspended")); n != 0 {
			t.Errorf("%d jobs", n)
		}
	}},
	{"forbid", "[sig-apps] CronJob should not schedule new jobs when ForbidConcurrent [Conformance] [Slow]", func(t *testing.T, w *world) {
		w.schedule(t, cronJob("forbidding", batchv1.ForbidConcurrent, false))
		w.cronEvent(t, "forbidding", "JobAlreadyActive") // the second time has come
		if all := w.cronned(t, "forbidding"); len(all) != 1 {
			t.Errorf("%d jobs", len(all))
		}
		cj, err := w.c.Client.BatchV1().CronJobs(w.ns).Get(t.Context(), "forbidding", metav1.GetOptions{})
		if err != nil || len(cj.Status.Active) != 1 {
			t.Errorf("%v active (%v)", cj.Status.Active, err)
		}
	}},
	{"replace", "[sig-apps] CronJob should replace jobs when ReplaceConcurrent [Conformance]", func(t *testing.T, w *world) {
		w.schedule(t, cronJob("replacing", batchv1.ReplaceConcurrent, false))
		first := ""
		eventually(t, "there is a job", func() error {
			if all := w.cronned(t, "replacing"); len(all) > 0 {
				first = all[0].Name
				return nil
			}
			return errors.New("there is none")
		})
		eventually(t, "another has its place", func() error {
			all := w.cronned(t, "replacing")
			if len(all) == 0 || slices.ContainsFunc(all, func(j batchv1.Job) bool { return j.Name == first }) {
				return fmt.Errorf("%d jobs, the first among them", len(all))
			}
			return nil
		})
	}},
	{"allow", "[sig-apps] CronJob should schedule multiple jobs concurrently [Conformance]", func(t *testing.T, w *world) {
		w.schedule(t, cronJob("allowing", batchv1.AllowConcurrent, false))
		eventually(t, "two jobs are active", func() error {
			cj, err := w.c.Client.BatchV1().CronJobs(w.ns).Get(t.Context(), "allowing", metav1.GetOptions{})
			if err == nil && len(cj.Status.Active) < 2 {
				err = fmt.Errorf("active are %v", cj.Status.Active)
			}
			return err
		})
	}},
}

// evictPod evicts a pod by the API.
func evictPod(t *testing.T, w *world, name string) {
	t.Helper()
	if err := w.evict(t, name); err != nil {
		t.Fatal(err)
	}
}
