package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/types"
)

// Another server is asked what it serves when somebody asks us, and not again for
// a while. While it does not answer, what it said last is shown, marked as stale,
// by which clients know that it is not the whole.

// remoteFresh is how long an answer counts, and how long a server that gave none
// is left alone.
const remoteFresh = 30 * time.Second

// remote is what another server last said.
type remote struct {
	asking sync.Mutex // held by who asks

	// Under remotes' mutex.
	revision uint64 // of the APIService
	until    time.Time
	seen     remoteSeen
	changes  int
}

// remoteSeen is what is known of a group and version of another server.
type remoteSeen struct {
	list    *metav1.APIResourceList // nil: it never said
	stale   bool
	openAPI string // where its OpenAPI document of version 3 is, "" if it has none
}

// extension is one group and version that another server serves.
type extension struct {
	*types.APIService
	revision uint64
	remoteSeen
}

func (b *extension) gv() schema.GroupVersion {
	return schema.GroupVersion{Group: b.Spec.Group, Version: b.Spec.Version}
}

// behindUs are all of them by name, as far as is known, and a text that differs
// when they do.
func (s *Server) behindUs() (all []extension, stamp string) {
	records, _ := s.cfg.Storage.List(apiServicesStored, "")
	var b strings.Builder
	s.remotes.mu.Lock()
	defer s.remotes.mu.Unlock()
	there := map[string]bool{}
	for _, rec := range records {
		o, ok := rec.Object().(*types.APIService)
		if !ok || o.Spec.Service == nil || s.served[schema.GroupVersion{Group: o.Spec.Group, Version: o.Spec.Version}] {
			continue
		}
		one := extension{APIService: o, revision: rec.Revision(), remoteSeen: remoteSeen{stale: true}}
		changes := 0
		if r := s.remotes.byName[o.Name]; r != nil {
			one.remoteSeen, changes = r.seen, r.changes
		}
		if !o.IsAvailable() {
			one.stale = true
		}
		there[o.Name] = true
		all = append(all, one)
		fmt.Fprintf(&b, "%s %s %d %d\n", o.Name, o.UID, one.revision, changes)
	}
	for name := range s.remotes.byName {
		if !there[name] {
			delete(s.remotes.byName, name)
		}
	}
	return all, b.String()
}

// lookBehind asks those servers whose last answer is old what they serve, all at
// once, and returns when they have answered or their time is over.
func (s *Server) lookBehind(ctx context.Context) {
	all, _ := s.behindUs()
	var asked sync.WaitGroup
	for _, b := range all {
		if b.IsAvailable() {
			asked.Go(func() { s.lookAt(ctx, b) })
		}
	}
	asked.Wait()
}

func (s *Server) lookAt(ctx context.Context, b extension) {
	s.remotes.mu.Lock()
	r := s.remotes.byName[b.Name]
	if r == nil {
		r = &remote{seen: remoteSeen{stale: true}}
		if s.remotes.byName == nil {
			s.remotes.byName = map[string]*remote{}
		}
		s.remotes.byName[b.Name] = r
	}
	s.remotes.mu.Unlock()
	r.asking.Lock()
	defer r.asking.Unlock()
	s.remotes.mu.Lock()
	known := r.revision == b.revision && s.cfg.Now().Before(r.until)
	s.remotes.mu.Unlock()
	if known {
		return
	}
	seen, err := s.ask(ctx, b)
	if err != nil && ctx.Err() != nil {
		return // it is who asks that has gone
	}
	s.remotes.mu.Lock()
	defer s.remotes.mu.Unlock()
	if err != nil {
		s.log.Info("an API server behind this one does not say what it serves", "apiservice", b.Name, "error", err)
		seen = r.seen
		seen.stale = true
	}
	r.revision, r.until, r.seen = b.revision, s.cfg.Now().Add(remoteFresh), seen
	r.changes++
}

// ask has a server say what it serves.
func (s *Server) ask(ctx context.Context, b extension) (remoteSeen, error) {
	body, err := s.fetch(ctx, b.APIService, "/apis/"+b.gv().String())
	if err != nil {
		return remoteSeen{}, err
	}
	list := &metav1.APIResourceList{}
	if err := json.Unmarshal(body, list); err != nil || list.Kind != "APIResourceList" {
		return remoteSeen{}, fmt.Errorf("what it says of %s is no APIResourceList: %v", b.gv(), err)
	}
	list.GroupVersion = b.gv().String()
	slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return cmp.Compare(a.Name, b.Name) })
	seen := remoteSeen{list: list}
	body, err = s.fetch(ctx, b.APIService, "/openapi/v3")
	if no, ok := errors.AsType[*badStatus](err); ok && no.code < http.StatusInternalServerError {
		return seen, nil
	}
	if err != nil {
		return remoteSeen{}, err
	}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(body, &index); err != nil {
		return remoteSeen{}, fmt.Errorf("what it says of its OpenAPI documents cannot be read: %w", err)
	}
	if at := index.Paths["apis/"+b.gv().String()].URL; strings.HasPrefix(at, "/openapi/v3/apis/"+b.gv().String()) {
		seen.openAPI = at
	}
	return seen, nil
}

// priority is where discovery lists a group and version: higher ones first.
type priority struct{ group, version int32 }

// Priorities of groups as Kubernetes has them: what they are worth is for clients
// to find what people mean by a name that two groups have.
var groupPriorities = map[string]int32{
	"": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600, "autoscaling": 17500,
	"batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100, "rbac.authorization.k8s.io": 17000,
	"storage.k8s.io": 16800, "apiextensions.k8s.io": 16700, "admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600,
	"coordination.k8s.io": 16500, "node.k8s.io": 16300, "discovery.k8s.io": 16200, "resource.k8s.io": 15900,
}

const (
	customGroupPriority   = 1000
	customVersionPriority = 100
	ownVersionPriority    = 15
)

func ownPriority(gv schema.GroupVersion) priority {
	group, ok := groupPriorities[gv.Group]
	switch {
	case gv.Group == "":
		return priority{group, 1}
	case ok:
		return priority{group, ownVersionPriority}
	}
	return priority{customGroupPriority, customVersionPriority}
}

// LocalAPIServices are the APIServices of what this server serves itself: of the
// built-in kinds, and of custom resources as this replica has them.
func (s *Server) LocalAPIServices() []*types.APIService {
	_, isBuiltin := s.disco.resources[types.Registration]
	if !isBuiltin {
		return nil
	}
	own := func(gv schema.GroupVersion, managed string) *types.APIService {
		p := ownPriority(gv)
		return &types.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group, Labels: map[string]string{ManagedAPIService: managed}},
			Spec:       types.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: p.group, VersionPriority: p.version},
		}
	}
	var all []*types.APIService
	for _, gv := range s.disco.order {
		if gv != types.Registration { // as Kubernetes: it does not register itself
			all = append(all, own(gv, "onstart"))
		}
	}
	definitions, _ := s.definitions()
	seen := map[schema.GroupVersion]bool{}
	for _, d := range definitions {
		for _, r := range d.served(s) {
			if gv := r.gvr.GroupVersion(); !seen[gv] && s.disco.resources[gv] == nil {
				seen[gv] = true
				all = append(all, own(gv, "true"))
			}
		}
	}
	return all
}

// ManagedAPIService is the label of APIServices that the cluster keeps by itself:
// "onstart" of what it always serves, "true" of what comes and goes.
const ManagedAPIService = "kube-aggregator.kubernetes.io/automanaged"

// addBehind puts what other servers serve in the place of what is there by that name.
func (d *discovery) addBehind(all []extension) {
	d.stale, d.priorities = map[schema.GroupVersion]bool{}, map[schema.GroupVersion]priority{}
	for _, b := range all {
		gv := b.gv()
		if d.resources[gv] == nil {
			d.order = append(d.order, gv)
		}
		d.resources[gv] = &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
		if b.list != nil {
			d.resources[gv].APIResources = b.list.APIResources
		}
		d.stale[gv] = b.stale
		d.priorities[gv] = priority{b.Spec.GroupPriorityMinimum, b.Spec.VersionPriority}
	}
}

func (d *discovery) priority(gv schema.GroupVersion) priority {
	if p, ok := d.priorities[gv]; ok {
		return p
	}
	return ownPriority(gv)
}

// sort orders groups and versions by their priorities; equal ones as Kubernetes
// does, groups by name and versions by how stable they are.
func (d *discovery) sort(compareVersions func(a, b string) int) {
	groups := map[string]int32{}
	for _, gv := range d.order {
		groups[gv.Group] = max(groups[gv.Group], d.priority(gv).group)
	}
	slices.SortStableFunc(d.order, func(a, b schema.GroupVersion) int {
		return cmp.Or(cmp.Compare(groups[b.Group], groups[a.Group]), cmp.Compare(a.Group, b.Group),
			cmp.Compare(d.priority(b).version, d.priority(a).version), compareVersions(b.Version, a.Version))
	})
}
