package kinds

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateRuntimeClass(c *nodev1.RuntimeClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.runtimeClass(c)
	return e.list()
}

func validateRuntimeClassUpdate(c, old *nodev1.RuntimeClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.immutable(field.NewPath("handler"), c.Handler, old.Handler)
	e.runtimeClass(c)
	return e.list()
}

func (e *problems) runtimeClass(c *nodev1.RuntimeClass) {
	if at := field.NewPath("handler"); c.Handler == "" {
		e.required(at, "")
	} else {
		e.dnsLabel(at, c.Handler)
	}
	if c.Overhead != nil {
		e.requirements(field.NewPath("overhead", "podFixed"), &corev1.ResourceRequirements{Limits: c.Overhead.PodFixed}, nil)
	}
	if s := c.Scheduling; s != nil {
		e.labels(field.NewPath("scheduling", "nodeSelector"), s.NodeSelector)
		at := field.NewPath("scheduling", "tolerations")
		e.tolerations(at, s.Tolerations)
		for i := range s.Tolerations {
			for j := range i {
				if s.Tolerations[i].MatchToleration(&s.Tolerations[j]) && samePointee(s.Tolerations[i].TolerationSeconds, s.Tolerations[j].TolerationSeconds) {
					e.duplicate(at.Index(i), s.Tolerations[i])
					break
				}
			}
		}
	}
}

func samePointee[T comparable](a, b *T) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

var runtimeClassColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Handler", docs(nodev1.RuntimeClass{}, "handler")),
	ageColumn,
}

func runtimeClassCells(c *nodev1.RuntimeClass, now time.Time) []any {
	return []any{c.Name, c.Handler, age(c.CreationTimestamp, now)}
}
