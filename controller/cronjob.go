package controller

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	cronComponent = "cronjob-controller"
	// manyMissed is from where on a schedule that was missed is remarked on.
	manyMissed          = 100
	scheduledAnnotation = "batch.kubernetes.io/cronjob-scheduled-timestamp"
)

// newCronJobs makes a Job whenever a CronJob's schedule says so. The name of a
// Job is made of the moment for which it is, so that no two leaders make two.
func newCronJobs(e *env) *Controller {
	c := cronJobController{e}
	return &Controller{
		Name: "cronjob", Workers: 2,
		Inputs: []Input{{cronJobs, self}, {jobs, func(change Change) (keys []Key) {
			for _, o := range change.sides() {
				if key, ok := controllerKey(o, "CronJob"); ok {
					keys = append(keys, key)
				}
			}
			return keys
		}}},
		Outputs:   []Output{{jobs, "objects controlled by a CronJob"}, {cronJobs, "status"}},
		Reconcile: c.reconcile,
	}
}

type cronJobController struct{ *env }

// cronPlan is what to do about a CronJob.
type cronPlan struct {
	remove  []*batchv1.Job
	run     time.Time // the moment for which to make a Job; zero for none
	again   time.Duration
	missed  bool // many moments
	late    bool // the moment passed more than startingDeadlineSeconds ago
	waits   bool // the moment's turn comes when the Job that runs has ended
	replace []*batchv1.Job
}

func (c cronJobController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	cj, ok := get[*batchv1.CronJob](c.cache, cronJobs, key.Namespace, key.Name)
	if !ok || cj.DeletionTimestamp != nil {
		return 0, nil
	}
	own := controlled[*batchv1.Job](c.cache, jobs, cj.UID)
	now := c.Now()
	status := c.status(cj, own)
	say := func(kind, reason, format string, args ...any) {
		c.events.record(cronComponent, about(cj), kind, reason, format, args...)
	}
	schedule, err := scheduleOf(cj)
	if err != nil {
		say(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
		return 0, c.write(ctx, cj, status)
	}
	plan := planCron(cj, own, schedule, now)
	for _, job := range plan.remove {
		if err := c.removeJob(ctx, cj, job); err != nil {
			return 0, err
		}
	}
	if plan.missed {
		say(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if plan.late {
		say(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", plan.run.UTC().Format(time.RFC1123Z))
	}
	if plan.waits {
		say(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
	}
	if plan.run.IsZero() || plan.late || plan.waits {
		return plan.again, c.write(ctx, cj, status)
	}
	for _, job := range plan.replace {
		if err := c.removeJob(ctx, cj, job); err != nil {
			return 0, err
		}
		status.Active = slices.DeleteFunc(status.Active, func(r corev1.ObjectReference) bool { return r.UID == job.UID })
	}
	made, err := c.create(ctx, jobs, jobOf(cj, plan.run))
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return 0, nil
	case apierrors.IsAlreadyExists(err):
		// Made by a leader before us; or somebody else has the name.
	case err != nil:
		say(corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", rootCause(err))
		return 0, err
	default:
		say(corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", made.GetName())
		ref := about(made)
		status.Active = append(status.Active, *ref)
	}
	status.LastScheduleTime = &metav1.Time{Time: plan.run}
	return plan.again, c.write(ctx, cj, status)
}

func (c cronJobController) write(ctx context.Context, cj *batchv1.CronJob, status batchv1.CronJobStatus) error {
	if equality.Semantic.DeepEqual(cj.Status, status) {
		return nil
	}
	cj = edit(cj)
	cj.Status = status
	_, err := c.update(ctx, cronJobs, cj, "status")
	return ignoreGone(err)
}

func (c cronJobController) removeJob(ctx context.Context, cj *batchv1.CronJob, job *batchv1.Job) error {
	if err := c.delete(ctx, jobs, job, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}); err != nil {
		c.events.record(cronComponent, about(cj), corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", rootCause(err))
		return err
	}
	c.events.record(cronComponent, about(cj), corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", job.Name)
	return nil
}

// status lists the Jobs that run, and when one last succeeded.
func (c cronJobController) status(cj *batchv1.CronJob, own []*batchv1.Job) batchv1.CronJobStatus {
	s := *cj.Status.DeepCopy()
	was := map[types.UID]bool{}
	for _, r := range s.Active {
		was[r.UID] = true
	}
	s.Active = nil
	for _, job := range own {
		if !jobFinished(job) {
			if job.DeletionTimestamp == nil {
				s.Active = append(s.Active, *about(job))
			}
			continue
		}
		state := "Complete"
		if end := jobCondition(&job.Status, batchv1.JobComplete); end == nil {
			state = "Failed"
		} else if at := job.Status.CompletionTime; at != nil && (s.LastSuccessfulTime == nil || at.After(s.LastSuccessfulTime.Time)) {
			s.LastSuccessfulTime = at
		}
		if was[job.UID] {
			c.events.record(cronComponent, about(cj), corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", job.Name, state)
		}
	}
	for i := range s.Active { // versions change with every step of a Job
		s.Active[i].ResourceVersion = ""
	}
	return s
}

// scheduleOf reads a schedule, in its time zone: by default the leader's own.
func scheduleOf(cj *batchv1.CronJob) (cron.Schedule, error) {
	text := cj.Spec.Schedule
	if cj.Spec.TimeZone != nil {
		if _, err := time.LoadLocation(*cj.Spec.TimeZone); err != nil {
			return nil, err
		}
		text = fmt.Sprintf("TZ=%s %s", *cj.Spec.TimeZone, text)
	}
	return cron.ParseStandard(text)
}

// planCron is one step.
func planCron(cj *batchv1.CronJob, own []*batchv1.Job, schedule cron.Schedule, now time.Time) (p cronPlan) {
	p.remove = beyondHistory(cj, own)
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return p
	}
	var running []*batchv1.Job
	for _, job := range own {
		if !jobFinished(job) && job.DeletionTimestamp == nil {
			running = append(running, job)
		}
	}
	at, missed, base := lastMoment(cj, schedule, now)
	if next := schedule.Next(base); !next.IsZero() {
		p.again = max(next.Sub(now), 0) + time.Millisecond
	}
	if at.IsZero() {
		return p
	}
	p.missed = missed > manyMissed
	p.run = at
	if d := cj.Spec.StartingDeadlineSeconds; d != nil && at.Add(time.Duration(*d)*time.Second).Before(now) {
		p.late = true
		return p
	}
	name := jobNameAt(cj, at)
	if slices.ContainsFunc(own, func(j *batchv1.Job) bool { return j.Name == name }) {
		if last := cj.Status.LastScheduleTime; last != nil && !last.Time.Before(at) {
			p.run = time.Time{}
		}
		return p
	}
	switch {
	case cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(running) > 0:
		p.waits = true
	case cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		p.replace = running
	}
	return p
}

// lastMoment is the last moment of a schedule that is due and for which no Job
// was made, zero if there is none; how many such moments there are, up to some
// more than manyMissed; and from where on the next is to be looked for.
func lastMoment(cj *batchv1.CronJob, schedule cron.Schedule, now time.Time) (last time.Time, missed int, base time.Time) {
	from := cj.CreationTimestamp.Time
	if t := cj.Status.LastScheduleTime; t != nil {
		from = t.Time
	}
	if d := cj.Spec.StartingDeadlineSeconds; d != nil {
		if earliest := now.Add(-time.Duration(*d) * time.Second); earliest.After(from) {
			from = earliest
		}
	}
	// Long ago is skipped in halves, so that no schedule of seconds costs much.
	for now.Sub(from) > time.Hour {
		half := from.Add(now.Sub(from) / 2)
		if next := schedule.Next(half); next.IsZero() || next.After(now) {
			break
		}
		if missed <= manyMissed {
			for t := schedule.Next(from); !t.IsZero() && !t.After(half) && missed <= manyMissed; t = schedule.Next(t) {
				missed++
			}
		}
		if every, ok := schedule.(cron.ConstantDelaySchedule); ok {
			half = from.Add(half.Sub(from).Truncate(every.Delay)) // its moments are counted from the first
		}
		from = half
	}
	for t := schedule.Next(from); !t.IsZero() && !t.After(now); t = schedule.Next(t) {
		last, from = t, t
		missed++
	}
	return last, missed, from
}

// beyondHistory are the Jobs that ended and are more than are to be kept.
func beyondHistory(cj *batchv1.CronJob, own []*batchv1.Job) (gone []*batchv1.Job) {
	var succeeded, failed []*batchv1.Job
	for _, job := range own {
		switch {
		case job.DeletionTimestamp != nil:
		case jobCondition(&job.Status, batchv1.JobComplete) != nil:
			succeeded = append(succeeded, job)
		case jobCondition(&job.Status, batchv1.JobFailed) != nil:
			failed = append(failed, job)
		}
	}
	for _, of := range []struct {
		jobs  []*batchv1.Job
		limit *int32
	}{{succeeded, cj.Spec.SuccessfulJobsHistoryLimit}, {failed, cj.Spec.FailedJobsHistoryLimit}} {
		if of.limit == nil {
			continue
		}
		slices.SortFunc(of.jobs, func(a, b *batchv1.Job) int {
			if a.Status.StartTime != nil && b.Status.StartTime != nil {
				if n := a.Status.StartTime.Compare(b.Status.StartTime.Time); n != 0 {
					return n
				}
			}
			return byName(a, b)
		})
		gone = append(gone, of.jobs[:max(len(of.jobs)-int(*of.limit), 0)]...)
	}
	return gone
}

// jobNameAt is the name of the Job of one moment: its minutes, as Kubernetes
// has it, and for schedules by seconds what is left of them.
func jobNameAt(cj *batchv1.CronJob, at time.Time) string {
	name := cj.Name + "-" + strconv.FormatInt(at.Unix()/60, 10)
	if at.Unix()%60 != 0 {
		h := fnv.New32a()
		fmt.Fprint(h, at.Unix())
		name += "-" + strconv.FormatUint(uint64(h.Sum32()%10000), 36)
	}
	return name
}

func jobOf(cj *batchv1.CronJob, at time.Time) *batchv1.Job {
	t := cj.Spec.JobTemplate.DeepCopy()
	job := &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cj.Namespace, Name: jobNameAt(cj, at), Labels: t.Labels, Annotations: t.Annotations,
			OwnerReferences: []metav1.OwnerReference{controllerRef(cj)},
		},
		Spec: t.Spec,
	}
	if job.Annotations == nil {
		job.Annotations = map[string]string{}
	}
	zone := time.Local
	if cj.Spec.TimeZone != nil {
		if z, err := time.LoadLocation(*cj.Spec.TimeZone); err == nil {
			zone = z
		}
	}
	job.Annotations[scheduledAnnotation] = at.In(zone).Format(time.RFC3339)
	return job
}
