package api

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

var runtimeClasses = nodev1.SchemeGroupVersion.WithResource("runtimeclasses")

// admitRuntimeClass gives a new pod what its class says of overhead and of the
// nodes it may run on. A pod may say the same itself, and nothing else.
func admitRuntimeClass(ctx context.Context, c *call, pod *corev1.Pod) error {
	refuse := func(format string, args ...any) error {
		return forbiddenObject(c.res.gr(), pod.Name, fmt.Sprintf(format, args...))
	}
	class, err := c.runtimeClass(ctx, pod)
	if err != nil {
		return err
	}
	if class == nil && pod.Spec.RuntimeClassName != nil {
		return refuse("pod rejected: RuntimeClass %q not found", *pod.Spec.RuntimeClassName)
	}
	if class == nil || class.Overhead == nil {
		if pod.Spec.Overhead != nil {
			return refuse("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
		}
	} else {
		if pod.Spec.Overhead != nil && !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
		}
		pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
	if class == nil || class.Scheduling == nil {
		return nil
	}
	for key, value := range class.Scheduling.NodeSelector {
		if own, ok := pod.Spec.NodeSelector[key]; ok && own != value {
			return refuse("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, own)
		}
	}
	if len(class.Scheduling.NodeSelector) > 0 {
		selector := maps.Clone(pod.Spec.NodeSelector)
		if selector == nil {
			selector = map[string]string{}
		}
		maps.Copy(selector, class.Scheduling.NodeSelector)
		pod.Spec.NodeSelector = selector
	}
	pod.Spec.Tolerations = mergeTolerations(pod.Spec.Tolerations, class.Scheduling.Tolerations)
	return nil
}

// runtimeClass is the class that a pod names, nil if there is none.
func (c *call) runtimeClass(ctx context.Context, pod *corev1.Pod) (*nodev1.RuntimeClass, error) {
	if pod.Spec.RuntimeClassName == nil {
		return nil, nil
	}
	st, resource := c.s.cfg.Storage, runtimeClasses.GroupResource().String()
	rec := st.Get(resource, "", *pod.Spec.RuntimeClassName)
	if rec == nil { // this replica may be behind
		if err := st.Sync(ctx); err != nil {
			return nil, c.storageError(err)
		}
		if rec = st.Get(resource, "", *pod.Spec.RuntimeClassName); rec == nil {
			return nil, nil
		}
	}
	class, _ := rec.Object().(*nodev1.RuntimeClass)
	return class, nil
}

// mergeTolerations is the union of two lists, in their order, without those
// that another one includes.
func mergeTolerations(a, b []corev1.Toleration) []corev1.Toleration {
	all := append(append([]corev1.Toleration(nil), a...), b...)
	var out []corev1.Toleration
next:
	for i := range all {
		for j := range all {
			// Of two that include each other the first stays.
			if i != j && includes(&all[j], &all[i]) && (j < i || !includes(&all[i], &all[j])) {
				continue next
			}
		}
		out = append(out, all[i])
	}
	return out
}

// includes says that whatever b tolerates, a tolerates too, and as long.
func includes(a, b *corev1.Toleration) bool {
	exists := a.Operator == corev1.TolerationOpExists
	switch {
	case a.Key != b.Key && !(a.Key == "" && exists), a.Effect != "" && a.Effect != b.Effect:
		return false
	case a.Effect == corev1.TaintEffectNoExecute && a.TolerationSeconds != nil && (b.TolerationSeconds == nil || *a.TolerationSeconds < *b.TolerationSeconds):
		return false
	case exists:
		return true
	}
	equal := func(t *corev1.Toleration) bool { return t.Operator == "" || t.Operator == corev1.TolerationOpEqual }
	return (a.Operator == b.Operator || equal(a) && equal(b)) && a.Value == b.Value
}
