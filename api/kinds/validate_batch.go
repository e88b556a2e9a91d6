package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3" // what Kubernetes reads schedules with, so the same are good
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxIndexedParallelism = 100000
	maxPolicyRules        = 20
	maxExitCodes          = 255
	needsIndexed          = "requires indexed completion mode"
)

func validateJob(j *batchv1.Job) field.ErrorList {
	e := metadata(&j.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.ownSelector(j)
	e.jobSpec(specPath, &j.Spec)
	e.jobSelector(j)
	return e.list()
}

func (e *problems) jobSelector(j *batchv1.Job) {
	if j.Spec.Selector == nil {
		e.required(specPath.Child("selector"), "")
		return
	}
	labelSelector(e, specPath.Child("selector"), j.Spec.Selector)
	if s, err := selectorOf(j); err == nil && !s.Matches(labels.Set(j.Spec.Template.Labels)) {
		e.invalid(specPath.Child("template", "metadata", "labels"), j.Spec.Template.Labels, "`selector` does not match template `labels`")
	}
}

// ownSelector is of the labels that the server gives, unless the writer does.
func (e *problems) ownSelector(j *batchv1.Job) {
	if isTrue(j.Spec.ManualSelector) || j.Spec.Selector == nil {
		return
	}
	at := specPath.Child("template", "metadata", "labels")
	for _, l := range []struct{ key, want string }{{batchv1.ControllerUidLabel, string(j.UID)}, {batchv1.JobNameLabel, j.Name}} {
		switch got, ok := j.Spec.Template.Labels[l.key]; {
		case !ok:
			e.required(at.Key(l.key), fmt.Sprintf("must be '%s'", l.want))
		case got != l.want:
			e.invalid(at, j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", l.want))
		}
	}
	if got := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; got != string(j.UID) {
		e.invalid(specPath.Child("selector"), j.Spec.Selector, "`selector` not auto-generated")
	}
}

func (e *problems) jobSpec(p *field.Path, spec *batchv1.JobSpec) {
	for name, n := range sorted(map[string]*int32{
		"parallelism": spec.Parallelism, "completions": spec.Completions, "backoffLimit": spec.BackoffLimit,
		"ttlSecondsAfterFinished": spec.TTLSecondsAfterFinished, "backoffLimitPerIndex": spec.BackoffLimitPerIndex, "maxFailedIndexes": spec.MaxFailedIndexes,
	}) {
		if n != nil {
			e.nonNegative(p.Child(name), int64(*n))
		}
	}
	if spec.ActiveDeadlineSeconds != nil {
		e.nonNegative(p.Child("activeDeadlineSeconds"), *spec.ActiveDeadlineSeconds)
	}
	indexed := spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion
	if m := spec.CompletionMode; m != nil {
		if *m != batchv1.NonIndexedCompletion && !indexed {
			e.add(field.NotSupported(p.Child("completionMode"), m, []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}))
		}
		if indexed && spec.Completions == nil {
			e.required(p.Child("completions"), "when completion mode is "+string(batchv1.IndexedCompletion))
		}
		if indexed && spec.Parallelism != nil && *spec.Parallelism > maxIndexedParallelism {
			e.invalid(p.Child("parallelism"), *spec.Parallelism, fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxIndexedParallelism, batchv1.IndexedCompletion))
		}
	}
	if spec.BackoffLimitPerIndex != nil && !indexed {
		e.invalid(p.Child("backoffLimitPerIndex"), *spec.BackoffLimitPerIndex, needsIndexed)
	}
	if n := spec.MaxFailedIndexes; n != nil {
		if spec.BackoffLimitPerIndex == nil {
			e.required(p.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified")
		}
		if !indexed {
			e.invalid(p.Child("maxFailedIndexes"), *n, needsIndexed)
		} else if spec.Completions != nil && *n > *spec.Completions {
			e.invalid(p.Child("maxFailedIndexes"), *n, "must be less than or equal to completions")
		}
	}
	if by := spec.ManagedBy; by != nil {
		e.add(validation.IsDomainPrefixedPath(p.Child("managedBy"), *by)...)
		if len(*by) > 63 {
			e.add(field.TooLong(p.Child("managedBy"), *by, 63))
		}
	}
	e.failurePolicy(p.Child("podFailurePolicy"), spec)
	e.successPolicy(p.Child("successPolicy"), spec, indexed)
	if r := spec.PodReplacementPolicy; r != nil {
		if spec.PodFailurePolicy != nil {
			maybeOneOf(e, p.Child("podReplacementPolicy"), *r, batchv1.Failed)
		} else {
			maybeOneOf(e, p.Child("podReplacementPolicy"), *r, batchv1.Failed, batchv1.TerminatingOrFailed)
		}
	}
	e.podTemplate(p.Child("template"), &spec.Template)
	restart := p.Child("template", "spec", "restartPolicy")
	switch policy := spec.Template.Spec.RestartPolicy; {
	case policy == "" || policy == corev1.RestartPolicyAlways:
		e.required(restart, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever))
	case policy != corev1.RestartPolicyOnFailure && policy != corev1.RestartPolicyNever:
		e.add(field.NotSupported(restart, policy, []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}))
	case spec.PodFailurePolicy != nil && policy != corev1.RestartPolicyNever:
		e.invalid(restart, policy, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever))
	}
}

func (e *problems) failurePolicy(p *field.Path, spec *batchv1.JobSpec) {
	policy := spec.PodFailurePolicy
	if policy == nil {
		return
	}
	if len(policy.Rules) > maxPolicyRules {
		e.add(field.TooMany(p.Child("rules"), len(policy.Rules), maxPolicyRules))
	}
	for i, r := range policy.Rules {
		at := p.Child("rules").Index(i)
		actions := []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore}
		oneOf(e, at.Child("action"), r.Action, actions...)
		if r.Action == batchv1.PodFailurePolicyActionFailIndex && spec.BackoffLimitPerIndex == nil {
			e.invalid(at.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set")
		}
		if c := r.OnExitCodes; c != nil {
			e.exitCodes(at.Child("onExitCodes"), c, spec)
		}
		for j, c := range r.OnPodConditions {
			on := at.Child("onPodConditions").Index(j)
			e.qualifiedName(on.Child("type"), string(c.Type))
			oneOf(e, on.Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)
		}
		switch {
		case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
			e.invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported")
		case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
			e.invalid(at, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required")
		}
	}
}

func (e *problems) exitCodes(p *field.Path, c *batchv1.PodFailurePolicyOnExitCodesRequirement, spec *batchv1.JobSpec) {
	oneOf(e, p.Child("operator"), c.Operator, batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn)
	if name := c.ContainerName; name != nil {
		has := func(list []corev1.Container) bool {
			return slices.ContainsFunc(list, func(ct corev1.Container) bool { return ct.Name == *name })
		}
		if !has(spec.Template.Spec.Containers) && !has(spec.Template.Spec.InitContainers) {
			e.invalid(p.Child("containerName"), *name, "must be one of the container or initContainer names in the pod template")
		}
	}
	at := p.Child("values")
	switch n := len(c.Values); {
	case n == 0:
		e.invalid(at, c.Values, "at least one value is required")
	case n > maxExitCodes:
		e.add(field.TooMany(at, n, maxExitCodes))
	}
	for i, v := range c.Values {
		if c.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			e.invalid(at.Index(i), v, "must not be 0 for the In operator")
		}
		if slices.Contains(c.Values[:i], v) {
			e.duplicate(at.Index(i), v)
		} else if i > 0 && v < c.Values[i-1] {
			e.invalid(at, c.Values, "must be ordered")
			break
		}
	}
}

func (e *problems) successPolicy(p *field.Path, spec *batchv1.JobSpec, indexed bool) {
	policy := spec.SuccessPolicy
	if policy == nil {
		return
	}
	if !indexed {
		e.invalid(p, *policy, needsIndexed)
		return
	}
	switch n := len(policy.Rules); {
	case n == 0:
		e.required(p.Child("rules"), "at least one rules must be specified when the successPolicy is specified")
	case n > maxPolicyRules:
		e.add(field.TooMany(p.Child("rules"), n, maxPolicyRules))
	}
	completions := int(deref(spec.Completions))
	for i, r := range policy.Rules {
		at := p.Child("rules").Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			e.required(at, "at least one of succeededCount or succeededIndexes must be specified")
		}
		total := completions
		if r.SucceededIndexes != nil {
			set, err := ParseIndexes(*r.SucceededIndexes, completions)
			if err != nil {
				e.invalid(at.Child("succeededIndexes"), *r.SucceededIndexes, fmt.Sprintf("error parsing succeededIndexes: %s", err))
			}
			total = set.Len()
		}
		if n := r.SucceededCount; n != nil {
			e.nonNegative(at.Child("succeededCount"), int64(*n))
			if int(*n) > completions {
				e.invalid(at.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", completions))
			} else if r.SucceededIndexes != nil && int(*n) > total {
				e.invalid(at.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total))
			}
		}
	}
}

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	e := metadata(&j.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.jobSpec(specPath, &j.Spec)
	elastic := j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion &&
		old.Spec.Completions != nil && j.Spec.Completions != nil && *j.Spec.Completions == deref(j.Spec.Parallelism)
	if !elastic {
		e.immutable(specPath.Child("completions"), j.Spec.Completions, old.Spec.Completions)
	}
	e.immutable(specPath.Child("selector"), j.Spec.Selector, old.Spec.Selector)
	e.jobTemplateUpdate(j, old)
	e.immutable(specPath.Child("completionMode"), j.Spec.CompletionMode, old.Spec.CompletionMode)
	e.immutable(specPath.Child("podFailurePolicy"), j.Spec.PodFailurePolicy, old.Spec.PodFailurePolicy)
	e.immutable(specPath.Child("backoffLimitPerIndex"), j.Spec.BackoffLimitPerIndex, old.Spec.BackoffLimitPerIndex)
	e.immutable(specPath.Child("managedBy"), j.Spec.ManagedBy, old.Spec.ManagedBy)
	e.immutable(specPath.Child("successPolicy"), j.Spec.SuccessPolicy, old.Spec.SuccessPolicy)
	return e.list()
}

// jobTemplateUpdate lets say where the pods of a Job go, as long as it is
// suspended and has never begun; all else stays.
func (e *problems) jobTemplateUpdate(j, old *batchv1.Job) {
	kept := *old.Spec.Template.DeepCopy()
	if isTrue(old.Spec.Suspend) && old.Status.StartTime == nil {
		t := &j.Spec.Template
		kept.Labels, kept.Annotations = t.Labels, t.Annotations
		kept.Spec.Affinity, kept.Spec.NodeSelector, kept.Spec.Tolerations, kept.Spec.SchedulingGates = t.Spec.Affinity, t.Spec.NodeSelector, t.Spec.Tolerations, t.Spec.SchedulingGates
	}
	if !equality.Semantic.DeepEqual(j.Spec.Template, kept) {
		e.invalid(specPath.Child("template"), j.Spec.Template, apivalidation.FieldImmutableErrorMsg)
	}
}

func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	e := metadata(&j.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	s, p := &j.Status, field.NewPath("status")
	for name, n := range sorted(map[string]int32{
		"active": s.Active, "succeeded": s.Succeeded, "failed": s.Failed, "ready": deref(s.Ready), "terminating": deref(s.Terminating),
	}) {
		e.nonNegative(p.Child(name), int64(n))
	}
	if s.CompletionTime != nil && s.StartTime != nil && s.CompletionTime.Before(s.StartTime) {
		e.invalid(p.Child("completionTime"), s.CompletionTime, "completionTime cannot be set before startTime")
	}
	return e.list()
}

func validateCronJob(c *batchv1.CronJob) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	const longest = 52 // eleven more are of the jobs' names
	if len(c.Name) > longest {
		e.invalid(field.NewPath("metadata").Child("name"), c.Name, fmt.Sprintf("must be no more than %d characters", longest))
	}
	e.cronJobSpec(specPath, &c.Spec)
	return e.list()
}

func validateCronJobUpdate(c, old *batchv1.CronJob) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.cronJobSpec(specPath, &c.Spec)
	return e.list()
}

func (e *problems) cronJobSpec(p *field.Path, spec *batchv1.CronJobSpec) {
	if e.nonEmpty(p.Child("schedule"), spec.Schedule) {
		if strings.Contains(spec.Schedule, "TZ") {
			e.invalid(p.Child("schedule"), spec.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
		} else if _, err := cron.ParseStandard(spec.Schedule); err != nil {
			e.invalid(p.Child("schedule"), spec.Schedule, err.Error())
		}
	}
	if z := spec.TimeZone; z != nil {
		at := p.Child("timeZone")
		switch {
		case *z == "":
			e.invalid(at, z, "timeZone must be nil or non-empty string")
		case strings.EqualFold(*z, "Local"):
			e.invalid(at, z, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
		default:
			if _, err := time.LoadLocation(*z); err != nil {
				e.invalid(at, z, err.Error())
			}
		}
	}
	if spec.StartingDeadlineSeconds != nil {
		e.nonNegative(p.Child("startingDeadlineSeconds"), *spec.StartingDeadlineSeconds)
	}
	oneOf(e, p.Child("concurrencyPolicy"), spec.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)
	for name, n := range sorted(map[string]*int32{"successfulJobsHistoryLimit": spec.SuccessfulJobsHistoryLimit, "failedJobsHistoryLimit": spec.FailedJobsHistoryLimit}) {
		if n != nil {
			e.nonNegative(p.Child(name), int64(*n))
		}
	}
	e.jobSpec(p.Child("jobTemplate", "spec"), &spec.JobTemplate.Spec)
	if isTrue(spec.JobTemplate.Spec.ManualSelector) {
		e.add(field.NotSupported(p.Child("jobTemplate", "spec", "manualSelector"), true, []string{"nil", "false"}))
	}
	if spec.JobTemplate.Spec.Selector != nil {
		e.invalid(p.Child("jobTemplate", "spec", "selector"), spec.JobTemplate.Spec.Selector, "`selector` will be auto-generated")
	}
}

func validateCronJobStatus(c, old *batchv1.CronJob) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	return e.list()
}
