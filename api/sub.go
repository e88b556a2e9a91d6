package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// creator is a subresource to which objects of another kind are posted.
type creator struct {
	gvk schema.GroupVersionKind
	new func() Object
	do  func(ctx context.Context, c *call, obj Object, o metav1.CreateOptions) (runtime.Object, error)
}

func creators() map[string]creator {
	return map[string]creator{
		"pods/binding": {
			corev1.SchemeGroupVersion.WithKind("Binding"), func() Object { return &corev1.Binding{} }, bind,
		},
		"pods/eviction": {
			policyv1.SchemeGroupVersion.WithKind("Eviction"), func() Object { return &policyv1.Eviction{} }, evict,
		},
		"serviceaccounts/token": {
			authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), func() Object { return &authenticationv1.TokenRequest{} }, requestToken,
		},
	}
}

func success() *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}
}

// subresource answers what is not an ordinary get, update or patch. handled
// says that it did.
func (x *exchange) subresource(ctx context.Context, c *call) (handled bool, err error) {
	if x.streams() {
		return true, x.toNode(ctx, c)
	}
	key := c.res.gr().String() + "/" + c.sub
	if cr, ok := x.s.creators[key]; ok {
		if x.target.Verb != "create" {
			return true, x.methodNotAllowed()
		}
		return true, x.post(ctx, c, cr)
	}
	if x.target.Verb == "create" {
		return true, x.methodNotAllowed()
	}
	if c.name == "" {
		return true, errNoSuchPath
	}
	return false, nil
}

// plainly settles on a form of answer for what has no metadata to show in
// tables.
func (x *exchange) plainly() error {
	f, ok := negotiate(x.r.Header.Get("Accept"), false)
	if !ok {
		return notAcceptable()
	}
	x.format = f
	return nil
}

func (x *exchange) post(ctx context.Context, c *call, cr creator) error {
	if err := x.plainly(); err != nil {
		return err
	}
	var o metav1.CreateOptions
	if err := x.options(&o); err != nil {
		return err
	}
	obj, err := x.body(cr.new(), cr.gvk, nil, o.FieldValidation)
	if err != nil {
		return err
	}
	if err := c.checkPlace(obj); err != nil {
		return err
	}
	if obj, err = c.admitPosted(ctx, cr.gvk, obj, o); err != nil {
		return err
	}
	out, err := cr.do(ctx, c, obj, o)
	if err != nil {
		return err
	}
	return x.object(http.StatusCreated, out)
}

// bind gives a pod to a node, once.
func bind(ctx context.Context, c *call, obj Object, o metav1.CreateOptions) (runtime.Object, error) {
	b, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Binding, got a %T", obj))
	}
	invalid := func(e *field.Error) error {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), b.Name, field.ErrorList{e})
	}
	if k := b.Target.Kind; k != "" && k != "Node" {
		return nil, invalid(field.NotSupported(field.NewPath("target", "kind"), k, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		return nil, invalid(field.Required(field.NewPath("target", "name"), ""))
	}
	_, err := c.update(ctx, update{mode: ofSystem, dryRun: c.dryRun(o.DryRun), manager: o.FieldManager, change: func(old Object) (Object, error) {
		pod := old.DeepCopyObject().(*corev1.Pod)
		pod.ResourceVersion = b.ResourceVersion
		conflict := func(format string, args ...any) (Object, error) {
			return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, pod.Name, fmt.Errorf(format, args...))
		}
		switch {
		case b.UID != "" && b.UID != pod.UID:
			return conflict("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID)
		case pod.DeletionTimestamp != nil:
			return conflict("pod %s is being deleted, cannot be assigned to a host", pod.Name)
		case pod.Spec.NodeName != "":
			return conflict("pod %s is already assigned to node %q", pod.Name, pod.Spec.NodeName)
		case len(pod.Spec.SchedulingGates) > 0:
			return conflict("pod %s has non-empty .spec.schedulingGates", pod.Name)
		}
		pod.Spec.NodeName = b.Target.Name
		pod.Status.NominatedNodeName = "" // it waits for room no longer
		for k, v := range b.Annotations {
			if pod.Annotations == nil {
				pod.Annotations = map[string]string{}
			}
			pod.Annotations[k] = v
		}
		setScheduled(pod, c.now())
		return pod, nil
	}})
	if err != nil {
		return nil, err
	}
	return success(), nil
}

// setScheduled records the moment at which a pod got its node.
func setScheduled(pod *corev1.Pod, at metav1.Time) {
	is := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: at, ObservedGeneration: pod.Generation}
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodScheduled {
			pod.Status.Conditions[i] = is
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, is)
}

const (
	minTokenSeconds     = 10 * 60
	defaultTokenSeconds = 60 * 60
	maxTokenSeconds     = 365 * 24 * 60 * 60
)

// requestToken signs a token for a service account, bound to an object if the
// request says so: with the object the token ends.
func requestToken(ctx context.Context, c *call, obj Object, o metav1.CreateOptions) (runtime.Object, error) {
	req, ok := obj.(*authenticationv1.TokenRequest)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a TokenRequest, got a %T", obj))
	}
	rec, err := c.get(ctx, metav1.GetOptions{}, true)
	if err != nil {
		return nil, err
	}
	sa := rec.Object().(*corev1.ServiceAccount)
	if req.UID != "" && req.UID != sa.UID {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "serviceaccounts/token"}, sa.Name, fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", req.UID, sa.UID))
	}
	seconds := int64(defaultTokenSeconds)
	if req.Spec.ExpirationSeconds != nil {
		seconds = *req.Spec.ExpirationSeconds
	}
	path := field.NewPath("spec", "expirationSeconds")
	var errs field.ErrorList
	switch {
	case seconds < minTokenSeconds:
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration less than 10 minutes"))
	case seconds > 1<<32:
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), sa.Name, errs)
	}
	seconds = min(seconds, maxTokenSeconds)
	req.Spec.ExpirationSeconds = &seconds
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = []string{Issuer}
	}
	now := c.s.cfg.Now()
	cl := claims{
		Audience: req.Spec.Audiences, Issued: now.Unix(), NotBefore: now.Unix(), Expires: now.Unix() + seconds,
	}
	if ref := req.Spec.BoundObjectRef; ref != nil {
		if err := c.bindToken(ref, &cl.Private, sa); err != nil {
			return nil, err
		}
	}
	if node, ok := nodeOf(c.user); ok && (cl.Private.Pod == nil || cl.Private.Node == nil || cl.Private.Node.Name != node) {
		return nil, forbiddenObject(c.res.gr(), sa.Name, "node requested token not bound to a pod of its own")
	}
	if req.Status.Token, err = c.s.tokenFor(sa, cl); err != nil {
		return nil, err
	}
	req.Status.ExpirationTimestamp = metav1.NewTime(now.Truncate(time.Second).Add(time.Duration(seconds) * time.Second))
	req.Name, req.Namespace, req.CreationTimestamp = sa.Name, sa.Namespace, c.now()
	req.SetGroupVersionKind(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"))
	return req, nil
}

// bindToken looks up the object that a token is to be bound to.
func (c *call) bindToken(ref *authenticationv1.BoundObjectReference, owner *tokenOwner, sa *corev1.ServiceAccount) error {
	find := func(r schema.GroupVersionResource, namespace string) (Object, error) {
		rec := c.s.cfg.Storage.Get(r.Resource, namespace, ref.Name)
		if rec == nil {
			return nil, apierrors.NewNotFound(r.GroupResource(), ref.Name)
		}
		obj := rec.Object()
		if ref.UID != "" && ref.UID != obj.GetUID() {
			return nil, apierrors.NewConflict(r.GroupResource(), ref.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
		}
		return obj, nil
	}
	named := func(name string, uid types.UID) *namedUID { return &namedUID{Name: name, UID: string(uid)} }
	switch ref.Kind {
	case "Pod":
		obj, err := find(pods, sa.Namespace)
		if err != nil {
			return err
		}
		pod := obj.(*corev1.Pod)
		if pod.Spec.ServiceAccountName != sa.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", sa.Name))
		}
		owner.Pod = named(pod.Name, pod.UID)
		if n := pod.Spec.NodeName; n != "" {
			owner.Node = &namedUID{Name: n}
			if rec := c.s.cfg.Storage.Get(nodes.Resource, "", n); rec != nil {
				owner.Node.UID = string(rec.Object().GetUID())
			}
		}
	case "Secret":
		obj, err := find(secrets, sa.Namespace)
		if err != nil {
			return err
		}
		owner.Secret = named(obj.GetName(), obj.GetUID())
	case "Node":
		obj, err := find(nodes, "")
		if err != nil {
			return err
		}
		owner.Node = named(obj.GetName(), obj.GetUID())
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).String()))
	}
	return nil
}

// putFinalizers is the update of a namespace's spec.finalizers, the only field
// that its finalize subresource changes.
func putFinalizers(of, shown Object) (Object, error) {
	ns, ok := of.DeepCopyObject().(*corev1.Namespace)
	if !ok {
		return nil, errors.New("finalize of what is not a namespace")
	}
	said, ok := shown.(*corev1.Namespace)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Namespace, got a %T", shown))
	}
	ns.Spec.Finalizers, ns.ResourceVersion = said.Spec.Finalizers, said.ResourceVersion
	if said.UID != "" {
		ns.UID = said.UID
	}
	return ns, nil
}

// subresources lists what a kind has, for discovery.
type subresource struct {
	name  string
	gvk   schema.GroupVersionKind
	verbs []string
}

func (r *resource) subresources(creators map[string]creator) []subresource {
	var all []subresource
	change := []string{"get", "patch", "update"}
	if r.Status {
		all = append(all, subresource{"status", r.GVK, change})
	}
	for _, sub := range r.Subs {
		all = append(all, subresource{sub.Name, r.GVK, change})
	}
	if r.GetScale != nil {
		all = append(all, subresource{"scale", autoscalingv1.SchemeGroupVersion.WithKind("Scale"), change})
	}
	connect := func(name, kind string, verbs ...string) {
		all = append(all, subresource{name, corev1.SchemeGroupVersion.WithKind(kind), verbs})
	}
	proxy := []string{"create", "delete", "get", "patch", "update"}
	switch r.gvr {
	case namespaces:
		all = append(all, subresource{"finalize", r.GVK, []string{"update"}})
	case nodes:
		connect("proxy", "NodeProxyOptions", proxy...)
	case services:
		connect("proxy", "ServiceProxyOptions", proxy...)
	case pods:
		connect("attach", "PodAttachOptions", "create", "get")
		connect("exec", "PodExecOptions", "create", "get")
		connect("log", "Pod", "get")
		connect("portforward", "PodPortForwardOptions", "create", "get")
		connect("proxy", "PodProxyOptions", proxy...)
	}
	for _, name := range []string{"binding", "eviction", "token"} {
		if cr, ok := creators[r.gr().String()+"/"+name]; ok {
			all = append(all, subresource{name, cr.gvk, []string{"create"}})
		}
	}
	return all
}
