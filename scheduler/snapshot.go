package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// quiet is the logger that the helpers of Kubernetes ask for.
var quiet = klog.Background()

func newMilli(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }
func newBytes(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

// nodeInfo is a node and what the pods bound to it, or about to be, take of it.
type nodeInfo struct {
	*corev1.Node // nil while only pods name it
	name         string
	place        int // in snapshot.order, -1 if not there
	zone         string
	zoneID       int // of zone, in snapshot.zoneNames
	allocatable  resources
	maxPods      int
	hard, prefer []corev1.Taint // NoSchedule and NoExecute, PreferNoSchedule

	pods             map[types.UID]*podInfo
	requests, scored resources // sums over pods
	ports            map[hostPort]int
	// nominated are pods that wait for room here, which others make for them.
	nominated map[types.UID]*podInfo
}

// image is where an image is present and how large it is.
type image struct {
	size  int64
	nodes map[*nodeInfo]struct{}
}

// ownerCount is how many pods of one controller run where.
type ownerCount struct {
	nodes map[*nodeInfo]int64
	zones map[string]int64
}

// snapshot is the state of the cluster as the scheduler decides on it: what
// Follow has told, and the decisions that are not yet told. It is kept by
// small changes, never rebuilt.
//
// Every pod in pods that names a node is counted on that node exactly once.
type snapshot struct {
	nodes map[string]*nodeInfo
	order []*nodeInfo // those that exist; a removal moves the last one
	pods  map[types.UID]*podInfo
	// byNamespace are the pods that name a node.
	byNamespace map[string]map[types.UID]*podInfo
	// affine are the pods on nodes that have wishes about other pods.
	affine        map[types.UID]*podInfo
	owners        map[types.UID]*ownerCount
	images        map[string]*image
	namespaces    map[string]labels.Set
	namespaceUIDs map[types.UID]string
	zones         map[string]int // number of nodes
	zoneNames     []string       // every zone ever seen
	prefering     int            // nodes with a PreferNoSchedule taint
	// turn counts decisions: it moves the first node looked at, and which of
	// equally good nodes is taken.
	turn, start int
	scratch     scratch
	// nominations are the nodes of the pods in some nodeInfo's nominated.
	nominations map[types.UID]string
	budgets     map[types.UID]*policyv1.PodDisruptionBudget
	volumeState
}

func newSnapshot() *snapshot {
	return &snapshot{
		nodes: map[string]*nodeInfo{}, pods: map[types.UID]*podInfo{},
		byNamespace: map[string]map[types.UID]*podInfo{}, affine: map[types.UID]*podInfo{},
		owners: map[types.UID]*ownerCount{}, images: map[string]*image{},
		namespaces: map[string]labels.Set{}, namespaceUIDs: map[types.UID]string{}, zones: map[string]int{},
		nominations: map[types.UID]string{}, budgets: map[types.UID]*policyv1.PodDisruptionBudget{},
		volumeState: newVolumeState(),
	}
}

func (s *snapshot) node(name string) *nodeInfo {
	n := s.nodes[name]
	if n == nil {
		n = &nodeInfo{name: name, place: -1, pods: map[types.UID]*podInfo{}}
		s.nodes[name] = n
	}
	return n
}

// setNode takes in a version of a node.
func (s *snapshot) setNode(node *corev1.Node) {
	n := s.node(node.Name)
	if n.Node != nil {
		s.forgetNode(n)
	} else {
		n.place = len(s.order)
		s.order = append(s.order, n)
	}
	n.Node = node
	n.allocatable = resourcesOf(node.Status.Allocatable)
	pods := node.Status.Allocatable[corev1.ResourcePods]
	n.maxPods = int(pods.Value())
	n.hard, n.prefer = nil, nil
	for _, t := range node.Spec.Taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule {
			n.prefer = append(n.prefer, t)
		} else {
			n.hard = append(n.hard, t)
		}
	}
	if len(n.prefer) > 0 {
		s.prefering++
	}
	s.moveZone(n, node.Labels[corev1.LabelTopologyZone])
	s.zones[n.zone]++
	for _, i := range node.Status.Images {
		for _, name := range i.Names {
			if s.images[name] == nil {
				s.images[name] = &image{nodes: map[*nodeInfo]struct{}{}}
			}
			s.images[name].size = i.SizeBytes
			s.images[name].nodes[n] = struct{}{}
		}
	}
}

// moveZone keeps the counts by zone right for the pods that are there already.
func (s *snapshot) moveZone(n *nodeInfo, zone string) {
	id := slices.Index(s.zoneNames, zone)
	if id < 0 {
		id = len(s.zoneNames)
		s.zoneNames = append(s.zoneNames, zone)
	}
	n.zoneID = id
	if n.zone == zone {
		return
	}
	for _, p := range n.pods {
		if o := s.owners[p.owner]; o != nil {
			o.zones[n.zone]--
			o.zones[zone]++
		}
	}
	n.zone = zone
}

// forgetNode undoes what setNode counted outside of n.
func (s *snapshot) forgetNode(n *nodeInfo) {
	if len(n.prefer) > 0 {
		s.prefering--
	}
	if s.zones[n.zone]--; s.zones[n.zone] == 0 {
		delete(s.zones, n.zone)
	}
	for _, i := range n.Status.Images {
		for _, name := range i.Names {
			if at := s.images[name]; at != nil {
				delete(at.nodes, n)
				if len(at.nodes) == 0 {
					delete(s.images, name)
				}
			}
		}
	}
}

func (s *snapshot) removeNode(name string) {
	n := s.nodes[name]
	if n == nil || n.Node == nil {
		return
	}
	s.forgetNode(n)
	for uid := range n.nominated {
		s.unnominate(uid)
	}
	last := s.order[len(s.order)-1]
	s.order[n.place], last.place = last, n.place
	s.order = s.order[:len(s.order)-1]
	n.Node, n.place = nil, -1
	if len(n.pods) == 0 {
		delete(s.nodes, name)
	}
}

// addPod counts a pod on the node that it names.
func (s *snapshot) addPod(p *podInfo) {
	s.removePod(p.UID)
	s.pods[p.UID] = p
	s.use(p)
	n := s.node(p.Spec.NodeName)
	n.pods[p.UID] = p
	n.requests.add(&p.requests, 1)
	n.scored.add(&p.scored, 1)
	for _, port := range p.ports {
		if n.ports == nil {
			n.ports = map[hostPort]int{}
		}
		n.ports[port]++
	}
	if s.byNamespace[p.Namespace] == nil {
		s.byNamespace[p.Namespace] = map[types.UID]*podInfo{}
	}
	s.byNamespace[p.Namespace][p.UID] = p
	if p.affine() {
		s.affine[p.UID] = p
	}
	if p.owner != "" {
		o := s.owners[p.owner]
		if o == nil {
			o = &ownerCount{nodes: map[*nodeInfo]int64{}, zones: map[string]int64{}}
			s.owners[p.owner] = o
		}
		o.nodes[n]++
		o.zones[n.zone]++
	}
}

// removePod returns the pod that was counted, nil if none was.
func (s *snapshot) removePod(uid types.UID) *podInfo {
	p := s.pods[uid]
	if p == nil {
		return nil
	}
	delete(s.pods, uid)
	s.release(p)
	n := s.nodes[p.Spec.NodeName]
	delete(n.pods, uid)
	n.requests.add(&p.requests, -1)
	n.scored.add(&p.scored, -1)
	for _, port := range p.ports {
		if n.ports[port]--; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
	names := s.byNamespace[p.Namespace]
	delete(names, uid)
	if len(names) == 0 {
		delete(s.byNamespace, p.Namespace)
	}
	delete(s.affine, uid)
	if o := s.owners[p.owner]; o != nil {
		if o.nodes[n]--; o.nodes[n] == 0 {
			delete(o.nodes, n)
		}
		if o.zones[n.zone]--; o.zones[n.zone] == 0 {
			delete(o.zones, n.zone)
		}
		if len(o.nodes) == 0 {
			delete(s.owners, p.owner)
		}
	}
	if n.Node == nil && len(n.pods) == 0 {
		delete(s.nodes, n.name)
	}
	return p
}

// freePort says whether a node has a port for a pod.
func (n *nodeInfo) freePort(p hostPort) bool {
	for taken := range n.ports {
		if p.conflicts(taken) {
			return false
		}
	}
	return true
}

// domain is a node's value of a topology label.
func (n *nodeInfo) domain(key string) (string, bool) {
	v, ok := n.Labels[key]
	return v, ok
}

// unbearable returns the first taint that keeps a pod off a node.
func (n *nodeInfo) unbearable(p *podInfo) *corev1.Taint {
	i := slices.IndexFunc(n.hard, func(t corev1.Taint) bool { return !p.tolerates(&t) })
	if i < 0 {
		return nil
	}
	return &n.hard[i]
}
