package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/rbac"
)

// review is a resource that is only ever posted: a question and its answer, or
// an order that is kept elsewhere.
type review struct {
	gvk        schema.GroupVersionKind
	plural     string
	namespaced bool
	new        func() Object
	answer     func(ctx context.Context, u User, namespace string, obj Object) (Object, error)
}

func reviews(s *Server) map[schema.GroupVersionResource]*review {
	authn, authz := authenticationv1.SchemeGroupVersion, authorizationv1.SchemeGroupVersion
	all := []*review{
		{authn.WithKind("TokenReview"), "tokenreviews", false, func() Object { return &authenticationv1.TokenReview{} }, s.tokenReview},
		{authn.WithKind("SelfSubjectReview"), "selfsubjectreviews", false, func() Object { return &authenticationv1.SelfSubjectReview{} }, s.selfSubjectReview},
		{authz.WithKind("SubjectAccessReview"), "subjectaccessreviews", false, func() Object { return &authorizationv1.SubjectAccessReview{} }, s.accessReview},
		{authz.WithKind("LocalSubjectAccessReview"), "localsubjectaccessreviews", true, func() Object { return &authorizationv1.LocalSubjectAccessReview{} }, s.accessReview},
		{authz.WithKind("SelfSubjectAccessReview"), "selfsubjectaccessreviews", false, func() Object { return &authorizationv1.SelfSubjectAccessReview{} }, s.accessReview},
		{authz.WithKind("SelfSubjectRulesReview"), "selfsubjectrulesreviews", false, func() Object { return &authorizationv1.SelfSubjectRulesReview{} }, s.rulesReview},
		{corev1.SchemeGroupVersion.WithKind("Binding"), "bindings", true, func() Object { return &corev1.Binding{} }, s.binding},
	}
	byGVR := map[schema.GroupVersionResource]*review{}
	for _, r := range all {
		byGVR[r.gvk.GroupVersion().WithResource(r.plural)] = r
	}
	return byGVR
}

// review answers a posted review.
func (x *exchange) review(ctx context.Context, r *review) error {
	if x.target.Verb != "create" {
		return x.methodNotAllowed()
	}
	if r.namespaced != (x.target.Namespace != "") {
		return errNoSuchPath
	}
	if err := x.plainly(); err != nil {
		return err
	}
	var o metav1.CreateOptions
	if err := x.options(&o); err != nil {
		return err
	}
	obj, err := x.body(r.new(), r.gvk, nil, o.FieldValidation)
	if err != nil {
		return err
	}
	out, err := x.s.answer(ctx, r, x.user, x.target.Namespace, obj, o, x.warn)
	if err != nil {
		return err
	}
	out.GetObjectKind().SetGroupVersionKind(r.gvk)
	return x.object(http.StatusCreated, out)
}

// answer is the answer to a posted review, if webhooks let it be put.
func (s *Server) answer(ctx context.Context, r *review, u User, namespace string, obj Object, o metav1.CreateOptions, warn func(string)) (Object, error) {
	c := &call{s: s, posted: r.gvk.GroupVersion().WithResource(r.plural), user: u, namespace: namespace, warn: warn}
	obj, err := c.admitPosted(ctx, r.gvk, obj, o)
	if err != nil {
		return nil, err
	}
	return r.answer(ctx, u, namespace, obj)
}

func userInfo(u User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	for k, v := range u.Extra {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[k] = v
	}
	return info
}

func (s *Server) selfSubjectReview(_ context.Context, u User, _ string, obj Object) (Object, error) {
	r, ok := obj.(*authenticationv1.SelfSubjectReview)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a SelfSubjectReview, got a %T", obj))
	}
	r.CreationTimestamp = metav1.NewTime(s.cfg.Now())
	r.Status.UserInfo = userInfo(u)
	return r, nil
}

func (s *Server) tokenReview(ctx context.Context, _ User, _ string, obj Object) (Object, error) {
	r, ok := obj.(*authenticationv1.TokenReview)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a TokenReview, got a %T", obj))
	}
	if r.Spec.Token == "" {
		return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	audiences := r.Spec.Audiences
	if len(audiences) == 0 {
		audiences = []string{Issuer}
	}
	u, of, err := s.fromToken(ctx, r.Spec.Token, audiences)
	if err != nil {
		r.Status = authenticationv1.TokenReviewStatus{Error: err.Error()}
		return r, nil
	}
	common := slices.DeleteFunc(slices.Clone(audiences), func(a string) bool { return !slices.Contains(of, a) })
	r.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: userInfo(u), Audiences: common}
	return r, nil
}

// accessReview answers the three kinds of the question whether somebody may.
func (s *Server) accessReview(ctx context.Context, u User, namespace string, obj Object) (Object, error) {
	var spec authorizationv1.SubjectAccessReviewSpec
	var status *authorizationv1.SubjectAccessReviewStatus
	switch r := obj.(type) {
	case *authorizationv1.SubjectAccessReview:
		spec, status = r.Spec, &r.Status
	case *authorizationv1.LocalSubjectAccessReview:
		spec, status = r.Spec, &r.Status
		if spec.ResourceAttributes == nil || spec.ResourceAttributes.Namespace != namespace {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("spec.resourceAttributes.namespace must match namespace: %q", namespace))
		}
	case *authorizationv1.SelfSubjectAccessReview:
		spec = authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: r.Spec.ResourceAttributes, NonResourceAttributes: r.Spec.NonResourceAttributes, User: u.Name, Groups: u.Groups}
		status = &r.Status
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a review of access, got a %T", obj))
	}
	if (spec.ResourceAttributes == nil) == (spec.NonResourceAttributes == nil) {
		return nil, apierrors.NewBadRequest("exactly one of spec.resourceAttributes and spec.nonResourceAttributes must be specified")
	}
	if spec.User == "" && len(spec.Groups) == 0 {
		return nil, apierrors.NewBadRequest("at least one of spec.user and spec.groups must be specified")
	}
	a := Attributes{}
	if n := spec.NonResourceAttributes; n != nil {
		a.Verb, a.Path = n.Verb, n.Path
	} else {
		a = attributesOf(spec.ResourceAttributes)
	}
	d := s.decide(ctx, User{Name: spec.User, UID: spec.UID, Groups: spec.Groups}, &a)
	status.Allowed, status.Reason = d.allowed, d.reason()
	return obj, nil
}

func attributesOf(ra *authorizationv1.ResourceAttributes) Attributes {
	a := Attributes{
		Verb: ra.Verb, Resource: schema.GroupVersionResource{Group: ra.Group, Version: ra.Version, Resource: ra.Resource},
		Subresource: ra.Subresource, Namespace: ra.Namespace, Name: ra.Name,
	}
	if f := ra.FieldSelector; f != nil {
		a.FieldSelector = f.RawSelector
		var terms []string
		for _, r := range f.Requirements { // of other operators, field selectors have none
			switch {
			case r.Operator == metav1.FieldSelectorOpIn && len(r.Values) == 1:
				terms = append(terms, r.Key+"="+fields.EscapeValue(r.Values[0]))
			case r.Operator == metav1.FieldSelectorOpNotIn && len(r.Values) == 1:
				terms = append(terms, r.Key+"!="+fields.EscapeValue(r.Values[0]))
			}
		}
		if len(terms) > 0 {
			a.FieldSelector = strings.Join(terms, ",")
		}
	}
	if l := ra.LabelSelector; l != nil {
		a.LabelSelector = l.RawSelector
		if len(l.Requirements) > 0 {
			a.LabelSelector = metav1.FormatLabelSelector(&metav1.LabelSelector{MatchExpressions: l.Requirements})
		}
	}
	return a
}

// rulesReview tells what a user may, as far as it can be told in rules.
func (s *Server) rulesReview(ctx context.Context, u User, _ string, obj Object) (Object, error) {
	r, ok := obj.(*authorizationv1.SelfSubjectRulesReview)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a SelfSubjectRulesReview, got a %T", obj))
	}
	if r.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	s.catchUp(ctx) // or tell what this replica knows
	rules, errs := s.rights.index(s.cfg.Storage).Rules(rbac.User{Name: u.Name, Groups: u.Groups}, r.Spec.Namespace)
	r.Status.ResourceRules, r.Status.NonResourceRules = []authorizationv1.ResourceRule{}, []authorizationv1.NonResourceRule{}
	for _, p := range rules {
		if len(p.Resources) > 0 {
			r.Status.ResourceRules = append(r.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: p.Verbs, APIGroups: p.APIGroups, Resources: p.Resources, ResourceNames: p.ResourceNames})
		}
		if len(p.NonResourceURLs) > 0 {
			r.Status.NonResourceRules = append(r.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: p.Verbs, NonResourceURLs: p.NonResourceURLs})
		}
	}
	if len(errs) > 0 {
		r.Status.EvaluationError = rbac.Texts(errs)
	}
	if _, isNode := nodeOf(u); isNode {
		// A node's rights follow from its pods and do not fit into rules.
		r.Status.Incomplete, r.Status.EvaluationError = true, "node authorizer does not support user rule resolution"
	}
	return r, nil
}

// binding is the old way to post a pod's binding: beside the pods.
func (s *Server) binding(ctx context.Context, u User, namespace string, obj Object) (Object, error) {
	res := s.resource(pods)
	if res == nil {
		return nil, errNoSuchPath
	}
	c := &call{s: s, res: res, user: u, namespace: namespace, name: obj.GetName(), sub: "binding", tracked: true}
	if err := c.checkPlace(obj); err != nil {
		return nil, err
	}
	if _, err := bind(ctx, c, obj, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	return obj, nil
}
