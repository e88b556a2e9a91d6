package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"conclave/api/kinds"
)

const daemonComponent = "daemonset-controller"

// newDaemonSets keeps one pod of each DaemonSet on every node that it selects.
// The scheduler places them: a pod names its node by an affinity, so that it
// waits for room there like any other.
func newDaemonSets(e *env) *Controller {
	c := &daemonSetController{env: e, failed: map[Key]backOff{}}
	return &Controller{
		Name: "daemonset", Workers: 2,
		Inputs: []Input{
			{daemonSets, self},
			{pods, claimants(e, daemonSets, "DaemonSet", func(d *appsv1.DaemonSet) *metav1.LabelSelector { return d.Spec.Selector })},
			{nodes, c.keysOfNode},
		},
		Outputs:   []Output{{pods, "objects controlled by a DaemonSet"}, {daemonSets, "status"}, {revisions, "objects controlled by a DaemonSet"}},
		Reconcile: c.reconcile,
	}
}

type daemonSetController struct {
	*env
	mu sync.Mutex
	// failed says, by set and node, how long a pod that fails there again has to
	// wait for its successor. A new leader begins anew.
	failed map[Key]backOff
}

type backOff struct {
	delay time.Duration
	until time.Time
}

const firstDaemonBackOff, lastDaemonBackOff = time.Second, 15 * time.Minute

func (c *daemonSetController) keysOfNode(change Change) (keys []Key) {
	old, _ := change.Old.(*corev1.Node)
	now, _ := change.New.(*corev1.Node)
	if old != nil && now != nil && maps.Equal(old.Labels, now.Labels) && equality.Semantic.DeepEqual(old.Spec.Taints, now.Spec.Taints) {
		return nil
	}
	for _, d := range list[*appsv1.DaemonSet](c.cache, daemonSets, "") {
		keys = append(keys, keyOf(d))
	}
	return keys
}

func (c *daemonSetController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	set, ok := get[*appsv1.DaemonSet](c.cache, daemonSets, key.Namespace, key.Name)
	if !ok {
		c.forget(key)
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of daemon set %s: %w", key, err)
	}
	if set.DeletionTimestamp != nil {
		return 0, nil
	}
	claimed, err := claim[*corev1.Pod](ctx, c.env, pods, set, daemonSets, selector)
	if err != nil {
		return 0, err
	}
	h, err := historyOf(ctx, c.env, revised{
		owner: set, resource: daemonSets, template: &set.Spec.Template, label: appsv1.DefaultDaemonSetUniqueLabelKey,
		collisions: set.Status.CollisionCount,
	}, selector)
	if err != nil {
		return 0, terminatingIsFine(err)
	}
	s := newDaemonState(set, h.update.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], list[*corev1.Node](c.cache, nodes, ""), claimed, c.Now())
	s.mayReplace = func(p *corev1.Pod) bool { return c.mayReplace(key, s.nodeOf(p)) }
	plan := s.plan()
	failure := c.act(ctx, s, plan)
	// What was just made and deleted is in the cache by now.
	s.assign(matching(controlled[*corev1.Pod](c.cache, pods, set.UID), selector))
	status, again := s.status()
	status.CollisionCount = set.Status.CollisionCount
	if h.collisions > 0 {
		status.CollisionCount = &h.collisions
	}
	if !equality.Semantic.DeepEqual(set.Status, status) {
		changed := edit(set)
		changed.Status = status
		if _, err := c.update(ctx, daemonSets, changed, "status"); err != nil {
			return 0, errors.Join(failure, ignoreGone(err))
		}
	}
	live := map[string]bool{}
	for _, p := range claimed {
		live[p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	failure = errors.Join(failure, forgetOldRevisions(ctx, c.env, h, set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool {
		return r == h.update || live[r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]]
	}))
	return sooner(sooner(again, plan.again), c.waits(key)), failure
}

// mayReplace says whether a pod that failed on a node may be replaced now, and
// if so makes the next one wait longer.
func (c *daemonSetController) mayReplace(set Key, node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := Key{Namespace: set.Namespace + "/" + set.Name, Name: node}
	b, now := c.failed[at], c.Now()
	if now.Before(b.until) {
		return false
	}
	if now.Sub(b.until) > 2*lastDaemonBackOff {
		b.delay = 0 // it ran well for long
	}
	b.delay = min(max(2*b.delay, firstDaemonBackOff), lastDaemonBackOff)
	b.until = now.Add(b.delay)
	c.failed[at] = b
	return true
}

// waits is how long until some failed pod of a set may be replaced.
func (c *daemonSetController) waits(set Key) (shortest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, b := range c.failed {
		if left := b.until.Sub(c.Now()); at.Namespace == set.Namespace+"/"+set.Name && left > 0 {
			shortest = sooner(shortest, left)
		}
	}
	return shortest
}

func (c *daemonSetController) forget(set Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.failed, func(at Key, _ backOff) bool { return at.Namespace == set.Namespace+"/"+set.Name })
}

// act deletes and makes pods as planned, in batches of 1, 2, 4, …
func (c *daemonSetController) act(ctx context.Context, s *daemonState, plan daemonPlan) error {
	for _, said := range plan.events {
		c.events.record(daemonComponent, about(s.set), said.kind, said.reason, "%s", said.message)
	}
	var errs []error
	for _, p := range plan.remove {
		if err := c.delete(ctx, pods, p, metav1.DeleteOptions{}); err != nil {
			c.events.record(daemonComponent, about(s.set), corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", rootCause(err))
			errs = append(errs, err)
			continue
		}
		c.events.record(daemonComponent, about(s.set), corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", p.Name)
	}
	create := plan.create[:min(len(plan.create), burst)]
	for batch := 1; len(create) > 0; batch *= 2 {
		now := create[:min(batch, len(create))]
		create = create[len(now):]
		var g errgroup.Group
		for _, node := range now {
			g.Go(func() error {
				made, err := c.create(ctx, pods, daemonPod(s.set, node, s.hash))
				if err != nil {
					if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
						c.events.record(daemonComponent, about(s.set), corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", rootCause(err))
					}
					return terminatingIsFine(err)
				}
				c.events.record(daemonComponent, about(s.set), corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", made.GetName())
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// daemonPod is the pod of one node.
func daemonPod(set *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	t := set.Spec.Template.DeepCopy()
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: set.Namespace, GenerateName: set.Name + "-",
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{controllerRef(set)},
		},
		Spec: t.Spec,
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	pod.Labels["pod-template-generation"] = strconv.FormatInt(kinds.TemplateGeneration(set), 10)
	pinTo(&pod.Spec, node)
	addDaemonTolerations(&pod.Spec)
	return pod
}

// pinTo makes a pod's required node affinity be that of its node alone.
func pinTo(spec *corev1.PodSpec, node string) {
	term := corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{
		Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
	}}}
	if spec.Affinity == nil {
		spec.Affinity = &corev1.Affinity{}
	}
	if spec.Affinity.NodeAffinity == nil {
		spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// What the template required was judged when the node was chosen.
	spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term}}
}

// pinnedTo is the node that a pod names by its affinity, if no other way.
func pinnedTo(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range term.MatchFields {
				if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
					return f.Values[0]
				}
			}
		}
	}
	return ""
}

// addDaemonTolerations lets a daemon's pod stay, and come, where ordinary pods
// are kept away because of the node's state.
func addDaemonTolerations(spec *corev1.PodSpec) {
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		if !slices.ContainsFunc(spec.Tolerations, func(have corev1.Toleration) bool { return have.MatchToleration(&t) && have.TolerationSeconds == nil }) {
			spec.Tolerations = append(spec.Tolerations, t)
		}
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	for _, key := range []string{corev1.TaintNodeDiskPressure, corev1.TaintNodeMemoryPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeUnschedulable} {
		add(key, corev1.TaintEffectNoSchedule)
	}
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
}

// suits says whether a node gets a pod of a set, and whether one that is there
// may stay.
func suits(set *appsv1.DaemonSet, node *corev1.Node) (run, stay bool) {
	pod := &corev1.Pod{Spec: set.Spec.Template.Spec}
	if name := pod.Spec.NodeName; name != "" && name != node.Name {
		return false, false
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); !ok || err != nil {
		return false, false
	}
	spec := corev1.PodSpec{Tolerations: slices.Clone(pod.Spec.Tolerations), HostNetwork: pod.Spec.HostNetwork}
	addDaemonTolerations(&spec)
	tolerated := func(effects ...corev1.TaintEffect) bool {
		return !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
			return slices.Contains(effects, t.Effect) && !slices.ContainsFunc(spec.Tolerations, func(have corev1.Toleration) bool { return have.ToleratesTaint(klog.Background(), &t, true) })
		})
	}
	return tolerated(corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute), tolerated(corev1.TaintEffectNoExecute)
}
