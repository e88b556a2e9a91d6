package kinds

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"
)

func replicationControllerCells(rc *corev1.ReplicationController, now time.Time) []any {
	cells := []any{rc.Name, int64(replicas(rc.Spec.Replicas)), int64(rc.Status.Replicas), int64(rc.Status.ReadyReplicas), age(rc.CreationTimestamp, now)}
	t := rc.Spec.Template
	if t == nil {
		t = &corev1.PodTemplateSpec{}
	}
	return append(append(cells, workloadCells(t, nil)[:2]...), labels.FormatLabels(rc.Spec.Selector))
}

var priorityClassColumns = []metav1.TableColumnDefinition{
	nameColumn,
	number("Value", docs(schedulingv1.PriorityClass{}, "value")),
	text("Global-Default", docs(schedulingv1.PriorityClass{}, "globalDefault")),
	ageColumn,
	text("PreemptionPolicy", docs(schedulingv1.PriorityClass{}, "preemptionPolicy")),
}

func priorityClassCells(c *schedulingv1.PriorityClass, now time.Time) []any {
	return []any{c.Name, int64(c.Value), c.GlobalDefault, age(c.CreationTimestamp, now), string(deref(c.PreemptionPolicy))}
}

var daemonSetColumns = append([]metav1.TableColumnDefinition{
	nameColumn,
	number("Desired", docs(appsv1.DaemonSetStatus{}, "desiredNumberScheduled")),
	number("Current", docs(appsv1.DaemonSetStatus{}, "currentNumberScheduled")),
	number("Ready", docs(appsv1.DaemonSetStatus{}, "numberReady")),
	number("Up-to-date", docs(appsv1.DaemonSetStatus{}, "updatedNumberScheduled")),
	number("Available", docs(appsv1.DaemonSetStatus{}, "numberAvailable")),
	text("Node Selector", docs(corev1.PodSpec{}, "nodeSelector")),
	ageColumn,
}, workloadColumns...)

func daemonSetCells(d *appsv1.DaemonSet, now time.Time) []any {
	s := &d.Status
	return append([]any{
		d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady), int64(s.UpdatedNumberScheduled),
		int64(s.NumberAvailable), labels.FormatLabels(d.Spec.Template.Spec.NodeSelector), age(d.CreationTimestamp, now),
	}, workloadCells(&d.Spec.Template, d.Spec.Selector)...)
}

var budgetColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Min Available", "The minimum number of pods that must be available."),
	text("Max Unavailable", "The maximum number of pods that may be unavailable."),
	number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
	ageColumn,
}

func budgetCells(b *policyv1.PodDisruptionBudget, now time.Time) []any {
	least, most := "N/A", "N/A"
	if b.Spec.MinAvailable != nil {
		least = b.Spec.MinAvailable.String()
	}
	if b.Spec.MaxUnavailable != nil {
		most = b.Spec.MaxUnavailable.String()
	}
	return []any{b.Name, least, most, int64(b.Status.DisruptionsAllowed), age(b.CreationTimestamp, now)}
}

var jobColumns = append([]metav1.TableColumnDefinition{
	nameColumn,
	text("Status", "Status of the job."),
	text("Completions", docs(batchv1.JobStatus{}, "succeeded")),
	text("Duration", "Time required to complete the job."),
	ageColumn,
}, workloadColumns...)

func jobCells(j *batchv1.Job, now time.Time) []any {
	var completions string
	switch {
	case j.Spec.Completions != nil:
		completions = fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
	case deref(j.Spec.Parallelism) > 1:
		completions = fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, *j.Spec.Parallelism)
	default:
		completions = fmt.Sprintf("%d/1", j.Status.Succeeded)
	}
	took := ""
	switch {
	case j.Status.StartTime == nil:
	case j.Status.CompletionTime == nil:
		took = duration.HumanDuration(now.Sub(j.Status.StartTime.Time))
	default:
		took = duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
	}
	return append([]any{j.Name, jobState(j), completions, took, age(j.CreationTimestamp, now)}, workloadCells(&j.Spec.Template, j.Spec.Selector)...)
}

// jobState is the condition that says most, in kubectl's words.
func jobState(j *batchv1.Job) string {
	has := func(of batchv1.JobConditionType) bool {
		for _, c := range j.Status.Conditions {
			if c.Type == of {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	}
	switch {
	case has(batchv1.JobComplete):
		return "Complete"
	case has(batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case has(batchv1.JobSuspended):
		return "Suspended"
	case has(batchv1.JobFailureTarget):
		return "FailureTarget"
	case has(batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

var cronJobColumns = append([]metav1.TableColumnDefinition{
	nameColumn,
	text("Schedule", docs(batchv1.CronJobSpec{}, "schedule")),
	text("Timezone", docs(batchv1.CronJobSpec{}, "timeZone")),
	text("Suspend", docs(batchv1.CronJobSpec{}, "suspend")),
	number("Active", docs(batchv1.CronJobStatus{}, "active")),
	text("Last Schedule", docs(batchv1.CronJobStatus{}, "lastScheduleTime")),
	ageColumn,
}, workloadColumns...)

func cronJobCells(c *batchv1.CronJob, now time.Time) []any {
	last, zone := none, none
	if t := c.Status.LastScheduleTime; t != nil {
		last = age(*t, now)
	}
	if c.Spec.TimeZone != nil {
		zone = *c.Spec.TimeZone
	}
	cells := []any{c.Name, c.Spec.Schedule, zone, fmt.Sprint(isTrue(c.Spec.Suspend)), int64(len(c.Status.Active)), last, age(c.CreationTimestamp, now)}
	return append(cells, workloadCells(&c.Spec.JobTemplate.Spec.Template, c.Spec.JobTemplate.Spec.Selector)...)
}
