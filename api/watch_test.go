package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
	"conclave/api/apitest"
)

var cmGVR = api.GVROf(&corev1.ConfigMap{})

func putMap(t testing.TB, c api.Client, name, tier string) {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"tier": tier}}}
	_, err := c.Create(t.Context(), cmGVR, "default", "", cm, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = c.Update(t.Context(), cmGVR, "default", cm, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func describe(e watch.Event) string {
	switch o := e.Object.(type) {
	case *corev1.ConfigMap:
		s := fmt.Sprint(e.Type, " ", o.Name, o.Labels["tier"])
		if o.Annotations[metav1.InitialEventsAnnotationKey] != "" {
			s += "initial"
		}
		return strings.TrimSpace(s)
	case *metav1.Status:
		return fmt.Sprint(e.Type, " ", o.Reason)
	}
	return fmt.Sprintf("%s %T", e.Type, e.Object)
}

// drain returns what a watch has sent by now, in virtual time.
func drain(w watch.Interface) []string {
	var got []string
	for {
		synctest.Wait()
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return append(got, "end")
			}
			got = append(got, describe(e))
		default:
			return got
		}
	}
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, store := apitest.NewServerStorage(t)
		c := s.Local(apitest.Admin)
		putMap(t, c, "a", "1")
		putMap(t, c, "b", "2")
		yes, hour := true, int64(3600)
		open := func(o metav1.ListOptions) watch.Interface {
			t.Helper()
			w, err := c.Watch(t.Context(), cmGVR, "default", o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.Stop)
			return w
		}
		_, meta, err := c.List(t.Context(), cmGVR, "", metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		plain := open(metav1.ListOptions{})
		streaming := open(metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true, TimeoutSeconds: &hour})
		later := open(metav1.ListOptions{ResourceVersion: meta.ResourceVersion, LabelSelector: "tier=1"})
		expect(t, "plain", drain(plain), "ADDED a1", "ADDED b2")
		expect(t, "streaming", drain(streaming), "ADDED a1", "ADDED b2", "BOOKMARK initial")
		expect(t, "later", drain(later))
		putMap(t, c, "b", "1")
		putMap(t, c, "a", "3")
		putMap(t, c, "a", "4")
		putMap(t, c, "b", "5")
		expect(t, "transitions", drain(later), "ADDED b1", "DELETED a1", "DELETED b1")
		expect(t, "all", drain(plain), "MODIFIED b1", "MODIFIED a3", "MODIFIED a4", "MODIFIED b5")
		drain(streaming)
		time.Sleep(61 * time.Second)
		expect(t, "bookmark", drain(streaming), "BOOKMARK")
		time.Sleep(61 * time.Second)
		expect(t, "no bookmark where nothing moved", drain(streaming))
		if _, err := c.Create(t.Context(), api.GVROf(&corev1.Secret{}), "default", "", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		expect(t, "bookmark", drain(streaming), "BOOKMARK")
		expect(t, "no bookmarks unasked", drain(plain))
		store.Compact()
		if _, err := c.Watch(t.Context(), cmGVR, "", metav1.ListOptions{ResourceVersion: meta.ResourceVersion}); !apierrors.IsResourceExpired(err) {
			t.Errorf("watch of the far past: %v", err)
		}
		time.Sleep(time.Hour)
		if got := drain(streaming); len(got) == 0 || got[len(got)-1] != "end" {
			t.Errorf("the watch outlived its timeout: %q", got)
		}
		for len(drain(plain)) == 0 { // within twice the usual time
			time.Sleep(10 * time.Minute)
		}
	})
}

type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) Replace(all []api.Object) {
	names := []string{}
	for _, o := range all {
		names = append(names, o.GetName())
	}
	r.add("all " + strings.Join(names, ","))
}

func (r *recorder) Apply(e watch.EventType, o api.Object) { r.add(fmt.Sprint(e, " ", o.GetName())) }

func (r *recorder) add(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, s)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

// Follow in process has everything, also after it fell behind.
func TestFollowLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewServer(t)
		c := s.Local(apitest.Admin)
		ctx, cancel := context.WithCancel(t.Context())
		r := &recorder{}
		done := make(chan error, 1)
		go func() {
			done <- api.Follow(ctx, c, cmGVR, "default", metav1.ListOptions{LabelSelector: "tier in (1,2)"}, r)
		}()
		putMap(t, c, "a", "1")
		putMap(t, c, "x", "9")
		synctest.Wait()
		got := r.take()
		if got[0] != "all " && got[0] != "all a" {
			t.Errorf("%q", got)
		}
		putMap(t, c, "a", "2")
		putMap(t, c, "a", "3")
		synctest.Wait()
		expect(t, "changes", r.take(), "MODIFIED a", "DELETED a")
		cancel()
		if err := <-done; err != context.Canceled {
			t.Error(err)
		}
	})
}

// A node may follow a secret only once a pod of its own uses it; it need not
// ask again itself.
func TestFollowUntilAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewServer(t)
		admin := s.Local(apitest.Admin)
		node := s.Local(api.User{Name: "system:node:n1", Groups: []string{"system:nodes", "system:authenticated"}})
		r := &recorder{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- api.Follow(ctx, node, cmGVR, "default", metav1.ListOptions{FieldSelector: "metadata.name=conf"}, r)
		}()
		time.Sleep(10 * time.Second)
		expect(t, "not allowed", r.take())
		putMap(t, admin, "conf", "1")
		putMap(t, admin, "other", "1")
		if _, err := admin.Create(t.Context(), api.GVROf(&corev1.ServiceAccount{}), "default", "", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		p := testPod("p")
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		if _, err := admin.Create(t.Context(), api.GVROf(p), "default", "", p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Create(t.Context(), api.GVROf(p), "default", "p", &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}, "binding"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		expect(t, "allowed", r.take(), "all conf")
		cancel()
		<-done
	})
}

// The leases of nodes are shown, watched and not writable.
func TestNodeLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := apitest.NewServer(t, func(c *api.Config) {
			c.Leases = func() []api.NodeLease {
				return []api.NodeLease{{Name: "n1", Holder: "n1", Renewed: time.Now(), Acquired: start, Duration: 3 * time.Second}}
			}
		})
		c := s.Local(apitest.Admin)
		gvr := api.GVROf(&coordinationv1.Lease{})
		if gvr.Resource != "leases" {
			t.Fatal(gvr)
		}
		own := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "mine"}}
		if _, err := c.Create(t.Context(), gvr, "default", "", own, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		all, err := api.ListAs[*coordinationv1.Lease](t.Context(), c, "", metav1.ListOptions{})
		if err != nil || len(all) != 2 || all[1].Name != "n1" || *all[1].Spec.HolderIdentity != "n1" || *all[1].Spec.LeaseDurationSeconds != 3 {
			t.Errorf("%v %v", all, err)
		}
		w, err := c.Watch(t.Context(), gvr, "kube-node-lease", metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		expect(t, "watch", drain(w), "ADDED *v1.Lease")
		for range 2 {
			time.Sleep(10 * time.Second)
			expect(t, "watch", drain(w), "MODIFIED *v1.Lease")
		}
		own.Name = "n1"
		if _, err := c.Create(t.Context(), gvr, "kube-node-lease", "", own, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "kept in memory") {
			t.Errorf("%v", err)
		}
		if err := c.Delete(t.Context(), gvr, "kube-node-lease", "n1", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%v", err)
		}
		own.Name = "leader-election"
		if _, err := c.Create(t.Context(), gvr, "kube-node-lease", "", own, metav1.CreateOptions{}); err != nil {
			t.Errorf("a lease of nobody's is an ordinary object: %v", err)
		}
	})
}

// Our own client over HTTP does what the one in process does.
func TestHTTPClient(t *testing.T) {
	st := newSite(t)
	c := api.NewHTTP(st.base(), st.admin())
	ctx, cancel := context.WithCancel(t.Context())
	r := &recorder{}
	seen := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- api.Follow(ctx, c, cmGVR, "default", metav1.ListOptions{}, notify{r, seen}) }()
	wait := func(want string) {
		t.Helper()
		select {
		case <-seen:
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing, want %q", want)
		}
		expect(t, want, r.take(), want)
	}
	wait("all ")
	putMap(t, c, "a", "1")
	wait("ADDED a")
	putMap(t, c, "a", "2")
	wait("MODIFIED a")
	got, err := api.GetAs[*corev1.ConfigMap](ctx, c, "default", "a")
	if err != nil || got.Labels["tier"] != "2" || got.Kind != "ConfigMap" {
		t.Errorf("%+v %v", got, err)
	}
	list, err := api.ListAs[*corev1.ConfigMap](ctx, c, "", metav1.ListOptions{LabelSelector: "tier=2"})
	if err != nil || len(list) != 1 || list[0].Kind != "ConfigMap" {
		t.Errorf("%+v %v", list, err)
	}
	applied, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "b"}, "data": map[string]string{"k": "v"}})
	if o, err := c.Patch(ctx, cmGVR, "default", "b", "application/apply-patch+yaml", applied, metav1.PatchOptions{FieldManager: "me"}); err != nil || o.GetManagedFields()[0].Manager != "me" {
		t.Errorf("%v %v", o, err)
	}
	wait("ADDED b")
	// A break of the connection is no gap.
	st.http.CloseClientConnections()
	putMap(t, st.Local(apitest.Admin), "c", "1")
	wait("ADDED c")
	if err := c.Delete(ctx, cmGVR, "default", "a", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	wait("DELETED a")
	if _, err := api.GetAs[*corev1.ConfigMap](ctx, c, "default", "a"); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
}

type notify struct {
	*recorder
	seen chan struct{}
}

func (n notify) Replace(all []api.Object) { n.recorder.Replace(all); n.seen <- struct{}{} }
func (n notify) Apply(e watch.EventType, o api.Object) {
	n.recorder.Apply(e, o)
	n.seen <- struct{}{}
}
