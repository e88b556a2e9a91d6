package main

import (
	"net/http"
	"reflect"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/util"

	"conclave/api/custom"
	"conclave/api/kinds"
)

// service is all the routes of one group and version.
type service struct {
	root   string // "/api/v1", "/apis/apps/v1"
	gv     schema.GroupVersion
	routes []common.Route
}

func (s *service) RootPath() string                   { return s.root }
func (s *service) PathParameters() []common.Parameter { return nil }
func (s *service) Routes() []common.Route             { return s.routes }

// route is one operation: kube-openapi's builders read it.
type route struct {
	method, path, id, tag, description string
	action                             string
	gvk                                schema.GroupVersionKind
	parameters                         []common.Parameter
	consumes, produces                 []string
	in, out                            any
	codes                              []int
}

func (r *route) Method() string                 { return r.method }
func (r *route) Path() string                   { return r.path }
func (r *route) OperationName() string          { return r.id }
func (r *route) Parameters() []common.Parameter { return r.parameters }
func (r *route) Description() string            { return r.description }
func (r *route) Consumes() []string             { return r.consumes }
func (r *route) Produces() []string             { return r.produces }
func (r *route) RequestPayloadSample() any      { return r.in }
func (r *route) ResponsePayloadSample() any     { return r.out }

func (r *route) Metadata() map[string]any {
	m := map[string]any{extensionGVK: gvkExtension(r.gvk)}
	if r.action != "" {
		m[extensionAction] = r.action
	}
	return m
}

func (r *route) StatusCodeResponses() []common.StatusCodeResponse {
	var out []common.StatusCodeResponse
	for _, code := range r.codes {
		out = append(out, response{code, r.out})
	}
	return out
}

type response struct {
	code  int
	model any
}

func (r response) Code() int       { return r.code }
func (r response) Message() string { return http.StatusText(r.code) }
func (r response) Model() any      { return r.model }

type parameter struct {
	name, description, dataType string
	kind                        common.ParameterKind
	required                    bool
}

func (p parameter) Name() string               { return p.name }
func (p parameter) Description() string        { return p.description }
func (p parameter) Required() bool             { return p.required }
func (p parameter) Kind() common.ParameterKind { return p.kind }
func (p parameter) DataType() string           { return p.dataType }
func (p parameter) AllowMultiple() bool        { return false }

func inPath(name, description string) common.Parameter {
	return parameter{name: name, description: description, dataType: "string", kind: common.PathParameterKind, required: true}
}

// inQuery are the fields of an options type, with their published
// descriptions.
func inQuery(options interface{ SwaggerDoc() map[string]string }) []common.Parameter {
	var out []common.Parameter
	docs, t := options.SwaggerDoc(), reflect.TypeOf(options)
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "preconditions" {
			continue
		}
		ft := f.Type
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		dataType := "string"
		switch ft.Kind() {
		case reflect.Bool:
			dataType = "boolean"
		case reflect.Int32, reflect.Int64:
			dataType = "integer"
		}
		out = append(out, parameter{name: name, description: docs[name], dataType: dataType, kind: common.QueryParameterKind})
	}
	return out
}

var (
	pretty     = parameter{name: "pretty", description: "If 'true', then the output is pretty printed.", dataType: "string", kind: common.QueryParameterKind}
	body       = parameter{name: "body", dataType: "body", kind: common.BodyParameterKind, required: true}
	optional   = parameter{name: "body", dataType: "body", kind: common.BodyParameterKind}
	mediaTypes = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	watchTypes = []string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"}
	patchTypes = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}
)

// subresource is one path below an object.
type subresource struct {
	name string
	gvk  schema.GroupVersionKind
	// One of these three. What is updated has PUT alone; what is created has POST
	// alone; what is connected has its options as query.
	update  any
	create  any
	connect interface{ SwaggerDoc() map[string]string }
	methods []string // of connect
	out     any      // of connect, a string if nil
}

// subresources are those that no column of the table of kinds tells.
var subresources = map[string][]subresource{
	"pods": {
		{name: "binding", gvk: corev1.SchemeGroupVersion.WithKind("Binding"), create: corev1.Binding{}},
		{name: "eviction", gvk: policyv1.SchemeGroupVersion.WithKind("Eviction"), create: policyv1.Eviction{}},
		{name: "exec", gvk: corev1.SchemeGroupVersion.WithKind("PodExecOptions"), connect: corev1.PodExecOptions{}, methods: []string{"GET", "POST"}},
		{name: "attach", gvk: corev1.SchemeGroupVersion.WithKind("PodAttachOptions"), connect: corev1.PodAttachOptions{}, methods: []string{"GET", "POST"}},
		{name: "portforward", gvk: corev1.SchemeGroupVersion.WithKind("PodPortForwardOptions"), connect: corev1.PodPortForwardOptions{}, methods: []string{"GET", "POST"}},
		{name: "log", gvk: corev1.SchemeGroupVersion.WithKind("Pod"), connect: corev1.PodLogOptions{}, methods: []string{"GET"}},
	},
	"serviceaccounts": {
		{name: "token", gvk: authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), create: authenticationv1.TokenRequest{}},
	},
	"namespaces": {
		{name: "finalize", gvk: corev1.SchemeGroupVersion.WithKind("Namespace"), update: corev1.Namespace{}},
	},
}

// reviews are the kinds that are only ever created, to be answered.
var reviews = []struct {
	gvk        schema.GroupVersionKind
	plural     string
	object     any
	namespaced bool
}{
	{authenticationv1.SchemeGroupVersion.WithKind("TokenReview"), "tokenreviews", authenticationv1.TokenReview{}, false},
	{authenticationv1.SchemeGroupVersion.WithKind("SelfSubjectReview"), "selfsubjectreviews", authenticationv1.SelfSubjectReview{}, false},
	{authorizationv1.SchemeGroupVersion.WithKind("SubjectAccessReview"), "subjectaccessreviews", authorizationv1.SubjectAccessReview{}, false},
	{authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"), "selfsubjectaccessreviews", authorizationv1.SelfSubjectAccessReview{}, false},
	{authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectRulesReview"), "selfsubjectrulesreviews", authorizationv1.SelfSubjectRulesReview{}, false},
	{authorizationv1.SchemeGroupVersion.WithKind("LocalSubjectAccessReview"), "localsubjectaccessreviews", authorizationv1.LocalSubjectAccessReview{}, true},
}

// builder collects services in the order in which they are first named.
type services struct {
	list []*service
	by   map[schema.GroupVersion]*service
}

func (s *services) of(gv schema.GroupVersion) *service {
	if found, ok := s.by[gv]; ok {
		return found
	}
	root := "/apis/" + gv.String()
	if gv.Group == "" {
		root = "/api/" + gv.Version
	}
	made := &service{root: root, gv: gv}
	made.routes = append(made.routes, &route{
		method: "GET", path: root + "/", id: "get" + made.prefix() + "APIResources", tag: made.tag(), description: "get available resources",
		consumes: mediaTypes, produces: mediaTypes, out: metav1.APIResourceList{}, codes: []int{200},
	})
	s.by[gv] = made
	s.list = append(s.list, made)
	return made
}

// prefix is the group and version as operation names have it: "CoreV1".
func (s *service) prefix() string {
	group, _, _ := strings.Cut(s.gv.Group, ".")
	if group == "" {
		group = "core"
	}
	return strings.ToUpper(group[:1]) + group[1:] + strings.ToUpper(s.gv.Version[:1]) + s.gv.Version[1:]
}

func (s *service) tag() string {
	group, _, _ := strings.Cut(s.gv.Group, ".")
	if group == "" {
		group = "core"
	}
	return group + "_" + s.gv.Version
}

func (s *service) add(r route) {
	r.tag = s.tag()
	if r.consumes == nil {
		r.consumes = []string{"*/*"}
	}
	if r.produces == nil {
		r.produces = mediaTypes
	}
	s.routes = append(s.routes, &r)
}

func routes() []*service {
	all := &services{by: map[schema.GroupVersion]*service{}}
	for _, k := range custom.Kinds() {
		all.of(k.GVK.GroupVersion()).addKind(k)
	}
	for _, r := range reviews {
		s := all.of(r.gvk.GroupVersion())
		path, scope, parameters := s.root+"/"+r.plural, "", []common.Parameter{pretty}
		if r.namespaced {
			path, scope = s.root+"/namespaces/{namespace}/"+r.plural, "Namespaced"
			parameters = append(parameters, namespaceParameter)
		}
		parameters = append(append(parameters, body), inQuery(metav1.CreateOptions{})...)
		s.add(route{
			method: "POST", path: path, id: "create" + s.prefix() + scope + r.gvk.Kind, description: "create a " + r.gvk.Kind,
			action: "post", gvk: r.gvk, parameters: parameters, in: r.object, out: r.object, codes: []int{200, 201, 202},
		})
	}
	return all.list
}

var namespaceParameter = inPath("namespace", "object name and auth scope, such as for teams and projects")

func (s *service) addKind(k *kinds.Kind) {
	if _, ok := k.New().(interface{ Marshal() ([]byte, error) }); !ok {
		defer func(before int) { withoutProtobuf(s.routes[before:]) }(len(s.routes))
	}
	kind, object, list := k.GVK.Kind, k.New(), k.NewList()
	base, scope := s.root+"/"+k.Plural, ""
	common_ := []common.Parameter{pretty}
	listOptions := inQuery(metav1.ListOptions{})
	if k.Namespaced {
		s.add(route{
			method: "GET", path: base, id: "list" + s.prefix() + kind + "ForAllNamespaces", description: "list or watch objects of kind " + kind,
			action: "list", gvk: k.GVK, parameters: append([]common.Parameter{pretty}, listOptions...),
			produces: append(mediaTypes[:3:3], watchTypes...), out: list, codes: []int{200},
		})
		base, scope = s.root+"/namespaces/{namespace}/"+k.Plural, "Namespaced"
		common_ = append(common_, namespaceParameter)
	}
	name := s.prefix() + scope + kind
	with := func(more ...[]common.Parameter) []common.Parameter {
		out := common_[:len(common_):len(common_)]
		for _, m := range more {
			out = append(out, m...)
		}
		return out
	}
	add := func(method, verb, path, id, description, action string, gvk schema.GroupVersionKind, parameters []common.Parameter, in, out any, codes ...int) {
		r := route{method: method, path: path, id: verb + id, description: description, action: action, gvk: gvk, parameters: parameters, in: in, out: out, codes: codes}
		if method == "PATCH" {
			r.consumes = patchTypes
		}
		if action == "list" {
			r.produces = append(mediaTypes[:3:3], watchTypes...)
		}
		s.add(r)
	}
	bodies, optionals := []common.Parameter{body}, []common.Parameter{optional}
	add("GET", "list", base, name, "list or watch objects of kind "+kind, "list", k.GVK, with(listOptions), nil, list, 200)
	add("POST", "create", base, name, "create "+article(kind), "post", k.GVK, with(bodies, inQuery(metav1.CreateOptions{})), object, object, 200, 201, 202)
	add("DELETE", "delete", base, s.prefix()+"Collection"+scope+kind, "delete collection of "+kind, "deletecollection", k.GVK,
		with(optionals, merge(listOptions, inQuery(metav1.DeleteOptions{}))), metav1.DeleteOptions{}, metav1.Status{}, 200)

	one := base + "/{name}"
	common_ = append(common_, inPath("name", "name of the "+kind))
	addUpdates := func(path, id, what string, gvk schema.GroupVersionKind, object any) {
		add("GET", "read", path, id, "read "+what, "get", gvk, with(), nil, object, 200)
		add("PUT", "replace", path, id, "replace "+what, "put", gvk, with(bodies, inQuery(metav1.UpdateOptions{})), object, object, 200, 201)
		add("PATCH", "patch", path, id, "partially update "+what, "patch", gvk, with(bodies, inQuery(metav1.PatchOptions{})), metav1.Patch{}, object, 200, 201)
	}
	addUpdates(one, name, "the specified "+kind, k.GVK, object)
	add("DELETE", "delete", one, name, "delete "+article(kind), "delete", k.GVK, with(optionals, inQuery(metav1.DeleteOptions{})), metav1.DeleteOptions{}, metav1.Status{}, 200, 202)
	if k.Status {
		addUpdates(one+"/status", name+"Status", "status of the specified "+kind, k.GVK, object)
	}
	if k.GetScale != nil {
		addUpdates(one+"/scale", name+"Scale", "scale of the specified "+kind, autoscalingv1.SchemeGroupVersion.WithKind("Scale"), autoscalingv1.Scale{})
	}
	title := func(sub string) string { return strings.ToUpper(sub[:1]) + sub[1:] }
	for _, sub := range k.Subs {
		addUpdates(one+"/"+sub.Name, name+title(sub.Name), sub.Name+" of the specified "+kind, k.GVK, object)
	}
	for _, sub := range subresources[k.Resource()] {
		path, title := one+"/"+sub.name, title(sub.name)
		switch {
		case sub.update != nil:
			add("PUT", "replace", path, name+title, "replace "+sub.name+" of the specified "+kind, "put", sub.gvk, with(bodies, inQuery(metav1.UpdateOptions{})), sub.update, sub.update, 200, 201)
		case sub.create != nil:
			add("POST", "create", path, name+title, "create "+sub.name+" of "+article(kind), "post", sub.gvk, with(bodies, inQuery(metav1.CreateOptions{})), sub.create, sub.create, 200, 201, 202)
		default:
			for _, method := range sub.methods {
				verb, action := "connect", "connect"
				id := s.prefix() + method[:1] + strings.ToLower(method[1:]) + scope + kind + title
				if sub.name == "log" {
					verb, action, id = "read", "get", name+"Log"
				}
				add(method, verb, path, id, verb+" "+sub.name+" of the specified "+kind, action, sub.gvk, with(inQuery(sub.connect)), nil, "", 200)
			}
		}
	}
}

// withoutProtobuf is for kinds that have no form in it.
func withoutProtobuf(routes []common.Route) {
	for _, r := range routes {
		r := r.(*route)
		for _, media := range []*[]string{&r.produces, &r.consumes} {
			*media = slices.DeleteFunc(slices.Clone(*media), func(m string) bool { return strings.Contains(m, "protobuf") })
		}
	}
}

// merge is both lists, each name once.
func merge(a, b []common.Parameter) []common.Parameter {
	out, seen := a[:len(a):len(a)], map[string]bool{}
	for _, p := range a {
		seen[p.Name()] = true
	}
	for _, p := range b {
		if !seen[p.Name()] {
			out = append(out, p)
		}
	}
	return out
}

func article(kind string) string {
	if strings.ContainsAny(kind[:1], "AEIO") {
		return "an " + kind
	}
	return "a " + kind
}

// modelKinds tells which models are objects of their own, by model name: those
// of the table, their lists, and what is sent to and from subresources.
func modelKinds(all []*service) map[string][]schema.GroupVersionKind {
	out := map[string][]schema.GroupVersionKind{}
	add := func(model any, gvk schema.GroupVersionKind) {
		name := modelName(util.GetCanonicalTypeName(model))
		out[name] = append(out[name], gvk)
	}
	for _, k := range custom.Kinds() {
		add(k.New(), k.GVK)
		add(k.NewList(), k.GVK.GroupVersion().WithKind(k.GVK.Kind+"List"))
	}
	for _, r := range reviews {
		add(r.object, r.gvk)
	}
	for _, list := range subresources {
		for _, sub := range list {
			if sub.create != nil {
				add(sub.create, sub.gvk)
			}
		}
	}
	add(autoscalingv1.Scale{}, autoscalingv1.SchemeGroupVersion.WithKind("Scale"))
	for _, s := range all {
		add(metav1.DeleteOptions{}, s.gv.WithKind("DeleteOptions"))
		add(metav1.WatchEvent{}, s.gv.WithKind("WatchEvent"))
	}
	v1 := schema.GroupVersion{Version: "v1"}
	add(metav1.Status{}, v1.WithKind("Status"))
	add(metav1.APIResourceList{}, v1.WithKind("APIResourceList"))
	return out
}
