package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	helper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"conclave/api"
)

// resources is a ResourceList in the units of its comparison.
type resources struct {
	cpu, memory, storage int64 // thousandths, bytes, bytes
	// other are extended resources and huge pages; nil for nearly all.
	other map[corev1.ResourceName]int64
}

func resourcesOf(l corev1.ResourceList) resources {
	var r resources
	for name, q := range l {
		switch name {
		case corev1.ResourceCPU:
			r.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			r.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.storage = q.Value()
		case corev1.ResourcePods:
		default:
			if r.other == nil {
				r.other = map[corev1.ResourceName]int64{}
			}
			r.other[name] = q.Value()
		}
	}
	return r
}

// add adds n times o; n is 1 or -1.
func (r *resources) add(o *resources, n int64) {
	r.cpu += n * o.cpu
	r.memory += n * o.memory
	r.storage += n * o.storage
	for name, v := range o.other {
		if r.other == nil {
			r.other = map[corev1.ResourceName]int64{}
		}
		r.other[name] += n * v
	}
}

// hostPort is a port that a pod takes on its node.
type hostPort struct {
	protocol corev1.Protocol
	ip       string // 0.0.0.0 takes the port on every address
	port     int32
}

const anyAddress = "0.0.0.0"

func (p hostPort) conflicts(o hostPort) bool {
	return p.port == o.port && p.protocol == o.protocol && (p.ip == o.ip || p.ip == anyAddress || o.ip == anyAddress)
}

// podInfo is what scheduling needs to know of a pod, worked out once.
type podInfo struct {
	*corev1.Pod
	requests resources
	// scored are the requests that scoring counts: a container that names none
	// still is not free.
	scored resources
	ports  []hostPort
	images []string
	owner  types.UID // its controller's, "" if none
	// claims are the keys of the claims that it uses, claimNames their names.
	claims, claimNames []string

	required  *nodeaffinity.RequiredNodeAffinity // nil if the pod asks for nothing
	preferred *nodeaffinity.PreferredSchedulingTerms

	affinity, anti               []term // required
	preferAffinity, preferAnti   []weighted
	hardSpread, softSpread       []spread
	needsNamespaces, looksAtPods bool
}

// term is a pod (anti-)affinity term, compiled.
type term struct {
	selector   labels.Selector
	namespaces []string        // as named
	nsSelector labels.Selector // or as selected
	key        string
}

type weighted struct {
	term
	weight int64
}

// spread is a topology spread constraint, compiled.
type spread struct {
	key                        string
	skew                       int64
	minDomains                 int
	selector                   labels.Selector
	honorAffinity, honorTaints bool
}

// What a container without requests counts for in scores, as in Kubernetes.
var defaultRequests = corev1.ResourceList{
	corev1.ResourceCPU:    *newMilli(100),
	corev1.ResourceMemory: *newBytes(200 << 20),
}

func newPodInfo(pod *corev1.Pod) *podInfo {
	options := helper.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
	p := &podInfo{Pod: pod, requests: resourcesOf(helper.PodRequests(pod, options))}
	p.scored = p.requests
	if p.requests.cpu == 0 || p.requests.memory == 0 || len(pod.Spec.Containers) > 1 {
		options.NonMissingContainerRequests = defaultRequests
		p.scored = resourcesOf(helper.PodRequests(pod, options))
	}
	for _, c := range pod.Spec.Containers {
		p.images = append(p.images, c.Image)
		p.addPorts(&c)
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			p.addPorts(&c)
		}
	}
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
		p.owner = ref.UID
	}
	p.claimNames = api.ClaimNames(pod)
	for _, name := range p.claimNames {
		p.claims = append(p.claims, pod.Namespace+"/"+name)
	}
	p.compile()
	return p
}

func (p *podInfo) uses(claim string) bool { return slices.Contains(p.claims, claim) }

func (p *podInfo) addPorts(c *corev1.Container) {
	for _, port := range c.Ports {
		if port.HostPort == 0 {
			continue
		}
		h := hostPort{port.Protocol, port.HostIP, port.HostPort}
		if h.protocol == "" {
			h.protocol = corev1.ProtocolTCP
		}
		if h.ip == "" || h.ip == "::" {
			h.ip = anyAddress
		}
		p.ports = append(p.ports, h)
	}
}

// compile reads the pod's wishes about nodes and other pods. What cannot be
// parsed, which validation keeps out, matches nothing.
func (p *podInfo) compile() {
	a := p.Spec.Affinity
	if len(p.Spec.NodeSelector) > 0 || a != nil && a.NodeAffinity != nil {
		required := nodeaffinity.GetRequiredNodeAffinity(p.Pod)
		p.required = &required
	}
	if a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		if terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err == nil {
			p.preferred = terms
		}
	}
	if a != nil && a.PodAffinity != nil {
		p.affinity = p.terms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		p.preferAffinity = p.weightedTerms(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if a != nil && a.PodAntiAffinity != nil {
		p.anti = p.terms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		p.preferAnti = p.weightedTerms(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	for _, c := range p.Spec.TopologySpreadConstraints {
		s := spread{
			key: c.TopologyKey, skew: int64(c.MaxSkew), minDomains: 1,
			selector:      p.withKeys(selectorOf(c.LabelSelector), c.MatchLabelKeys, false),
			honorAffinity: c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor,
			honorTaints:   c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
		}
		if c.MinDomains != nil {
			s.minDomains = int(*c.MinDomains)
		}
		if c.WhenUnsatisfiable == corev1.DoNotSchedule {
			p.hardSpread = append(p.hardSpread, s)
		} else {
			p.softSpread = append(p.softSpread, s)
		}
	}
	p.looksAtPods = len(p.affinity)+len(p.anti)+len(p.hardSpread) > 0
}

func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// withKeys narrows a selector to pods that have, or have not, this pod's own
// values of some labels.
func (p *podInfo) withKeys(s labels.Selector, keys []string, not bool) labels.Selector {
	operator := metav1.LabelSelectorOpIn
	if not {
		operator = metav1.LabelSelectorOpNotIn
	}
	for _, key := range keys {
		value, ok := p.Labels[key]
		if !ok {
			continue
		}
		extra := selectorOf(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: operator, Values: []string{value}}}})
		if requirements, selectable := extra.Requirements(); selectable {
			s = s.Add(requirements...)
		}
	}
	return s
}

func (p *podInfo) term(t corev1.PodAffinityTerm) term {
	c := term{key: t.TopologyKey, namespaces: t.Namespaces, nsSelector: selectorOf(t.NamespaceSelector)}
	if len(t.Namespaces) == 0 && t.NamespaceSelector == nil {
		c.namespaces = []string{p.Namespace}
	}
	c.selector = p.withKeys(p.withKeys(selectorOf(t.LabelSelector), t.MatchLabelKeys, false), t.MismatchLabelKeys, true)
	return c
}

func (p *podInfo) terms(all []corev1.PodAffinityTerm) (found []term) {
	for _, t := range all {
		found = append(found, p.term(t))
	}
	return found
}

func (p *podInfo) weightedTerms(all []corev1.WeightedPodAffinityTerm) (found []weighted) {
	for _, t := range all {
		found = append(found, weighted{p.term(t.PodAffinityTerm), int64(t.Weight)})
	}
	return found
}

// affine says that other pods must consider this one's wishes.
func (p *podInfo) affine() bool {
	return len(p.affinity)+len(p.anti)+len(p.preferAffinity)+len(p.preferAnti) > 0
}

// matches says whether a term means a pod. namespaces are the labels of each.
func (t *term) matches(p *podInfo, namespaces map[string]labels.Set) bool {
	if !slices.Contains(t.namespaces, p.Namespace) && (t.nsSelector == nil || !t.nsSelector.Matches(namespaces[p.Namespace])) {
		return false
	}
	return t.selector.Matches(labels.Set(p.Labels))
}

// tolerates says whether a pod bears a taint.
func (p *podInfo) tolerates(t *corev1.Taint) bool {
	for i := range p.Spec.Tolerations {
		if p.Spec.Tolerations[i].ToleratesTaint(quiet, t, true) {
			return true
		}
	}
	return false
}
