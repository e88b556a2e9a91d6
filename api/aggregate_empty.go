package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// RemoteRemains is what is left of one resource of another server in a namespace.
type RemoteRemains struct {
	Resource   schema.GroupVersionResource
	Count      int
	Finalizers map[string]int // how many objects have each
}

// EmptyBehind deletes what the servers behind this one keep in a namespace, and
// tells what is left. unknown lists the servers that do not say what they have, so
// that something may be left there too.
func (s *Server) EmptyBehind(ctx context.Context, namespace string) (left []RemoteRemains, unknown []string, err error) {
	s.lookBehind(ctx)
	all, _ := s.behindUs()
	var errs []error
	for _, b := range all {
		if b.stale {
			unknown = append(unknown, fmt.Sprintf("%s: stale GroupVersion discovery: %s", b.gv(), b.gv()))
			continue
		}
		for _, r := range b.list.APIResources {
			if !r.Namespaced || strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") {
				continue
			}
			some, err := s.emptyOf(ctx, b, r, namespace)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s of %s in namespace %s: %w", r.Name, b.gv(), namespace, err))
			}
			if some.Count > 0 {
				left = append(left, some)
			}
		}
	}
	return left, unknown, errors.Join(errs...)
}

// emptyOf is EmptyBehind of one resource.
func (s *Server) emptyOf(ctx context.Context, b extension, r metav1.APIResource, namespace string) (RemoteRemains, error) {
	path := "/apis/" + b.gv().String() + "/namespaces/" + namespace + "/" + r.Name
	remains := func() (left RemoteRemains, names []string, err error) {
		body, err := s.call(ctx, b.APIService, http.MethodGet, path)
		if err != nil {
			return left, nil, err
		}
		var list metav1.PartialObjectMetadataList
		if err := json.Unmarshal(body, &list); err != nil {
			return left, nil, fmt.Errorf("read a list: %w", err)
		}
		left = RemoteRemains{Resource: b.gv().WithResource(r.Name), Count: len(list.Items), Finalizers: map[string]int{}}
		for _, o := range list.Items {
			names = append(names, o.Name)
			for _, f := range o.Finalizers {
				left.Finalizers[f]++
			}
		}
		return left, names, nil
	}
	left, names, err := remains()
	if err != nil || left.Count == 0 {
		return left, err
	}
	if slices.Contains(r.Verbs, "deletecollection") {
		names = []string{""}
	}
	for _, name := range names {
		at := path
		if name != "" {
			at += "/" + name
		}
		_, err := s.call(ctx, b.APIService, http.MethodDelete, at)
		if no, ok := errors.AsType[*badStatus](err); ok && no.code == http.StatusNotFound {
			continue // it is gone
		}
		if err != nil {
			return left, err
		}
	}
	left, _, err = remains()
	return left, err
}
