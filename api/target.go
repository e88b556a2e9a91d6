package api

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// target is what a request's method and path ask for.
type target struct {
	Attributes
	// rest is the path behind proxy subresources.
	rest string
	// collection says that no object is named in the path.
	collection bool
}

// parseTarget reads a request line. A path that is not a resource's is itself
// what is asked for, under the method's name.
func parseTarget(method, path string, query url.Values) target {
	return readTarget(method, path, query, func(sub string) bool { return sub == "proxy" })
}

// remoteTarget is parseTarget of what another server serves: whatever is below a
// subresource belongs to it, so that it is never mistaken for a path that people
// may read in general.
func remoteTarget(method, path string, query url.Values) target {
	return readTarget(method, path, query, func(string) bool { return true })
}

// readTarget is told which subresources have paths below them.
func readTarget(method, path string, query url.Values, deep func(sub string) bool) target {
	t := target{Attributes: Attributes{Verb: strings.ToLower(method), Path: path}}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var gv schema.GroupVersion
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		gv, parts = schema.GroupVersion{Version: parts[1]}, parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		gv, parts = schema.GroupVersion{Group: parts[1], Version: parts[2]}, parts[3:]
	default:
		return t
	}
	watching := false
	if parts[0] == "watch" && len(parts) > 1 {
		watching, parts = true, parts[1:]
	}
	t.Path = ""
	if parts[0] == "namespaces" && len(parts) > 1 {
		t.Namespace = parts[1]
		// A namespace's own subresources stand where a resource in it would.
		if len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
			parts = parts[2:]
		}
	}
	t.Resource = gv.WithResource(parts[0])
	if len(parts) > 1 {
		t.Name = parts[1]
	}
	if len(parts) > 2 {
		t.Subresource = parts[2]
	}
	if len(parts) > 3 {
		if !deep(t.Subresource) {
			return target{Attributes: Attributes{Verb: strings.ToLower(method), Path: path}}
		}
		// The tail is handed on as it came, with its last slash.
		if t.Subresource == "proxy" {
			t.rest = "/" + strings.SplitN(path, "/"+parts[1]+"/proxy/", 2)[1]
		}
	} else if t.Subresource == "proxy" && strings.HasSuffix(path, "/") {
		t.rest = "/"
	}
	t.collection = t.Name == ""
	switch method {
	case http.MethodPost:
		t.Verb = "create"
	case http.MethodPut:
		t.Verb = "update"
	case http.MethodPatch:
		t.Verb = "patch"
	case http.MethodDelete:
		t.Verb = "delete"
		if t.collection {
			t.Verb = "deletecollection"
		}
	case http.MethodGet, http.MethodHead:
		t.Verb = "get"
		if t.Subresource != "" {
			break
		}
		if w := query.Get("watch"); watching || w == "true" || w == "1" {
			t.Verb = "watch"
		} else if t.collection {
			t.Verb = "list"
		}
	}
	if t.collection || t.Verb == "watch" {
		t.LabelSelector, t.FieldSelector = query.Get("labelSelector"), query.Get("fieldSelector")
		if t.Verb != "create" && t.Name == "" {
			t.Name = selectedName(t.FieldSelector)
		}
	}
	return t
}

// selectedName is the one name that a field selector selects, if it does. Who
// selects one name asks for one object, and may be allowed that one.
func selectedName(selector string) string {
	if selector == "" {
		return ""
	}
	f, err := fields.ParseSelector(selector)
	if err != nil {
		return ""
	}
	name, _ := f.RequiresExactMatch("metadata.name")
	return name
}
