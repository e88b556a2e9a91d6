package kinds

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/resource"
)

var specPath = field.NewPath("spec")

func validatePod(pod *corev1.Pod) field.ErrorList {
	e := metadata(&pod.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.podMetadata(pod.Annotations, &pod.Spec, field.NewPath("metadata"))
	e.podSpec(specPath, &pod.Spec)
	if len(pod.Spec.EphemeralContainers) > 0 {
		e.forbidden(specPath.Child("ephemeralContainers"), "cannot be set on create")
	}
	if pod.Spec.NodeName != "" && len(pod.Spec.SchedulingGates) > 0 {
		e.forbidden(specPath.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	e.hugePages(specPath, pod)
	e.appArmorAgrees(pod)
	return e.list()
}

// hugePages need memory or processor beside them.
func (e *problems) hugePages(p *field.Path, pod *corev1.Pod) {
	var huge, other bool
	for _, c := range allContainers(&pod.Spec) {
		for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
			for name := range list {
				huge = huge || isHugePages(name)
				other = other || name == corev1.ResourceCPU || name == corev1.ResourceMemory
			}
		}
	}
	if pod.Spec.Resources != nil {
		for name := range pod.Spec.Resources.Requests {
			other = other || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		}
	}
	if huge && !other {
		e.forbidden(p, "HugePages require cpu or memory")
	}
}

// podTemplate is of a template that makes pods.
func (e *problems) podTemplate(p *field.Path, t *corev1.PodTemplateSpec) {
	e.labels(p.Child("metadata", "labels"), t.Labels)
	e.add(apivalidation.ValidateAnnotations(t.Annotations, p.Child("metadata", "annotations"))...)
	e.podMetadata(t.Annotations, &t.Spec, p.Child("metadata"))
	e.podSpec(p.Child("spec"), &t.Spec)
	if len(t.Spec.EphemeralContainers) > 0 {
		e.forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
}

func (e *problems) podSpec(p *field.Path, spec *corev1.PodSpec) {
	grace := int64(0)
	if spec.TerminationGracePeriodSeconds == nil {
		e.required(p.Child("terminationGracePeriodSeconds"), "")
	} else {
		grace = *spec.TerminationGracePeriodSeconds
	}
	volumes := e.volumes(p.Child("volumes"), spec)
	claims := e.resourceClaims(p.Child("resourceClaims"), spec.ResourceClaims)
	e.containers(p, spec, containerScope{spec: spec, volumes: volumes, claims: claims, grace: grace})

	oneOf(e, p.Child("restartPolicy"), spec.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	oneOf(e, p.Child("dnsPolicy"), spec.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	e.labels(p.Child("nodeSelector"), spec.NodeSelector)
	e.podSecurityContext(p, spec)
	for i, s := range spec.ReadinessGates {
		e.qualifiedName(p.Child("readinessGates").Index(i).Child("conditionType"), string(s.ConditionType))
	}
	e.schedulingGates(p.Child("schedulingGates"), spec.SchedulingGates)
	e.spread(p.Child("topologySpreadConstraints"), spec.TopologySpreadConstraints)
	e.affinity(p.Child("affinity"), spec.Affinity)
	e.dnsConfig(p.Child("dnsConfig"), spec)
	if spec.ServiceAccountName != "" {
		e.each(p.Child("serviceAccountName"), spec.ServiceAccountName, apivalidation.ValidateServiceAccountName(spec.ServiceAccountName, false))
	}
	if spec.NodeName != "" {
		e.dnsSubdomain(p.Child("nodeName"), spec.NodeName)
	}
	e.activeDeadline(p.Child("activeDeadlineSeconds"), spec.ActiveDeadlineSeconds)
	if spec.Hostname != "" {
		e.dnsLabel(p.Child("hostname"), spec.Hostname)
	}
	if spec.Subdomain != "" {
		e.dnsLabel(p.Child("subdomain"), spec.Subdomain)
	}
	if h := spec.HostnameOverride; h != nil && *h != "" {
		at := p.Child("hostnameOverride")
		e.dnsSubdomain(at, *h)
		if len(*h) > 64 {
			e.add(field.TooLong(at, *h, 64))
		}
		if spec.HostNetwork {
			e.forbidden(at, "may not be specified when hostNetwork is true")
		}
		if spec.SetHostnameAsFQDN != nil && *spec.SetHostnameAsFQDN {
			e.forbidden(at, "may not be specified when setHostnameAsFQDN is true")
		}
	}
	e.tolerations(p.Child("tolerations"), spec.Tolerations)
	for i, a := range spec.HostAliases {
		e.ip(p.Child("hostAliases").Index(i).Child("ip"), a.IP)
		for _, h := range a.Hostnames {
			// The name's place in its list is not part of the path: so Kubernetes.
			e.dnsSubdomain(p.Child("hostAliases").Index(i).Child("hostnames"), h)
		}
	}
	if spec.PriorityClassName != "" {
		e.dnsSubdomain(p.Child("priorityClassName"), spec.PriorityClassName)
	}
	if spec.RuntimeClassName != nil {
		e.dnsSubdomain(p.Child("runtimeClassName"), *spec.RuntimeClassName)
	}
	if spec.PreemptionPolicy != nil {
		oneOf(e, p.Child("preemptionPolicy"), *spec.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	for name, q := range sorted(spec.Overhead) {
		at := p.Child("overhead").Key(string(name))
		e.containerResourceName(at, name)
		e.quantity(at, name, q)
	}
	if spec.Resources != nil {
		e.podResources(p, spec)
	}
	e.podOS(p, spec)
	if g := spec.SchedulingGroup; g != nil {
		if g.PodGroupName == nil {
			e.invalid(p.Child("schedulingGroup"), "", "must specify one of: `podGroupName`")
		} else {
			e.dnsSubdomain(p.Child("schedulingGroup", "podGroupName"), *g.PodGroupName)
		}
	}
}

func (e *problems) schedulingGates(p *field.Path, gates []corev1.PodSchedulingGate) {
	seen := map[string]bool{}
	for i, g := range gates {
		e.qualifiedName(p.Index(i), g.Name)
		if seen[g.Name] {
			e.duplicate(p.Index(i), g.Name)
		}
		seen[g.Name] = true
	}
}

func (e *problems) resourceClaims(p *field.Path, claims []corev1.PodResourceClaim) map[string]bool {
	names := map[string]bool{}
	for i, c := range claims {
		at := p.Index(i)
		if names[c.Name] {
			e.duplicate(at.Child("name"), c.Name)
		} else if e.nonEmpty(at.Child("name"), c.Name) {
			e.dnsLabel(at.Child("name"), c.Name)
			names[c.Name] = true
		}
		switch {
		case c.ResourceClaimName != nil && c.ResourceClaimTemplateName != nil:
			e.invalid(at, c, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		case c.ResourceClaimName == nil && c.ResourceClaimTemplateName == nil:
			e.invalid(at, c, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if c.ResourceClaimName != nil {
			e.dnsSubdomain(at.Child("resourceClaimName"), *c.ResourceClaimName)
		}
		if c.ResourceClaimTemplateName != nil {
			e.dnsSubdomain(at.Child("resourceClaimTemplateName"), *c.ResourceClaimTemplateName)
		}
	}
	return names
}

// podResources are those of the pod as a whole: they must hold what its
// containers ask for.
func (e *problems) podResources(of *field.Path, spec *corev1.PodSpec) {
	r, p := spec.Resources, of.Child("resources")
	if len(r.Claims) > 0 {
		e.forbidden(p.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	for part, list := range map[string]corev1.ResourceList{"limits": r.Limits, "requests": r.Requests} {
		for name := range list {
			if !resource.IsSupportedPodLevelResource(name) {
				at := p.Child(part).Key(string(name))
				e.add(field.NotSupported(at, name, []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceHugePagesPrefix, corev1.ResourceMemory}))
			}
		}
	}
	e.requirements(p, r, nil)
	pod := &corev1.Pod{Spec: *spec}
	for name, q := range sorted(resource.AggregateContainerRequests(pod, resource.PodResourcesOptions{})) {
		if request, ok := r.Requests[name]; ok && resource.IsSupportedPodLevelResource(name) && q.Cmp(request) > 0 {
			e.invalid(p.Child("requests").Key(string(name)), request.String(), fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", q.String()))
		}
	}
	for at, c := range containersOf(of, spec) {
		for name, q := range sorted(c.Resources.Limits) {
			if limit, ok := r.Limits[name]; ok && resource.IsSupportedPodLevelResource(name) && q.Cmp(limit) > 0 {
				e.invalid(at.Child("resources", "limits").Key(string(name)), q.String(), fmt.Sprintf("must be less than or equal to pod limits of %s", limit.String()))
			}
		}
	}
}

// Limits of resolv.conf.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

func (e *problems) dnsConfig(p *field.Path, spec *corev1.PodSpec) {
	c := spec.DNSConfig
	if spec.DNSPolicy == corev1.DNSNone {
		if c == nil {
			e.required(p, fmt.Sprintf("must provide `dnsConfig` when `dnsPolicy` is %s", corev1.DNSNone))
			return
		}
		if len(c.Nameservers) == 0 {
			e.required(p.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone))
			return
		}
	}
	if c == nil {
		return
	}
	if len(c.Nameservers) > maxNameservers {
		e.invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers))
	}
	for i, ns := range c.Nameservers {
		e.ip(p.Child("nameservers").Index(i), ns)
	}
	if len(c.Searches) > maxSearches {
		e.invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchChars {
		e.invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchChars))
	}
	for i, s := range c.Searches {
		// A lone dot and a trailing one are how resolv.conf spells the root.
		if s != "." {
			e.each(p.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(s, ".")))
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			e.required(p.Child("options").Index(i), "must not be empty")
		}
	}
}

var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

func (e *problems) podSecurityContext(of *field.Path, spec *corev1.PodSpec) {
	sc, p := spec.SecurityContext, of.Child("securityContext")
	if spec.HostNetwork {
		for at, c := range containersOf(of, spec) {
			for j, port := range c.Ports {
				// Templates have no host ports filled in yet; they will have.
				if port.HostPort != 0 && port.HostPort != port.ContainerPort {
					e.invalid(at.Child("ports").Index(j).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true")
				}
			}
		}
	}
	if spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace && spec.HostPID {
		e.invalid(p.Child("shareProcessNamespace"), *spec.ShareProcessNamespace, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	if spec.HostUsers != nil && !*spec.HostUsers {
		for _, with := range []struct {
			set  bool
			name string
		}{{spec.HostNetwork, "hostNetwork"}, {spec.HostPID, "HostPID"}, {spec.HostIPC, "HostIPC"}} {
			if with.set {
				e.forbidden(of.Child(with.name), "when `hostUsers` is false")
			}
		}
	}
	if sc == nil {
		return
	}
	e.userID(p.Child("runAsUser"), sc.RunAsUser)
	e.groupID(p.Child("runAsGroup"), sc.RunAsGroup)
	e.groupID(p.Child("fsGroup"), sc.FSGroup)
	for i := range sc.SupplementalGroups {
		e.groupID(p.Child("supplementalGroups").Index(i), &sc.SupplementalGroups[i])
	}
	seen := map[string]bool{}
	for i, s := range sc.Sysctls {
		at := p.Child("sysctls").Index(i).Child("name")
		name := strings.ReplaceAll(s.Name, "/", ".")
		switch {
		case s.Name == "":
			e.required(at, "")
		case len(s.Name) > 253 || !sysctlName.MatchString(s.Name):
			e.invalid(at, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", 253, strings.Trim(sysctlName.String(), "^$")))
		case seen[s.Name]:
			e.duplicate(at, s.Name)
		case spec.HostNetwork && strings.HasPrefix(name, "net."):
			e.invalid(at, s.Name, "may not be specified when 'hostNetwork' is set to true")
		case spec.HostIPC && (strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")):
			e.invalid(at, s.Name, "may not be specified when 'hostIPC' is set to true")
		}
		seen[s.Name] = true
	}
	if sc.FSGroupChangePolicy != nil {
		maybeOneOf(e, p.Child("fsGroupChangePolicy"), *sc.FSGroupChangePolicy, corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)
	}
	if sc.SupplementalGroupsPolicy != nil {
		oneOf(e, p.Child("supplementalGroupsPolicy"), *sc.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if sc.SELinuxChangePolicy != nil {
		oneOf(e, p.Child("seLinuxChangePolicy"), *sc.SELinuxChangePolicy, corev1.SELinuxChangePolicyRecursive, corev1.SELinuxChangePolicyMountOption)
	}
	e.seccomp(p.Child("seccompProfile"), sc.SeccompProfile)
	e.appArmor(p.Child("appArmorProfile"), sc.AppArmorProfile)
	e.windows(p.Child("windowsOptions"), sc.WindowsOptions)
}

func (e *problems) userID(p *field.Path, id *int64) {
	if id != nil {
		e.each(p, *id, validation.IsValidUserID(*id))
	}
}

func (e *problems) groupID(p *field.Path, id *int64) {
	if id != nil {
		e.each(p, *id, validation.IsValidGroupID(*id))
	}
}

func (e *problems) seccomp(p *field.Path, s *corev1.SeccompProfile) {
	if s == nil {
		return
	}
	at := p.Child("localhostProfile")
	if s.Type == corev1.SeccompProfileTypeLocalhost {
		if s.LocalhostProfile == nil {
			e.required(at, "must be set when seccomp type is Localhost")
		} else {
			e.localPath(at, *s.LocalhostProfile)
		}
	} else if s.LocalhostProfile != nil {
		e.invalid(at, *s.LocalhostProfile, "can only be set when seccomp type is Localhost")
	}
	if s.Type == "" {
		e.required(p.Child("type"), "type is required when seccompProfile is set")
	}
	maybeOneOf(e, p.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
}

func (e *problems) appArmor(p *field.Path, a *corev1.AppArmorProfile) {
	if a == nil {
		return
	}
	at := p.Child("localhostProfile")
	switch {
	case a.Type == corev1.AppArmorProfileTypeLocalhost && a.LocalhostProfile == nil:
		e.required(at, "must be set when AppArmor type is Localhost")
	case a.Type == corev1.AppArmorProfileTypeLocalhost:
		if profile := *a.LocalhostProfile; strings.TrimSpace(profile) != profile {
			e.invalid(at, profile, "must not be padded with whitespace")
		} else if profile == "" {
			e.required(at, "must be set when AppArmor type is Localhost")
		}
	case a.LocalhostProfile != nil:
		e.invalid(at, *a.LocalhostProfile, "can only be set when AppArmor type is Localhost")
	}
	if a.Type == "" {
		e.required(p.Child("type"), "type is required when appArmorProfile is set")
	}
	maybeOneOf(e, p.Child("type"), a.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
}

func (e *problems) windows(p *field.Path, w *corev1.WindowsSecurityContextOptions) {
	if w == nil {
		return
	}
	if w.GMSACredentialSpecName != nil {
		e.dnsSubdomain(p.Child("gmsaCredentialSpecName"), *w.GMSACredentialSpecName)
	}
	if w.GMSACredentialSpec != nil && *w.GMSACredentialSpec == "" {
		e.invalid(p.Child("gmsaCredentialSpec"), "", "gmsaCredentialSpec cannot be an empty string")
	}
	if w.RunAsUserName != nil && *w.RunAsUserName == "" {
		e.invalid(p.Child("runAsUserName"), "", "runAsUserName cannot be an empty string")
	}
}

// podOS refuses what the named operating system does not have.
func (e *problems) podOS(p *field.Path, spec *corev1.PodSpec) {
	if spec.OS == nil {
		return
	}
	oneOf(e, p.Child("os", "name"), spec.OS.Name, corev1.Linux, corev1.Windows)
	walk := func(visit func(at *field.Path, sc *corev1.SecurityContext)) {
		for at, c := range containersOf(p, spec) {
			if c.SecurityContext != nil {
				visit(at.Child("securityContext"), c.SecurityContext)
			}
		}
	}
	switch spec.OS.Name {
	case corev1.Linux:
		const message = "windows options cannot be set for a linux pod"
		if spec.SecurityContext != nil && spec.SecurityContext.WindowsOptions != nil {
			e.forbidden(p.Child("securityContext", "windowsOptions"), message)
		}
		walk(func(at *field.Path, sc *corev1.SecurityContext) {
			if sc.WindowsOptions != nil {
				e.forbidden(at.Child("windowsOptions"), message)
			}
		})
	case corev1.Windows:
		refuse := func(at *field.Path, set bool) {
			if set {
				e.forbidden(at, "cannot be set for a windows pod")
			}
		}
		refuse(p.Child("hostPID"), spec.HostPID)
		refuse(p.Child("hostIPC"), spec.HostIPC)
		refuse(p.Child("hostUsers"), spec.HostUsers != nil)
		refuse(p.Child("shareProcessNamespace"), spec.ShareProcessNamespace != nil)
		if sc := spec.SecurityContext; sc != nil {
			at := p.Child("securityContext")
			refuse(at.Child("seLinuxOptions"), sc.SELinuxOptions != nil)
			refuse(at.Child("seccompProfile"), sc.SeccompProfile != nil)
			refuse(at.Child("appArmorProfile"), sc.AppArmorProfile != nil)
			refuse(at.Child("fsGroup"), sc.FSGroup != nil)
			refuse(at.Child("fsGroupChangePolicy"), sc.FSGroupChangePolicy != nil)
			refuse(at.Child("sysctls"), len(sc.Sysctls) > 0)
			refuse(at.Child("runAsUser"), sc.RunAsUser != nil)
			refuse(at.Child("runAsGroup"), sc.RunAsGroup != nil)
			refuse(at.Child("supplementalGroups"), sc.SupplementalGroups != nil)
			refuse(at.Child("supplementalGroupsPolicy"), sc.SupplementalGroupsPolicy != nil)
		}
		walk(func(at *field.Path, sc *corev1.SecurityContext) {
			refuse(at.Child("capabilities"), sc.Capabilities != nil)
			refuse(at.Child("readOnlyRootFilesystem"), sc.ReadOnlyRootFilesystem != nil)
			refuse(at.Child("privileged"), sc.Privileged != nil)
			refuse(at.Child("allowPrivilegeEscalation"), sc.AllowPrivilegeEscalation != nil)
			refuse(at.Child("procMount"), sc.ProcMount != nil)
			refuse(at.Child("runAsUser"), sc.RunAsUser != nil)
			refuse(at.Child("runAsGroup"), sc.RunAsGroup != nil)
			refuse(at.Child("seLinuxOptions"), sc.SELinuxOptions != nil)
			refuse(at.Child("seccompProfile"), sc.SeccompProfile != nil)
			refuse(at.Child("appArmorProfile"), sc.AppArmorProfile != nil)
		})
	}
}
