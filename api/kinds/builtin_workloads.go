package kinds

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
)

// workloadRows are the kinds that make pods, and those that say which pods give
// way to which.
func workloadRows() []*Kind {
	controller := specAndStatus(Kind{
		GVK: corev1.SchemeGroupVersion.WithKind("ReplicationController"), Plural: "replicationcontrollers", ShortNames: []string{"rc"}, Categories: []string{"all"}, Namespaced: true,
		New: empty[corev1.ReplicationController], NewList: empty[corev1.ReplicationControllerList],
		GetScale: replicationScale, SetScale: setReplicationScale,
		Default:  one(defaultReplicationController),
		Validate: check(judgeReplicationController.create), ValidateUpdate: checkTwo(judgeReplicationController.update), ValidateStatusUpdate: checkTwo(validateReplicationControllerStatus),
		Warnings:   warn(func(rc *corev1.ReplicationController) []string { return templateWarnings(specPath, rc.Spec.Template) }),
		FieldNames: []string{"status.replicas"},
		Fields: selectable(func(rc *corev1.ReplicationController) fields.Set {
			return fields.Set{"status.replicas": strconv.Itoa(int(rc.Status.Replicas))}
		}),
		Columns: replicaSetColumns, Cells: cells(replicationControllerCells),
	}, func(rc *corev1.ReplicationController) *corev1.ReplicationControllerSpec { return &rc.Spec },
		func(rc *corev1.ReplicationController) *corev1.ReplicationControllerStatus { return &rc.Status })
	daemonSet := specAndStatus(Kind{
		GVK: appsv1.SchemeGroupVersion.WithKind("DaemonSet"), Plural: "daemonsets", ShortNames: []string{"ds"}, Categories: []string{"all"}, Namespaced: true,
		New: empty[appsv1.DaemonSet], NewList: empty[appsv1.DaemonSetList],
		Default:  one(defaultDaemonSet),
		Validate: check(judgeDaemonSet.create), ValidateUpdate: checkTwo(judgeDaemonSet.update), ValidateStatusUpdate: checkTwo(validateDaemonSetStatus),
		Warnings: warn(func(d *appsv1.DaemonSet) []string { return templateWarnings(specPath, &d.Spec.Template) }),
		Columns:  daemonSetColumns, Cells: cells(daemonSetCells),
	}, func(d *appsv1.DaemonSet) *appsv1.DaemonSetSpec { return &d.Spec },
		func(d *appsv1.DaemonSet) *appsv1.DaemonSetStatus { return &d.Status })
	create := daemonSet.PrepareForCreate
	daemonSet.PrepareForCreate = func(o runtime.Object) {
		create(o)
		setTemplateGeneration(o.(*appsv1.DaemonSet), 1)
	}
	daemonSet.PrepareForUpdate = then(daemonSet.PrepareForUpdate, func(d, old *appsv1.DaemonSet) {
		n := TemplateGeneration(old)
		if !equality.Semantic.DeepEqual(d.Spec.Template, old.Spec.Template) {
			n++
		}
		setTemplateGeneration(d, n)
	})
	job := specAndStatus(Kind{
		GVK: batchv1.SchemeGroupVersion.WithKind("Job"), Plural: "jobs", Categories: []string{"all"}, Namespaced: true,
		New: empty[batchv1.Job], NewList: empty[batchv1.JobList],
		Default:  one(defaultJob),
		Validate: check(validateJob), ValidateUpdate: checkTwo(validateJobUpdate), ValidateStatusUpdate: checkTwo(validateJobStatus),
		Warnings:   warn(func(j *batchv1.Job) []string { return templateWarnings(specPath, &j.Spec.Template) }),
		FieldNames: []string{"status.successful"},
		Fields: selectable(func(j *batchv1.Job) fields.Set {
			return fields.Set{"status.successful": strconv.Itoa(int(j.Status.Succeeded))}
		}),
		Columns: jobColumns, Cells: cells(jobCells),
	}, func(j *batchv1.Job) *batchv1.JobSpec { return &j.Spec }, func(j *batchv1.Job) *batchv1.JobStatus { return &j.Status })
	createJob := job.PrepareForCreate
	job.PrepareForCreate = func(o runtime.Object) {
		createJob(o)
		selectJobPods(o.(*batchv1.Job))
	}
	return []*Kind{
		controller,
		specAlone(Kind{
			GVK: schedulingv1.SchemeGroupVersion.WithKind("PriorityClass"), Plural: "priorityclasses", ShortNames: []string{"pc"},
			New: empty[schedulingv1.PriorityClass], NewList: empty[schedulingv1.PriorityClassList],
			Default:  one(func(c *schedulingv1.PriorityClass) { defaultPtr(&c.PreemptionPolicy, corev1.PreemptLowerPriority) }),
			Validate: check(validatePriorityClass), ValidateUpdate: checkTwo(validatePriorityClassUpdate),
			Columns: priorityClassColumns, Cells: cells(priorityClassCells),
		}, func(c *schedulingv1.PriorityClass) *int32 { return &c.Value }),
		daemonSet,
		specAndStatus(Kind{
			GVK: policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), Plural: "poddisruptionbudgets", ShortNames: []string{"pdb"}, Namespaced: true,
			New: empty[policyv1.PodDisruptionBudget], NewList: empty[policyv1.PodDisruptionBudgetList],
			Validate: check(judgeBudget.create), ValidateUpdate: checkTwo(judgeBudget.update), ValidateStatusUpdate: checkTwo(validateBudgetStatus),
			Columns: budgetColumns, Cells: cells(budgetCells),
		}, func(b *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudgetSpec { return &b.Spec },
			func(b *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudgetStatus { return &b.Status }),
		job,
		specAndStatus(Kind{
			GVK: batchv1.SchemeGroupVersion.WithKind("CronJob"), Plural: "cronjobs", ShortNames: []string{"cj"}, Categories: []string{"all"}, Namespaced: true,
			New: empty[batchv1.CronJob], NewList: empty[batchv1.CronJobList],
			Default:  one(defaultCronJob),
			Validate: check(validateCronJob), ValidateUpdate: checkTwo(validateCronJobUpdate), ValidateStatusUpdate: checkTwo(validateCronJobStatus),
			Warnings: warn(func(c *batchv1.CronJob) []string {
				return templateWarnings(specPath.Child("jobTemplate", "spec"), &c.Spec.JobTemplate.Spec.Template)
			}),
			Columns: cronJobColumns, Cells: cells(cronJobCells),
		}, func(c *batchv1.CronJob) *batchv1.CronJobSpec { return &c.Spec }, func(c *batchv1.CronJob) *batchv1.CronJobStatus { return &c.Status }),
	}
}

func defaultReplicationController(rc *corev1.ReplicationController) {
	defaultPtr(&rc.Spec.Replicas, 1)
	t := rc.Spec.Template
	if t == nil {
		return
	}
	defaultPodSpec(&t.Spec)
	if len(t.Labels) == 0 {
		return
	}
	if len(rc.Spec.Selector) == 0 {
		rc.Spec.Selector = copied(t.Labels)
	}
	if len(rc.Labels) == 0 {
		rc.Labels = copied(t.Labels)
	}
}

func copied(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func defaultDaemonSet(d *appsv1.DaemonSet) {
	spec := &d.Spec
	defaultPodSpec(&spec.Template.Spec)
	defaultTo(&spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		defaultPtr(&spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		defaultPtr(&spec.UpdateStrategy.RollingUpdate.MaxUnavailable, oneOfAll)
		defaultPtr(&spec.UpdateStrategy.RollingUpdate.MaxSurge, noneOfAll)
	}
	defaultPtr(&spec.RevisionHistoryLimit, 10)
}

// TemplateGeneration counts the templates that a DaemonSet had. Kubernetes
// keeps it for clients of old in an annotation and in a label of the pods.
func TemplateGeneration(d *appsv1.DaemonSet) int64 {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
}
