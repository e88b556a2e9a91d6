package kinds

import (
	"math"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var oneOfAll, noneOfAll = intstr.FromInt32(1), intstr.FromInt32(0)

// Labels by which a Job's pods were found before the prefixed ones.
const (
	oldJobName       = "job-name"
	oldControllerUID = "controller-uid"
)

func defaultJob(j *batchv1.Job) {
	spec := &j.Spec
	defaultPodSpec(&spec.Template.Spec)
	if spec.Completions == nil && spec.Parallelism == nil {
		defaultPtr(&spec.Completions, 1)
	}
	defaultPtr(&spec.Parallelism, 1)
	if spec.BackoffLimitPerIndex != nil {
		defaultPtr(&spec.BackoffLimit, math.MaxInt32)
	}
	defaultPtr(&spec.BackoffLimit, 6)
	if len(j.Labels) == 0 && len(spec.Template.Labels) > 0 {
		j.Labels = copied(spec.Template.Labels)
	}
	defaultPtr(&spec.CompletionMode, batchv1.NonIndexedCompletion)
	defaultPtr(&spec.Suspend, false)
	defaultPtr(&spec.ManualSelector, false)
	defaultFailurePolicy(spec.PodFailurePolicy)
	if spec.PodFailurePolicy != nil {
		defaultPtr(&spec.PodReplacementPolicy, batchv1.Failed)
	}
	defaultPtr(&spec.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	// A name that was generated comes after the labels that are made of it.
	if t := spec.Template.Labels; !*spec.ManualSelector && j.Name != "" && t[batchv1.ControllerUidLabel] != "" && t[batchv1.JobNameLabel] == "" {
		t[batchv1.JobNameLabel], t[oldJobName] = j.Name, j.Name
		if j.Labels[batchv1.ControllerUidLabel] == t[batchv1.ControllerUidLabel] {
			j.Labels[batchv1.JobNameLabel], j.Labels[oldJobName] = j.Name, j.Name
		}
	}
}

func defaultFailurePolicy(p *batchv1.PodFailurePolicy) {
	if p == nil {
		return
	}
	for i := range p.Rules {
		for j := range p.Rules[i].OnPodConditions {
			defaultTo(&p.Rules[i].OnPodConditions[j].Status, corev1.ConditionTrue)
		}
	}
}

// selectJobPods makes a new Job select its own pods and no others, by its UID,
// unless its writer wants to say so himself.
func selectJobPods(j *batchv1.Job) {
	if isTrue(j.Spec.ManualSelector) {
		return
	}
	t := &j.Spec.Template
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	uid := string(j.UID)
	for _, l := range []struct{ key, value string }{
		{oldJobName, j.Name}, {batchv1.JobNameLabel, j.Name}, {oldControllerUID, uid}, {batchv1.ControllerUidLabel, uid},
	} {
		if _, said := t.Labels[l.key]; !said {
			t.Labels[l.key] = l.value
		}
	}
	if len(j.Labels) == 0 { // as its default, had the template had them then
		j.Labels = copied(t.Labels)
	}
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	if _, said := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !said {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = uid
	}
}

func defaultCronJob(c *batchv1.CronJob) {
	spec := &c.Spec
	defaultTo(&spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
	defaultPtr(&spec.Suspend, false)
	defaultPtr(&spec.SuccessfulJobsHistoryLimit, 3)
	defaultPtr(&spec.FailedJobsHistoryLimit, 1)
	defaultPodSpec(&spec.JobTemplate.Spec.Template.Spec)
	defaultFailurePolicy(spec.JobTemplate.Spec.PodFailurePolicy)
}
