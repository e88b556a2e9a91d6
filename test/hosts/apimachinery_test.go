package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// nextMap is the next event of a watch; its object's name and the value of its
// data, which these tests count up, are appended to its type.
func nextMap(t *testing.T, w watch.Interface) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				t.Fatal("the watch ended")
			}
			switch o := e.Object.(type) {
			case *corev1.ConfigMap:
				return fmt.Sprintf("%s %s %s", e.Type, o.Name, o.Data["n"])
			case *metav1.Status:
				t.Fatal("the watch failed: ", o.Message)
			}
			t.Fatalf("an event of a %T", e.Object)
		case <-ctx.Done():
			t.Fatal("no event came")
		}
	}
}

func mustSee(t *testing.T, what string, w watch.Interface, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if got := nextMap(t, w); got != want {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
	}
}

// configMaps are the ConfigMaps of one namespace.
type configMaps struct {
	*testing.T
	c  *cluster.Cluster
	ns string
}

func (m configMaps) watch(selector, version string) watch.Interface {
	m.Helper()
	w, err := m.c.Client.CoreV1().ConfigMaps(m.ns).Watch(m.Context(), metav1.ListOptions{LabelSelector: selector, ResourceVersion: version})
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(w.Stop)
	return w
}

func (m configMaps) create(name, label, n string) *corev1.ConfigMap {
	m.Helper()
	made, err := m.c.Client.CoreV1().ConfigMaps(m.ns).Create(m.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": label}}, Data: map[string]string{"n": n},
	}, metav1.CreateOptions{})
	if err != nil {
		m.Fatal(err)
	}
	return made
}

func (m configMaps) patch(name, label, n string) *corev1.ConfigMap {
	m.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{"of":%q}},"data":{"n":%q}}`, label, n)
	changed, err := m.c.Client.CoreV1().ConfigMaps(m.ns).Patch(m.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		m.Fatal(err)
	}
	return changed
}

func (m configMaps) remove(name string) {
	m.Helper()
	if err := m.c.Client.CoreV1().ConfigMaps(m.ns).Delete(m.Context(), name, metav1.DeleteOptions{}); err != nil {
		m.Fatal(err)
	}
}

// TestWatchers shows what clients may rely on when they watch.
func TestWatchers(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	t.Run("add, update, delete", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Watchers should observe add, update, and delete watch notifications on configmaps [Conformance]")
		m := configMaps{t, c, ns}
		a, b, both := m.watch("of=a", ""), m.watch("of=b", ""), m.watch("of in (a,b)", "")
		m.create("one", "a", "0")
		m.patch("one", "a", "1")
		m.patch("one", "a", "2")
		m.remove("one")
		m.create("two", "b", "0")
		m.remove("two")
		one := []string{"ADDED one 0", "MODIFIED one 1", "MODIFIED one 2", "DELETED one 2"}
		two := []string{"ADDED two 0", "DELETED two 0"}
		// What a watch must not see would come before what it must.
		mustSee(t, "label a", a, one...)
		mustSee(t, "label b", b, two...)
		mustSee(t, "either label", both, append(one, two...)...)
	})
	t.Run("from a version", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Watchers should be able to start watching from a specific resource version [Conformance]")
		m := configMaps{t, c, ns}
		m.create("from", "from", "0")
		first := m.patch("from", "from", "1")
		m.patch("from", "from", "2")
		m.remove("from")
		mustSee(t, "from the first update", m.watch("of=from", first.ResourceVersion), "MODIFIED from 2", "DELETED from 2")
	})
	t.Run("resumed", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Watchers should be able to restart watching from the last resource version observed by the previous watch [Conformance]")
		m := configMaps{t, c, ns}
		before := m.watch("of=resumed", "")
		m.create("resumed", "resumed", "0")
		mustSee(t, "the first watch", before, "ADDED resumed 0")
		changed := m.patch("resumed", "resumed", "1")
		mustSee(t, "the first watch", before, "MODIFIED resumed 1")
		before.Stop()
		m.patch("resumed", "resumed", "2")
		after := m.watch("of=resumed", changed.ResourceVersion)
		m.remove("resumed")
		mustSee(t, "the second watch", after, "MODIFIED resumed 2", "DELETED resumed 2")
	})
	t.Run("out of the selection", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Watchers should observe an object deletion if it stops meeting the requirements of the selector [Conformance]")
		m := configMaps{t, c, ns}
		w := m.watch("of=in", "")
		m.create("moving", "in", "0")
		m.patch("moving", "in", "1")
		m.patch("moving", "out", "2")
		m.patch("moving", "out", "3")
		m.patch("moving", "in", "4")
		m.patch("moving", "in", "5")
		m.remove("moving")
		mustSee(t, "the watch", w, "ADDED moving 0", "MODIFIED moving 1", "DELETED moving 1", "ADDED moving 4", "MODIFIED moving 5", "DELETED moving 5")
	})
	t.Run("in one order", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Watchers should receive events on concurrent watches in same order [Conformance]")
		sameOrder(configMaps{t, c, ns})
	})
}

// sameOrder opens a watch at each event of another, through all hosts in turn,
// while two writers go on.
func sameOrder(m configMaps) {
	const writes, watches = 60, 20
	var writers sync.WaitGroup
	failed := make(chan error, 2)
	for w := range 2 {
		writers.Go(func() {
			maps := m.c.Client.CoreV1().ConfigMaps(m.ns)
			for i := range writes {
				name, data := fmt.Sprintf("order-%d-%d", w, i%3), map[string]string{"n": fmt.Sprint(i)}
				meta := metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": "order"}}
				var err error
				switch i / 3 % 3 {
				case 0:
					_, err = maps.Create(m.Context(), &corev1.ConfigMap{ObjectMeta: meta, Data: data}, metav1.CreateOptions{})
				case 1:
					_, err = maps.Update(m.Context(), &corev1.ConfigMap{ObjectMeta: meta, Data: data}, metav1.UpdateOptions{})
				default:
					err = maps.Delete(m.Context(), name, metav1.DeleteOptions{})
				}
				if err != nil {
					failed <- fmt.Errorf("write %d of %s: %w", i, name, err)
					return
				}
			}
		})
	}
	whole := m.watch("of=order", "")
	versions := []string{}
	var open []watch.Interface
	for i := range 2 * writes {
		select {
		case err := <-failed:
			m.Fatal(err)
		case e := <-whole.ResultChan():
			o, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				m.Fatalf("an event of a %T", e.Object)
			}
			versions = append(versions, fmt.Sprint(e.Type, " ", o.Name, " ", o.ResourceVersion))
			if i >= watches {
				continue
			}
			client, err := m.c.ClientFor(m.c.Hosts[i%3].Name, func(*rest.Config) {})
			if err != nil {
				m.Fatal(err)
			}
			w, err := client.CoreV1().ConfigMaps(m.ns).Watch(m.Context(), metav1.ListOptions{LabelSelector: "of=order", ResourceVersion: o.ResourceVersion})
			if err != nil {
				m.Fatal(err)
			}
			m.Cleanup(w.Stop)
			open = append(open, w)
		}
	}
	writers.Wait()
	for i, w := range open {
		for n, want := range versions[i+1:] {
			e := <-w.ResultChan()
			o, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				m.Fatalf("an event of a %T", e.Object)
			}
			if got := fmt.Sprint(e.Type, " ", o.Name, " ", o.ResourceVersion); got != want {
				m.Fatalf("event %d of watch %d is %q, want %q", n, i, got, want)
			}
		}
	}
}

// TestChunks reads long lists piece by piece.
func TestChunks(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	const all = 60
	m := configMaps{t, c, ns}
	for i := range all {
		m.create(fmt.Sprintf("chunk-%03d", i), "chunks", "0")
	}
	maps, selector := c.Client.CoreV1().ConfigMaps(ns), "of=chunks"
	t.Run("in one version", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Servers with support for API chunking should return chunks of results for list calls [Conformance]")
		options, found, version := metav1.ListOptions{Limit: 17}, 0, ""
		whole, err := maps.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for {
			page, err := maps.List(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			if version == "" {
				version = page.ResourceVersion
				// What is written meanwhile is not seen on the later pages.
				configMaps{t, c, ns}.create("chunk-999", "late", "0")
			}
			if page.ResourceVersion != version {
				t.Errorf("a page is of version %s, the first was of %s", page.ResourceVersion, version)
			}
			for _, item := range page.Items {
				if want := whole.Items[found].Name; item.Name != want {
					t.Fatalf("item %d is %s, want %s", found, item.Name, want)
				}
				found++
			}
			left := len(whole.Items) - found
			if page.Continue == "" {
				if left != 0 || page.RemainingItemCount != nil {
					t.Errorf("the last page leaves %d out, and says %v", left, page.RemainingItemCount)
				}
				break
			}
			if len(page.Items) != 17 || page.RemainingItemCount == nil || *page.RemainingItemCount != int64(left) {
				t.Errorf("a page has %d items and says that %v remain, not %d", len(page.Items), page.RemainingItemCount, left)
			}
			options.Continue = page.Continue
		}
		if full, err := maps.List(t.Context(), metav1.ListOptions{Limit: all + 100}); err != nil || full.Continue != "" || len(full.Items) != len(whole.Items)+1 {
			t.Errorf("a list with room for all: %v, %d items, continue %q", err, len(full.Items), full.Continue)
		}
	})
	t.Run("after the version is gone", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Servers with support for API chunking should support continue listing from the last key if the original version has been compacted away, though the list is inconsistent [Conformance] [Slow]")
		first, err := maps.List(t.Context(), metav1.ListOptions{Limit: 20, LabelSelector: selector})
		if err != nil {
			t.Fatal(err)
		}
		// The server keeps events until they are too many or too large.
		large := strings.Repeat("x", 500<<10)
		configMaps{t, c, ns}.create("large", "large", "0")
		var expired *apierrors.StatusError
		for i := 0; expired == nil; i++ {
			if i == 500 {
				t.Fatal("the version is still there after 500 large writes")
			}
			configMaps{t, c, ns}.patch("large", "large", fmt.Sprint(i, large))
			_, err := maps.List(t.Context(), metav1.ListOptions{Limit: 20, LabelSelector: selector, Continue: first.Continue})
			if err != nil {
				status, ok := err.(*apierrors.StatusError)
				if !ok || !apierrors.IsResourceExpired(err) {
					t.Fatal(err)
				}
				expired = status
			}
		}
		again := expired.ErrStatus.ListMeta.Continue
		if expired.ErrStatus.Code != http.StatusGone || again == "" {
			t.Fatalf("the answer to an expired token is %+v", expired.ErrStatus)
		}
		second, err := maps.List(t.Context(), metav1.ListOptions{Limit: 20, LabelSelector: selector, Continue: again})
		if err != nil {
			t.Fatal(err)
		}
		if second.ResourceVersion == first.ResourceVersion || len(second.Items) != 20 || second.Items[0].Name != "chunk-020" {
			t.Errorf("the second page is of version %s like the first, or begins elsewhere: %d items", second.ResourceVersion, len(second.Items))
		}
		third, err := maps.List(t.Context(), metav1.ListOptions{Limit: 20, LabelSelector: selector, Continue: second.Continue})
		if err != nil || len(third.Items) != 20 || third.Items[19].Name != "chunk-059" || third.ResourceVersion != second.ResourceVersion || third.Continue != "" {
			t.Errorf("the third page: %v, %d items of version %s, continue %q", err, len(third.Items), third.ResourceVersion, third.Continue)
		}
	})
}

// TestDiscovery looks around as clients do first.
func TestDiscovery(t *testing.T) {
	c := three(t)
	d := c.Client.Discovery()
	t.Run("a resource of each group", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Discovery should locate the groupVersion and a resource within each APIGroup [Conformance]")
		var list metav1.APIGroupList
		getJSON(t, d.RESTClient(), "/apis", &list)
		if len(list.Groups) < 5 {
			t.Fatalf("only %d groups", len(list.Groups))
		}
		for _, listed := range list.Groups {
			var group metav1.APIGroup
			getJSON(t, d.RESTClient(), "/apis/"+listed.Name, &group)
			if group.Name != listed.Name || group.PreferredVersion != listed.PreferredVersion {
				t.Errorf("/apis/%s says %+v, /apis %+v", listed.Name, group, listed)
			}
			for _, v := range group.Versions {
				var resources metav1.APIResourceList
				getJSON(t, d.RESTClient(), "/apis/"+v.GroupVersion, &resources)
				if resources.GroupVersion != v.GroupVersion || len(resources.APIResources) == 0 {
					t.Errorf("/apis/%s says %+v", v.GroupVersion, resources)
				}
			}
		}
	})
	t.Run("preferred versions", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Discovery should validate PreferredVersion for each APIGroup [Conformance]")
		groups, err := d.ServerGroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups.Groups {
			if !slices.Contains(g.Versions, g.PreferredVersion) {
				t.Errorf("group %q prefers %v, and has %v", g.Name, g.PreferredVersion, g.Versions)
			}
		}
	})
	t.Run("version", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] server version should find the server version [Conformance]")
		v, err := d.ServerVersion()
		if err != nil {
			t.Fatal(err)
		}
		number := regexp.MustCompile(`^[0-9]+$`)
		if !number.MatchString(v.Major) || !number.MatchString(v.Minor) {
			t.Errorf("version %q.%q", v.Major, v.Minor)
		}
	})
	t.Run("no table of a review", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] Servers with support for Table transformation should return a 406 for a backend which does not implement metadata [Conformance]")
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/", Verb: "get"},
		}}
		table := &metav1.Table{}
		err := c.Client.AuthorizationV1().RESTClient().Post().Resource("selfsubjectaccessreviews").
			SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Body(review).Do(t.Context()).Into(table)
		status, ok := err.(apierrors.APIStatus)
		if !ok || status.Status().Code != http.StatusNotAcceptable {
			t.Errorf("the answer is %v", err)
		}
	})
}

func getJSON(t *testing.T, client rest.Interface, path string, into any) {
	t.Helper()
	raw, err := client.Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(t.Context())
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
}

// TestFieldValidation sends objects with fields that there are not, or twice.
func TestFieldValidation(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	send := func(t *testing.T, verb, body string) error {
		t.Helper()
		request := c.Client.AppsV1().RESTClient().Post().AbsPath("/apis/apps/v1/namespaces", ns, "deployments")
		if verb == "apply" {
			request = c.Client.AppsV1().RESTClient().Patch(types.ApplyPatchType).
				AbsPath("/apis/apps/v1/namespaces", ns, "deployments", "strict").Param("fieldManager", "me")
		}
		if verb == "yaml" {
			request.SetHeader("Content-Type", "application/yaml")
		} else if verb == "json" {
			request.SetHeader("Content-Type", "application/json")
		}
		return request.Param("fieldValidation", "Strict").Body([]byte(body)).Do(t.Context()).Error()
	}
	const good = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"strict"},"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},
		"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"conclave.test/busybox:1"}]}}}}`
	refused := func(t *testing.T, cases map[string][2]string) {
		t.Helper()
		for verb, words := range map[string][2]string{
			"json": {`unknown field "%s"`, `duplicate field "%s"`}, "yaml": {`unknown field "%s"`, `key "%.0s`}, "apply": {`unknown field "%s"`, `key "%.0s`},
		} {
			for field, change := range cases {
				word := words[0]
				if strings.Contains(change[1], change[0]) && strings.Contains(change[1], "duplicate") {
					word = words[1]
				}
				body := strings.Replace(good, change[0], strings.ReplaceAll(change[1], "duplicate", ""), 1)
				err := send(t, verb, body)
				if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), fmt.Sprintf(word, field)) {
					t.Errorf("%s of field %s: %v", verb, field, err)
				}
			}
		}
		if _, err := c.Client.AppsV1().Deployments(ns).Get(t.Context(), "strict", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("something of what was refused is there: %v", err)
		}
	}
	t.Run("fields", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should detect unknown and duplicate fields of a typed object [Conformance]")
		refused(t, map[string][2]string{
			"spec.unknown":       {`"replicas":0`, `"replicas":0,"unknown":"x"`},
			"spec.replicas":      {`"replicas":0`, `"replicas":0,"replicas":1duplicate`},
			"spec.template.none": {`"template":{`, `"template":{"none":{},`},
		})
	})
	t.Run("metadata", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should detect unknown metadata fields of a typed object [Conformance]")
		refused(t, map[string][2]string{
			"metadata.unknown":               {`"name":"strict"`, `"name":"strict","unknown":"x"`},
			"spec.template.metadata.unknown": {`"metadata":{"labels"`, `"metadata":{"unknown":"x","labels"`},
		})
	})
	if err := send(t, "apply", good); err != nil {
		t.Errorf("apply of a valid object: %v", err)
	}
}

// TestGarbage deletes owners in the ways that there are.
func TestGarbage(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	apps := c.Client.AppsV1()
	deploy := func(t *testing.T, name string) {
		t.Helper()
		labels := map[string]string{"app": name}
		_, err := apps.Deployments(ns).Create(t.Context(), &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: appsv1.DeploymentSpec{Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: sleeper("", "").Spec,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the deployment has a replica set with two pods", func() error {
			sets, pods := ownedBy(t, c, ns, name)
			if len(sets) != 1 || len(pods) != 2 {
				return fmt.Errorf("there are %d replica sets and %d pods", len(sets), len(pods))
			}
			return nil
		})
	}
	remove := func(t *testing.T, name string, policy metav1.DeletionPropagation) {
		t.Helper()
		if err := apps.Deployments(ns).Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the deployment is gone", func() error {
			_, err := apps.Deployments(ns).Get(t.Context(), name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("it is there: %v", err)
		})
	}
	t.Run("background", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Garbage collector should delete RS created by deployment when not orphaning [Conformance]")
		deploy(t, "background")
		remove(t, "background", metav1.DeletePropagationBackground)
		eventually(t, "replica set and pods are gone", func() error {
			if sets, pods := ownedBy(t, c, ns, "background"); len(sets)+len(pods) > 0 {
				return fmt.Errorf("there are %d replica sets and %d pods", len(sets), len(pods))
			}
			return nil
		})
	})
	t.Run("orphan", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Garbage collector should orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan [Conformance]")
		deploy(t, "orphan")
		remove(t, "orphan", metav1.DeletePropagationOrphan)
		sets, pods := ownedBy(t, c, ns, "orphan")
		if len(sets) != 1 || len(pods) != 2 {
			t.Fatalf("there are %d replica sets and %d pods", len(sets), len(pods))
		}
		if owners := sets[0].OwnerReferences; len(owners) > 0 {
			t.Errorf("the replica set has owners %v", owners)
		}
		// The collector works through what it is told in order: when another
		// owner's dependents are gone, it has seen this orphan too.
		deploy(t, "after-orphan")
		remove(t, "after-orphan", metav1.DeletePropagationBackground)
		eventually(t, "the other replica set is gone", func() error {
			if sets, _ := ownedBy(t, c, ns, "after-orphan"); len(sets) > 0 {
				return fmt.Errorf("it is there")
			}
			return nil
		})
		if sets, _ := ownedBy(t, c, ns, "orphan"); len(sets) != 1 || sets[0].DeletionTimestamp != nil {
			t.Error("the orphaned replica set was collected")
		}
		if err := apps.ReplicaSets(ns).Delete(t.Context(), sets[0].Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("circle", func(t *testing.T) {
		t.Parallel()
		t.Cleanup(func() {
			if t.Failed() {
				dumpLogs(t, c)
			}
		})
		conformance.Shows(t, "[sig-api-machinery] Garbage collector should not be blocked by dependency circle [Conformance]")
		pods := c.Client.CoreV1().Pods(ns)
		var made []*corev1.Pod
		for _, name := range []string{"circle-1", "circle-2", "circle-3"} {
			pod, err := pods.Create(t.Context(), sleeper(name, "circle"), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, pod)
		}
		for i, pod := range made {
			owner := made[(i+2)%3]
			patch := fmt.Sprintf(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":%q,"uid":%q,"controller":true,"blockOwnerDeletion":true}]}}`, owner.Name, owner.UID)
			if _, err := pods.Patch(t.Context(), pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := pods.Delete(t.Context(), "circle-1", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all of the circle are gone", func() error {
			left, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "app=circle"})
			if err == nil && len(left.Items) > 0 {
				err = errors.New("some are left:")
				for _, p := range left.Items {
					err = fmt.Errorf("%w\n%s: deleted %v, finalizers %q, owners %v, on %q, %s", err, p.Name, p.DeletionTimestamp, p.Finalizers, p.OwnerReferences, p.Spec.NodeName, p.Status.Phase)
				}
			}
			return err
		})
	})
}

// sleeper is a pod that does nothing and goes at once.
func sleeper(name, app string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(0)),
			Containers: []corev1.Container{{
				Name: "sleep", Image: "conclave.test/busybox:1", Command: []string{"sleep", "3600"},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}},
			}},
		},
	}
}

// ownedBy are the replica sets and pods of an application.
func ownedBy(t *testing.T, c *cluster.Cluster, ns, app string) ([]appsv1.ReplicaSet, []corev1.Pod) {
	t.Helper()
	options := metav1.ListOptions{LabelSelector: labels.Set{"app": app}.String()}
	sets, err := c.Client.AppsV1().ReplicaSets(ns).List(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := c.Client.CoreV1().Pods(ns).List(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	return sets.Items, pods.Items
}
