package flow

import (
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/types"
)

// ReconcileSchema is a FlowSchema of the system as it has to be, given the one that
// is there; nil if nothing has to change. Those that must be are always kept as they
// are here. The others say by an annotation whether they are kept up; one that does
// not say is if nobody has changed it since it was made.
func ReconcileSchema(have, want *types.FlowSchema) *types.FlowSchema {
	out := have.DeepCopyObject().(*types.FlowSchema)
	if keptUp(&out.ObjectMeta) {
		out.Spec = want.Spec
	}
	if equality.Semantic.DeepEqual(out, have) {
		return nil
	}
	return out
}

// ReconcileLevel is ReconcileSchema of a level. What the exempt one has of the seats
// is its owner's to say.
func ReconcileLevel(have, want *types.PriorityLevelConfiguration) *types.PriorityLevelConfiguration {
	out := have.DeepCopyObject().(*types.PriorityLevelConfiguration)
	if keptUp(&out.ObjectMeta) {
		own := out.Spec.Exempt
		out.Spec = want.Spec
		if out.Name == Exempt && own != nil {
			out.Spec.Exempt = own
		}
	}
	if equality.Semantic.DeepEqual(out, have) {
		return nil
	}
	return out
}

// keptUp says whether an object of the system is kept up, and writes it down.
func keptUp(meta *metav1.ObjectMeta) bool {
	kept, err := strconv.ParseBool(meta.Annotations[AutoUpdate])
	if err != nil {
		kept = meta.Generation == 1
	}
	kept = kept || mandatory(meta.Name)
	if err != nil || mandatory(meta.Name) {
		metav1.SetMetaDataAnnotation(meta, AutoUpdate, strconv.FormatBool(kept))
	}
	return kept
}

// Outdated says that an object was one of the system's, to be kept up, and is none
// any more: system are those that are.
func Outdated[T interface{ GetName() string }](meta metav1.Object, system []T) bool {
	kept, err := strconv.ParseBool(meta.GetAnnotations()[AutoUpdate])
	return err == nil && kept && !slices.ContainsFunc(system, func(o T) bool { return o.GetName() == meta.GetName() })
}

// FixedSchema and FixedLevel are what an object of that name has to be; nil if it may
// be as its owner likes.
func FixedSchema(name string) *types.FlowSchema { return fixed(name, Schemas) }

// FixedLevel: see FixedSchema.
func FixedLevel(name string) *types.PriorityLevelConfiguration { return fixed(name, Levels) }

func fixed[T interface{ GetName() string }](name string, system func() []T) (none T) {
	if mandatory(name) {
		for _, o := range system() {
			if o.GetName() == name {
				return o
			}
		}
	}
	return none
}
