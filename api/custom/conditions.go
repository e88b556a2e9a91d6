package custom

import (
	"fmt"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Short names for the types of conditions that others ask for.
const (
	Established   = apiextensionsv1.Established
	NamesAccepted = apiextensionsv1.NamesAccepted
	Terminating   = apiextensionsv1.Terminating

	// Finalizer holds a definition until its instances are gone.
	Finalizer = apiextensionsv1.CustomResourceCleanupFinalizer
)

// Condition is the condition of a type, nil if there is none.
func Condition(d *apiextensionsv1.CustomResourceDefinition, t apiextensionsv1.CustomResourceDefinitionConditionType) *apiextensionsv1.CustomResourceDefinitionCondition {
	for i := range d.Status.Conditions {
		if d.Status.Conditions[i].Type == t {
			return &d.Status.Conditions[i]
		}
	}
	return nil
}

// IsTrue says whether a condition is there and true.
func IsTrue(d *apiextensionsv1.CustomResourceDefinition, t apiextensionsv1.CustomResourceDefinitionConditionType) bool {
	c := Condition(d, t)
	return c != nil && c.Status == apiextensionsv1.ConditionTrue
}

// IsServed says whether the instances of a definition are served: once its
// names were accepted, and for as long as it is there.
func IsServed(d *apiextensionsv1.CustomResourceDefinition) bool {
	return IsTrue(d, NamesAccepted) || IsTrue(d, Established)
}

// SetCondition writes a condition into d. Its time moves when its status does.
func SetCondition(d *apiextensionsv1.CustomResourceDefinition, t apiextensionsv1.CustomResourceDefinitionConditionType, status bool, reason, message string, now time.Time) {
	is := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: t, Status: apiextensionsv1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	if status {
		is.Status = apiextensionsv1.ConditionTrue
	}
	old := Condition(d, t)
	if old == nil {
		d.Status.Conditions = append(d.Status.Conditions, is)
		return
	}
	if old.Status == is.Status && !old.LastTransitionTime.IsZero() {
		is.LastTransitionTime = old.LastTransitionTime
	}
	*old = is
}

// JudgeNames writes into d's status which of the names that it asks for it
// has, and whether it is established. others are all definitions there are; d
// may be among them. Of a name in dispute, whoever was given it first keeps it.
func JudgeNames(d *apiextensionsv1.CustomResourceDefinition, others []*apiextensionsv1.CustomResourceDefinition, now time.Time) {
	wants, has := d.Spec.Names, &d.Status.AcceptedNames
	if !equality.Semantic.DeepEqual(wants, *has) || Condition(d, NamesAccepted) == nil {
		reason, message := giveNames(d, others)
		if reason == "" {
			SetCondition(d, NamesAccepted, true, "NoConflicts", "no conflicts found", now)
		} else {
			SetCondition(d, NamesAccepted, false, reason, message, now)
		}
	}
	switch {
	case IsTrue(d, Established): // for good
	case IsTrue(d, NamesAccepted):
		SetCondition(d, Established, true, "InitialNamesAccepted", "the initial names have been accepted", now)
	default:
		SetCondition(d, Established, false, "NotAccepted", "not all names are accepted", now)
	}
}

// giveNames accepts what is free of the names that d asks for. The reason is
// of the last one that is not.
func giveNames(d *apiextensionsv1.CustomResourceDefinition, others []*apiextensionsv1.CustomResourceDefinition) (reason, message string) {
	var resources, kinds []string
	for _, o := range others {
		if o.Spec.Group != d.Spec.Group || o.Name == d.Name {
			continue
		}
		n := o.Status.AcceptedNames
		resources = append(append(resources, n.Plural, n.Singular), n.ShortNames...)
		kinds = append(kinds, n.Kind, n.ListKind)
	}
	wants, has := d.Spec.Names, &d.Status.AcceptedNames
	taken := func(name string, used []string) bool { return name != "" && slices.Contains(used, name) }
	give := func(want string, have *string, used []string, why string) {
		if want != *have && taken(want, used) {
			reason, message = why, fmt.Sprintf("%q is already in use", want)
			return
		}
		*have = want
	}
	give(wants.Plural, &has.Plural, resources, "PluralConflict")
	give(wants.Singular, &has.Singular, resources, "SingularConflict")
	var short []string
	for _, name := range wants.ShortNames {
		if !slices.Contains(has.ShortNames, name) && taken(name, resources) {
			short = append(short, fmt.Sprintf("%q is already in use", name))
		}
	}
	switch len(short) {
	case 0:
		has.ShortNames = slices.Clone(wants.ShortNames)
	case 1:
		reason, message = "ShortNamesConflict", short[0]
	default:
		reason, message = "ShortNamesConflict", "["+strings.Join(short, ", ")+"]"
	}
	give(wants.Kind, &has.Kind, kinds, "KindConflict")
	give(wants.ListKind, &has.ListKind, kinds, "ListKindConflict")
	has.Categories = slices.Clone(wants.Categories)
	return reason, message
}
