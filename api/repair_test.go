package api_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/apitest"
)

const (
	addresses = "ipaddresses.networking.k8s.io"
	nodePorts = "nodeports.conclave.io"
)

// Addresses and ports of services that are gone are freed, and those that a
// service has without a reservation are reserved again.
func TestRepairOfServiceAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, store := apitest.NewServerStorage(t)
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.1.1", Ports: []corev1.ServicePort{{Port: 80, NodePort: 30100}},
		}}
		must(s.Local(apitest.Admin).Create(t.Context(), api.GVROf(svc), "default", "", svc, metav1.CreateOptions{}))(t)
		reserve := func(resource, name, owner string) {
			t.Helper()
			meta := metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Now()}
			if owner != "" {
				meta.Annotations = map[string]string{"conclave.io/service": owner}
			}
			var obj api.Object = &networkingv1.IPAddress{ObjectMeta: meta}
			if resource == nodePorts {
				obj = &metav1.PartialObjectMetadata{ObjectMeta: meta}
			}
			must(store.Write(t.Context(), api.Write{Verb: api.Create, Resource: resource, Name: name, Object: obj}))(t)
		}
		lose := func(resource, name string) {
			t.Helper()
			must(store.Write(t.Context(), api.Write{Verb: api.Delete, Resource: resource, Name: name}))(t)
		}
		has := func(when, resource string, want ...string) {
			t.Helper()
			var names []string
			records, _ := store.List(resource, "")
			for _, r := range records {
				names = append(names, r.Object().GetName())
			}
			if !slices.Equal(names, want) {
				t.Errorf("%s, of %s there are %q, want %q", when, resource, names, want)
			}
		}
		reserve(addresses, "10.96.2.2", "default/gone")
		reserve(addresses, "10.96.3.3", "") // somebody else's
		reserve(nodePorts, "tcp-30200", "default/gone")
		lose(addresses, "10.96.1.1")
		lose(nodePorts, "tcp-30100")

		time.Sleep(9*time.Minute + 59*time.Second)
		reserve(addresses, "10.96.4.4", "default/being-made")
		synctest.Wait()
		has("before the repair", addresses, "10.96.0.1", "10.96.0.10", "10.96.2.2", "10.96.3.3", "10.96.4.4")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		has("after it", addresses, "10.96.0.1", "10.96.0.10", "10.96.1.1", "10.96.3.3", "10.96.4.4")
		has("after it", nodePorts, "tcp-30100")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		has("after the next", addresses, "10.96.0.1", "10.96.0.10", "10.96.1.1", "10.96.3.3")
		has("after the next", nodePorts, "tcp-30100")
	})
}
