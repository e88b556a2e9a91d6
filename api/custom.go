package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"conclave/api/custom"
	"conclave/api/openapi"
	"conclave/api/webhook"
)

// The rows of custom resources are not kept in the table: they are made of the
// definitions in the store when somebody asks for them, and asked anew with each
// request whether the definition is still the one that they were made of. So
// every replica serves what its store says, without being told, and a cluster
// without definitions has nothing but the question.

// customs are the definitions whose resources somebody asked for.
type customs struct {
	mu     sync.Mutex
	byName map[string]*definition
	// disco and docs are of all definitions together, as they were at stamp, and
	// disco of what other servers serve besides, as it was at behind.
	stamp, behind string
	disco         *discovery
	docs          []openapi.Document
}

// definition is one definition at work. All but its rows is fixed.
type definition struct {
	name   string
	object *custom.Definition // shared, as the store has it
	life   context.Context    // ends when it is served no more, or otherwise
	end    context.CancelFunc

	// latest is the newest object that is served alike. Under customs' mutex.
	latest *custom.Definition
	// converter is the webhook that converts between versions, nil if none does.
	converter *webhook.Converter

	between renamer // converts for who keeps account of fields

	mu   sync.Mutex
	rows map[string]*resource // by version
	// typed knows the schemas of all versions; made when a write needs it.
	typed func() (managedfields.TypeConverter, error)
}

// Watches of a custom resource outlive its definition by this much, so that
// they can tell of the end of its last objects.
const watchGrace = time.Second

// serves says that a definition is served as it was.
func (d *definition) serves(o *custom.Definition) bool {
	was := d.object
	return d.latest == o || was.UID == o.UID && equality.Semantic.DeepEqual(was.Status.AcceptedNames, o.Status.AcceptedNames) && equality.Semantic.DeepEqual(was.Spec, o.Spec)
}

// definition is the definition of a resource as this replica has it; nil if
// there is none, or its names are not accepted.
func (s *Server) definition(gr schema.GroupResource) *definition {
	c := &s.customs
	name := gr.String()
	c.mu.Lock()
	defer c.mu.Unlock()
	var object *custom.Definition
	if rec := s.cfg.Storage.Get(definitionsStored, "", name); rec != nil {
		if o, ok := rec.Object().(*custom.Definition); ok && custom.IsServed(o) {
			object = o
		}
	}
	d := c.byName[name]
	if d != nil && (object == nil || !d.serves(object)) {
		time.AfterFunc(watchGrace, d.end)
		delete(c.byName, name)
		d = nil
	}
	if d == nil && object != nil {
		d = &definition{name: name, object: object, rows: map[string]*resource{}, converter: converterOf(object)}
		d.between = renamer{}
		if d.converter != nil {
			d.between.convert = func(u *unstructured.Unstructured, to schema.GroupVersionKind) (Object, error) {
				return s.convertOne(d.life, d, u, to)
			}
		}
		d.typed = sync.OnceValues(func() (managedfields.TypeConverter, error) { return customTypes(object) })
		d.life, d.end = context.WithCancel(s.ending)
		if c.byName == nil {
			c.byName = map[string]*definition{}
		}
		c.byName[name] = d
	}
	if d != nil {
		d.latest = object
	}
	return d
}

// isEnding says that a definition is being deleted.
func (s *Server) isEnding(d *definition) bool {
	s.customs.mu.Lock()
	defer s.customs.mu.Unlock()
	return d.latest.DeletionTimestamp != nil
}

var definitionsStored = custom.Definitions.GroupResource().String()

// row is the row of a version; nil if there is none, or it is not served and
// has to be.
func (d *definition) row(s *Server, version string, served bool) *resource {
	i := slices.IndexFunc(d.object.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == version })
	if i < 0 || served && !d.object.Spec.Versions[i].Served {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.rows[version]; r != nil {
		return r
	}
	k, err := custom.NewKind(d.object, version)
	if err != nil {
		s.log.Error("a custom resource cannot be served", "definition", d.name, "error", err)
		return nil
	}
	r := newResource(k)
	r.def, r.hooks = d, hooks{admit: admitCustom}
	r.as = strings.Join([]string{version, string(d.object.UID), strconv.FormatInt(d.object.Generation, 10)}, " ")
	d.rows[version] = r
	return r
}

// resource is the row of a resource as this replica has it, nil if there is
// none. In process, versions that are not served are there, too: somebody has to
// look after their objects.
func (s *Server) resource(r schema.GroupVersionResource) *resource { return s.find(r, false) }

func (s *Server) find(r schema.GroupVersionResource, served bool) *resource {
	if row := s.table.Load().byGVR[r]; row != nil {
		return row
	}
	if s.builtin(r.GroupResource()) {
		return nil
	}
	if d := s.definition(r.GroupResource()); d != nil {
		return d.row(s, r.Version, served)
	}
	return nil
}

// builtin says whether a resource has a row of its own in some version: then no
// definition can take it over.
func (s *Server) builtin(gr schema.GroupResource) bool {
	return slices.ContainsFunc(s.table.Load().rows, func(r *resource) bool { return r.gr() == gr })
}

// resourceNow is a resource that is served; before it says that there is none
// it lets this replica catch up.
func (s *Server) resourceNow(ctx context.Context, r schema.GroupVersionResource) (*resource, error) {
	if row := s.find(r, true); row != nil || !strings.Contains(r.Group, ".") || s.table.Load().byGVR[custom.Definitions] == nil {
		return row, nil
	}
	if err := s.cfg.Storage.Sync(ctx); err != nil {
		return nil, storageError(err, r.GroupResource(), "")
	}
	return s.find(r, true), nil
}

// followDefinitions ends the watches of custom resources whose definition went
// or changed, though nobody asks for them, until ctx ends. Where the store cannot
// be followed it tries again: requests do not depend on it.
func (s *Server) followDefinitions(ctx context.Context) error {
	for {
		err := s.followOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrExpired) {
			continue // it was too slow, and begins anew
		}
		s.log.Warn("the definitions of custom resources cannot be followed", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchGrace):
		}
	}
}

func (s *Server) followOnce(ctx context.Context) error {
	_, w, err := s.cfg.Storage.ListAndWatch(definitionsStored, "")
	if err != nil {
		return err
	}
	defer w.Stop()
	for _, name := range s.customs.names() { // what a gap may have hidden
		s.definition(schema.ParseGroupResource(name))
	}
	for {
		events, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			name := e.Record.Object().GetName()
			if slices.Contains(s.customs.names(), name) {
				s.definition(schema.ParseGroupResource(name))
			}
		}
	}
}

func (c *customs) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(c.byName))
	for name := range c.byName {
		names = append(names, name)
	}
	return names
}

// definitions are those that are served, by name, and a text that differs
// when they do.
func (s *Server) definitions() (all []*definition, stamp string) {
	records, _ := s.cfg.Storage.List(definitionsStored, "")
	var b strings.Builder
	for _, rec := range records {
		o, ok := rec.Object().(*custom.Definition)
		if !ok || !custom.IsTrue(o, custom.Established) || s.builtin(schema.ParseGroupResource(o.Name)) {
			continue
		}
		if d := s.definition(schema.ParseGroupResource(o.Name)); d != nil {
			all = append(all, d)
			fmt.Fprintf(&b, "%s %d\n", o.Name, rec.Revision())
		}
	}
	return all, b.String()
}

// served are the rows of all versions of a definition that are served.
func (d *definition) served(s *Server) (rows []*resource) {
	for _, v := range d.object.Spec.Versions {
		if r := d.row(s, v.Name, true); r != nil {
			rows = append(rows, r)
		}
	}
	return rows
}

// discovery is what this replica serves now, and what the servers behind it last
// said that they do.
func (s *Server) discovery() *discovery {
	all, stamp := s.definitions()
	others, behind := s.behindUs()
	c := &s.customs
	c.mu.Lock()
	if c.stamp != stamp || len(all) == 0 {
		c.docs = nil // what there was may go
	}
	if len(all) == 0 && len(others) == 0 {
		c.stamp, c.behind, c.disco = "", "", nil
		c.mu.Unlock()
		return &s.disco
	}
	d := c.disco
	fresh := d != nil && c.stamp == stamp && c.behind == behind
	c.mu.Unlock()
	if fresh {
		return d
	}
	rows := slices.Clone(s.table.Load().rows)
	for _, def := range all {
		rows = append(rows, def.served(s)...)
	}
	d = &discovery{}
	d.build(s, rows, others)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stamp, c.behind, c.disco = stamp, behind, d
	return d
}

// verbs are what a resource can be asked for.
func (s *Server) verbs(r *resource) metav1.Verbs {
	if r.def != nil && s.isEnding(r.def) {
		return slices.DeleteFunc(slices.Clone(allVerbs), func(v string) bool { return v == "create" || v == "patch" || v == "update" })
	}
	return allVerbs
}

// storedGVK is the kind and version in which objects are stored.
func (r *resource) storedGVK() schema.GroupVersionKind {
	if r.def == nil {
		return r.GVK
	}
	return r.GVK.GroupKind().WithVersion(custom.StorageVersion(r.def.object))
}

// outdated says that a record is of another version than objects are stored in
// now: writing it, though nothing changes, moves it on.
func (r *resource) outdated(rec Record) bool {
	v, ok := rec.(*viewed)
	return ok && r.def != nil && v.Record.Object().GetObjectKind().GroupVersionKind() != r.storedGVK()
}

// admitCustom refuses new objects of a definition that is being deleted.
func admitCustom(_ context.Context, c *call, obj, old Object) error {
	if old != nil {
		return nil
	}
	rec := c.s.cfg.Storage.Get(definitionsStored, "", c.res.def.name)
	if rec != nil && rec.Object().GetDeletionTimestamp() == nil {
		return nil
	}
	return forbiddenObject(c.res.gr(), obj.GetName(), "create not allowed while custom resource definition is terminating")
}

// withoutProtobuf settles on a form of answer for a kind that has no protobuf,
// such as a custom resource, and warns of a version of that which is going. It is
// false where the client accepts nothing else.
func (x *exchange) withoutProtobuf(r *resource) bool {
	if r.def != nil {
		if text := custom.Deprecation(r.def.object, r.gvr.Version); text != "" {
			x.warn(text)
		}
	}
	if x.target.Subresource == "scale" {
		return true // it has
	}
	f, ok := negotiate(x.r.Header.Get("Accept"), true, mediaProtobuf)
	if !ok {
		f = format{media: mediaJSON}
	}
	x.format = f
	return ok
}
