package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"

	"conclave/api/flow"
)

const (
	// A request that is not a stream is given up after this long.
	requestTime = 60 * time.Second
	// Answers smaller than this are not worth the processor that gzip takes.
	gzipFrom = 128 << 10
	// Lists of more objects than this are sent while they are encoded, this many
	// bytes at a time.
	streamFrom   = 500
	streamBuffer = 64 << 10
)

// exchange is one HTTP request and its answer.
type exchange struct {
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	user   User
	target target
	query  url.Values
	format format
	warned map[string]bool
	seat   flow.Seat
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{s: s, w: w, r: r, query: r.URL.Query(), format: format{media: mediaJSON}}
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			s.log.Error("request failed in code", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			x.fail(apierrors.NewInternalError(errors.New("this request caused apiserver to panic. Look in the logs of the server for details")))
		}
	}()
	if err := x.serve(); err != nil {
		x.fail(err)
	}
}

// serve answers, or returns why not.
func (x *exchange) serve() error {
	remote := x.s.remoteAt(x.r.URL.Path)
	if remote == nil {
		x.target = parseTarget(x.r.Method, x.r.URL.Path, x.query)
	} else {
		x.target = remoteTarget(x.r.Method, x.r.URL.Path, x.query)
	}
	isResource := x.target.Path == ""
	if f, ok := negotiate(x.r.Header.Get("Accept"), isResource); ok {
		x.format = f
	} else if isResource && !x.streams() && remote == nil {
		return notAcceptable()
	}
	user, err := x.s.authenticate(x.r)
	if err != nil {
		return err
	}
	if x.user, err = x.s.impersonate(x.r, user); err != nil {
		return err
	}
	ctx := x.r.Context()
	if isResource && remote == nil && x.target.Verb != "watch" && !x.streams() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTime)
		defer cancel()
	}
	if err := x.enter(ctx); err != nil {
		return err
	}
	defer x.seat.Leave()
	if err := x.s.authorize(ctx, x.user, x.target.Attributes); err != nil {
		return err
	}
	if remote != nil {
		return x.handOn(remote)
	}
	if !isResource {
		return x.path()
	}
	return x.resource(ctx)
}

// streams says that the answer is not an object but bytes of a node's.
func (x *exchange) streams() bool {
	switch x.target.Subresource {
	case "log", "exec", "attach", "portforward", "proxy":
		return true
	}
	return false
}

// warn adds a Warning header, once for each text.
func (x *exchange) warn(text string) {
	if x.warned[text] {
		return
	}
	if x.warned == nil {
		x.warned = map[string]bool{}
	}
	x.warned[text] = true
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(clean)
	x.w.Header().Add("Warning", `299 - "`+quoted+`"`)
}

// options reads query parameters into one of metav1's option types.
func (x *exchange) options(into runtime.Object) error {
	if err := paramCodec().DecodeParameters(x.query, schema.GroupVersion{Version: "v1"}, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

func (x *exchange) listOptions() (*internalOptions, error) {
	var o internalOptions
	if err := internalscheme.ParameterCodec.DecodeParameters(x.query, metav1.SchemeGroupVersion, &o); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &o, nil
}

// resource answers a request for a resource.
func (x *exchange) resource(ctx context.Context) error {
	t := x.target
	if review := x.s.reviews[t.Resource]; review != nil && t.Subresource == "" {
		return x.review(ctx, review)
	}
	if t.Resource.GroupVersion() == metricsVersion {
		return x.metrics(ctx)
	}
	res, err := x.s.resourceNow(ctx, t.Resource)
	if err != nil {
		return err
	}
	if res == nil {
		if remote := x.s.remoteOf(t.Resource.GroupVersion()); remote != nil { // that we have heard of meanwhile
			return x.handOn(remote)
		}
		return errNoSuchPath
	}
	if res.json && !x.withoutProtobuf(res) {
		return notAcceptable()
	}
	c := &call{
		s: x.s, res: x.s.shownTo(x.user, res, t.Attributes), user: x.user, namespace: t.Namespace, name: t.Name, sub: t.Subresource,
		tracked: true, manager: managerOf(x.r.UserAgent()), warn: x.warn,
	}
	if t.collection {
		c.name = ""
	}
	if !res.Namespaced {
		// Who may something in a namespace may not therefore do it elsewhere. The
		// namespace itself is, to the rules, in itself.
		if t.Namespace != "" && (res.gvr != namespaces || t.Name != t.Namespace) {
			return errNoSuchPath
		}
		c.namespace = ""
	} else if c.namespace == "" && (c.name != "" || t.Verb == "create") {
		return errNoSuchPath
	}
	if c.sub != "" {
		if handled, err := x.subresource(ctx, c); handled {
			return err
		}
	}
	switch t.Verb {
	case "get", "list", "watch":
		if x.s.cfg.Stale != nil && x.query.Get("resourceVersion") == "0" {
			why, err := x.s.cfg.Stale(ctx)
			if err != nil {
				return c.storageError(err)
			}
			if why != "" {
				x.warn(why)
			}
		}
	}
	switch t.Verb {
	case "get":
		return x.get(ctx, c)
	case "list":
		return x.list(ctx, c)
	case "watch":
		return x.watch(ctx, c)
	case "create":
		return x.create(ctx, c)
	case "update":
		return x.update(ctx, c)
	case "patch":
		return x.patch(ctx, c)
	case "delete":
		return x.delete(ctx, c)
	case "deletecollection":
		return x.deleteCollection(ctx, c)
	}
	return x.methodNotAllowed()
}

func (x *exchange) methodNotAllowed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: metav1.StatusReasonMethodNotAllowed,
		Message: "the server does not allow this method on the requested resource", Details: &metav1.StatusDetails{},
	}}
}

// errNoSuchPath is the answer where there is nothing by that path.
var errNoSuchPath = &apierrors.StatusError{ErrStatus: metav1.Status{
	Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
	Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
}}

// managerOf is the name by which a program owns fields, where it says none.
func managerOf(userAgent string) string {
	name, _, _ := strings.Cut(userAgent, "/")
	if len(name) > 128 {
		name = name[:128]
	}
	return strings.TrimSpace(name)
}

func (x *exchange) get(ctx context.Context, c *call) error {
	var o metav1.GetOptions
	if err := x.options(&o); err != nil {
		return err
	}
	f, err := c.facet()
	if err != nil {
		return err
	}
	rec, err := c.get(ctx, o, true)
	if err != nil {
		return err
	}
	if rec, err = c.shown(f, rec, nil); err != nil {
		return err
	}
	return x.record(c, http.StatusOK, rec)
}

func (x *exchange) list(ctx context.Context, c *call) error {
	o, err := x.listOptions()
	if err != nil {
		return err
	}
	l, err := c.list(ctx, o, true)
	if err != nil {
		return err
	}
	return x.listing(c, l)
}

func (x *exchange) create(ctx context.Context, c *call) error {
	if c.name != "" {
		return x.methodNotAllowed()
	}
	var o metav1.CreateOptions
	if err := x.options(&o); err != nil {
		return err
	}
	obj, err := x.body(c.res.New(), c.res.GVK, c.res.Decoded, o.FieldValidation)
	if err != nil {
		return err
	}
	rec, err := c.create(ctx, obj, o)
	if err != nil {
		return err
	}
	return x.record(c, http.StatusCreated, rec)
}

// body reads the object that a request carries.
func (x *exchange) body(into runtime.Object, gvk schema.GroupVersionKind, decoded func(runtime.Object) ([]string, error), validation string) (Object, error) {
	data, err := readBody(x.r)
	if err != nil {
		return nil, err
	}
	obj, err := decodeBody(data, bodyMedia(x.r.Header.Get("Content-Type")), validation, into, gvk, decoded, x.warn)
	if err != nil {
		return nil, err
	}
	return obj.(Object), nil
}

func (x *exchange) update(ctx context.Context, c *call) error {
	if c.name == "" {
		return x.methodNotAllowed()
	}
	var o metav1.UpdateOptions
	if err := x.options(&o); err != nil {
		return err
	}
	f, err := c.facet()
	if err != nil {
		return err
	}
	into, err := c.newOf(f.gvk)
	if err != nil {
		return err
	}
	obj, err := x.body(into, f.gvk, c.decodedOf(f.gvk), o.FieldValidation)
	if err != nil {
		return err
	}
	if obj.GetName() == "" {
		return apierrors.NewBadRequest("name must be provided")
	}
	rec, err := c.updateSub(ctx, obj, o)
	if err != nil {
		return err
	}
	return x.record(c, http.StatusOK, rec)
}

func (x *exchange) patch(ctx context.Context, c *call) error {
	if c.name == "" {
		return x.methodNotAllowed()
	}
	var o metav1.PatchOptions
	if err := x.options(&o); err != nil {
		return err
	}
	data, err := readBody(x.r)
	if err != nil {
		return err
	}
	media, _, _ := strings.Cut(x.r.Header.Get("Content-Type"), ";")
	rec, created, err := c.patch(ctx, types.PatchType(strings.TrimSpace(media)), data, o)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	return x.record(c, code, rec)
}

// deleteOptions are in the body or, where there is none, in the query.
func (x *exchange) deleteOptions() (metav1.DeleteOptions, error) {
	var o metav1.DeleteOptions
	data, err := readBody(x.r)
	if err != nil {
		return o, err
	}
	if len(data) == 0 {
		return o, x.options(&o)
	}
	media := bodyMedia(x.r.Header.Get("Content-Type"))
	pair, ok := bodyCodecs()[media]
	if !ok {
		return o, unsupportedMedia(media, acceptable...)
	}
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"}
	if _, _, err := pair[0].Decode(data, &gvk, &o); err != nil {
		return o, apierrors.NewBadRequest(fmt.Sprintf("delete options: %v", err))
	}
	return o, nil
}

func (x *exchange) delete(ctx context.Context, c *call) error {
	if c.sub != "" {
		return x.methodNotAllowed()
	}
	o, err := x.deleteOptions()
	if err != nil {
		return err
	}
	rec, gone, err := c.remove(ctx, o)
	if err != nil {
		return err
	}
	obj := rec.Object()
	if gone && !c.res.hooks.answersDeleted {
		return x.object(http.StatusOK, &metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
			Details: &metav1.StatusDetails{Name: obj.GetName(), Group: c.res.gvr.Group, Kind: c.res.gvr.Resource, UID: obj.GetUID()},
		})
	}
	return x.record(c, http.StatusOK, rec)
}

func (x *exchange) deleteCollection(ctx context.Context, c *call) error {
	o, err := x.deleteOptions()
	if err != nil {
		return err
	}
	lo, err := x.listOptions()
	if err != nil {
		return err
	}
	l, err := c.removeAll(ctx, o, lo)
	if err != nil {
		return err
	}
	return x.listing(c, l)
}

// record answers with one object, in the form that the client accepts.
func (x *exchange) record(c *call, code int, rec Record) error {
	switch x.format.as {
	case "Table":
		t, err := x.tableOf(c, listing{records: []Record{rec}}, false)
		if err != nil {
			return err
		}
		t.ResourceVersion = rec.Object().GetResourceVersion()
		return x.object(code, t)
	case "PartialObjectMetadata":
		return x.object(code, partial(rec.Object(), x.format.gv))
	case "PartialObjectMetadataList":
		return notAcceptable()
	}
	b, err := encodeRecord(rec, x.format.media)
	if err != nil {
		return err
	}
	return x.bytes(code, b)
}

// listing answers with a list.
func (x *exchange) listing(c *call, l listing) error {
	switch x.format.as {
	case "Table":
		t, err := x.tableOf(c, l, false)
		if err != nil {
			return err
		}
		return x.object(http.StatusOK, t)
	case "PartialObjectMetadata":
		return notAcceptable()
	case "PartialObjectMetadataList":
		list := &metav1.PartialObjectMetadataList{TypeMeta: typeMeta(x.format.gv.WithKind("PartialObjectMetadataList")), ListMeta: l.meta()}
		list.Items = make([]metav1.PartialObjectMetadata, len(l.records))
		for i, rec := range l.records {
			list.Items[i] = *partial(rec.Object(), x.format.gv)
		}
		return x.object(http.StatusOK, list)
	}
	if x.format.media == mediaJSON && len(l.records) > streamFrom && x.r.Method != http.MethodHead {
		return x.stream(func(w io.Writer) error { return writeListing(w, c.res, l) })
	}
	b, err := encodeListing(c.res, l, x.format.media)
	if err != nil {
		return err
	}
	return x.bytes(http.StatusOK, b)
}

// stream answers with a body that is too long to be in memory as a whole. An error
// in the middle of it ends the connection: nothing else would tell the client.
func (x *exchange) stream(write func(io.Writer) error) error {
	x.describe()
	b := bufio.NewWriterSize(x.w, streamBuffer)
	w, end := io.Writer(b), func() error { return nil }
	if x.zips() {
		x.w.Header().Set("Content-Encoding", "gzip")
		zw, err := gzip.NewWriterLevel(b, gzip.BestSpeed)
		if err != nil {
			return err
		}
		w, end = zw, zw.Close
	}
	x.w.WriteHeader(http.StatusOK)
	err := write(w)
	if err == nil {
		err = end()
	}
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		if x.r.Context().Err() == nil {
			x.s.log.Error("an answer was cut off", "path", x.r.URL.Path, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// describe sets what every body has in its header.
func (x *exchange) describe() {
	h := x.w.Header()
	h.Set("Content-Type", x.format.media)
	h.Set("Cache-Control", "no-cache, private")
	h.Add("Vary", "Accept")
}

// zips says whether the client takes gzip.
func (x *exchange) zips() bool { return strings.Contains(x.r.Header.Get("Accept-Encoding"), "gzip") }

// object answers with an object that says its own kind.
func (x *exchange) object(code int, obj runtime.Object) error {
	b, err := encodeObject(obj, x.format.media)
	if err != nil {
		return err
	}
	return x.bytes(code, b)
}

// bytes answers with a body in the negotiated media type.
func (x *exchange) bytes(code int, b []byte) error {
	x.describe()
	h := x.w.Header()
	if len(b) >= gzipFrom && x.zips() {
		var z bytes.Buffer
		zw, err := gzip.NewWriterLevel(&z, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if _, err := zw.Write(b); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		h.Set("Content-Encoding", "gzip")
		b = z.Bytes()
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	x.w.WriteHeader(code)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(b) // a client that went away need not be told
	}
	return nil
}

// fail answers with an error.
func (x *exchange) fail(err error) {
	status := asStatus(err)
	if status.Code >= http.StatusInternalServerError && status.Reason == metav1.StatusReasonInternalError {
		x.s.log.Error("request failed", "method", x.r.Method, "path", x.r.URL.Path, "error", err)
	}
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		x.w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	b, encodeErr := encodeObject(status, x.format.media)
	if encodeErr != nil {
		http.Error(x.w, status.Message, int(status.Code))
		return
	}
	if err := x.bytes(int(status.Code), b); err != nil {
		x.s.log.Error("answer failed", "path", x.r.URL.Path, "error", err)
	}
}

// partial is the metadata of an object, alone.
func partial(obj Object, gv schema.GroupVersion) *metav1.PartialObjectMetadata {
	p := &metav1.PartialObjectMetadata{TypeMeta: typeMeta(gv.WithKind("PartialObjectMetadata"))}
	if o, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := o.GetObjectMeta().(*metav1.ObjectMeta); ok {
			p.ObjectMeta = *m
			return p
		}
	}
	p.Name, p.Namespace, p.UID, p.ResourceVersion = obj.GetName(), obj.GetNamespace(), obj.GetUID(), obj.GetResourceVersion()
	p.GenerateName, p.Generation = obj.GetGenerateName(), obj.GetGeneration()
	p.Labels, p.Annotations = obj.GetLabels(), obj.GetAnnotations()
	p.CreationTimestamp, p.DeletionTimestamp = obj.GetCreationTimestamp(), obj.GetDeletionTimestamp()
	p.DeletionGracePeriodSeconds = obj.GetDeletionGracePeriodSeconds()
	p.OwnerReferences, p.Finalizers, p.ManagedFields = obj.GetOwnerReferences(), obj.GetFinalizers(), obj.GetManagedFields()
	return p
}
