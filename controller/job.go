package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const jobComponent = "job-controller"

// newJobs runs the pods of each Job until as many have succeeded as it asks
// for, or too many have failed, and deletes it some time after, if it says so.
func newJobs(e *env) *Controller {
	c := jobController{e}
	ofPod := claimants(e, jobs, "Job", func(j *batchv1.Job) *metav1.LabelSelector { return j.Spec.Selector })
	return &Controller{
		Name: "job", Workers: 4,
		Inputs: []Input{{jobs, self}, {pods, func(change Change) []Key {
			keys := ofPod(change)
			for _, o := range change.sides() {
				// One that was let go of still has the finalizer.
				if name := o.GetLabels()[batchv1.JobNameLabel]; name != "" && metav1.GetControllerOfNoCopy(o) == nil {
					keys = append(keys, Key{Namespace: o.GetNamespace(), Name: name})
				}
			}
			return keys
		}}},
		Outputs: []Output{
			{pods, "objects controlled by a Job"}, {pods, "finalizer " + batchv1.JobTrackingFinalizer},
			{jobs, "status"}, {jobs, "deletions after ttlSecondsAfterFinished"},
		},
		Reconcile: c.reconcile,
	}
}

type jobController struct{ *env }

func (c jobController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	job, ok := get[*batchv1.Job](c.cache, jobs, key.Namespace, key.Name)
	if ok && job.Spec.ManagedBy != nil && *job.Spec.ManagedBy != jobManager {
		return 0, nil
	}
	if !ok {
		return 0, c.freeOrphans(ctx, key)
	}
	selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of job %s: %w", key, err)
	}
	all, err := claim[*corev1.Pod](ctx, c.env, pods, job, jobs, selector)
	if err != nil {
		return 0, err
	}
	if err := c.freeOrphans(ctx, key); err != nil {
		return 0, err
	}
	plan := newJobState(job, all, c.Now()).plan()
	for _, pod := range plan.adopt {
		pod = edit(pod)
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
		if _, err := c.update(ctx, pods, pod); ignoreGone(err) != nil {
			return 0, err
		}
	}
	// What is to be counted is noted before its finalizer goes.
	if !equality.Semantic.DeepEqual(job.Status, plan.status) {
		changed := edit(job)
		changed.Status = plan.status
		made, err := c.update(ctx, jobs, changed, "status")
		if err != nil {
			return 0, ignoreGone(err)
		}
		job = made.(*batchv1.Job)
		for _, said := range plan.events {
			c.events.record(jobComponent, about(job), said.kind, said.reason, "%s", said.message)
		}
	}
	err = errors.Join(c.free(ctx, plan.free), c.remove(ctx, job, plan.remove), c.make(ctx, job, all, plan.create))
	if err != nil {
		return 0, err
	}
	if plan.settled {
		return c.expire(ctx, job)
	}
	return plan.again, nil
}

// freeOrphans lets go of the pods of a name's Job that it controls no longer,
// or that outlived it: nobody counts them any more.
func (c jobController) freeOrphans(ctx context.Context, key Key) error {
	job, exists := get[*batchv1.Job](c.cache, jobs, key.Namespace, key.Name)
	var lost []*corev1.Pod
	for _, p := range list[*corev1.Pod](c.cache, pods, key.Namespace) {
		if !tracked(p) {
			continue
		}
		ref := metav1.GetControllerOfNoCopy(p)
		switch {
		case ref == nil:
			lost = append(lost, p)
		case ref.Kind == "Job" && ref.Name == key.Name && (!exists || job.UID != ref.UID):
			lost = append(lost, p)
		}
	}
	if len(lost) > 0 && !exists {
		// The cache may be behind with jobs while it is not with pods.
		if now, err := c.peek(ctx, jobs, key.Namespace, key.Name); now != nil || err != nil {
			return err
		}
	}
	return c.free(ctx, lost)
}

// free takes off the finalizers of pods.
func (c jobController) free(ctx context.Context, all []*corev1.Pod) error {
	var g errgroup.Group
	g.SetLimit(64)
	for _, pod := range all {
		g.Go(func() error {
			pod = edit(pod)
			pod.Finalizers = slices.DeleteFunc(pod.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
			_, err := c.update(ctx, pods, pod)
			return ignoreGone(err)
		})
	}
	return g.Wait()
}

func (c jobController) remove(ctx context.Context, job *batchv1.Job, all []*corev1.Pod) error {
	var g errgroup.Group
	g.SetLimit(64)
	for _, pod := range all {
		g.Go(func() error {
			if err := c.delete(ctx, pods, pod, metav1.DeleteOptions{}); err != nil {
				c.events.record(jobComponent, about(job), corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", rootCause(err))
				return err
			}
			c.events.record(jobComponent, about(job), corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
			return nil
		})
	}
	return g.Wait()
}

// make creates pods in batches of 1, 2, 4, …
func (c jobController) make(ctx context.Context, job *batchv1.Job, have []*corev1.Pod, indexes []int) error {
	s := newJobState(job, have, c.Now())
	for batch := 1; len(indexes) > 0; batch *= 2 {
		now := indexes[:min(batch, len(indexes))]
		indexes = indexes[len(now):]
		var g errgroup.Group
		for _, index := range now {
			g.Go(func() error {
				made, err := c.create(ctx, pods, jobPod(s, index))
				if err != nil {
					if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
						c.events.record(jobComponent, about(job), corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", rootCause(err))
					}
					return terminatingIsFine(err)
				}
				c.events.record(jobComponent, about(job), corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", made.GetName())
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// jobPod is a new pod, of an index if that is not -1.
func jobPod(s *jobState, index int) *corev1.Pod {
	job := s.job
	t := job.Spec.Template.DeepCopy()
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: job.Namespace, GenerateName: podBase(job.Name, ""),
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: append(t.Finalizers, batchv1.JobTrackingFinalizer),
			OwnerReferences: []metav1.OwnerReference{controllerRef(job)},
		},
		Spec: t.Spec,
	}
	if index < 0 {
		return pod
	}
	n := strconv.Itoa(index)
	pod.GenerateName = podBase(job.Name, n+"-")
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Annotations[batchv1.JobCompletionIndexAnnotation], pod.Labels[batchv1.JobCompletionIndexAnnotation] = n, n
	if pod.Spec.Hostname == "" {
		pod.Spec.Hostname = job.Name + "-" + n
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexVariable }) {
				continue
			}
			c.Env = append(c.Env, corev1.EnvVar{Name: indexVariable, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
				FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation),
			}}})
		}
	}
	if s.perIndex {
		failed, ignored := 0, 0
		if last := s.latest(index); last != nil {
			failed, ignored = failures(last, batchv1.JobIndexFailureCountAnnotation), failures(last, ignoredFailures)
			if s.verdicts[last.UID].action == batchv1.PodFailurePolicyActionIgnore {
				ignored++
			} else {
				failed++
			}
		}
		pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(failed)
		if ignored > 0 {
			pod.Annotations[ignoredFailures] = strconv.Itoa(ignored)
		}
	}
	return pod
}

const indexVariable = "JOB_COMPLETION_INDEX"

// podBase is what the names of a Job's pods begin with: room is left for what
// makes each different.
func podBase(job, index string) string {
	const longest = 63 - 5
	if room := longest - len(index) - 1; len(job) > room {
		job = job[:room]
	}
	return job + "-" + index
}

// expire deletes a Job that has ended when it says that its time is over.
func (c jobController) expire(ctx context.Context, job *batchv1.Job) (time.Duration, error) {
	ttl := job.Spec.TTLSecondsAfterFinished
	if ttl == nil || job.DeletionTimestamp != nil {
		return 0, nil
	}
	end := jobCondition(&job.Status, batchv1.JobComplete)
	if end == nil {
		end = jobCondition(&job.Status, batchv1.JobFailed)
	}
	if left := end.LastTransitionTime.Add(time.Duration(*ttl) * time.Second).Sub(c.Now()); left > 0 {
		return left, nil
	}
	return 0, c.delete(ctx, jobs, job, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)})
}
