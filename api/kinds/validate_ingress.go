package kinds

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var templatePath = field.NewPath("template")

func validatePodTemplate(t *corev1.PodTemplate) field.ErrorList {
	e := metadata(&t.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.podTemplate(templatePath, &t.Template)
	return e.list()
}

func validatePodTemplateUpdate(t, old *corev1.PodTemplate) field.ErrorList {
	e := metadata(&t.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.podTemplate(templatePath, &t.Template)
	return e.list()
}

const ingressClassAnnotation = "kubernetes.io/ingress.class"

func validateIngress(i *networkingv1.Ingress) field.ErrorList {
	e := metadata(&i.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	if class, ok := i.Annotations[ingressClassAnnotation]; ok && i.Spec.IngressClassName != nil && class != *i.Spec.IngressClassName {
		e.invalid(field.NewPath("annotations").Child(ingressClassAnnotation), class, "must match `ingressClassName` when both are specified")
	}
	e.ingressSpec(specPath, &i.Spec)
	return e.list()
}

func validateIngressUpdate(i, old *networkingv1.Ingress) field.ErrorList {
	e := metadata(&i.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.ingressSpec(specPath, &i.Spec)
	return e.list()
}

func (e *problems) ingressSpec(p *field.Path, spec *networkingv1.IngressSpec) {
	if len(spec.Rules) == 0 && spec.DefaultBackend == nil {
		e.invalid(p, spec.Rules, "either `defaultBackend` or `rules` must be specified")
	}
	if spec.DefaultBackend != nil {
		e.ingressBackend(p.Child("defaultBackend"), spec.DefaultBackend)
	}
	for i := range spec.Rules {
		e.ingressRule(p.Child("rules").Index(i), &spec.Rules[i])
	}
	for i, tls := range spec.TLS {
		at := p.Child("tls").Index(i)
		for j, host := range tls.Hosts {
			e.ingressHost(at.Child("hosts").Index(j), host)
		}
		if tls.SecretName != "" {
			e.each(at.Child("secretName"), tls.SecretName, apivalidation.NameIsDNSSubdomain(tls.SecretName, false))
		}
	}
	if spec.IngressClassName != nil {
		e.each(p.Child("ingressClassName"), *spec.IngressClassName, apivalidation.NameIsDNSSubdomain(*spec.IngressClassName, false))
	}
}

func (e *problems) ingressHost(p *field.Path, host string) {
	if strings.Contains(host, "*") {
		e.each(p, host, validation.IsWildcardDNS1123Subdomain(host))
	} else {
		e.dnsSubdomain(p, host)
	}
}

func (e *problems) ingressRule(p *field.Path, r *networkingv1.IngressRule) {
	if r.Host != "" {
		if _, err := netip.ParseAddr(r.Host); err == nil {
			e.invalid(p.Child("host"), r.Host, "must be a DNS name, not an IP address")
		}
		e.ingressHost(p.Child("host"), r.Host)
	}
	if r.HTTP == nil {
		return
	}
	paths := p.Child("http", "paths")
	if len(r.HTTP.Paths) == 0 {
		e.required(paths, "")
	}
	for i := range r.HTTP.Paths {
		e.ingressPath(paths.Index(i), &r.HTTP.Paths[i])
	}
}

func (e *problems) ingressPath(p *field.Path, h *networkingv1.HTTPIngressPath) {
	if h.PathType == nil {
		e.required(p.Child("pathType"), "pathType must be specified")
		return
	}
	at := p.Child("path")
	switch *h.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !strings.HasPrefix(h.Path, "/") {
			e.invalid(at, h.Path, "must be an absolute path")
		}
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(h.Path, bad) {
				e.invalid(at, h.Path, fmt.Sprintf("must not contain '%s'", bad))
			}
		}
		for _, bad := range []string{"/..", "/."} {
			if strings.HasSuffix(h.Path, bad) {
				e.invalid(at, h.Path, fmt.Sprintf("cannot end with '%s'", bad))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if h.Path != "" && !strings.HasPrefix(h.Path, "/") {
			e.invalid(at, h.Path, "must be an absolute path")
		}
	default:
		e.add(field.NotSupported(p.Child("pathType"), *h.PathType, []networkingv1.PathType{
			networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix}))
	}
	e.ingressBackend(p.Child("backend"), &h.Backend)
}

func (e *problems) ingressBackend(p *field.Path, b *networkingv1.IngressBackend) {
	switch {
	case b.Resource != nil && b.Service != nil:
		e.invalid(p, "", "cannot set both resource and service backends")
	case b.Resource != nil:
		at := p.Child("resource")
		if g := b.Resource.APIGroup; g != nil {
			e.dnsSubdomain(at.Child("apiGroup"), *g)
		}
		if e.nonEmpty(at.Child("kind"), b.Resource.Kind) {
			e.each(at.Child("kind"), b.Resource.Kind, pathSegment(b.Resource.Kind))
		}
		if e.nonEmpty(at.Child("name"), b.Resource.Name) {
			e.each(at.Child("name"), b.Resource.Name, pathSegment(b.Resource.Name))
		}
	case b.Service != nil:
		at := p.Child("service")
		if e.nonEmpty(at.Child("name"), b.Service.Name) {
			e.each(at.Child("name"), b.Service.Name, apivalidation.NameIsDNS1035Label(b.Service.Name, false))
		}
		switch port := b.Service.Port; {
		case port.Name != "" && port.Number != 0:
			e.invalid(p, "", "cannot set both port name & port number")
		case port.Name != "":
			e.each(at.Child("port", "name"), port.Name, validation.IsValidPortName(port.Name))
		case port.Number != 0:
			e.port(at.Child("port", "number"), port.Number)
		default:
			e.required(p, "port name or number is required")
		}
	default:
		e.invalid(p, "", "resource or service backend is required")
	}
}

func validateIngressStatus(i, old *networkingv1.Ingress) field.ErrorList {
	e := metadata(&i.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	for n, in := range i.Status.LoadBalancer.Ingress {
		at := field.NewPath("status", "loadBalancer", "ingress").Index(n)
		if in.IP != "" {
			e.ip(at.Child("ip"), in.IP)
		}
		if in.Hostname != "" {
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				e.invalid(at.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address")
			}
			e.dnsSubdomain(at.Child("hostname"), in.Hostname)
		}
	}
	return e.list()
}

func validateIngressClass(c *networkingv1.IngressClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	at := specPath.Child("controller")
	if e.nonEmpty(at, c.Spec.Controller) {
		if len(c.Spec.Controller) > 250 {
			e.add(field.TooLong(at, c.Spec.Controller, 250))
		}
		e.add(validation.IsDomainPrefixedPath(at, c.Spec.Controller)...)
	}
	e.ingressClassParameters(c)
	return e.list()
}

func validateIngressClassUpdate(c, old *networkingv1.IngressClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.immutable(specPath.Child("controller"), c.Spec.Controller, old.Spec.Controller)
	e.ingressClassParameters(c)
	return e.list()
}

func (e *problems) ingressClassParameters(c *networkingv1.IngressClass) {
	r, p := c.Spec.Parameters, specPath.Child("parameters")
	if r == nil {
		return
	}
	if r.APIGroup != nil {
		e.dnsSubdomain(p.Child("apiGroup"), *r.APIGroup)
	}
	if e.nonEmpty(p.Child("kind"), r.Kind) {
		e.each(p.Child("kind"), r.Kind, pathSegment(r.Kind))
	}
	if e.nonEmpty(p.Child("name"), r.Name) {
		e.each(p.Child("name"), r.Name, pathSegment(r.Name))
	}
	if r.Scope == nil {
		e.required(p.Child("scope"), "")
		return
	}
	const cluster, namespace = networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace
	oneOf(e, p.Child("scope"), *r.Scope, cluster, namespace)
	switch at := p.Child("namespace"); {
	case *r.Scope == namespace && r.Namespace == nil:
		e.required(at, "`parameters.scope` is set to 'Namespace'")
	case *r.Scope == namespace:
		e.each(at, *r.Namespace, apivalidation.ValidateNamespaceName(*r.Namespace, false))
	case *r.Scope == cluster && r.Namespace != nil:
		e.forbidden(at, "`parameters.scope` is set to 'Cluster'")
	}
}

func validateServiceCIDR(c *networkingv1.ServiceCIDR) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.cidrs(specPath.Child("cidrs"), c.Spec.CIDRs)
	return e.list()
}

func (e *problems) cidrs(p *field.Path, list []string) {
	if len(list) == 0 {
		e.required(p, "at least one CIDR required")
		return
	}
	if len(list) > 2 {
		e.invalid(p, list, "may only hold up to 2 values")
		return
	}
	families := map[bool]bool{}
	for i, cidr := range list {
		bad := validation.IsValidCIDR(p.Index(i), cidr)
		e.add(bad...)
		if prefix, err := netip.ParsePrefix(cidr); err == nil && len(bad) == 0 {
			families[prefix.Addr().Is4()] = true
		}
	}
	if len(list) == 2 && len(families) == 1 {
		e.invalid(p, list, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64")
	}
}

func validateServiceCIDRUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	p := specPath.Child("cidrs")
	switch {
	case len(old.Spec.CIDRs) == 1 && len(c.Spec.CIDRs) == 2: // a second family may be added
		if c.Spec.CIDRs[0] != old.Spec.CIDRs[0] {
			e.invalid(p.Index(0), c.Spec.CIDRs[0], apivalidation.FieldImmutableErrorMsg)
		}
		e.cidrs(p, c.Spec.CIDRs)
	default:
		e.immutable(p, c.Spec.CIDRs, old.Spec.CIDRs)
	}
	return e.list()
}

func validateServiceCIDRStatus(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	return e.list()
}

// statusConditions are of the usual form, in a status.
func (e *problems) statusConditions(list []metav1.Condition) {
	e.add(metavalidation.ValidateConditions(list, field.NewPath("status", "conditions"))...)
}

// IsDefaultIngressClass says whether an Ingress that names no class gets it.
func IsDefaultIngressClass(c *networkingv1.IngressClass) bool {
	return c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
}

// NamesIngressClass says whether an Ingress has a class, be it in the old way.
func NamesIngressClass(i *networkingv1.Ingress) bool {
	_, old := i.Annotations[ingressClassAnnotation]
	return old || i.Spec.IngressClassName != nil
}

// hostsOf an Ingress, in order, each once.
func hostsOf(rules []networkingv1.IngressRule) []string {
	var all []string
	for _, r := range rules {
		if r.Host != "" && !slices.Contains(all, r.Host) {
			all = append(all, r.Host)
		}
	}
	return all
}
