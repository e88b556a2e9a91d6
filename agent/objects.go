package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

var (
	podsResource            = corev1.SchemeGroupVersion.WithResource("pods")
	nodesResource           = corev1.SchemeGroupVersion.WithResource("nodes")
	eventsResource          = corev1.SchemeGroupVersion.WithResource("events")
	servicesResource        = corev1.SchemeGroupVersion.WithResource("services")
	configMapsResource      = corev1.SchemeGroupVersion.WithResource("configmaps")
	secretsResource         = corev1.SchemeGroupVersion.WithResource("secrets")
	serviceAccountsResource = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	claimsResource          = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumesResource         = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
)

const (
	// copyAfter is how long the API is waited for where the disk has a copy,
	objectCopyAfter = 2 * time.Second
	// and where it has none.
	objectWait = 20 * time.Second
)

type objectKey struct {
	resource        schema.GroupVersionResource
	namespace, name string
}

// objectStore follows the ConfigMaps, Secrets and claims that pods here name,
// and the claims' volumes, each once, for as long as a pod needs it.
type objectStore struct {
	a   *Agent
	ctx context.Context // of Run
	wg  *sync.WaitGroup

	mu      sync.Mutex
	entries map[objectKey]*objectEntry
}

type objectEntry struct {
	users  map[types.UID]bool
	stop   context.CancelFunc
	known  chan struct{} // closed when the API has answered
	missed bool          // somebody did not wait for that
	asked  time.Time     // when the API was first asked
	obj    api.Object    // nil: there is none
	final  bool          // it is immutable, and followed no more
}

// hold makes a pod's set of objects exactly these.
func (s *objectStore) hold(uid types.UID, keys map[objectKey]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, e := range s.entries {
		if e.users[uid] && !keys[k] {
			delete(e.users, uid)
			if len(e.users) == 0 {
				e.stop()
				delete(s.entries, k)
			}
		}
	}
	for k := range keys {
		s.follow(uid, k)
	}
}

// add makes a pod hold one object more.
func (s *objectStore) add(uid types.UID, k objectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow(uid, k)
}

func (s *objectStore) follow(uid types.UID, k objectKey) {
	old := s.entries[k]
	if old != nil && (!old.final || old.users[uid]) {
		old.users[uid] = true
		return
	}
	ctx, stop := context.WithCancel(s.ctx)
	e := &objectEntry{users: map[types.UID]bool{uid: true}, stop: stop, known: make(chan struct{}), asked: time.Now()}
	if old != nil { // nobody has looked since whether it is still the same
		maps.Copy(e.users, old.users)
	}
	s.entries[k] = e
	s.wg.Go(func() {
		err := api.Follow(ctx, s.a.cfg.Client, k.resource, k.namespace, metav1.ListOptions{FieldSelector: "metadata.name=" + k.name}, objectHandler{s, k, e})
		if ctx.Err() == nil {
			s.a.log.Error("an object cannot be followed", "resource", k.resource.Resource, "namespace", k.namespace, "name", k.name, "err", err)
		}
	})
}

// objectHandler is the api.Handler of one entry.
type objectHandler struct {
	s *objectStore
	k objectKey
	e *objectEntry
}

func (h objectHandler) Replace(objects []api.Object) {
	var obj api.Object
	for _, o := range objects {
		if o.GetName() == h.k.name {
			obj = o
		}
	}
	h.set(obj)
}

func (h objectHandler) Apply(t watch.EventType, o api.Object) {
	if o.GetName() != h.k.name {
		return
	}
	if t == watch.Deleted {
		o = nil
	}
	h.set(o)
}

func (h objectHandler) set(obj api.Object) {
	h.s.mu.Lock()
	changed := obj == nil != (h.e.obj == nil) || obj != nil && obj.GetResourceVersion() != h.e.obj.GetResourceVersion()
	h.e.obj = obj
	if immutable(obj) && !h.e.final {
		h.e.final = true
		h.e.stop()
	}
	select {
	case <-h.e.known:
	default:
		close(h.e.known)
		changed = h.e.missed // whoever waits gets it in any case
	}
	users := make([]types.UID, 0, len(h.e.users))
	for uid := range h.e.users {
		users = append(users, uid)
	}
	h.s.mu.Unlock()
	if changed {
		for _, uid := range users {
			h.s.a.objectChanged(uid)
		}
	}
}

// immutable says that an object's author has promised not to change it.
func immutable(obj api.Object) bool {
	switch o := obj.(type) {
	case *corev1.ConfigMap:
		return isTrue(o.Immutable)
	case *corev1.Secret:
		return isTrue(o.Immutable)
	}
	return false
}

// get returns an object that the pod holds, nil if there is none. Without an
// answer from the API it falls back on the pod's copy on disk.
func (s *objectStore) get(ctx context.Context, uid types.UID, d podDirs, k objectKey) (api.Object, error) {
	s.mu.Lock()
	e := s.entries[k]
	held := e != nil && e.users[uid]
	s.mu.Unlock()
	if !held {
		return nil, fmt.Errorf("%s %q was not asked for by the pod", k.resource.Resource, k.name)
	}
	file := filepath.Join(d.disk, "objects", k.resource.Resource+"."+k.name)
	_, err := os.Stat(file)
	wait := objectWait
	if err == nil {
		wait = max(0, objectCopyAfter-time.Since(e.asked)) // all objects are waited for together
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-e.known:
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	obj, known := e.obj, false
	select {
	case <-e.known: // which both channels may have been
		known = true
	default:
		e.missed = true
	}
	s.mu.Unlock()
	if known {
		return obj, s.keep(file, obj)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to sync %s cache: timed out waiting for the condition", k.resource.Resource[:len(k.resource.Resource)-1])
	}
	return s.load(file, k)
}

// keep writes the pod's copy of an object, if it is not there already. An empty
// file says that there is no such object.
func (s *objectStore) keep(file string, obj api.Object) error {
	var data []byte
	if obj != nil {
		plain, err := json.Marshal(obj)
		if err != nil {
			return err
		}
		if old, err := s.a.readSealed(file); err == nil && string(old) == string(plain) {
			return nil
		}
		data = plain
	} else if info, err := os.Stat(file); err == nil && info.Size() == 0 {
		return nil
	}
	return s.a.writeSealed(file, data)
}

func (s *objectStore) load(file string, k objectKey) (api.Object, error) {
	data, err := s.a.readSealed(file)
	if err != nil || len(data) == 0 {
		return nil, err
	}
	var obj api.Object
	switch k.resource {
	case configMapsResource:
		obj = &corev1.ConfigMap{}
	case secretsResource:
		obj = &corev1.Secret{}
	case claimsResource:
		obj = &corev1.PersistentVolumeClaim{}
	case volumesResource:
		obj = &corev1.PersistentVolume{}
	case csiDriversResource:
		obj = &storagev1.CSIDriver{}
	case attachmentsResource:
		obj = &storagev1.VolumeAttachment{}
	default:
		return nil, fmt.Errorf("%s: objects of %s are not kept", file, k.resource.Resource)
	}
	if err := json.Unmarshal(data, obj); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return obj, nil
}

// writeSealed keeps a secret on disk; nothing stays nothing.
func (a *Agent) writeSealed(file string, data []byte) error {
	if a.cfg.Seal != nil && len(data) > 0 {
		var err error
		if data, err = a.cfg.Seal(data); err != nil {
			return fmt.Errorf("seal %s: %w", filepath.Base(file), err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return writeDurably(file, data)
}

func (a *Agent) readSealed(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil || len(data) == 0 || a.cfg.Unseal == nil {
		return data, err
	}
	if data, err = a.cfg.Unseal(data); err != nil {
		return nil, fmt.Errorf("unseal %s: %w", filepath.Base(file), err)
	}
	return data, nil
}

// serviceStore keeps the variables of all services, for enableServiceLinks.
type serviceStore struct {
	known chan struct{}
	asked time.Time // when the API was first asked

	mu   sync.Mutex
	vars map[string]map[string]map[string]string // namespace, name, variable
}

func newServiceStore() *serviceStore {
	return &serviceStore{known: make(chan struct{}), asked: time.Now(), vars: map[string]map[string]map[string]string{}}
}

func (s *serviceStore) Replace(objects []api.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.vars)
	for _, o := range objects {
		s.set(o, false)
	}
	select {
	case <-s.known:
	default:
		close(s.known)
	}
}

func (s *serviceStore) Apply(t watch.EventType, o api.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(o, t == watch.Deleted)
}

func (s *serviceStore) set(o api.Object, gone bool) {
	svc, ok := o.(*corev1.Service)
	if !ok {
		return
	}
	vars := serviceVariables(svc)
	if gone || vars == nil {
		delete(s.vars[svc.Namespace], svc.Name)
		return
	}
	if s.vars[svc.Namespace] == nil {
		s.vars[svc.Namespace] = map[string]map[string]string{}
	}
	s.vars[svc.Namespace][svc.Name] = vars
}

// of are the variables of one namespace's services. ok is false before the API
// has told of any.
func (s *serviceStore) of(namespace string) (vars map[string]string, ok bool) {
	select {
	case <-s.known:
	default:
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vars = map[string]string{}
	for _, service := range s.vars[namespace] {
		for k, v := range service {
			vars[k] = v
		}
	}
	return vars, true
}
