package kinds

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Namespaces.

func validateNamespace(ns *corev1.Namespace) field.ErrorList {
	e := metadata(&ns.ObjectMeta, nil, false, apivalidation.ValidateNamespaceName)
	for i, f := range ns.Spec.Finalizers {
		e.finalizer(specPath.Child("finalizers").Index(i), f)
	}
	return e.list()
}

func validateNamespaceUpdate(ns, old *corev1.Namespace) field.ErrorList {
	e := metadata(&ns.ObjectMeta, &old.ObjectMeta, false, apivalidation.ValidateNamespaceName)
	return e.list()
}

func validateNamespaceStatus(ns, old *corev1.Namespace) field.ErrorList {
	e := metadata(&ns.ObjectMeta, &old.ObjectMeta, false, apivalidation.ValidateNamespaceName)
	p := field.NewPath("status", "Phase")
	switch {
	case ns.DeletionTimestamp.IsZero() && ns.Status.Phase != corev1.NamespaceActive:
		e.invalid(p, ns.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")
	case !ns.DeletionTimestamp.IsZero() && ns.Status.Phase != corev1.NamespaceTerminating:
		e.invalid(p, ns.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
	}
	return e.list()
}

func (e *problems) finalizer(p *field.Path, name corev1.FinalizerName) {
	e.each(p, string(name), validation.IsQualifiedName(string(name)))
	if !strings.Contains(string(name), "/") && name != corev1.FinalizerKubernetes {
		e.invalid(p, name, "name is neither a standard finalizer name nor is it fully qualified")
	}
}

// ValidateNamespaceFinalize is of an update of a namespace's finalize
// subresource.
func ValidateNamespaceFinalize(ns, old *corev1.Namespace) field.ErrorList {
	e := metadata(&ns.ObjectMeta, &old.ObjectMeta, false, apivalidation.ValidateNamespaceName)
	for i, f := range ns.Spec.Finalizers {
		e.finalizer(specPath.Child("finalizers").Index(i), f)
	}
	return e.list()
}

// ConfigMaps and Secrets.

func validateConfigMap(cm *corev1.ConfigMap) field.ErrorList {
	e := metadata(&cm.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.configMapData(cm)
	return e.list()
}

func (e *problems) configMapData(cm *corev1.ConfigMap) {
	total := 0
	for key, value := range sorted(cm.Data) {
		at := field.NewPath("data").Key(key)
		e.each(at, key, validation.IsConfigMapKey(key))
		if _, ok := cm.BinaryData[key]; ok {
			e.invalid(at, key, fmt.Sprintf("duplicate of key present in %s", field.NewPath("binaryData")))
		}
		total += len(value)
	}
	for key, value := range sorted(cm.BinaryData) {
		e.each(field.NewPath("binaryData").Key(key), key, validation.IsConfigMapKey(key))
		total += len(value)
	}
	if total > corev1.MaxSecretSize {
		// The whole object is too long: so Kubernetes says it, without a path.
		e.add(field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
}

const immutableMessage = "field is immutable when `immutable` is set"

func validateConfigMapUpdate(cm, old *corev1.ConfigMap) field.ErrorList {
	e := metadata(&cm.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	if isTrue(old.Immutable) {
		if !isTrue(cm.Immutable) {
			e.forbidden(field.NewPath("immutable"), immutableMessage)
		}
		if !equality.Semantic.DeepEqual(cm.Data, old.Data) {
			e.forbidden(field.NewPath("data"), immutableMessage)
		}
		if !equality.Semantic.DeepEqual(cm.BinaryData, old.BinaryData) {
			e.forbidden(field.NewPath("binaryData"), immutableMessage)
		}
	}
	e.configMapData(cm)
	return e.list()
}

func isTrue(b *bool) bool { return b != nil && *b }

func validateSecret(s *corev1.Secret) field.ErrorList {
	e := metadata(&s.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.secretData(s)
	return e.list()
}

// secretKeys are the keys that a type of secret must have.
var secretKeys = map[corev1.SecretType][]string{
	corev1.SecretTypeDockercfg:        {corev1.DockerConfigKey},
	corev1.SecretTypeDockerConfigJson: {corev1.DockerConfigJsonKey},
	corev1.SecretTypeSSHAuth:          {corev1.SSHAuthPrivateKey},
	corev1.SecretTypeTLS:              {corev1.TLSCertKey, corev1.TLSPrivateKeyKey},
}

func (e *problems) secretData(s *corev1.Secret) {
	data, total := field.NewPath("data"), 0
	for key, value := range sorted(s.Data) {
		e.each(data.Key(key), key, validation.IsConfigMapKey(key))
		total += len(value)
	}
	if total > corev1.MaxSecretSize {
		e.add(field.TooLong(data, "", corev1.MaxSecretSize))
	}
	for _, key := range secretKeys[s.Type] {
		if value, ok := s.Data[key]; !ok || s.Type == corev1.SecretTypeSSHAuth && len(value) == 0 {
			e.required(data.Key(key), "")
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			e.required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg, corev1.SecretTypeDockerConfigJson:
		key := secretKeys[s.Type][0]
		if value, ok := s.Data[key]; ok && json.Unmarshal(value, &map[string]any{}) != nil {
			e.invalid(data.Key(key), "<secret contents redacted>", "invalid character or truncated JSON")
		}
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			e.required(data.Key(corev1.BasicAuthUsernameKey), "")
			e.required(data.Key(corev1.BasicAuthPasswordKey), "")
		}
	}
}

func validateSecretUpdate(s, old *corev1.Secret) field.ErrorList {
	e := metadata(&s.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.immutable(field.NewPath("type"), s.Type, old.Type)
	if isTrue(old.Immutable) {
		if !isTrue(s.Immutable) {
			e.forbidden(field.NewPath("immutable"), immutableMessage)
		}
		if !equality.Semantic.DeepEqual(s.Data, old.Data) {
			e.forbidden(field.NewPath("data"), immutableMessage)
		}
	}
	e.secretData(s)
	return e.list()
}

// Service accounts.

func validateServiceAccount(sa *corev1.ServiceAccount) field.ErrorList {
	return metadata(&sa.ObjectMeta, nil, true, apivalidation.ValidateServiceAccountName).list()
}

func validateServiceAccountUpdate(sa, old *corev1.ServiceAccount) field.ErrorList {
	return metadata(&sa.ObjectMeta, &old.ObjectMeta, true, apivalidation.ValidateServiceAccountName).list()
}

// Nodes.

func validateNode(node *corev1.Node) field.ErrorList {
	e := metadata(&node.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.taints(specPath.Child("taints"), node.Spec.Taints)
	e.podCIDRs(specPath.Child("podCIDRs"), node.Spec.PodCIDRs)
	e.nodeResources(&node.Status)
	return e.list()
}

func (e *problems) taints(p *field.Path, taints []corev1.Taint) {
	type key struct {
		key    string
		effect corev1.TaintEffect
	}
	seen := map[key]bool{}
	for i, t := range taints {
		at := p.Index(i)
		e.add(metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
		if messages := validation.IsValidLabelValue(t.Value); len(messages) > 0 {
			e.invalid(at.Child("value"), t.Value, strings.Join(messages, ";"))
		}
		if t.Effect == "" {
			e.required(at.Child("effect"), "")
		} else {
			e.taintEffect(at.Child("effect"), t.Effect, false)
		}
		k := key{t.Key, t.Effect}
		if seen[k] {
			duplicate := field.Duplicate(at, t)
			duplicate.Detail = "taints must be unique by key and effect pair"
			e.add(duplicate)
		}
		seen[k] = true
	}
}

func (e *problems) podCIDRs(p *field.Path, cidrs []string) {
	families := map[bool]bool{}
	for i, c := range cidrs {
		e.add(validation.IsValidCIDRForLegacyField(p.Index(i), c, true, nil)...)
		prefix, err := netip.ParsePrefix(c)
		if err != nil {
			continue
		}
		if families[prefix.Addr().Is4()] || len(cidrs) > 2 {
			e.invalid(p, cidrs, "may specify no more than one CIDR for each IP family")
			return
		}
		families[prefix.Addr().Is4()] = true
	}
}

func (e *problems) nodeResources(s *corev1.NodeStatus) {
	p := field.NewPath("status")
	for _, of := range []struct {
		name string
		list corev1.ResourceList
	}{{"capacity", s.Capacity}, {"allocatable", s.Allocatable}} {
		for name, q := range sorted(of.list) {
			at := p.Child(of.name).Key(string(name))
			e.resourceName(at, name)
			e.quantity(at, name, q)
		}
	}
}

func validateNodeUpdate(node, old *corev1.Node) field.ErrorList {
	e := metadata(&node.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.nodeResources(&node.Status)
	seen := map[corev1.NodeAddress]bool{}
	for i, a := range node.Status.Addresses {
		if seen[a] {
			e.duplicate(field.NewPath("status", "addresses").Index(i), a)
		}
		seen[a] = true
	}
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(node.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		e.forbidden(specPath.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid")
	} else {
		e.podCIDRs(specPath.Child("podCIDRs"), node.Spec.PodCIDRs)
	}
	if old.Spec.ProviderID != "" && node.Spec.ProviderID != old.Spec.ProviderID {
		e.forbidden(specPath.Child("providerID"), "node updates may not change providerID except from \"\" to valid")
	}
	e.taints(specPath.Child("taints"), node.Spec.Taints)
	return e.list()
}

// Endpoints.

func validateEndpoints(o *corev1.Endpoints) field.ErrorList {
	e := metadata(&o.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.endpoints(o, nil)
	return e.list()
}

func validateEndpointsUpdate(o, old *corev1.Endpoints) field.ErrorList {
	e := metadata(&o.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	if !equality.Semantic.DeepEqual(o.Subsets, old.Subsets) {
		e.endpoints(o, old)
	}
	return e.list()
}

func (e *problems) endpoints(o, old *corev1.Endpoints) {
	p := field.NewPath("subsets")
	for i, s := range o.Subsets {
		at := p.Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			e.required(at, "must specify `addresses` or `notReadyAddresses`")
		}
		for _, of := range []struct {
			name string
			list []corev1.EndpointAddress
		}{{"addresses", s.Addresses}, {"notReadyAddresses", s.NotReadyAddresses}} {
			for j, a := range of.list {
				address := at.Child(of.name).Index(j)
				e.ip(address.Child("ip"), a.IP)
				if a.Hostname != "" {
					e.dnsLabel(address.Child("hostname"), a.Hostname)
				}
				if a.NodeName != nil && (old == nil || !sameNode(old, a)) {
					e.dnsSubdomain(address.Child("nodeName"), *a.NodeName)
				}
				e.nonSpecialIP(address.Child("ip"), a.IP)
			}
		}
		for j, port := range s.Ports {
			at := at.Child("ports").Index(j)
			if port.Name == "" {
				if len(s.Ports) > 1 {
					e.required(at.Child("name"), "")
				}
			} else {
				e.dnsLabel(at.Child("name"), port.Name)
			}
			e.port(at.Child("port"), port.Port)
			oneOf(e, at.Child("protocol"), port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
			if port.AppProtocol != nil {
				e.qualifiedName(at.Child("appProtocol"), *port.AppProtocol)
			}
		}
	}
}

func sameNode(old *corev1.Endpoints, a corev1.EndpointAddress) bool {
	for _, s := range old.Subsets {
		for _, was := range slices.Concat(s.Addresses, s.NotReadyAddresses) {
			if was.IP == a.IP && was.NodeName != nil && *was.NodeName == *a.NodeName {
				return true
			}
		}
	}
	return false
}

// nonSpecialIP refuses addresses through which a Service could be made to
// reach what is not a pod or host of the network.
func (e *problems) nonSpecialIP(p *field.Path, value string) {
	ip, err := netip.ParseAddr(value)
	if err != nil {
		return // said before
	}
	switch {
	case ip.IsUnspecified():
		e.invalid(p, value, fmt.Sprintf("may not be unspecified (%v)", value))
	case ip.IsLoopback():
		e.invalid(p, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case ip.IsLinkLocalUnicast():
		e.invalid(p, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case ip.IsLinkLocalMulticast():
		e.invalid(p, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

// IP addresses, by which ClusterIPs are reserved.

func validateIPAddress(ip *networkingv1.IPAddress) field.ErrorList {
	e := metadata(&ip.ObjectMeta, nil, false, ipAddressName)
	e.parentRef(specPath.Child("parentRef"), ip.Spec.ParentRef)
	return e.list()
}

func ipAddressName(name string, _ bool) []string {
	var messages []string
	for _, err := range validation.IsValidIP(field.NewPath(""), name) {
		messages = append(messages, err.Detail)
	}
	return messages
}

func (e *problems) parentRef(p *field.Path, ref *networkingv1.ParentReference) {
	if ref == nil {
		e.required(p, "")
		return
	}
	if ref.Group != "" {
		e.dnsSubdomain(p.Child("group"), ref.Group)
	}
	segment := func(name, value string, must bool) {
		at := p.Child(name)
		if value == "" {
			if must {
				e.required(at, "")
			}
			return
		}
		e.each(at, value, pathSegment(value))
	}
	segment("resource", ref.Resource, true)
	segment("name", ref.Name, true)
	segment("namespace", ref.Namespace, false)
}

// pathSegment is of a value that becomes one part of a URL's path.
func pathSegment(value string) []string {
	if value == "." || value == ".." {
		return []string{fmt.Sprintf("may not be '%s'", value)}
	}
	var messages []string
	for _, bad := range []string{"/", "%"} {
		if strings.Contains(value, bad) {
			messages = append(messages, fmt.Sprintf("may not contain '%s'", bad))
		}
	}
	return messages
}

func validateIPAddressUpdate(ip, old *networkingv1.IPAddress) field.ErrorList {
	e := metadata(&ip.ObjectMeta, &old.ObjectMeta, false, ipAddressName)
	e.immutable(specPath.Child("parentRef"), ip.Spec.ParentRef, old.Spec.ParentRef)
	return e.list()
}
