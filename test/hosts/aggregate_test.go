package hosts

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"conclave/test/cluster"
)

const wardle = "v1alpha1.wardle.example.com"

var (
	flunderResource = schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1alpha1", Resource: "flunders"}
	apiServices     = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
)

// flunderServer is an API server in a pod, behind the cluster's own ones.
type flunderServer struct {
	*testing.T
	c  *cluster.Cluster
	ns string
	ca []byte
}

// start runs the pod, with the certificate of its Service and what the cluster
// says of who may speak for users.
func (f *flunderServer) start(cert, key []byte) {
	f.Helper()
	authentication, err := f.c.Client.CoreV1().ConfigMaps("kube-system").Get(f.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	core := f.c.Client.CoreV1()
	must(core.ConfigMaps(f.ns).Create(f.Context(), configMap("authentication", authentication.Data), metav1.CreateOptions{}))
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "flunders"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": cert, "tls.key": key}}
	must(core.Secrets(f.ns).Create(f.Context(), secret, metav1.CreateOptions{}))
	pod := asker("flunders", "flunders", "/cert", "/authentication")
	pod.Labels = map[string]string{"app": "flunders"}
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "cert", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "flunders"}}},
		{Name: "authentication", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "authentication"}}}},
	}
	ct := &pod.Spec.Containers[0]
	ct.VolumeMounts = []corev1.VolumeMount{{Name: "cert", MountPath: "/cert"}, {Name: "authentication", MountPath: "/authentication"}}
	ct.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: corev1.URISchemeHTTPS, Port: intstr.FromInt32(8443), Path: "/readyz"}}}
	must(core.Pods(f.ns).Create(f.Context(), pod, metav1.CreateOptions{}))
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "flunders"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "flunders"}, Ports: []corev1.ServicePort{{Port: 443, TargetPort: intstr.FromInt32(8443)}},
	}}
	must(core.Services(f.ns).Create(f.Context(), svc, metav1.CreateOptions{}))
}

// register has kubectl make the APIService.
func (f *flunderServer) register() {
	f.Helper()
	manifest := fmt.Sprintf(`apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: %s}
spec: {group: wardle.example.com, version: v1alpha1, groupPriorityMinimum: 2000, versionPriority: 200, caBundle: %s, service: {namespace: %s, name: flunders}}
`, wardle, base64.StdEncoding.EncodeToString(f.ca), f.ns)
	if out, err := f.c.KubectlInput(f.Context(), manifest, "apply", "-f", "-"); err != nil {
		f.Fatalf("%s %v", out, err)
	}
}

// shows waits until kubectl's line of the APIService has this in it.
func (f *flunderServer) shows(want string) {
	f.Helper()
	eventually(f.T, "kubectl get apiservices shows "+want, func() error {
		out, err := f.c.Kubectl(f.Context(), "get", "apiservices", wardle, "--no-headers")
		if err == nil && !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			err = fmt.Errorf("it shows %s", out)
		}
		return err
	})
}

func (f *flunderServer) dynamic(host int) dynamic.Interface {
	f.Helper()
	cfg, err := f.c.RESTConfig(f.c.Hosts[host].Name)
	if err != nil {
		f.Fatal(err)
	}
	return must(dynamic.NewForConfig(cfg))
}

// TestAggregation shows an API server of ours that stands behind the cluster's.
func TestAggregation(t *testing.T) {
	c := own(t, 3)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	f := &flunderServer{T: t, c: c, ns: namespace(t, c)}
	account(t, c, f.ns, "default")
	eventually(t, "what the cluster serves itself is listed", func() error {
		out, err := c.Kubectl(t.Context(), "get", "apiservices", "--no-headers")
		for _, want := range []string{"v1. Local True", "v1.apps Local True", "v1.apiextensions.k8s.io Local True"} {
			if text := strings.Join(strings.Fields(out), " "); err == nil && !strings.Contains(text, want) {
				err = fmt.Errorf("%q is not in %s", want, out)
			}
		}
		return err
	})
	var cert, key []byte
	f.ca, cert, key = serverCertificate(t, "flunders."+f.ns+".svc")

	// A server that is not there is told of, and breaks nothing else.
	f.register()
	f.shows(f.ns + "/flunders False (ServiceNotFound)")
	f.partial()
	f.start(cert, key)
	kubectl(t, c, "wait", "--for=condition=Available", "apiservice/"+wardle, "--timeout=60s")
	f.shows(f.ns + "/flunders True")
	f.use()
	f.identity()
	f.edit()
	f.emptied()

	// And one that goes away.
	kubectl(t, c, "delete", "pod", "-n", f.ns, "flunders", "--wait=true")
	f.shows("False (MissingEndpoints)")
	f.partial()
	out := kubectl(t, c, "delete", "apiservice", wardle)
	if !strings.Contains(out, "deleted") {
		t.Error(out)
	}
	eventually(t, "the group is gone", func() error {
		_, err := f.dynamic(2).Resource(flunderResource).Namespace(f.ns).List(t.Context(), metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it answers %v", err)
	})
}

// partial says that all that is there is listed though one server is away.
func (f *flunderServer) partial() {
	f.Helper()
	if out, err := f.c.Kubectl(f.Context(), "api-resources"); !strings.Contains(out, "deployments") {
		f.Errorf("what is there is not listed: %s %v", out, err)
	}
	for i := range f.c.Hosts {
		eventually(f.T, "client-go is told what is missing", func() error {
			client, err := f.c.ClientFor(f.c.Hosts[i].Name, func(*rest.Config) {})
			if err != nil {
				return err
			}
			lists, err := client.Discovery().ServerPreferredResources()
			failed, ok := errors.AsType[*discovery.ErrGroupDiscoveryFailed](err)
			if !ok || len(failed.Groups) != 1 || failed.Groups[flunderResource.GroupVersion()] == nil || len(lists) < 10 {
				return fmt.Errorf("%d lists and %v", len(lists), err)
			}
			return nil
		})
	}
	if out, err := f.c.Kubectl(f.Context(), "get", "all", "-n", f.ns); err != nil {
		f.Errorf("get all: %s %v", out, err)
	}
	_, err := f.dynamic(1).Resource(flunderResource).Namespace(f.ns).List(f.Context(), metav1.ListOptions{})
	if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "the server is currently unable to handle the request") {
		f.Errorf("a list of what cannot be had: %v", err)
	}
}

// use works with flunders as with anything else, by every host.
func (f *flunderServer) use() {
	f.Helper()
	const manifest = "apiVersion: wardle.example.com/v1alpha1\nkind: Flunder\nmetadata: {name: one}\nspec: {color: blue}\n"
	eventually(f.T, "kubectl creates a flunder", func() error {
		out, err := f.c.KubectlInput(f.Context(), manifest, "create", "-n", f.ns, "-f", "-")
		if err == nil && !strings.Contains(out, "flunder.wardle.example.com/one created") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if out := kubectl(f.T, f.c, "get", "-n", f.ns, "flunders", "-o", "name"); strings.TrimSpace(out) != "flunder.wardle.example.com/one" {
		f.Error(out)
	}
	if out := kubectl(f.T, f.c, "api-resources", "--api-group=wardle.example.com"); !strings.Contains(out, "flunders") {
		f.Error(out)
	}
	if out := kubectl(f.T, f.c, "explain", "flunder"); !strings.Contains(out, "Flunder is what this server keeps.") {
		f.Error(out)
	}
	if out := kubectl(f.T, f.c, "auth", "can-i", "create", "flunders.wardle.example.com"); strings.TrimSpace(out) != "yes" {
		f.Error(out)
	}
	watcher := must(f.dynamic(1).Resource(flunderResource).Namespace(f.ns).Watch(f.Context(), metav1.ListOptions{}))
	defer watcher.Stop()
	next := func(want string) {
		f.Helper()
		select {
		case e, ok := <-watcher.ResultChan():
			o, _ := e.Object.(*unstructured.Unstructured)
			if got := fmt.Sprint(e.Type); !ok || o == nil || got+" "+o.GetName() != want {
				f.Fatalf("the watch says %s %v, not %s", got, e.Object, want)
			}
		case <-f.Context().Done():
			f.Fatal(f.Context().Err())
		}
	}
	next("ADDED one")
	for i := range f.c.Hosts {
		flunders := f.dynamic(i).Resource(flunderResource).Namespace(f.ns)
		name := fmt.Sprint("by-", i)
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": map[string]any{"name": name}}}
		made, err := flunders.Create(f.Context(), o, metav1.CreateOptions{})
		if err != nil {
			f.Fatal(err)
		}
		if by := made.GetAnnotations()["wardle.example.com/created-by"]; by == "" || by == "system:anonymous" {
			f.Errorf("it was made by %q", by)
		}
		next("ADDED " + name)
		got, err := flunders.Get(f.Context(), name, metav1.GetOptions{})
		if err != nil || got.GetUID() != made.GetUID() {
			f.Errorf("%v %v", got, err)
		}
		if err := flunders.Delete(f.Context(), name, metav1.DeleteOptions{}); err != nil {
			f.Error(err)
		}
		next("DELETED " + name)
		var resources metav1.APIResourceList
		client, err := f.c.ClientFor(f.c.Hosts[i].Name, func(*rest.Config) {})
		if err != nil {
			f.Fatal(err)
		}
		getJSON(f.T, client.Discovery().RESTClient(), "/apis/wardle.example.com/v1alpha1", &resources)
		if len(resources.APIResources) != 1 {
			f.Errorf("%+v", resources)
		}
	}
	if out := kubectl(f.T, f.c, "delete", "-n", f.ns, "flunder", "one"); !strings.Contains(out, `"one" deleted`) {
		f.Error(out)
	}
	next("DELETED one")
}

// identity says that nobody but the API server speaks for users.
func (f *flunderServer) identity() {
	f.Helper()
	out, err := f.c.Kubectl(f.Context(), "get", "flunders", "-n", f.ns, "--as=jane")
	if err == nil || !strings.Contains(fmt.Sprint(out, err), `User "jane" cannot list resource "flunders" in API group "wardle.example.com"`) {
		f.Errorf("who has no right: %s %v", out, err)
	}
	// By way of the proxy to its Service, it is a stranger who says so.
	_, err = f.c.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces", f.ns, "services/https:flunders:443/proxy/apis/wardle.example.com/v1alpha1/flunders").
		SetHeader("X-Remote-User", "admin").SetHeader("X-Remote-Group", "system:masters").DoRaw(f.Context())
	if !apierrors.IsUnauthorized(err) {
		f.Errorf("a stranger is answered: %v", err)
	}
}

// emptied says that what is kept by another server goes with its namespace.
func (f *flunderServer) emptied() {
	f.Helper()
	ns := f.ns + "-more"
	kubectl(f.T, f.c, "create", "namespace", ns)
	flunders := f.dynamic(2).Resource(flunderResource).Namespace(ns)
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": map[string]any{"name": "left"}}}
	if _, err := flunders.Create(f.Context(), o, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	kubectl(f.T, f.c, "delete", "namespace", ns, "--timeout=60s")
	if list, err := flunders.List(f.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		f.Errorf("of a namespace that is gone there are %v %v", list, err)
	}
}

// edit changes the APIService by patch, update and its status.
func (f *flunderServer) edit() {
	f.Helper()
	all := f.dynamic(0).Resource(apiServices)
	patched, err := all.Patch(f.Context(), wardle, types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}},"spec":{"versionPriority":400}}`), metav1.PatchOptions{})
	if err != nil || patched.GetLabels()["patched"] != "yes" {
		f.Fatalf("%v %v", patched, err)
	}
	if _, err := all.Patch(f.Context(), wardle, types.MergePatchType, []byte(`{"spec":{"versionPriority":1001}}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		f.Errorf("a priority that is too high: %v", err)
	}
	eventually(f.T, "an update", func() error {
		o, err := all.Get(f.Context(), wardle, metav1.GetOptions{})
		if err != nil {
			return err
		}
		o.SetLabels(map[string]string{"updated": "yes"})
		o, err = all.Update(f.Context(), o, metav1.UpdateOptions{})
		if err == nil && o.GetLabels()["updated"] != "yes" {
			err = fmt.Errorf("it is %v", o)
		}
		return err
	})
	status, err := all.Get(f.Context(), wardle, metav1.GetOptions{}, "status")
	if err != nil {
		f.Fatal(err)
	}
	raw, err := json.Marshal(status.Object["status"])
	if err != nil || !strings.Contains(string(raw), `"reason":"Passed"`) {
		f.Errorf("the status is %s %v", raw, err)
	}
	list, err := all.List(f.Context(), metav1.ListOptions{LabelSelector: "updated=yes"})
	if err != nil || !slices.ContainsFunc(list.Items, func(o unstructured.Unstructured) bool { return o.GetName() == wardle }) {
		f.Errorf("%v %v", list, err)
	}
}
