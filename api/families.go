package api

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/kinds"
)

// Which families of addresses a Service has, its writer says by three fields
// that may each be left out: ipFamilyPolicy, ipFamilies and clusterIPs (KEP
// 563). settleFamilies fills in what is left out and refuses what does not
// agree; what a family's address is, is decided afterwards, by allocation.

// families are those of the cluster's services, the one that is given to who
// names none first.
func (s *Server) families() []corev1.IPFamily {
	all := []corev1.IPFamily{corev1.IPv4Protocol}
	if s.cfg.ServiceCIDR.IsValid() {
		all[0] = familyOf(s.cfg.ServiceCIDR.Addr())
	}
	if s.cfg.ServiceCIDR6.IsValid() {
		all = append(all, corev1.IPv6Protocol)
	}
	return all
}

// admitService settles a Service's families, so that a dry run shows them too.
func admitService(_ context.Context, c *call, obj, old Object) error {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil
	}
	was, _ := old.(*corev1.Service)
	if problems := settleFamilies(svc, was, c.s.families()); len(problems) > 0 {
		return apierrors.NewInvalid(c.res.GVK.GroupKind(), svc.Name, problems)
	}
	return nil
}

func policyOf(svc *corev1.Service) corev1.IPFamilyPolicy {
	if svc.Spec.IPFamilyPolicy == nil {
		return ""
	}
	return *svc.Spec.IPFamilyPolicy
}

// settleFamilies completes the families of a Service, in a cluster that serves
// these; old is nil at creation.
func settleFamilies(svc, old *corev1.Service, served []corev1.IPFamily) field.ErrorList {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName || untouched(svc, old) {
		return nil
	}
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	bare := spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		switch {
		case old != nil && old.Spec.IPFamilyPolicy != nil:
			policy = *old.Spec.IPFamilyPolicy
		case bare: // whoever makes its endpoints chooses their families
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec.IPFamilyPolicy = &policy
	}
	if problems := kinds.ServiceAddressProblems(svc); len(problems) > 0 {
		return problems
	}
	problems := followPolicy(svc, old)
	problems = append(problems, inferFamilies(svc, served)...)
	switch {
	case len(problems) > 0:
		return problems
	case bare:
		// Its families need not be the cluster's.
		completeFamilies(spec, served[0], corev1.IPv4Protocol, corev1.IPv6Protocol)
		return nil
	}
	path := field.NewPath("spec")
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && len(served) < 2 {
		problems = append(problems, field.Invalid(path.Child("ipFamilyPolicy"), *spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range spec.IPFamilies {
		if !slices.Contains(served, f) {
			problems = append(problems, field.Invalid(path.Child("ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	if len(problems) == 0 {
		completeFamilies(spec, served[0], served...)
	}
	return problems
}

// untouched says that an update leaves a Service that prefers two families as
// it is, which may be one: it gains or loses none because the cluster has.
func untouched(svc, old *corev1.Service) bool {
	const prefers = corev1.IPFamilyPolicyPreferDualStack
	return old != nil && old.Spec.Type == svc.Spec.Type && policyOf(svc) == prefers && policyOf(old) == prefers &&
		slices.Equal(svc.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(svc.Spec.IPFamilies, old.Spec.IPFamilies)
}

// followPolicy makes the lists be what the policy asks for, where the writer
// leaves them as they are, and refuses lists that do not agree with it.
func followPolicy(svc, old *corev1.Service) (problems field.ErrorList) {
	spec := &svc.Spec
	refuse := func(why string) {
		problems = append(problems, field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), policyOf(svc), why))
	}
	single := policyOf(svc) == corev1.IPFamilyPolicySingleStack
	if old != nil {
		was := &old.Spec
		shorter := func(now, before int) bool { return now > 0 && now < before }
		switch {
		case single && len(spec.ClusterIPs) > 1 && slices.Equal(spec.ClusterIPs, was.ClusterIPs):
			spec.ClusterIPs = slices.Clone(spec.ClusterIPs[:1])
		case !single && shorter(len(spec.ClusterIPs), len(was.ClusterIPs)):
			refuse("must be 'SingleStack' to release the secondary cluster IP")
		}
		switch {
		case single && len(spec.IPFamilies) > 1 && slices.Equal(spec.IPFamilies, was.IPFamilies):
			spec.IPFamilies = slices.Clone(spec.IPFamilies[:1])
		case !single && shorter(len(spec.IPFamilies), len(was.IPFamilies)):
			refuse("must be 'SingleStack' to release the secondary IP family")
		}
	}
	if single && len(spec.ClusterIPs) == 2 {
		refuse("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")
	}
	if single && len(spec.IPFamilies) == 2 {
		refuse("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
	}
	return problems
}

// inferFamilies adds the families of the addresses that the writer names.
func inferFamilies(svc *corev1.Service, served []corev1.IPFamily) (problems field.ErrorList) {
	spec := &svc.Spec
	for i, ip := range spec.ClusterIPs {
		a, err := netip.ParseAddr(ip)
		if err != nil || i < len(spec.IPFamilies) {
			continue // None, or named
		}
		f := familyOf(a)
		if !slices.Contains(served, f) {
			problems = append(problems, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), spec.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", f)))
			continue
		}
		spec.IPFamilies = append(spec.IPFamilies, f)
	}
	return problems
}

// completeFamilies gives a Service a first family if it names none, and the
// other one if its policy asks for two.
func completeFamilies(spec *corev1.ServiceSpec, first corev1.IPFamily, all ...corev1.IPFamily) {
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{first}
	}
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack || len(spec.IPFamilies) > 1 {
		return
	}
	for _, f := range all {
		if f != spec.IPFamilies[0] {
			spec.IPFamilies = append(slices.Clone(spec.IPFamilies), f)
		}
	}
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}
