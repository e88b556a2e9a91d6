package api_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"conclave/api"
	"conclave/api/apitest"
)

// conformance: [sig-api-machinery] Discovery should locate the groupVersion and a resource within each APIGroup [Conformance]
// conformance: [sig-api-machinery] Discovery should validate PreferredVersion for each APIGroup [Conformance]
// conformance: [sig-api-machinery] server version should find the server version [Conformance]
func TestConformDiscovery(t *testing.T) {
	d := newSite(t).clientset("").Discovery()
	for _, g := range must(d.ServerGroups())(t).Groups {
		if !slices.Contains(g.Versions, g.PreferredVersion) {
			t.Errorf("%s prefers %v, which is not among %v", g.Name, g.PreferredVersion, g.Versions)
		}
		if l, err := d.ServerResourcesForGroupVersion(g.PreferredVersion.GroupVersion); err != nil || len(l.APIResources) == 0 {
			t.Errorf("%s: %v", g.Name, err)
		}
	}
	v := must(d.ServerVersion())(t)
	for _, n := range []string{v.Major, v.Minor} {
		if _, err := strconv.Atoi(n); err != nil {
			t.Error(err)
		}
	}
}

// conformance: [sig-api-machinery] Servers with support for Table transformation should return a 406 for a backend which does not implement metadata [Conformance]
func TestConformNotATable(t *testing.T) {
	st := newSite(t)
	body := `{"spec":{"nonResourceAttributes":{"verb":"get","path":"/"}}}`
	a := st.request(st.admin(), "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body, "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if s := a.status(t); a.code != 406 || s.Reason != metav1.StatusReasonNotAcceptable {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// conformance: [sig-api-machinery] FieldValidation should detect unknown and duplicate fields of a typed object [Conformance]
// conformance: [sig-api-machinery] FieldValidation should detect unknown metadata fields of a typed object [Conformance]
func TestConformFieldValidation(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	typed := fmt.Sprintf(web, 1, 1)
	for name, tc := range map[string]struct{ body, want string }{
		"unknown":           {strings.Replace(typed, "  replicas: 1", "  replicas: 1\n  unknownField: x", 1), `unknown field "spec.unknownField"`},
		"duplicate":         {strings.Replace(typed, "  replicas: 1", "  replicas: 1\n  replicas: 2", 1), `key "replicas" already set in map`},
		"metadata":          {strings.Replace(typed, "{name: web}", "{name: web, unknownMeta: x}", 1), `unknown field "metadata.unknownMeta"`},
		"template metadata": {strings.Replace(typed, "metadata: {labels:", "metadata: {unknownMeta: x, labels:", 1), `unknown field "spec.template.metadata.unknownMeta"`},
	} {
		for form, send := range map[string]func() answer{
			"create": func() answer {
				return st.request(st.admin(), "POST", deployments+"?fieldValidation=Strict", tc.body, "Content-Type", "application/yaml")
			},
			"apply": func() answer {
				return st.request(st.admin(), "PATCH", deployments+"/web?fieldValidation=Strict&fieldManager=me", tc.body, "Content-Type", applyType)
			},
		} {
			if a := send(); a.code != 400 || !strings.Contains(a.status(t).Message, tc.want) {
				t.Errorf("%s, %s: %d %s", name, form, a.code, a.body)
			}
		}
	}
	if a := st.request(st.admin(), "POST", deployments+"?fieldValidation=Strict", typed, "Content-Type", "application/yaml"); a.code != 201 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// conformance: [sig-api-machinery] Watchers should observe add, update, and delete watch notifications on configmaps [Conformance]
// conformance: [sig-api-machinery] Watchers should be able to start watching from a specific resource version [Conformance]
// conformance: [sig-api-machinery] Watchers should be able to restart watching from the last resource version observed by the previous watch [Conformance]
// conformance: [sig-api-machinery] Watchers should observe an object deletion if it stops meeting the requirements of the selector [Conformance]
// conformance: [sig-api-machinery] Watchers should receive events on concurrent watches in same order [Conformance]
func TestConformWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewServer(t)
		c := s.Local(apitest.Admin)
		open := func(selector, version string) watch.Interface {
			t.Helper()
			w, err := c.Watch(t.Context(), cmGVR, "default", metav1.ListOptions{LabelSelector: selector, ResourceVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.Stop)
			return w
		}
		remove := func(name string) {
			t.Helper()
			if err := c.Delete(t.Context(), cmGVR, "default", name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		version := func(name string) string {
			t.Helper()
			return must(c.Get(t.Context(), cmGVR, "default", name, metav1.GetOptions{}))(t).GetResourceVersion()
		}
		a, b, both := open("tier=a", ""), open("tier=b", ""), open("tier in (a,b)", "")
		putMap(t, c, "x", "a")
		first := version("x")
		touch := func(name string) {
			t.Helper()
			must(c.Patch(t.Context(), cmGVR, "default", name, types.MergePatchType, fmt.Appendf(nil, `{"data":{"v":"%s"}}`, version(name)), metav1.PatchOptions{}))(t)
		}
		touch("x")
		touch("x")
		last := version("x")
		remove("x")
		putMap(t, c, "y", "b")
		remove("y")
		expect(t, "a", drain(a), "ADDED xa", "MODIFIED xa", "MODIFIED xa", "DELETED xa")
		expect(t, "b", drain(b), "ADDED yb", "DELETED yb")
		expect(t, "both", drain(both), "ADDED xa", "MODIFIED xa", "MODIFIED xa", "DELETED xa", "ADDED yb", "DELETED yb")
		expect(t, "from the first version", drain(open("tier=a", first)), "MODIFIED xa", "MODIFIED xa", "DELETED xa")
		expect(t, "from the last version", drain(open("", last)), "DELETED xa", "ADDED yb", "DELETED yb")

		moves := open("tier=a", version2(t, c))
		putMap(t, c, "z", "a")
		putMap(t, c, "z", "b")
		touch("z")
		putMap(t, c, "z", "a")
		remove("z")
		expect(t, "in and out", drain(moves), "ADDED za", "DELETED za", "ADDED za", "DELETED za")

		// Every watch, from wherever it began, sees the same order.
		var watches []watch.Interface
		var revisions []string
		for i := range 10 {
			revisions = append(revisions, version2(t, c))
			watches = append(watches, open("", revisions[i]))
			putMap(t, c, fmt.Sprint("m", i%3), fmt.Sprint(i))
		}
		all := drain(watches[0])
		for i, w := range watches[1:] {
			if got := drain(w); !slices.Equal(got, all[len(all)-len(got):]) || len(got) != 9-i {
				t.Errorf("watch %d saw %q of %q", i+1, got, all)
			}
		}
	})
}

// version2 is the revision of the whole store.
func version2(t *testing.T, c api.Client) string {
	t.Helper()
	_, m, err := c.List(t.Context(), cmGVR, "", metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m.ResourceVersion
}

// conformance: [sig-auth] ServiceAccounts should allow opting out of API token automount [Conformance]
func TestConformAutomount(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	yes, no := true, false
	choices := map[string]*bool{"yes": &yes, "no": &no, "unsaid": nil}
	for account, ofAccount := range choices {
		must(cs.CoreV1().ServiceAccounts("shop").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}, AutomountServiceAccountToken: ofAccount}, metav1.CreateOptions{}))(t)
		for pod, ofPod := range choices {
			p := testPod(account + "-" + pod)
			p.Spec.ServiceAccountName, p.Spec.AutomountServiceAccountToken = account, ofPod
			p = must(cs.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{}))(t)
			want := pod == "yes" || pod == "unsaid" && account != "no"
			if got := len(p.Spec.Containers[0].VolumeMounts) == 1; got != want {
				t.Errorf("account %s, pod %s: mounted %v", account, pod, got)
			}
		}
	}
}

// conformance: [sig-auth] ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview [Conformance]
// conformance: [sig-auth] ServiceAccounts should update a ServiceAccount [Conformance]
func TestConformServiceAccount(t *testing.T) {
	st := newSite(t)
	cs, ctx := st.clientset(""), t.Context()
	accounts := cs.CoreV1().ServiceAccounts("default")
	sa := must(accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{}))(t)
	no := false
	sa.AutomountServiceAccountToken = &no
	must(accounts.Update(ctx, sa, metav1.UpdateOptions{}))(t)
	if l := must(accounts.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=a"}))(t); len(l.Items) != 1 || *l.Items[0].AutomountServiceAccountToken {
		t.Errorf("%+v", l.Items)
	}
	token := must(accounts.CreateToken(ctx, "a", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))(t).Status.Token
	r := must(cs.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{}))(t)
	if !r.Status.Authenticated || r.Status.Error != "" || r.Status.User.Username != "system:serviceaccount:default:a" {
		t.Errorf("%+v", r.Status)
	}
}

// conformance: [sig-auth] SubjectReview should support SubjectReview API operations [Conformance]
func TestConformSubjectReview(t *testing.T) {
	st := newSite(t)
	cs, ctx := st.clientset(""), t.Context()
	const user = "system:serviceaccount:default:a"
	as := must(kubernetes.NewForConfig(&rest.Config{Host: st.http.URL, Transport: impersonating{st.admin(), user}, QPS: -1}))(t)
	_, err := as.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	spec := authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: "list", Resource: "configmaps", Version: "v1"}}
	whole := must(cs.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{}))(t)
	local := must(cs.AuthorizationV1().LocalSubjectAccessReviews("default").Create(ctx, &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, Spec: spec}, metav1.CreateOptions{}))(t)
	if whole.Status.Allowed != (err == nil) || local.Status.Allowed != (err == nil) || !apierrors.IsForbidden(err) {
		t.Errorf("%v, %+v, %+v", err, whole.Status, local.Status)
	}
}

// conformance: [sig-network] Services should find a service from listing all namespaces [Conformance]
func TestConformFindService(t *testing.T) {
	l := must(newSite(t).clientset("").CoreV1().Services("").List(t.Context(), metav1.ListOptions{}))(t)
	if !slices.ContainsFunc(l.Items, func(s corev1.Service) bool { return s.Namespace == "default" && s.Name == "kubernetes" }) {
		t.Errorf("%+v", l.Items)
	}
}

// conformance: [sig-node] ConfigMap should run through a ConfigMap lifecycle [Conformance]
// conformance: [sig-node] Secrets should patch a secret [Conformance]
// conformance: [sig-node] Lease lease API should be available [Conformance]
func TestConformLifecycles(t *testing.T) {
	for _, empty := range []api.Object{&corev1.ConfigMap{}, &corev1.Secret{}, &coordinationv1.Lease{}} {
		gvr := api.GVROf(empty)
		t.Run(gvr.Resource, func(t *testing.T) {
			st := newSite(t)
			c, ctx := api.NewHTTP(st.base(), st.admin()), t.Context()
			obj := empty.DeepCopyObject().(api.Object)
			obj.SetName("a")
			obj.SetLabels(map[string]string{"kept": "no"})
			made := must(c.Create(ctx, gvr, "default", "", obj, metav1.CreateOptions{}))(t)
			must(c.Patch(ctx, gvr, "default", "a", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{}))(t)
			got := must(c.Get(ctx, gvr, "default", "a", metav1.GetOptions{}))(t)
			if got.GetLabels()["patched"] != "yes" || got.GetUID() != made.GetUID() {
				t.Errorf("%v", got)
			}
			changed := got.DeepCopyObject().(api.Object)
			changed.SetLabels(map[string]string{"updated": "yes", "kept": "no"})
			must(c.Update(ctx, gvr, "default", changed, metav1.UpdateOptions{}))(t)
			l, _, err := c.List(ctx, gvr, "", metav1.ListOptions{LabelSelector: "updated=yes"})
			if err != nil || len(l) != 1 {
				t.Errorf("%v %v", l, err)
			}
			other := empty.DeepCopyObject().(api.Object)
			other.SetName("other")
			must(c.Create(ctx, gvr, "default", "", other, metav1.CreateOptions{}))(t)
			path := "/api/v1/namespaces/default/" + gvr.Resource
			if gvr.Group != "" {
				path = "/apis/" + gvr.Group + "/v1/namespaces/default/" + gvr.Resource
			}
			if a := st.request(st.admin(), "DELETE", path+"?labelSelector=kept%3Dno", ""); a.code != 200 {
				t.Errorf("%d %s", a.code, a.body)
			}
			if l, _, err := c.List(ctx, gvr, "default", metav1.ListOptions{}); err != nil || len(l) != 1 || l[0].GetName() != "other" {
				t.Errorf("%v %v", l, err)
			}
			if err := c.Delete(ctx, gvr, "default", "other", metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A namespace is labelled with its name, also where the server made the name.
func TestNamespaceLabel(t *testing.T) {
	st := newSite(t)
	made := must(st.clientset("").CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "made-"}}, metav1.CreateOptions{}))(t)
	if made.Labels[corev1.LabelMetadataName] != made.Name {
		t.Errorf("%s has labels %v", made.Name, made.Labels)
	}
}
