package controller

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api/kinds"
)

const (
	// Between failures a Job waits, twice as long each time.
	firstJobBackOff, lastJobBackOff = 10 * time.Second, 10 * time.Minute

	jobManager = "kubernetes.io/job-controller"
)

// jobState is all that the decision on a Job depends on: the Job and the pods
// that are its own.
//
// A pod is counted once, whatever happens between: it keeps a finalizer until
// its UID is in status.uncountedTerminatedPods, and leaves that list, for the
// counters, when the finalizer is gone.
type jobState struct {
	job  *batchv1.Job
	pods []*corev1.Pod
	now  time.Time

	indexed, perIndex bool
	completed, failed kinds.Indexes
	active            []*corev1.Pod
	terminating       int
	// verdicts are what the failure policy says of failed pods.
	verdicts map[types.UID]policyVerdict
}

// jobPlan is what to do: delete and create, let go of the finalizers of pods
// that are noted in the status, and write the status, which comes first.
type jobPlan struct {
	status  batchv1.JobStatus
	remove  []*corev1.Pod
	create  []int // completion indexes, or -1
	free    []*corev1.Pod
	adopt   []*corev1.Pod // that lack the finalizer
	events  []said
	again   time.Duration
	settled bool // the Job has ended, and nothing of it is left to count
}

func tracked(p *corev1.Pod) bool {
	return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer)
}

func jobCondition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t && s.Conditions[i].Status == corev1.ConditionTrue {
			return &s.Conditions[i]
		}
	}
	return nil
}

func jobFinished(j *batchv1.Job) bool {
	return jobCondition(&j.Status, batchv1.JobComplete) != nil || jobCondition(&j.Status, batchv1.JobFailed) != nil
}

func newJobState(job *batchv1.Job, pods []*corev1.Pod, now time.Time) *jobState {
	s := &jobState{job: job, pods: pods, now: now, verdicts: map[types.UID]policyVerdict{}}
	s.indexed = job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion
	s.perIndex = s.indexed && job.Spec.BackoffLimitPerIndex != nil
	slices.SortFunc(s.pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	limit := math.MaxInt32
	if job.Spec.Completions != nil {
		limit = int(*job.Spec.Completions)
	}
	// What the API took in was well formed, and what is not counts for nothing.
	s.completed, _ = kinds.ParseIndexes(job.Status.CompletedIndexes, limit)
	if job.Status.FailedIndexes != nil {
		s.failed, _ = kinds.ParseIndexes(*job.Status.FailedIndexes, limit)
	}
	for _, p := range pods {
		switch {
		case podActive(p):
			s.active = append(s.active, p)
		case !podFinished(p):
			s.terminating++
		}
		if s.hasFailed(p) {
			s.verdicts[p.UID] = judge(job.Spec.PodFailurePolicy, p)
		}
	}
	return s
}

// onlyFailed says that a pod that is going is not replaced before it has gone.
func (s *jobState) onlyFailed() bool {
	r := s.job.Spec.PodReplacementPolicy
	return r != nil && *r == batchv1.Failed || s.job.Spec.PodFailurePolicy != nil
}

// hasFailed says that a pod counts as a failure: one that is deleted does too,
// since it may never reach that phase.
func (s *jobState) hasFailed(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodFailed {
		return true
	}
	return !s.onlyFailed() && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// indexOf is a pod's completion index, -1 if it has none that counts.
func (s *jobState) indexOf(p *corev1.Pod) int {
	if !s.indexed {
		return -1
	}
	n, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || n < 0 || n >= int(*s.job.Spec.Completions) {
		return -1
	}
	return n
}

// failures is how often an index had failed before a pod of it was made.
func failures(p *corev1.Pod, of string) int {
	n, err := strconv.Atoi(p.Annotations[of])
	if err != nil {
		return 0
	}
	return n
}

// plan is one step.
func (s *jobState) plan() jobPlan {
	p := jobPlan{status: *s.job.Status.DeepCopy()}
	if s.job.DeletionTimestamp != nil || jobFinished(s.job) {
		for _, pod := range s.pods {
			if tracked(pod) {
				p.free = append(p.free, pod)
			}
		}
		p.settled = jobFinished(s.job)
		return p
	}
	suspended := s.job.Spec.Suspend != nil && *s.job.Spec.Suspend
	if p.status.StartTime == nil && !suspended {
		p.status.StartTime = &metav1.Time{Time: s.now.Truncate(time.Second)}
	}
	succeeded, failed := s.count(&p)
	s.judge(&p, succeeded, failed)
	ended := jobCondition(&p.status, batchv1.JobFailureTarget) != nil || jobCondition(&p.status, batchv1.JobSuccessCriteriaMet) != nil
	switch {
	case ended:
		p.remove = s.active
	case suspended:
		s.suspend(&p)
	default:
		s.resume(&p)
		s.manage(&p, succeeded)
	}
	for _, pod := range s.active {
		if !tracked(pod) {
			p.adopt = append(p.adopt, pod)
		}
	}
	s.finish(&p, ended)
	return p
}

// count brings counters and indexes up to date, and returns how many have
// succeeded and failed, those included that are still to be noted.
func (s *jobState) count(p *jobPlan) (succeeded, failed int) {
	st := &p.status
	if st.UncountedTerminatedPods == nil {
		st.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	u := st.UncountedTerminatedPods
	held := map[types.UID]*corev1.Pod{}
	for _, pod := range s.pods {
		if tracked(pod) {
			held[pod.UID] = pod
		}
	}
	move := func(list []types.UID, counter *int32) (left []types.UID) {
		for _, uid := range list {
			if held[uid] != nil {
				left = append(left, uid)
			} else {
				*counter++
			}
		}
		return left
	}
	u.Succeeded, u.Failed = move(u.Succeeded, &st.Succeeded), move(u.Failed, &st.Failed)
	concluded := jobCondition(st, batchv1.JobFailureTarget) != nil || jobCondition(st, batchv1.JobSuccessCriteriaMet) != nil
	for _, pod := range s.pods {
		if !tracked(pod) {
			continue
		}
		index := s.indexOf(pod)
		switch {
		case slices.Contains(u.Succeeded, pod.UID) || slices.Contains(u.Failed, pod.UID):
			p.free = append(p.free, pod)
		case pod.Status.Phase == corev1.PodSucceeded && s.indexed:
			if index >= 0 {
				s.completed = s.completed.Add(index)
			}
			p.free = append(p.free, pod) // the index is noted, which is enough
		case pod.Status.Phase == corev1.PodSucceeded:
			u.Succeeded = append(u.Succeeded, pod.UID)
			p.free = append(p.free, pod)
		case s.hasFailed(pod):
			v := s.verdicts[pod.UID]
			if s.perIndex && index >= 0 && !concluded { // then they go because of that
				if v.action == batchv1.PodFailurePolicyActionFailIndex ||
					v.action != batchv1.PodFailurePolicyActionIgnore && failures(pod, batchv1.JobIndexFailureCountAnnotation) >= int(*s.job.Spec.BackoffLimitPerIndex) {
					s.failed = s.failed.Add(index)
				}
				if !s.failed.Has(index) && !s.completed.Has(index) && s.latest(index) == pod {
					if v.action != batchv1.PodFailurePolicyActionIgnore {
						failed++
					}
					continue // its successor is to know how often the index failed
				}
			}
			if v.action != batchv1.PodFailurePolicyActionIgnore {
				u.Failed = append(u.Failed, pod.UID)
			}
			p.free = append(p.free, pod)
		}
	}
	if s.indexed {
		st.CompletedIndexes = s.completed.String()
		st.Succeeded = int32(s.completed.Len())
	}
	if s.perIndex {
		text := s.failed.String()
		st.FailedIndexes = &text
	}
	succeeded, failed = int(st.Succeeded)+len(u.Succeeded), failed+int(st.Failed)+len(u.Failed)
	if s.indexed {
		succeeded = s.completed.Len()
	}
	return succeeded, failed
}

// latest is the youngest pod of an index.
func (s *jobState) latest(index int) (latest *corev1.Pod) {
	for _, p := range s.pods {
		if s.indexOf(p) == index && (latest == nil || attempts(p) >= attempts(latest)) {
			latest = p
		}
	}
	return latest
}

func attempts(p *corev1.Pod) int {
	return failures(p, batchv1.JobIndexFailureCountAnnotation) + failures(p, ignoredFailures)
}

const ignoredFailures = batchv1.JobIndexIgnoredFailureCountAnnotation

// conclude adds a condition that says where the Job is going.
func (s *jobState) conclude(p *jobPlan, t batchv1.JobConditionType, reason, message string) {
	at := metav1.NewTime(s.now).Rfc3339Copy()
	for i := range p.status.Conditions {
		if c := &p.status.Conditions[i]; c.Type == t {
			if c.Status != corev1.ConditionTrue {
				*c = batchv1.JobCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at}
			}
			return
		}
	}
	p.status.Conditions = append(p.status.Conditions, batchv1.JobCondition{
		Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at,
	})
}

// judge finds out whether the Job has failed or succeeded by now.
func (s *jobState) judge(p *jobPlan, succeeded, failed int) {
	if jobCondition(&p.status, batchv1.JobFailureTarget) != nil || jobCondition(&p.status, batchv1.JobSuccessCriteriaMet) != nil {
		return
	}
	fail := func(reason, message string) { s.conclude(p, batchv1.JobFailureTarget, reason, message) }
	spec := &s.job.Spec
	for _, pod := range s.pods {
		if v := s.verdicts[pod.UID]; v.action == batchv1.PodFailurePolicyActionFailJob {
			fail(batchv1.JobReasonPodFailurePolicy, v.why)
			return
		}
	}
	if rule, ok := s.succeedsEarly(); ok {
		s.conclude(p, batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, "Matched rules at index "+strconv.Itoa(rule))
		return
	}
	limit := int(*spec.BackoffLimit)
	switch {
	case failed > limit, s.restartedTooOften(limit):
		fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
		return
	case spec.ActiveDeadlineSeconds != nil && p.status.StartTime != nil && !(spec.Suspend != nil && *spec.Suspend):
		left := p.status.StartTime.Add(time.Duration(*spec.ActiveDeadlineSeconds) * time.Second).Sub(s.now)
		if left <= 0 {
			fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
			return
		}
		p.again = sooner(p.again, left)
	}
	if s.perIndex {
		if most := spec.MaxFailedIndexes; most != nil && s.failed.Len() > int(*most) {
			fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		}
		if s.failed.Len() > 0 && s.failed.Len()+s.completed.Len() >= int(*spec.Completions) {
			fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	done := false
	if spec.Completions == nil {
		done = succeeded > 0 && len(s.active) == 0
	} else {
		done = succeeded >= int(*spec.Completions)
	}
	if done {
		s.conclude(p, batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
	}
}

// restartedTooOften counts the restarts in place of containers as failures.
func (s *jobState) restartedTooOften(limit int) bool {
	if s.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := 0
	for _, p := range s.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for _, c := range list {
				n += int(c.RestartCount)
			}
		}
	}
	if limit == 0 {
		return n > 0
	}
	return n >= limit
}

func (s *jobState) suspend(p *jobPlan) {
	p.remove = s.active
	if jobCondition(&p.status, batchv1.JobSuspended) == nil {
		s.conclude(p, batchv1.JobSuspended, "JobSuspended", "Job suspended")
		p.events = append(p.events, said{corev1.EventTypeNormal, "Suspended", "Job suspended"})
	}
	p.status.StartTime = nil
}

func (s *jobState) resume(p *jobPlan) {
	c := jobCondition(&p.status, batchv1.JobSuspended)
	if c == nil {
		return
	}
	at := metav1.NewTime(s.now).Rfc3339Copy()
	*c = batchv1.JobCondition{Type: batchv1.JobSuspended, Status: corev1.ConditionFalse, Reason: "JobResumed", Message: "Job resumed", LastProbeTime: at, LastTransitionTime: at}
	p.status.StartTime = &metav1.Time{Time: s.now.Truncate(time.Second)}
	p.events = append(p.events, said{corev1.EventTypeNormal, "Resumed", "Job resumed"})
}

// manage makes the pods that are missing and deletes those that are too many.
func (s *jobState) manage(p *jobPlan, succeeded int) {
	parallel := int(*s.job.Spec.Parallelism)
	want := parallel
	if c := s.job.Spec.Completions; c != nil {
		want = min(max(int(*c)-succeeded-s.failed.Len(), 0), parallel)
	} else if succeeded > 0 {
		want = min(len(s.active), parallel)
	}
	keep := s.active
	if s.indexed {
		// Two pods of one index, or one of an index that is done, are too many.
		keep = nil
		seen := map[int]bool{}
		for _, pod := range s.active {
			if i := s.indexOf(pod); i < 0 || seen[i] || s.completed.Has(i) || s.failed.Has(i) {
				p.remove = append(p.remove, pod)
			} else {
				seen[i] = true
				keep = append(keep, pod)
			}
		}
	}
	if len(keep) > want {
		p.remove = append(p.remove, victims(slices.Clone(keep), map[string]int{}, len(keep)-want, s.now)...)
		return
	}
	missing := want - len(keep)
	if s.onlyFailed() {
		missing -= s.terminating
	}
	if missing <= 0 {
		return
	}
	if !s.perIndex {
		if left := s.backOff(-1); left > 0 {
			p.again = sooner(p.again, left)
			return
		}
	}
	missing = min(missing, burst)
	if !s.indexed {
		for range missing {
			p.create = append(p.create, -1)
		}
		return
	}
	taken := map[int]bool{}
	for _, pod := range s.pods {
		if podActive(pod) || s.onlyFailed() && !podFinished(pod) {
			taken[s.indexOf(pod)] = true
		}
	}
	for i := 0; i < int(*s.job.Spec.Completions) && len(p.create) < missing; i++ {
		if taken[i] || s.completed.Has(i) || s.failed.Has(i) {
			continue
		}
		if s.perIndex {
			if left := s.backOff(i); left > 0 {
				p.again = sooner(p.again, left)
				continue
			}
		}
		p.create = append(p.create, i)
	}
}

// backOff is how long to wait for the next pod, of one index or (-1) at all,
// after those that failed since one last succeeded.
func (s *jobState) backOff(index int) time.Duration {
	var ends []time.Time
	var success time.Time
	for _, p := range s.pods {
		if index >= 0 && s.indexOf(p) != index {
			continue
		}
		at := endOf(p)
		switch {
		case p.Status.Phase == corev1.PodSucceeded:
			if at.After(success) {
				success = at
			}
		case s.hasFailed(p) && p.Status.Phase == corev1.PodFailed && s.verdicts[p.UID].action != batchv1.PodFailurePolicyActionIgnore:
			ends = append(ends, at)
		}
	}
	n := 0
	var last time.Time
	for _, at := range ends {
		if at.After(success) {
			n++
			if at.After(last) {
				last = at
			}
		}
	}
	if n == 0 {
		return 0
	}
	delay := lastJobBackOff
	if n < 8 {
		delay = min(firstJobBackOff<<(n-1), lastJobBackOff)
	}
	return min(max(last.Add(delay).Sub(s.now), 0), delay) // of clocks that disagree, ours
}

// endOf is when the last container of a pod ended.
func endOf(p *corev1.Pod) (last time.Time) {
	for _, c := range p.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	if last.IsZero() {
		last = p.CreationTimestamp.Time
		if c := podCondition(p, corev1.PodReady); c != nil && c.LastTransitionTime.After(last) {
			last = c.LastTransitionTime.Time
		}
	}
	return last
}

// finish counts what runs, and says the last word when nothing does any more.
func (s *jobState) finish(p *jobPlan, ended bool) {
	st := &p.status
	ready, terminating := int32(0), int32(s.terminating)
	for _, pod := range s.active {
		if podReady(pod) {
			ready++
		}
	}
	st.Active, st.Ready, st.Terminating = int32(len(s.active)), &ready, &terminating
	if u := st.UncountedTerminatedPods; !ended || len(s.active) > 0 || s.terminating > 0 || len(u.Succeeded)+len(u.Failed) > 0 || slices.ContainsFunc(s.pods, tracked) {
		return
	}
	if c := jobCondition(st, batchv1.JobFailureTarget); c != nil {
		reason, message := c.Reason, c.Message
		s.conclude(p, batchv1.JobFailed, reason, message)
		p.events = append(p.events, said{corev1.EventTypeWarning, reason, message})
		return
	}
	c := jobCondition(st, batchv1.JobSuccessCriteriaMet)
	s.conclude(p, batchv1.JobComplete, c.Reason, c.Message)
	st.CompletionTime = &metav1.Time{Time: s.now.Truncate(time.Second)}
	p.events = append(p.events, said{corev1.EventTypeNormal, "Completed", "Job completed"})
}
