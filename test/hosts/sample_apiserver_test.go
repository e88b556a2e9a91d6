package hosts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	apitypes "conclave/api/types"
	"conclave/test/cluster"
	"conclave/test/conformance"
)

// sampleServer is Kubernetes' example of an API server behind another, with a
// database of its own, as people deploy it.
type sampleServer struct {
	*testing.T
	c        *cluster.Cluster
	ns       string
	flunders []dynamic.ResourceInterface // by each host, in the namespace ns
}

// sampleRights are what such a server needs: to ask who somebody is and what he
// may, to know how it is told so, and what decides on requests and objects.
const sampleRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: sample-apiserver-reader}
rules:
- {apiGroups: [""], resources: [namespaces], verbs: [get, list, watch]}
- {apiGroups: [admissionregistration.k8s.io], resources: ["*"], verbs: [get, list, watch]}
- {apiGroups: [flowcontrol.apiserver.k8s.io], resources: [prioritylevelconfigurations, flowschemas], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: sample-apiserver-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sample-apiserver-reader}
subjects: [{kind: ServiceAccount, name: sample-apiserver, namespace: NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "sample-apiserver:auth-delegator"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, name: sample-apiserver, namespace: NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: sample-apiserver-auth-reader, namespace: kube-system, annotations: {rbac.authorization.kubernetes.io/autoupdate: "true"}}
roleRef: {apiGroup: "", kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: sample-apiserver, namespace: NAMESPACE}]
`

// sampleManifest runs it beside its etcd, behind a Service.
const sampleManifest = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: sample-apiserver}
---
apiVersion: v1
kind: Secret
metadata: {name: sample-apiserver-secret}
data: {tls.crt: CERT, tls.key: KEY}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: sample-apiserver}
spec:
  replicas: 1
  selector: {matchLabels: {app: sample-apiserver, apiserver: "true"}}
  template:
    metadata: {labels: {app: sample-apiserver, apiserver: "true"}}
    spec:
      serviceAccountName: sample-apiserver
      terminationGracePeriodSeconds: 0
      containers:
      - name: sample-apiserver
        image: conclave.test/sample-apiserver:1
        args:
        - --etcd-servers=http://127.0.0.1:2379
        - --tls-cert-file=/apiserver.local.config/certificates/tls.crt
        - --tls-private-key-file=/apiserver.local.config/certificates/tls.key
        - --audit-log-path=-
        - --audit-log-maxage=0
        - --audit-log-maxbackup=0
        readinessProbe: {periodSeconds: 1, httpGet: {scheme: HTTPS, port: 443, path: /readyz}}
        volumeMounts: [{name: certificates, mountPath: /apiserver.local.config/certificates, readOnly: true}]
      - name: etcd
        image: conclave.test/etcd:1
        args: [--listen-client-urls, "http://127.0.0.1:2379", --advertise-client-urls, "http://127.0.0.1:2379"]
      volumes: [{name: certificates, secret: {secretName: sample-apiserver-secret}}]
---
apiVersion: v1
kind: Service
metadata: {name: sample-api, labels: {test: aggregator}}
spec: {selector: {apiserver: "true"}, ports: [{port: 7443, targetPort: 443}]}
`

// TestSampleAPIServer has the cluster serve what Kubernetes' own example of an API
// server keeps in an etcd.
func TestSampleAPIServer(t *testing.T) {
	conformance.Shows(t, "[sig-api-machinery] Aggregator Should be able to support the 1.17 Sample API Server using the current Aggregator [LinuxOnly] [Conformance]")
	t.Parallel()
	c := own(t, 3)
	if err := c.Import(t.Context(), "etcd", "sample-apiserver"); err != nil {
		t.Fatal(err)
	}
	s := &sampleServer{T: t, c: c, ns: namespace(t, c)}
	t.Cleanup(s.tell)
	for _, h := range c.Hosts {
		cfg := must(c.RESTConfig(h.Name))
		cfg.WarningHandler = rest.NoWarnings{} // flunders are old-fashioned
		s.flunders = append(s.flunders, must(dynamic.NewForConfig(cfg)).Resource(flunderResource).Namespace(s.ns))
	}
	s.deploy()
	s.found()
	s.byPaths()
	s.byHosts()
	s.byKubectl()
	s.decides()
	s.registration()
}

// tell shows what its containers said, if the test failed.
func (s *sampleServer) tell() {
	if !s.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := s.c.Kubectl(ctx, "logs", "-n", s.ns, "deployment/sample-apiserver", "--all-containers", "--prefix", "--tail=40")
	s.Logf("%s\n%v", out, err)
}

// deploy runs the server, and registers it once it is complete.
func (s *sampleServer) deploy() {
	s.Helper()
	ca, cert, key := serverCertificate(s.T, "sample-api."+s.ns+".svc")
	fill := strings.NewReplacer("NAMESPACE", s.ns, "CERT", base64.StdEncoding.EncodeToString(cert), "KEY", base64.StdEncoding.EncodeToString(key))
	apply(s.T, s.c, "", fill.Replace(sampleRights))
	apply(s.T, s.c, s.ns, fill.Replace(sampleManifest))
	kubectl(s.T, s.c, "rollout", "status", "-n", s.ns, "deployment/sample-apiserver", "--timeout=2m")
	apply(s.T, s.c, "", fmt.Sprintf(`apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: %s}
spec: {group: wardle.example.com, version: v1alpha1, groupPriorityMinimum: 2000, versionPriority: 200, caBundle: %s, service: {namespace: %s, name: sample-api, port: 7443}}
`, wardle, base64.StdEncoding.EncodeToString(ca), s.ns))
	kubectl(s.T, s.c, "wait", "--for=condition=Available", "apiservice/"+wardle, "--timeout=60s")
}

// found says that the group is in what every host says that there is.
func (s *sampleServer) found() {
	s.Helper()
	for _, h := range s.c.Hosts {
		client := must(s.c.ClientFor(h.Name, func(*rest.Config) {}))
		eventually(s.T, "client-go finds flunders by "+h.Name, func() error {
			lists, err := client.Discovery().ServerPreferredNamespacedResources()
			if err != nil {
				return err
			}
			all, err := discovery.GroupVersionResources(lists)
			if _, ok := all[flunderResource]; !ok {
				return fmt.Errorf("it is not in %v: %v", all, err)
			}
			return nil
		})
		var groups metav1.APIGroupList
		getJSON(s.T, client.Discovery().RESTClient(), "/apis", &groups)
		var group metav1.APIGroup
		getJSON(s.T, client.Discovery().RESTClient(), "/apis/wardle.example.com", &group)
		i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == "wardle.example.com" })
		want := metav1.GroupVersionForDiscovery{GroupVersion: "wardle.example.com/v1alpha1", Version: "v1alpha1"}
		if i < 0 || !slices.Contains(groups.Groups[i].Versions, want) || group.Kind != "APIGroup" || group.PreferredVersion != want {
			s.Errorf("%s shows the groups %+v and the group %+v", h.Name, groups.Groups, group)
		}
		var resources metav1.APIResourceList
		getJSON(s.T, client.Discovery().RESTClient(), "/apis/wardle.example.com/v1alpha1", &resources)
		for _, name := range []string{"fischers", "flunders"} {
			if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
				s.Errorf("%s shows no %s: %+v", h.Name, name, resources)
			}
		}
	}
}

func flunder(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": map[string]any{"name": name, "labels": map[string]any{"sample-label": "true"}},
	}}
}

// byPaths makes, lists and deletes a flunder without any client's notion of it.
func (s *sampleServer) byPaths() {
	s.Helper()
	const path = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders"
	client := s.c.Client.Discovery().RESTClient()
	var code int
	raw, err := client.Post().AbsPath(path).Body(must(flunder("by-path").MarshalJSON())).SetHeader("Accept", "application/json").Do(s.Context()).StatusCode(&code).Raw()
	if err != nil || code != 201 {
		s.Fatalf("it is created with %d: %s %v", code, raw, err)
	}
	made := &unstructured.Unstructured{}
	if err := made.UnmarshalJSON(raw); err != nil || made.GetKind() != "Flunder" || made.GetName() != "by-path" || made.GetAPIVersion() != "wardle.example.com/v1alpha1" || made.GetUID() == "" {
		s.Errorf("it is created as %s %v", raw, err)
	}
	listed := func(want int) {
		s.Helper()
		var list metav1.PartialObjectMetadataList
		getJSON(s.T, client, path, &list)
		if list.Kind != "FlunderList" || len(list.Items) != want {
			s.Errorf("there are %+v, not %d", list, want)
		}
	}
	listed(1)
	if raw, err := client.Delete().AbsPath(path, "by-path").DoRaw(s.Context()); err != nil {
		s.Errorf("%s %v", raw, err)
	}
	listed(0)
}

// byHosts works with flunders as with anything else, by every host.
func (s *sampleServer) byHosts() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	watcher := must(s.flunders[1].Watch(ctx, metav1.ListOptions{LabelSelector: "sample-label=true"}))
	defer watcher.Stop()
	next := func(want string) {
		s.Helper()
		select {
		case e, ok := <-watcher.ResultChan():
			o, _ := e.Object.(*unstructured.Unstructured)
			if !ok || o == nil || fmt.Sprint(e.Type, " ", o.GetName()) != want {
				s.Fatalf("the watch says %s %v, not %s", e.Type, e.Object, want)
			}
		case <-ctx.Done():
			s.Fatalf("the watch does not say %s: %v", want, ctx.Err())
		}
	}
	for i, flunders := range s.flunders {
		name := fmt.Sprint("by-", i)
		made, err := flunders.Create(s.Context(), flunder(name), metav1.CreateOptions{})
		if err != nil {
			s.Fatal(err)
		}
		next("ADDED " + name)
		if _, err := flunders.Create(s.Context(), flunder(name), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			s.Errorf("another of the same name: %v", err)
		}
		got, err := flunders.Get(s.Context(), name, metav1.GetOptions{})
		if err != nil || got.GetUID() != made.GetUID() {
			s.Fatalf("%v %v", got, err)
		}
		if err := unstructured.SetNestedField(got.Object, "another", "spec", "reference"); err != nil {
			s.Fatal(err)
		}
		put, err := flunders.Update(s.Context(), got, metav1.UpdateOptions{})
		if err != nil || put.GetResourceVersion() == made.GetResourceVersion() {
			s.Errorf("%v %v", put, err)
		}
		next("MODIFIED " + name)
		if _, err := flunders.Update(s.Context(), got, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			s.Errorf("an update of what is not so any more: %v", err)
		}
		patched, err := flunders.Patch(s.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{})
		if reference, _, _ := unstructured.NestedString(patched.UnstructuredContent(), "spec", "reference"); err != nil || patched.GetLabels()["patched"] != "yes" || reference != "another" {
			s.Errorf("%v %v", patched, err)
		}
		next("MODIFIED " + name)
	}
	if err := s.flunders[2].Delete(s.Context(), "by-0", metav1.DeleteOptions{}); err != nil {
		s.Error(err)
	}
	next("DELETED by-0")
	if err := s.flunders[0].DeleteCollection(s.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "patched=yes"}); err != nil {
		s.Error(err)
	}
	list, err := s.flunders[1].List(s.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 0 {
		s.Errorf("of a collection that is deleted there are %v %v", list, err)
	}
}

// byKubectl shows that what people type works.
func (s *sampleServer) byKubectl() {
	s.Helper()
	out := apply(s.T, s.c, s.ns, string(must(flunder("typed").MarshalJSON())), "--server-side")
	mustContain(s.T, "kubectl apply", out, "flunder.wardle.example.com/typed serverside-applied")
	mustContain(s.T, "kubectl get", kubectl(s.T, s.c, "get", "-n", s.ns, "flunders"), "Warning: wardle.example.com/v1alpha1 Flunder is deprecated", "NAME", "CREATED AT", "typed")
	mustContain(s.T, "kubectl explain", kubectl(s.T, s.c, "explain", "flunder.spec"), "GROUP:", "wardle.example.com", "VERSION:", "v1alpha1", "reference")
	mustContain(s.T, "kubectl api-resources", kubectl(s.T, s.c, "api-resources", "--api-group=wardle.example.com"), "fischers", "flunders")
	mustContain(s.T, "kubectl delete", kubectl(s.T, s.c, "delete", "-n", s.ns, "flunder", "typed"), `"typed" deleted`)
}

// decides says that the server knows by us who may what, and what may be.
func (s *sampleServer) decides() {
	s.Helper()
	as := func(user string, args ...string) (string, error) {
		return s.c.Kubectl(s.Context(), append(args, "-n", s.ns, "--as="+user)...)
	}
	// It takes administrators at our word; of anybody else it asks us.
	kubectl(s.T, s.c, "create", "role", "-n", s.ns, "flunders", "--verb=get,list,create,delete", "--resource=flunders.wardle.example.com")
	kubectl(s.T, s.c, "create", "rolebinding", "-n", s.ns, "flunders", "--role=flunders", "--user=jane")
	eventually(s.T, "jane has the right to flunders", func() error {
		out, err := as("jane", "get", "flunders")
		if err == nil && !strings.Contains(out, "No resources found") {
			err = fmt.Errorf("she sees %s", out)
		}
		return err
	})
	if out, err := as("john", "get", "flunders"); err == nil || !strings.Contains(out, `User "john" cannot list resource "flunders" in API group "wardle.example.com"`) {
		s.Errorf("who has no right: %s %v", out, err)
	}
	// A namespace that we do not have, and what the server's own resource and
	// our policies forbid.
	other := must(dynamic.NewForConfig(must(s.c.RESTConfig("")))).Resource(flunderResource).Namespace("nowhere")
	if _, err := other.Create(s.Context(), flunder("lost"), metav1.CreateOptions{}); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `namespaces "nowhere" not found`) {
		s.Errorf("in a namespace that is not there: %v", err)
	}
	apply(s.T, s.c, "", `
apiVersion: wardle.example.com/v1alpha1
kind: Fischer
metadata: {name: strict}
disallowedFlunders: [banned]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: flunders}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [wardle.example.com], apiVersions: [v1alpha1], resources: [flunders], operations: [CREATE]}]}
  validations: [{expression: "object.metadata.name != 'forbidden'", message: no flunder of this name}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: flunders}
spec: {policyName: flunders, validationActions: [Deny]}
`)
	for name, want := range map[string]string{"banned": "this name may not be used, please change the resource name", "forbidden": "no flunder of this name"} {
		eventually(s.T, "a flunder "+name+" is refused", func() error {
			_, err := s.flunders[0].Create(s.Context(), flunder(name), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("the answer is %v", err)
			}
			return nil
		})
	}
}

// condition adds a condition to an APIService's own.
func (s *sampleServer) condition(o *unstructured.Unstructured, kind string) []any {
	s.Helper()
	all, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		s.Fatal(err)
	}
	return append(all, map[string]any{"type": kind, "status": "True", "reason": "E2E", "message": "Set by a test"})
}

// registration reads and changes the APIService and its status, and deletes it.
func (s *sampleServer) registration() {
	s.Helper()
	client := s.c.Client.Discovery().RESTClient()
	all := must(dynamic.NewForConfig(must(s.c.RESTConfig("")))).Resource(apiServices)
	const path = "/apis/apiregistration.k8s.io/v1/apiservices/" + wardle
	has := func(kind string) {
		s.Helper()
		var o apitypes.APIService
		getJSON(s.T, client, path+"/status", &o)
		if c := o.Condition(kind); c == nil || c.Status != "True" || o.Condition("Available") == nil {
			s.Errorf("the status has no condition %s: %+v", kind, o.Status)
		}
	}
	var o apitypes.APIService
	getJSON(s.T, client, path+"/status", &o)
	if len(o.Status.Conditions) != 1 || o.Status.Conditions[0].Message != "all checks passed" || o.Name != wardle || o.ResourceVersion == "" {
		s.Errorf("its status is %+v", o)
	}
	raw, err := client.Patch(types.MergePatchType).AbsPath(path).SetHeader("Accept", "application/json").Body([]byte(`{"spec":{"versionPriority":400}}`)).DoRaw(s.Context())
	var patched apitypes.APIService
	if err == nil {
		err = json.Unmarshal(raw, &patched)
	}
	if err != nil || patched.Spec.VersionPriority != 400 || patched.ResourceVersion == o.ResourceVersion {
		s.Errorf("patched, it is %s %v", raw, err)
	}
	var list apitypes.APIServiceList
	getJSON(s.T, client, "/apis/apiregistration.k8s.io/v1/apiservices", &list)
	if !slices.ContainsFunc(list.Items, func(o apitypes.APIService) bool { return o.Name == wardle && o.Spec.VersionPriority == 400 }) {
		s.Errorf("the list of them has it not: %+v", list)
	}
	// A published kind, though client-go's own clients do not have it: strategic
	// merge patches are understood.
	labelled, err := all.Patch(s.Context(), wardle, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"e2e-apiservice":"patched"}}}`), metav1.PatchOptions{})
	if err != nil || labelled.GetLabels()["e2e-apiservice"] != "patched" {
		s.Errorf("%v %v", labelled, err)
	}
	eventually(s.T, "its status is updated", func() error {
		o, err := all.Get(s.Context(), wardle, metav1.GetOptions{}, "status")
		if err != nil {
			return err
		}
		if err := unstructured.SetNestedSlice(o.Object, s.condition(o, "StatusUpdated"), "status", "conditions"); err != nil {
			return err
		}
		_, err = all.UpdateStatus(s.Context(), o, metav1.UpdateOptions{})
		return err
	})
	has("StatusUpdated")
	eventually(s.T, "it is replaced", func() error {
		o, err := all.Get(s.Context(), wardle, metav1.GetOptions{})
		if err != nil {
			return err
		}
		o.SetLabels(map[string]string{wardle: "updated"})
		_, err = all.Update(s.Context(), o, metav1.UpdateOptions{})
		return err
	})
	if _, err := s.flunders[0].Create(s.Context(), flunder("kept"), metav1.CreateOptions{}); err != nil {
		s.Error(err)
	}
	before, err := all.Get(s.Context(), wardle, metav1.GetOptions{}, "status")
	if err != nil {
		s.Fatal(err)
	}
	patch := must(json.Marshal(map[string]any{"status": map[string]any{"conditions": s.condition(before, "StatusPatched")}}))
	if _, err := all.Patch(s.Context(), wardle, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		s.Error(err)
	}
	has("StatusPatched")
	has("StatusUpdated")
	if err := all.DeleteCollection(s.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: wardle + "=updated"}); err != nil {
		s.Fatal(err)
	}
	eventually(s.T, "it is deleted, and what it served is no more", func() error {
		left, err := all.List(s.Context(), metav1.ListOptions{LabelSelector: wardle + "=updated"})
		if err != nil || len(left.Items) > 0 {
			return fmt.Errorf("there are %v %v", left, err)
		}
		for _, flunders := range s.flunders {
			if _, err := flunders.Get(s.Context(), "kept", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("a flunder answers %v", err)
			}
		}
		return nil
	})
	kubectl(s.T, s.c, "get", "apiservice", "v1.apps")
}
