package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

var (
	policiesResource   = networkingv1.SchemeGroupVersion.WithResource("networkpolicies")
	namespacesResource = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	podsResource       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
)

// peerPods selects the pods that a policy may mean. One that has ended has no
// address any more, whatever its status says, and one on its host's network
// is the host.
const peerPods = api.PeersSelector + ",spec.hostNetwork=false,status.phase!=Succeeded,status.phase!=Failed"

// policyPatience is how long what an earlier process left in the kernel, and
// what policies say, wait for what they depend on to be seen.
const policyPatience = 3 * time.Second

// policyState is what this node has seen of policies and of what they are
// about. Pods elsewhere and namespaces are followed only while a policy
// depends on them.
//
// The policies and the labels of namespaces are kept in a file too, written
// when they change: so a node that boots with no master in sight isolates the
// pods that it starts. Pods elsewhere, which it cannot know then, it takes for
// strangers.
type policyState struct {
	file    string
	changed func()
	needs   chan struct{} // capacity 1: look again whether peers are needed

	mu    sync.Mutex
	world policyWorld
	raw   map[types.NamespacedName]*networkingv1.NetworkPolicy // what the file keeps
	own   map[types.UID]*policyPod                             // labels and ports of this node's pods; addresses are ipam's
	gone  map[types.UID]struct{}                               // those of own that the cluster no longer has
	// version counts the changes of all this, content those of what the file
	// keeps; kept is the content in the file.
	version, content, kept uint64
	// loaded says that the file was there; patience, that it has run out;
	// newcomer, that a pod was attached which no earlier process knew.
	loaded, patience, newcomer                        bool
	policiesSeen, podsSeen, peersSeen, namespacesSeen bool
}

// keptPolicies is the file.
type keptPolicies struct {
	Policies   []*networkingv1.NetworkPolicy `json:"policies"`
	Namespaces map[string]map[string]string  `json:"namespaces,omitempty"`
}

func openPolicies(dir string, dns netip.Addr, changed func()) (*policyState, error) {
	s := &policyState{
		file: filepath.Join(dir, "policies"), changed: changed, needs: make(chan struct{}, 1),
		raw: map[types.NamespacedName]*networkingv1.NetworkPolicy{}, own: map[types.UID]*policyPod{}, gone: map[types.UID]struct{}{}, version: 1,
		world: policyWorld{dns: dns, policies: map[types.NamespacedName]*policy{}, namespaces: map[string]labels.Set{}, pods: map[string]map[types.UID]*policyPod{}},
	}
	b, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the kept network policies: %w", err)
	}
	var kept keptPolicies
	if err := json.Unmarshal(b, &kept); err != nil {
		return s, nil // a power cut cut it: the cluster will tell
	}
	s.loaded = true
	for _, n := range kept.Policies {
		s.raw[keyOf(n)], s.world.policies[keyOf(n)] = n, parsePolicy(n)
	}
	for name, l := range kept.Namespaces {
		s.world.namespaces[name] = l
	}
	return s, nil
}

// keep writes the file if what is in it has changed.
func (s *policyState) keep() error {
	s.mu.Lock()
	content := s.content
	if !s.policiesSeen || s.kept == content {
		s.mu.Unlock()
		return nil
	}
	var out keptPolicies
	for _, n := range s.raw {
		out.Policies = append(out.Policies, n)
	}
	slices.SortFunc(out.Policies, func(a, b *networkingv1.NetworkPolicy) int { return compareKeys(keyOf(a), keyOf(b)) })
	if s.namespacesSeen && len(out.Policies) > 0 {
		out.Namespaces = map[string]map[string]string{}
		for name, l := range s.world.namespaces {
			out.Namespaces[name] = l
		}
	}
	s.mu.Unlock()
	b, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encoding network policies: %w", err)
	}
	if was, err := os.ReadFile(s.file); err != nil || string(was) != string(b) {
		tmp := s.file + ".new"
		err := os.WriteFile(tmp, b, 0o600)
		if err == nil {
			err = os.Rename(tmp, s.file)
		}
		if err != nil {
			return fmt.Errorf("keeping network policies: %w", errors.Join(err, os.RemoveAll(tmp)))
		}
	}
	s.mu.Lock()
	s.kept = content
	s.mu.Unlock()
	return nil
}

// needPeers says whether a policy depends on pods elsewhere. The lock is held.
func (s *policyState) needPeers() bool {
	for _, p := range s.world.policies {
		if p.wantsPeers() {
			return true
		}
	}
	return false
}

// seen says whether all that policies depend on has been seen. The lock is held.
func (s *policyState) seen() bool {
	return s.policiesSeen && s.podsSeen && (!s.needPeers() || s.peersSeen && s.namespacesSeen)
}

// due says whether the kernel is to have what is known here, which has this
// version. Until all has been seen, or waited for long enough, it is not; and
// after that wait, what an earlier process left there (which knew more) gives
// way only to a pod that it did not know.
func (s *policyState) due(left bool) (version uint64, due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version, s.seen() || s.patience && (!left || s.newcomer)
}

// concern says whether a new pod may be isolated: then its start waits.
func (s *policyState) concern() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.world.policies) > 0 || !s.policiesSeen && !s.loaded && !s.patience
}

// touch says that something has changed. The lock is held.
func (s *policyState) touch() { s.version++ }

// attached tells of a pod before its status, or its object, can be seen here.
// A new one has no link yet.
func (s *policyState) attached(pod *corev1.Pod, isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newcomer = s.newcomer || isNew
	if s.own[pod.UID] == nil {
		s.own[pod.UID] = parsePod(pod)
		s.own[pod.UID].addrs = nil // ipam's
		isNew = true
	}
	if isNew {
		s.touch()
	}
}

func (s *policyState) detached(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touch()
	delete(s.own, uid)
	delete(s.gone, uid)
}

// compile is what the kernel shall do, in one family, for the pods that have
// these addresses, and the version of what it was made of.
func (s *policyState) compile(f *family, pods []reservation) (p *Policies, version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	attached := make(map[types.UID]bool, len(pods))
	w := s.world
	w.local = make([]*policyPod, 0, len(pods))
	for _, r := range pods {
		pod := policyPod{uid: r.UID, namespace: r.Namespace}
		if known := s.own[r.UID]; known != nil {
			pod = *known
		}
		pod.addrs = r.addresses()
		w.local = append(w.local, &pod)
		attached[r.UID] = true
	}
	for uid := range s.gone {
		if !attached[uid] {
			delete(s.gone, uid)
			delete(s.own, uid)
		}
	}
	return w.compile(f), s.version
}

// parsePod keeps of a pod what policies can say of it.
func parsePod(pod *corev1.Pod) *policyPod {
	out := &policyPod{uid: pod.UID, namespace: pod.Namespace, labels: pod.Labels}
	ips := []string{pod.Status.PodIP}
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	out.addrs = parseAddrs(ips)
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.Name != "" {
				out.ports = append(out.ports, namedPort{p.Name, protocolOf(p.Protocol), uint16(p.ContainerPort)})
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return out
}

func (p *policyPod) equal(q *policyPod) bool {
	return p != nil && q != nil && p.uid == q.uid && maps.Equal(p.labels, q.labels) && slices.Equal(p.addrs, q.addrs) && slices.Equal(p.ports, q.ports)
}

// policyHandler receives one resource. Its functions are called with the lock
// held and say whether anything has changed.
type policyHandler struct {
	s       *policyState
	replace func([]api.Object)
	put     func(api.Object) bool
	drop    func(api.Object) bool
}

var _ api.Handler = policyHandler{}

// Replace implements api.Handler.
func (h policyHandler) Replace(objects []api.Object) {
	h.s.mu.Lock()
	h.replace(objects)
	h.s.touch()
	h.s.mu.Unlock()
	h.s.changed()
}

// Apply implements api.Handler.
func (h policyHandler) Apply(event watch.EventType, o api.Object) {
	h.s.mu.Lock()
	var did bool
	switch event {
	case watch.Added, watch.Modified:
		did = h.put(o)
	case watch.Deleted:
		did = h.drop(o)
	}
	if did {
		h.s.touch()
	}
	h.s.mu.Unlock()
	if did {
		h.s.changed()
	}
}

// lookAgain is called when policies have changed, with the lock held.
func (s *policyState) lookAgain() {
	if s.needPeers() && !s.peersSeen {
		s.patience = false
	}
	select {
	case s.needs <- struct{}{}:
	default:
	}
}

func (s *policyState) policyHandler() api.Handler {
	put := func(o api.Object) bool {
		n, ok := o.(*networkingv1.NetworkPolicy)
		if !ok {
			return false
		}
		key := keyOf(n)
		if was := s.raw[key]; was != nil && was.Generation == n.Generation && was.UID == n.UID && was.Generation != 0 {
			return false
		}
		s.content++
		s.raw[key] = &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, UID: n.UID, Generation: n.Generation}, Spec: n.Spec}
		s.world.policies[key] = parsePolicy(n)
		s.lookAgain()
		return true
	}
	return policyHandler{s,
		func(all []api.Object) {
			s.content++
			clear(s.raw)
			clear(s.world.policies)
			for _, o := range all {
				put(o)
			}
			s.policiesSeen = true
			s.lookAgain()
		}, put,
		func(o api.Object) bool {
			s.content++
			delete(s.raw, keyOf(o))
			delete(s.world.policies, keyOf(o))
			s.lookAgain()
			return true
		}}
}

// ownHandler receives this node's pods. One that is gone but still attached is
// forgotten when it is detached.
func (s *policyState) ownHandler() api.Handler {
	put := func(o api.Object) bool {
		pod, ok := o.(*corev1.Pod)
		if !ok || pod.Spec.HostNetwork {
			return false
		}
		delete(s.gone, pod.UID)
		is := parsePod(pod)
		is.addrs = nil // ipam's
		if is.equal(s.own[is.uid]) {
			return false
		}
		s.own[is.uid] = is
		return true
	}
	return policyHandler{s,
		func(all []api.Object) {
			for uid := range s.own {
				s.gone[uid] = struct{}{}
			}
			for _, o := range all {
				put(o)
			}
			s.podsSeen = true
		}, put,
		func(o api.Object) bool { s.gone[o.GetUID()] = struct{}{}; return true }}
}

func (s *policyState) namespaceHandler() api.Handler {
	put := func(o api.Object) bool {
		if was, had := s.world.namespaces[o.GetName()]; had && maps.Equal(was, o.GetLabels()) {
			return false
		}
		s.content++
		s.world.namespaces[o.GetName()] = o.GetLabels()
		return true
	}
	return policyHandler{s,
		func(all []api.Object) {
			s.content++
			clear(s.world.namespaces)
			for _, o := range all {
				put(o)
			}
			s.namespacesSeen = true
		}, put,
		func(o api.Object) bool { s.content++; delete(s.world.namespaces, o.GetName()); return true }}
}

func (s *policyState) peerHandler() api.Handler {
	put := func(o api.Object) bool {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			return false
		}
		is := parsePod(pod)
		of := s.world.pods[is.namespace]
		if is.equal(of[is.uid]) {
			return false
		}
		if of == nil {
			of = map[types.UID]*policyPod{}
			s.world.pods[is.namespace] = of
		}
		of[is.uid] = is
		return true
	}
	return policyHandler{s,
		func(all []api.Object) {
			clear(s.world.pods)
			for _, o := range all {
				put(o)
			}
			s.peersSeen = true
		}, put,
		func(o api.Object) bool {
			of := s.world.pods[o.GetNamespace()]
			delete(of, o.GetUID())
			if len(of) == 0 {
				delete(s.world.pods, o.GetNamespace())
			}
			return true
		}}
}

// tee tells two handlers.
type tee struct{ a, b api.Handler }

func (h tee) Replace(all []api.Object) { h.a.Replace(all); h.b.Replace(all) }

func (h tee) Apply(e watch.EventType, o api.Object) { h.a.Apply(e, o); h.b.Apply(e, o) }

// run follows policies, and what they depend on while they do.
func (s *policyState) run(ctx context.Context, c api.Client) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return ended(ctx, api.Follow(ctx, c, policiesResource, "", metav1.ListOptions{}, s.policyHandler()))
	})
	g.Go(func() error { return s.followPeers(ctx, c) })
	return g.Wait()
}

// followPeers follows pods elsewhere and namespaces while a policy depends on
// them, and ends the patience with what does not come.
func (s *policyState) followPeers(ctx context.Context, c api.Client) error {
	patience := time.NewTimer(policyPatience)
	defer patience.Stop()
	stop := func() error { return nil }
	defer func() { _ = stop() }()
	following := false
	for {
		select {
		case <-ctx.Done():
			return stop()
		case <-patience.C:
			s.mu.Lock()
			s.patience = true
			s.mu.Unlock()
			s.changed()
			continue
		case <-s.needs:
		}
		s.mu.Lock()
		need := s.needPeers()
		s.mu.Unlock()
		if need == following {
			continue
		}
		following = need
		if !need {
			if err := stop(); err != nil {
				return err
			}
			stop = func() error { return nil }
			s.mu.Lock()
			s.world.pods, s.world.namespaces = map[string]map[types.UID]*policyPod{}, map[string]labels.Set{}
			s.peersSeen, s.namespacesSeen = false, false
			s.touch()
			s.mu.Unlock()
			s.changed()
			continue
		}
		patience.Reset(policyPatience)
		inner, cancel := context.WithCancel(ctx)
		g, inner := errgroup.WithContext(inner)
		g.Go(func() error {
			return ended(inner, api.Follow(inner, c, namespacesResource, "", metav1.ListOptions{}, s.namespaceHandler()))
		})
		g.Go(func() error {
			return ended(inner, api.Follow(inner, c, podsResource, "", metav1.ListOptions{FieldSelector: peerPods}, s.peerHandler()))
		})
		stop = func() error { cancel(); return g.Wait() }
	}
}
