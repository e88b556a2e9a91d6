package controller

import (
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (w *world) clusterRole(name string) *rbacv1.ClusterRole {
	w.Helper()
	o, err := w.client.Get(w.ctx, clusterRoles, "", name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return o.(*rbacv1.ClusterRole)
}

// An aggregated role follows the roles that it gathers, through others that do
// the same, and nothing is written when nothing changed.
func TestAggregation(t *testing.T) {
	inWorld(t, func(w *world) {
		has := func(role, resource string) bool {
			for _, r := range w.clusterRole(role).Rules {
				for _, name := range r.Resources {
					if name == resource {
						return true
					}
				}
			}
			return false
		}
		if !has("view", "pods") || !has("edit", "pods/log") || !has("admin", "rolebindings") || has("view", "secrets") {
			t.Fatalf("%+v", w.clusterRole("view").Rules)
		}
		mice := &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: "mice", Labels: map[string]string{"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
			Rules:      []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{"example.com"}, Resources: []string{"mice"}}},
		}
		made := create(w, clusterRoles, mice)
		w.settle(time.Second)
		for _, role := range []string{"view", "edit", "admin"} {
			if !has(role, "mice") {
				t.Errorf("%s lacks what was added to view", role)
			}
		}
		at := w.clusterRole("admin").ResourceVersion
		other := made.DeepCopy()
		other.Annotations = map[string]string{"a": "b"}
		if _, err := w.client.Update(w.ctx, clusterRoles, "", other, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle(time.Second)
		if now := w.clusterRole("admin").ResourceVersion; now != at {
			t.Errorf("written at %s, though its rules are those of %s", now, at)
		}
		// What somebody writes into it by hand does not stay.
		view := w.clusterRole("view").DeepCopyObject().(*rbacv1.ClusterRole)
		view.Rules = nil
		if _, err := w.client.Update(w.ctx, clusterRoles, "", view, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Delete(w.ctx, clusterRoles, "", "mice", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle(time.Second)
		if !has("view", "pods") || has("view", "mice") || has("admin", "mice") {
			t.Errorf("%+v", w.clusterRole("admin").Rules)
		}
	})
}
