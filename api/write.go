package api

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/custom"
	"conclave/api/webhook"
)

// call is one operation of one user on one resource, over HTTP or in process.
type call struct {
	s         *Server
	res       *resource
	user      User
	namespace string
	name      string
	sub       string
	posted    schema.GroupVersionResource // in place of res, of what is posted and not kept
	quiet     bool                        // webhooks are not asked
	byName    bool                        // no webhook converts: who reads wants nothing but metadata
	// tracked says that managedFields are kept for this writer. In process
	// they are only where the object has them already: nobody applies what
	// the controllers own, and they cost memory in every object.
	tracked bool
	applied bool   // the managed fields were recorded by the merge of an apply
	manager string // who owns the fields, where the options do not say
	warn    func(string)
}

// Attempts of a write that names no version and so may be computed again. Only
// a lost race uses one up, and somebody else has won it: many writers of one
// object get through, none is told of a conflict that it could not have meant,
// and the request's own time ends before a hopeless one does.
const maxAttempts = 100

// The largest object that the log takes.
const maxObject = 3 << 19 // 1.5 MiB

func (c *call) dryRun(options []string) bool { return len(options) > 0 }

func invalidOptions(kind string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

// managerName is who owns what a request sets.
func (c *call) managerName(option string) string {
	if option != "" {
		return option
	}
	if c.manager != "" {
		return c.manager
	}
	return "unknown"
}

// track records in obj's managedFields what this writer set, against old (the
// empty object at creation).
func (c *call) track(old, obj Object, option string) (Object, error) {
	if c.applied || !c.tracked && len(old.GetManagedFields()) == 0 {
		return obj, nil
	}
	m, err := c.res.fieldManager(c.sub)
	if err != nil {
		return nil, err
	}
	return m.UpdateNoErrors(old, obj, c.managerName(option)).(Object), nil
}

func (c *call) now() metav1.Time { return metav1.NewTime(c.s.cfg.Now().Truncate(time.Second)) }

// checkPlace makes an object's namespace and name agree with the request's.
func (c *call) checkPlace(obj Object) error {
	if c.res.Namespaced {
		if obj.GetNamespace() == "" {
			obj.SetNamespace(c.namespace)
		}
		if obj.GetNamespace() != c.namespace {
			return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
		}
	} else {
		obj.SetNamespace("")
	}
	if c.name == "" {
		return nil
	}
	if obj.GetName() == "" {
		obj.SetName(c.name)
	}
	if obj.GetName() != c.name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), c.name))
	}
	return nil
}

// create makes a new object of obj, which it may change.
func (c *call) create(ctx context.Context, obj Object, o metav1.CreateOptions) (Record, error) {
	if err := invalidOptions("CreateOptions", metav1validation.ValidateCreateOptions(&o)); err != nil {
		return nil, err
	}
	if c.res.Namespaced && c.namespace == "" {
		return nil, apierrors.NewBadRequest("an empty namespace may not be set during creation")
	}
	if err := c.checkPlace(obj); err != nil {
		return nil, err
	}
	if obj.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	obj.GetObjectKind().SetGroupVersionKind(c.res.GVK)
	if c.res.Default != nil {
		c.res.Default(obj)
	}
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	obj, err := c.track(c.res.New().(Object), obj, o.FieldManager)
	if err != nil {
		return nil, err
	}
	if err := c.namespaceTakes(ctx, obj); err != nil {
		return nil, err
	}
	if err := c.authorizeNodeWrite(ctx, "create", obj, nil); err != nil {
		return nil, err
	}
	a := &ask{op: webhook.Create, kind: c.res.GVK, obj: obj, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun)}
	changed, err := c.admit(ctx, a, c.ownAdmission(ctx, c.res.hooks.admit, nil))
	if err != nil {
		return nil, err
	}
	if obj = a.obj.(Object); changed {
		if err := c.checkPlace(obj); err != nil {
			return nil, err
		}
		obj.SetDeletionTimestamp(nil)
		obj.SetDeletionGracePeriodSeconds(nil)
	}
	if permit := c.res.hooks.permit; permit != nil {
		if err := permit(ctx, c, obj, nil); err != nil {
			return nil, err
		}
	}
	generate := obj.GetName() == "" && obj.GetGenerateName() != ""
	obj.SetCreationTimestamp(c.now())
	obj.SetUID(uuid.NewUUID())
	if c.res.PrepareForCreate != nil {
		c.res.PrepareForCreate(obj)
	}
	if c.res.hooks.complete != nil {
		if err := c.res.hooks.complete(c, obj); err != nil {
			return nil, err
		}
	}
	for attempt := 0; ; attempt++ {
		if generate {
			obj.SetName(generatedName(obj.GetGenerateName()))
			if c.res.Default != nil {
				c.res.Default(obj) // some defaults are made of the name
			}
		}
		rec, err := c.createNamed(ctx, a, obj)
		if generate && apierrors.IsAlreadyExists(err) {
			if attempt < 8 {
				continue
			}
			return nil, apierrors.NewGenerateNameConflict(c.res.gr(), obj.GetName(), 1)
		}
		return rec, err
	}
}

func (c *call) createNamed(ctx context.Context, a *ask, obj Object) (rec Record, err error) {
	dryRun := a.dryRun
	if c.res.hooks.reserve != nil && !dryRun {
		undo, reserveErr := c.res.hooks.reserve(ctx, c, obj, nil)
		if reserveErr != nil {
			return nil, reserveErr
		}
		defer func() { undo(err) }()
	}
	if c.res.Validate != nil {
		if errs := c.res.Validate(obj); len(errs) > 0 {
			return nil, apierrors.NewInvalid(c.res.GVK.GroupKind(), obj.GetName(), errs)
		}
	}
	a.obj = obj
	if err := c.judge(ctx, a); err != nil {
		return nil, err
	}
	if err := c.chargeQuotas(ctx, obj, nil, dryRun); err != nil {
		return nil, err
	}
	c.warnings(obj, nil)
	if dryRun {
		if c.s.cfg.Storage.Get(c.res.stored, obj.GetNamespace(), obj.GetName()) != nil {
			return nil, apierrors.NewAlreadyExists(c.res.gr(), obj.GetName())
		}
		return loose{obj}, nil
	}
	return c.write(ctx, Write{Verb: Create, Object: obj})
}

// generatedName is a base and five random letters and digits, within the
// length that a name may have.
func generatedName(base string) string {
	const suffix, longest = 5, 63
	if len(base) > longest-suffix {
		base = base[:longest-suffix]
	}
	return base + utilrand.String(suffix)
}

// warnings tells the writer what the kind has to say of an accepted object.
// A nil old must stay nil, which is why there are two calls.
func (c *call) warnings(obj, old Object) {
	if c.res.Warnings == nil || c.warn == nil {
		return
	}
	var warnings []string
	if old == nil {
		warnings = c.res.Warnings(obj, nil)
	} else {
		warnings = c.res.Warnings(obj, old)
	}
	for _, w := range warnings {
		c.warn(w)
	}
}

// write hands a change to Storage. The verb, object and preconditions are the
// caller's; the key is the object's or, for Delete, the call's.
func (c *call) write(ctx context.Context, w Write) (Record, error) {
	w.Resource, w.Namespace, w.Name = c.res.stored, c.namespace, c.name
	asked := w.Object
	if w.Object != nil {
		w.Namespace, w.Name = w.Object.GetNamespace(), w.Object.GetName()
		obj, err := c.s.stored(ctx, c.res, w.Object)
		if err != nil {
			return nil, err
		}
		if obj.GetResourceVersion() != "" {
			obj.SetResourceVersion("")
		}
		if s, ok := any(obj).(interface{ Size() int }); ok {
			if size := s.Size(); size > maxObject {
				return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s %q takes %d bytes: an object may have at most %d", c.res.gr(), w.Name, size, maxObject))
			}
		}
		w.Object = obj
	}
	rec, err := c.s.cfg.Storage.Write(ctx, w)
	if err != nil {
		return nil, storageError(err, c.res.gr(), w.Name)
	}
	shown, err := c.shownOne(ctx, rec)
	if err != nil { // it is written: whoever asked is shown what they asked for
		c.s.log.Warn("what was written cannot be converted back", "resource", c.res.gvr.String(), "name", w.Name, "error", err)
		if asked == nil {
			return c.res.view(rec), nil
		}
		out := asked.DeepCopyObject().(Object)
		out.SetResourceVersion(rec.Object().GetResourceVersion())
		return loose{out}, nil
	}
	return shown, nil
}

// current is this replica's version of the call's object, nil if none.
func (c *call) current(ctx context.Context) (Record, error) {
	return c.shownOne(ctx, c.s.cfg.Storage.Get(c.res.stored, c.namespace, c.name))
}

// retry runs try on the current version until it succeeds. A refusal that
// rests on what this replica knows is looked at once more after catching up;
// a lost race is run again where the writer named no version.
func (c *call) retry(ctx context.Context, try func(old Record) (conditional bool, err error)) error {
	synced := false
	for attempt := 0; ; attempt++ {
		old, err := c.current(ctx)
		if err != nil {
			return err
		}
		conditional, err := try(old)
		switch {
		case err == nil:
			return nil
		case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err), isApplyConflict(err):
			return err
		case synced && (conditional || apierrors.IsNotFound(err)), attempt >= maxAttempts:
			return err
		}
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return storageError(err, c.res.gr(), c.name)
		}
		synced = true
	}
}

func isApplyConflict(err error) bool {
	return apierrors.HasStatusCause(err, metav1.CauseTypeFieldManagerConflict)
}

// mode is which of a kind's rules an update follows.
type mode uint8

const (
	ofSpec   mode = iota // all but the status
	ofStatus             // the status alone
	ofSystem             // a change of the server's own, such as a binding
	ofSub                // the part that the call's subresource is about
)

// update is one update of an existing object.
type update struct {
	mode    mode
	dryRun  bool
	manager string // field manager named by the writer
	applied bool   // change has recorded the managed fields itself
	// facet is what is written, and options are the writer's, for webhooks. No
	// facet: none is asked.
	facet   *facet
	options runtime.Object
	// change returns the new version of old, sharing nothing with it. It may
	// be called several times. A resourceVersion or UID that it leaves in the
	// object is a precondition.
	change func(old Object) (Object, error)
}

func (c *call) update(ctx context.Context, u update) (Record, error) {
	if err := c.notInMemory(); err != nil {
		return nil, err
	}
	var result Record
	err := c.retry(ctx, func(old Record) (conditional bool, err error) {
		result, conditional, err = c.tryUpdate(ctx, old, u)
		return conditional, err
	})
	return result, err
}

func (c *call) tryUpdate(ctx context.Context, stored Record, u update) (_ Record, conditional bool, err error) {
	if stored == nil {
		return nil, true, apierrors.NewNotFound(c.res.gr(), c.name)
	}
	old := stored.Object()
	obj, err := u.change(old)
	if err != nil {
		return nil, false, err
	}
	conditional = obj.GetResourceVersion() != ""
	if err := c.inherit(obj, old); err != nil {
		return nil, conditional, err
	}
	if c.res.Default != nil {
		c.res.Default(obj)
	}
	if !u.applied {
		if obj, err = c.track(old, obj, u.manager); err != nil {
			return nil, conditional, err
		}
	}
	prepare, validate := c.res.PrepareForUpdate, c.res.ValidateUpdate
	switch u.mode {
	case ofStatus:
		prepare, validate = c.res.PrepareForStatusUpdate, c.res.ValidateStatusUpdate
	case ofSystem:
		prepare, validate = nil, nil
	case ofSub:
		sub := c.res.Sub(c.sub)
		prepare, validate = sub.Prepare, sub.Validate
	}
	if prepare != nil {
		prepare(obj, old)
	}
	if err := c.authorizeNodeWrite(ctx, "update", obj, old); err != nil {
		return nil, conditional, err
	}
	var own func(Object) error
	switch u.mode {
	case ofSpec, ofSub:
		own = c.ownAdmission(ctx, c.res.hooks.admit, old)
	case ofStatus:
		own = c.ownAdmission(ctx, c.res.hooks.admitStatus, old)
	}
	if obj, err = c.admitUpdate(ctx, u, obj, old, own, prepare); err != nil {
		return nil, conditional, err
	}
	if permit := c.res.hooks.permit; permit != nil {
		if err := permit(ctx, c, obj, old); err != nil {
			return nil, conditional, err
		}
	}
	if c.res.hooks.reserve != nil && u.mode == ofSpec && !u.dryRun {
		undo, reserveErr := c.res.hooks.reserve(ctx, c, obj, old)
		if reserveErr != nil {
			return nil, conditional, reserveErr
		}
		defer func() { undo(err) }()
	}
	if validate != nil {
		if errs := validate(obj, old); len(errs) > 0 {
			return nil, conditional, apierrors.NewInvalid(c.res.GVK.GroupKind(), obj.GetName(), errs)
		}
	}
	if err := c.judgeUpdate(ctx, u, obj, old); err != nil {
		return nil, conditional, err
	}
	c.warnings(obj, old)
	if apiequality.Semantic.DeepEqual(old, obj) && !c.res.outdated(stored) {
		return stored, conditional, nil // nothing to write: the log is spared
	}
	if u.mode == ofSpec {
		if err := c.chargeQuotas(ctx, obj, old, u.dryRun); err != nil {
			return nil, conditional, err
		}
	}
	if u.dryRun {
		return loose{obj}, conditional, nil
	}
	if readyToGo(obj) {
		// The last finalizer was taken off an object that waits for it: what
		// remains to be done is the deletion. Its watchers see the deletion of
		// the version that is stored; its writer sees what was asked for.
		if _, err := c.write(ctx, Write{Verb: Delete, Version: stored.Revision()}); err != nil {
			return nil, conditional, err
		}
		c.deleted(ctx, old)
		return loose{obj}, conditional, nil
	}
	rec, err := c.write(ctx, Write{Verb: Update, Object: obj, Version: stored.Revision()})
	return rec, conditional, err
}

// inherit checks what an update says of its target, and fills in what only the
// server may say.
func (c *call) inherit(obj, old Object) error {
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	} else if obj.GetUID() != old.GetUID() {
		return apierrors.NewConflict(c.res.gr(), c.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", obj.GetUID(), old.GetUID()))
	}
	if v := obj.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		if _, err := strconv.ParseUint(v, 10, 64); err != nil {
			return apierrors.NewBadRequest(fmt.Sprintf("invalid resourceVersion %q: %v", v, err))
		}
		if v != "0" {
			return apierrors.NewConflict(c.res.gr(), c.name, errModified)
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(c.res.GVK)
	obj.SetResourceVersion(old.GetResourceVersion())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink("")
	return nil
}

// readyToGo says that an object waits for nothing but its deletion.
func readyToGo(obj Object) bool {
	if obj.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 {
		return false
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		return len(ns.Spec.Finalizers) == 0
	}
	grace := obj.GetDeletionGracePeriodSeconds()
	return grace == nil || *grace == 0
}

// deleted does what follows the end of an object.
func (c *call) deleted(ctx context.Context, old Object) {
	if c.res.hooks.deleted != nil {
		c.res.hooks.deleted(ctx, c, old)
	}
}

// replace is the update of a PUT: obj is the whole new version.
func (c *call) replace(ctx context.Context, obj Object, o metav1.UpdateOptions, f *facet) (Record, error) {
	if err := invalidOptions("UpdateOptions", metav1validation.ValidateUpdateOptions(&o)); err != nil {
		return nil, err
	}
	if c.name == "" {
		return nil, apierrors.NewBadRequest("name must be provided")
	}
	if err := c.checkPlace(obj); err != nil {
		return nil, err
	}
	return c.update(ctx, update{mode: f.mode, facet: f, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun), manager: o.FieldManager, change: func(Object) (Object, error) {
		return obj.DeepCopyObject().(Object), nil
	}})
}

// remove deletes the call's object, or marks it as being deleted: then gone is
// false and the record is the marked version.
func (c *call) remove(ctx context.Context, o metav1.DeleteOptions) (rec Record, gone bool, err error) {
	if err := invalidOptions("DeleteOptions", metav1validation.ValidateDeleteOptions(&o)); err != nil {
		return nil, false, err
	}
	if err := c.notInMemory(); err != nil {
		return nil, false, err
	}
	err = c.retry(ctx, func(old Record) (conditional bool, err error) {
		rec, gone, err = c.tryRemove(ctx, old, o)
		p := o.Preconditions
		return p != nil && p.ResourceVersion != nil, err
	})
	return rec, gone, err
}

func (c *call) tryRemove(ctx context.Context, stored Record, o metav1.DeleteOptions) (_ Record, gone bool, _ error) {
	if stored == nil {
		return nil, false, apierrors.NewNotFound(c.res.gr(), c.name)
	}
	old := stored.Object()
	if p := o.Preconditions; p != nil {
		if p.UID != nil && *p.UID != old.GetUID() {
			return nil, false, apierrors.NewConflict(c.res.gr(), c.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, old.GetUID()))
		}
		if p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion() {
			return nil, false, apierrors.NewConflict(c.res.gr(), c.name, fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, old.GetResourceVersion()))
		}
	}
	if err := c.mayRemove(ctx, old, o); err != nil {
		return nil, false, err
	}
	a := &ask{op: webhook.Delete, kind: c.res.GVK, old: old, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun)}
	if _, err := c.admit(ctx, a, nil); err != nil {
		return nil, false, err
	}
	if err := c.judge(ctx, a); err != nil {
		return nil, false, err
	}
	obj, now := planRemoval(old, o, c.now())
	switch {
	case c.dryRun(o.DryRun):
		return loose{obj}, now, nil
	case now:
		rec, err := c.write(ctx, Write{Verb: Delete, Version: stored.Revision()})
		if err != nil {
			return nil, false, err
		}
		c.deleted(ctx, old)
		return rec, true, nil
	case apiequality.Semantic.DeepEqual(old, obj):
		return stored, false, nil
	}
	rec, err := c.write(ctx, Write{Verb: Update, Object: obj, Version: stored.Revision()})
	return rec, false, err
}

// planRemoval decides what a deletion does to an object: it goes now, or it is
// marked and waits for its finalizers or its grace period.
func planRemoval(old Object, o metav1.DeleteOptions, at metav1.Time) (obj Object, now bool) {
	obj = old.DeepCopyObject().(Object)
	obj.SetFinalizers(policyFinalizers(old.GetFinalizers(), orphansByDefault(obj), o))
	grace := int64(0)
	if d, ok := obj.(*custom.Definition); ok && old.GetDeletionTimestamp() == nil {
		custom.PrepareRemoval(d, at.Time)
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		grace = podGrace(pod, o.GracePeriodSeconds)
	}
	ns, isNamespace := obj.(*corev1.Namespace)
	waits := grace > 0 || len(obj.GetFinalizers()) > 0 || isNamespace && len(ns.Spec.Finalizers) > 0
	if !waits {
		return obj, true
	}
	switch t := old.GetDeletionTimestamp(); {
	case t == nil:
		ends := metav1.NewTime(at.Add(time.Duration(grace) * time.Second))
		obj.SetDeletionTimestamp(&ends)
		obj.SetDeletionGracePeriodSeconds(&grace)
		if g := obj.GetGeneration(); g > 0 {
			obj.SetGeneration(g + 1)
		}
	case old.GetDeletionGracePeriodSeconds() != nil && grace < *old.GetDeletionGracePeriodSeconds():
		// Whoever is in more of a hurry may shorten the wait; nobody prolongs it.
		before := *old.GetDeletionGracePeriodSeconds()
		ends := metav1.NewTime(t.Add(time.Duration(grace-before) * time.Second))
		obj.SetDeletionTimestamp(&ends)
		obj.SetDeletionGracePeriodSeconds(&grace)
	}
	if isNamespace {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	return obj, false
}

// podGrace is how long a pod may take to stop.
func podGrace(pod *corev1.Pod, asked *int64) int64 {
	if asked == nil && pod.DeletionGracePeriodSeconds != nil {
		return *pod.DeletionGracePeriodSeconds // a second deletion without a wish changes nothing
	}
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = *pod.Spec.TerminationGracePeriodSeconds
	}
	if asked != nil {
		grace = *asked
	}
	switch {
	case pod.Spec.NodeName == "", pod.Status.Phase == corev1.PodFailed, pod.Status.Phase == corev1.PodSucceeded:
		return 0 // no process is left, or none was ever started
	case grace < 0:
		return 1
	case grace == 0 && asked == nil && Fenced(pod, unknownClaim):
		// Only its node can say that it has ended, or somebody who asks for no
		// grace in so many words: its successor comes as soon as it is gone.
		return 1
	}
	return grace
}

// unknownClaim is the claim finder of those who cannot look.
func unknownClaim(string) *corev1.PersistentVolumeClaim { return nil }

// orphansByDefault says of the oldest kinds that make pods that those stay if a
// deletion does not speak of them, as clients of old expect.
func orphansByDefault(obj Object) bool {
	switch obj.(type) {
	case *corev1.ReplicationController, *batchv1.Job:
		return true
	}
	return false
}

// policyFinalizers is the finalizers of an object that is deleted with these
// options, and of a kind that orphans its dependents by default or
// does not: the garbage collector acts on orphan and foregroundDeletion.
func policyFinalizers(have []string, orphans bool, o metav1.DeleteOptions) []string {
	var policy metav1.DeletionPropagation
	switch {
	case o.PropagationPolicy != nil:
		policy = *o.PropagationPolicy
	case o.OrphanDependents != nil && *o.OrphanDependents:
		policy = metav1.DeletePropagationOrphan
	case o.OrphanDependents != nil:
		policy = metav1.DeletePropagationBackground
	case orphans && !slices.Contains(have, metav1.FinalizerDeleteDependents): // a wish of before is kept
		policy = metav1.DeletePropagationOrphan
	default:
		return have
	}
	kept := slices.DeleteFunc(slices.Clone(have), func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	switch policy {
	case metav1.DeletePropagationOrphan:
		kept = append(kept, metav1.FinalizerOrphanDependents)
	case metav1.DeletePropagationForeground:
		kept = append(kept, metav1.FinalizerDeleteDependents)
	}
	return kept
}

// removeAll deletes what a list selects, and returns it.
func (c *call) removeAll(ctx context.Context, o metav1.DeleteOptions, list *internalOptions) (listing, error) {
	l, err := c.list(ctx, list, true)
	if err != nil {
		return l, err
	}
	for _, rec := range l.records {
		one := *c
		one.namespace, one.name = rec.Object().GetNamespace(), rec.Object().GetName()
		if _, _, err := one.remove(ctx, o); err != nil && !apierrors.IsNotFound(err) {
			return l, err
		}
	}
	return l, nil
}
