package hosts

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

const hookService = "hooks"

// hookServer is the tests' webhook server in a pod, behind a Service.
type hookServer struct {
	c      *cluster.Cluster
	client *kubernetes.Clientset // speaks protobuf, with one host
	ns     string
	ca     []byte
}

// startHooks runs the webhook server in a namespace of its own.
func startHooks(t *testing.T, c *cluster.Cluster) *hookServer {
	t.Helper()
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	client, err := c.ClientFor(c.Hosts[0].Name, func(r *rest.Config) {
		r.ContentType, r.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &hookServer{c: c, client: client, ns: namespace(t, c)}
	account(t, c, s.ns, "default")
	var cert, key []byte
	s.ca, cert, key = serverCertificate(t, hookService+"."+s.ns+".svc")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: hookService}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": cert, "tls.key": key}}
	must(client.CoreV1().Secrets(s.ns).Create(t.Context(), secret, metav1.CreateOptions{}))
	pod := asker(hookService, "webhook", "/cert")
	pod.Labels = map[string]string{"app": hookService}
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod.Spec.Volumes = []corev1.Volume{{Name: "cert", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: hookService}}}}
	ct := &pod.Spec.Containers[0]
	ct.VolumeMounts = []corev1.VolumeMount{{Name: "cert", MountPath: "/cert"}}
	ct.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: corev1.URISchemeHTTPS, Port: intstr.FromInt32(8443), Path: "/readyz"}}}
	must(client.CoreV1().Pods(s.ns).Create(t.Context(), pod, metav1.CreateOptions{}))
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: hookService}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": hookService}, Ports: []corev1.ServicePort{{Port: 8443, TargetPort: intstr.FromInt32(8443)}},
	}}
	must(client.CoreV1().Services(s.ns).Create(t.Context(), svc, metav1.CreateOptions{}))
	eventually(t, "the webhook server answers", func() error {
		raw, err := client.CoreV1().Services(s.ns).ProxyGet("https", hookService, "8443", "/readyz", nil).DoRaw(t.Context())
		if err == nil && strings.TrimSpace(string(raw)) != "ok" {
			err = fmt.Errorf("it says %q", raw)
		}
		return err
	})
	return s
}

// serverCertificate is a CA, and a certificate of it for a name, in PEM.
func serverCertificate(t *testing.T, name string) (ca, cert, key []byte) {
	t.Helper()
	make := func(template, parent *x509.Certificate, by *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		own := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		if by == nil {
			parent, by = template, own
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		return must(x509.CreateCertificate(rand.Reader, template, parent, &own.PublicKey, by)), own
	}
	rootTemplate := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hooks-ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root, rootKey := make(rootTemplate, nil, nil)
	leaf, leafKey := make(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, must(x509.ParseCertificate(root)), rootKey)
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return block("CERTIFICATE", root), block("CERTIFICATE", leaf), block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(leafKey)))
}

// hookTest is a test with a namespace that webhooks select by its name.
type hookTest struct {
	*testing.T
	*hookServer
	own string
}

func (s *hookServer) test(t *testing.T) *hookTest {
	t.Helper()
	return &hookTest{t, s, namespace(t, s.c)}
}

// hook is a webhook as both kinds of configurations can hold it.
func (k *hookTest) hook(path string, rule admissionv1.RuleWithOperations, edit ...func(*admissionv1.MutatingWebhook)) admissionv1.MutatingWebhook {
	w := admissionv1.MutatingWebhook{
		Name: strings.Trim(path, "/") + ".example.com", Rules: []admissionv1.RuleWithOperations{rule}, SideEffects: ptr.To(admissionv1.SideEffectClassNone),
		AdmissionReviewVersions: []string{"v1"}, FailurePolicy: ptr.To(admissionv1.Fail),
		ClientConfig:      admissionv1.WebhookClientConfig{CABundle: k.ca, Service: &admissionv1.ServiceReference{Namespace: k.ns, Name: hookService, Path: &path, Port: ptr.To(int32(8443))}},
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: k.own}},
	}
	for _, f := range edit {
		f(&w)
	}
	return w
}

func rulesOf(gv, resources string, operations ...admissionv1.OperationType) admissionv1.RuleWithOperations {
	group, version, ok := strings.Cut(gv, "/")
	if !ok {
		group, version = "", gv
	}
	return admissionv1.RuleWithOperations{Operations: operations, Rule: admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resources}}}
}

func (k *hookTest) mutating(name string, hooks ...admissionv1.MutatingWebhook) *admissionv1.MutatingWebhookConfiguration {
	k.Helper()
	c := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: k.own + "-" + name, Labels: map[string]string{"of": k.own}}, Webhooks: hooks}
	made, err := k.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(k.Context(), c, metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { k.unhook("mutating", c.Name) })
	return made
}

func (k *hookTest) validating(name string, hooks ...admissionv1.MutatingWebhook) *admissionv1.ValidatingWebhookConfiguration {
	k.Helper()
	c := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: k.own + "-" + name, Labels: map[string]string{"of": k.own}}}
	for _, w := range hooks {
		c.Webhooks = append(c.Webhooks, admissionv1.ValidatingWebhook{
			Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules, FailurePolicy: w.FailurePolicy, NamespaceSelector: w.NamespaceSelector,
			ObjectSelector: w.ObjectSelector, SideEffects: w.SideEffects, TimeoutSeconds: w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions,
			MatchConditions: w.MatchConditions,
		})
	}
	made, err := k.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(k.Context(), c, metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { k.unhook("validating", c.Name) })
	return made
}

// unhook also runs when the test's own context has ended.
func (k *hookTest) unhook(kind, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.Context()), time.Minute)
	defer cancel()
	if _, err := k.c.Kubectl(ctx, "delete", kind+"webhookconfiguration", name, "--ignore-not-found"); err != nil {
		k.Error(err)
	}
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

var marked = map[string]string{"mark": "webhook-disallow"}

// create makes a config map with a name of its own and returns it as it became.
func (k *hookTest) create(data map[string]string) (*corev1.ConfigMap, error) {
	cm := configMap("", data)
	cm.GenerateName = "c-"
	return k.client.CoreV1().ConfigMaps(k.own).Create(k.Context(), cm, metav1.CreateOptions{})
}

// refused fails unless an error is a webhook's refusal for this reason.
func (k *hookTest) refused(what string, err error, why string) {
	k.Helper()
	if err == nil || !strings.Contains(err.Error(), why) {
		k.Errorf("%s: %v, which is not %q", what, err, why)
	}
}

const unwanted = "denied the request: the object contains unwanted data"

// TestWebhooks shows admission webhooks that run as pods.
func TestWebhooks(t *testing.T) {
	c := three(t)
	s := startHooks(t, c)
	const area = "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] "
	t.Run("all", func(t *testing.T) {
		for name, tc := range map[string]struct {
			shows string
			f     func(*hookTest)
		}{
			"discovery":       {"should include webhook resources in discovery documents", hookDiscovery},
			"deny":            {"should be able to deny pod and configmap creation", hookDeny},
			"attach":          {"should be able to deny attaching pod", hookAttach},
			"custom":          {"should be able to deny custom resource creation, update and deletion", hookDenyCustom},
			"definitions":     {"should deny crd creation", hookDenyDefinitions},
			"closed":          {"should unconditionally reject operations on fail closed webhook", hookClosed},
			"timeout":         {"should honor timeout", hookTimeout},
			"itself":          {"should not be able to mutate or prevent deletion of webhook configuration objects", hookItself},
			"ordered":         {"should mutate configmap", hookOrdered},
			"pods":            {"should mutate pod and apply defaults after mutation", hookPods},
			"mutate custom":   {"should mutate custom resource", func(k *hookTest) { hookMutateCustom(k, false) }},
			"prune":           {"should mutate custom resource with pruning", func(k *hookTest) { hookMutateCustom(k, true) }},
			"stored version":  {"should mutate custom resource with different stored version", hookStoredVersion},
			"list validating": {"listing validating webhooks should work", hookListValidating},
			"list mutating":   {"listing mutating webhooks should work", hookListMutating},
			"edit validating": {"patching/updating a validating webhook should work", hookEditValidating},
			"edit mutating":   {"patching/updating a mutating webhook should work", hookEditMutating},
			"conditions":      {"should mutate everything except 'skip-me' configmaps", hookConditions},
			"keep validating": {"should be able to create and update validating webhook configurations with match conditions", hookKeepValidating},
			"keep mutating":   {"should be able to create and update mutating webhook configurations with match conditions", hookKeepMutating},
			"bad validating":  {"should reject validating webhook configurations with invalid match conditions", func(k *hookTest) { hookBadConditions(k, "Validating") }},
			"bad mutating":    {"should reject mutating webhook configurations with invalid match conditions", func(k *hookTest) { hookBadConditions(k, "Mutating") }},
			"everywhere":      {"", hookEverywhere},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if tc.shows != "" {
					conformance.Shows(t, area+tc.shows+" [Conformance]")
				}
				tc.f(s.test(t))
			})
		}
	})
}

func hookDiscovery(k *hookTest) {
	client := k.c.Client.Discovery().RESTClient()
	var groups metav1.APIGroupList
	getJSON(k.T, client, "/apis", &groups)
	var group metav1.APIGroup
	getJSON(k.T, client, "/apis/admissionregistration.k8s.io", &group)
	has := func(g metav1.APIGroup) bool {
		return g.Name == "admissionregistration.k8s.io" && slices.ContainsFunc(g.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.Version == "v1" })
	}
	if !slices.ContainsFunc(groups.Groups, has) || !has(group) {
		k.Errorf("the group is not there: %+v, %+v", groups, group)
	}
	var resources metav1.APIResourceList
	getJSON(k.T, client, "/apis/admissionregistration.k8s.io/v1", &resources)
	for _, name := range []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} {
		if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
			k.Errorf("there is no %s: %+v", name, resources)
		}
	}
}

func hookDeny(k *hookTest) {
	k.validating("deny",
		k.hook("/deny-marked", rulesOf("v1", "configmaps", "CREATE", "UPDATE")),
		k.hook("/deny-marked", rulesOf("v1", "pods", "CREATE"), func(w *admissionv1.MutatingWebhook) { w.Name = "pods.example.com" }),
		k.hook("/hang", rulesOf("v1", "pods", "CREATE"), func(w *admissionv1.MutatingWebhook) { w.TimeoutSeconds = ptr.To(int32(1)) }))
	account(k.T, k.c, k.own, "default")
	maps, pods := k.client.CoreV1().ConfigMaps(k.own), k.client.CoreV1().Pods(k.own)
	_, err := maps.Create(k.Context(), configMap("marked", marked), metav1.CreateOptions{})
	k.refused("a marked config map", err, `admission webhook "deny-marked.example.com" `+unwanted)
	pod := sleeper("marked", "marked")
	pod.Annotations = marked
	_, err = pods.Create(k.Context(), pod, metav1.CreateOptions{})
	k.refused("a marked pod", err, unwanted)
	pod = sleeper("hangs", "hangs")
	pod.Annotations = map[string]string{"a": "wait-forever"}
	_, err = pods.Create(k.Context(), pod, metav1.CreateOptions{})
	k.refused("a pod whose webhook hangs", err, "deadline exceeded")
	if _, err := pods.Get(k.Context(), "hangs", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		k.Errorf("a pod whose webhook hangs is there: %v", err)
	}
	good, err := maps.Create(k.Context(), configMap("good", nil), metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	good.Data = marked
	_, err = maps.Update(k.Context(), good, metav1.UpdateOptions{})
	k.refused("an update", err, unwanted)
	_, err = maps.Patch(k.Context(), "good", types.StrategicMergePatchType, []byte(`{"data":{"mark":"webhook-disallow"}}`), metav1.PatchOptions{})
	k.refused("a patch", err, unwanted)
	out, err := k.c.KubectlInput(k.Context(), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {mark: webhook-disallow}\n", "apply", "--server-side", "-n", k.own, "-f", "-")
	k.refused("an apply: "+out, err, unwanted)
	// A namespace that the selector does not select is exempt.
	if _, err := k.client.CoreV1().ConfigMaps(k.ns).Create(k.Context(), configMap("marked", marked), metav1.CreateOptions{}); err != nil {
		k.Errorf("in a namespace that is not selected: %v", err)
	}
}

func hookAttach(k *hookTest) {
	k.validating("attach", k.hook("/deny-attach", rulesOf("v1", "pods/attach", "CONNECT")))
	account(k.T, k.c, k.own, "default")
	pod := sleeper("to-be-attached", "a")
	pod.Spec.Containers[0].Name = "container1"
	if _, err := k.client.CoreV1().Pods(k.own).Create(k.Context(), pod, metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	kubectl(k.T, k.c, "wait", "-n", k.own, "--for=condition=Ready", "pod/to-be-attached", "--timeout=60s")
	out, err := k.c.Kubectl(k.Context(), "attach", "-n", k.own, "to-be-attached", "-i", "-c=container1")
	k.refused("attach: "+out, err, "attaching to pod 'to-be-attached' is not allowed")
}

// data is a schema of objects that have a map of strings in data.
const dataSchema = "{type: object, properties: {data: {type: object, additionalProperties: {type: string}}}}"

func (k *hookTest) custom(name string, versions ...[2]string) (customs, *apiextensionsv1.CustomResourceDefinition) {
	all := customsOf(k.T, k.c)
	d := definition(name+".hooks.example.com", versions...)
	all.define(d)
	return all, d
}

func dataThing(group, version, name string, data map[string]any) *unstructured.Unstructured {
	return thing(group, version, name, map[string]any{"data": data})
}

func hookDenyCustom(k *hookTest) {
	all, d := k.custom("deny", [2]string{"v1", dataSchema})
	k.validating("custom", k.hook("/deny-marked", rulesOf(d.Spec.Group+"/v1", "things", "CREATE", "UPDATE", "DELETE")))
	objects := all.dyn.Resource(things(d.Spec.Group, "v1")).Namespace(k.own)
	bad := map[string]any{"mark": "webhook-disallow"}
	_, err := objects.Create(k.Context(), dataThing(d.Spec.Group, "v1", "marked", bad), metav1.CreateOptions{})
	k.refused("create", err, unwanted)
	made, err := objects.Create(k.Context(), dataThing(d.Spec.Group, "v1", "kept", map[string]any{"a": "b"}), metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	made.Object["data"] = bad
	_, err = objects.Update(k.Context(), made, metav1.UpdateOptions{})
	k.refused("update", err, unwanted)
	// What was marked before the webhook looks cannot be deleted until the mark is gone.
	k.unhook("validating", k.own+"-custom")
	if _, err = objects.Patch(k.Context(), "kept", types.MergePatchType, []byte(`{"data":{"mark":"webhook-disallow"}}`), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
	k.validating("custom", k.hook("/deny-marked", rulesOf(d.Spec.Group+"/v1", "things", "DELETE")))
	err = objects.Delete(k.Context(), "kept", metav1.DeleteOptions{})
	k.refused("delete", err, unwanted)
	err = objects.DeleteCollection(k.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	k.refused("delete of the collection", err, unwanted)
	if _, err = objects.Patch(k.Context(), "kept", types.MergePatchType, []byte(`{"data":{"mark":null}}`), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
	if err := objects.Delete(k.Context(), "kept", metav1.DeleteOptions{}); err != nil {
		k.Errorf("delete without the mark: %v", err)
	}
}

func hookDenyDefinitions(k *hookTest) {
	k.validating("definitions", k.hook("/deny", rulesOf("apiextensions.k8s.io/v1", "customresourcedefinitions", "CREATE"), func(w *admissionv1.MutatingWebhook) {
		w.NamespaceSelector, w.ObjectSelector = nil, &metav1.LabelSelector{MatchLabels: map[string]string{"of": k.own}}
	}))
	all := customsOf(k.T, k.c)
	d := definition("refused.hooks.example.com", [2]string{"v1", keepAll})
	d.Labels = map[string]string{"of": k.own}
	_, err := all.dyn.Resource(definitionsResource).Create(k.Context(), loosely(k.T, d), metav1.CreateOptions{})
	k.refused("a definition", err, "denied the request: this webhook denies all requests")
}

func hookClosed(k *hookTest) {
	k.validating("closed", k.hook("/deny-marked", rulesOf("v1", "configmaps", "CREATE"), func(w *admissionv1.MutatingWebhook) {
		w.ClientConfig.CABundle = nil // so nobody vouches for it
	}))
	_, err := k.create(nil)
	if !apierrors.IsInternalError(err) {
		k.Errorf("a webhook that cannot be trusted: %v", err)
	}
	k.refused("a webhook that cannot be trusted", err, "failed calling webhook")
}

func hookTimeout(k *hookTest) {
	of := rulesOf("v1", "configmaps", "CREATE")
	slow := func(seconds int32, policy admissionv1.FailurePolicyType) func() (*corev1.ConfigMap, error) {
		k.unhook("validating", k.own+"-slow")
		k.validating("slow", k.hook("/slow", of, func(w *admissionv1.MutatingWebhook) {
			w.TimeoutSeconds, w.FailurePolicy = nil, &policy
			if seconds > 0 {
				w.TimeoutSeconds = &seconds
			}
		}))
		return func() (*corev1.ConfigMap, error) { return k.create(nil) }
	}
	_, err := slow(1, admissionv1.Fail)()
	k.refused("a second for what takes three", err, "deadline exceeded")
	if _, err := slow(1, admissionv1.Ignore)(); err != nil {
		k.Errorf("failures are to be ignored: %v", err)
	}
	if _, err := slow(20, admissionv1.Fail)(); err != nil {
		k.Errorf("it has time enough: %v", err)
	}
	if _, err := slow(0, admissionv1.Fail)(); err != nil { // ten seconds by default
		k.Errorf("it has time enough by default: %v", err)
	}
}

func hookItself(k *hookTest) {
	anything := rulesOf("admissionregistration.k8s.io/*", "*", "CREATE", "UPDATE", "DELETE")
	everywhere := func(w *admissionv1.MutatingWebhook) {
		w.NamespaceSelector = nil
		w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"of": k.own}}
	}
	k.validating("deny", k.hook("/deny", anything, everywhere))
	k.mutating("label", k.hook("/label", anything, everywhere))
	// Neither refuses or changes the next ones, nor their end.
	m := k.mutating("dummy", k.hook("/first", rulesOf("v1", "invalid", "CREATE")))
	v := k.validating("dummy", k.hook("/deny", rulesOf("v1", "invalid", "CREATE")))
	if m.Labels["added"] != "" || v.Labels["added"] != "" || m.Labels["of"] != k.own {
		k.Errorf("their labels became %v and %v", m.Labels, v.Labels)
	}
	api := k.client.AdmissionregistrationV1()
	if err := api.MutatingWebhookConfigurations().Delete(k.Context(), m.Name, metav1.DeleteOptions{}); err != nil {
		k.Error(err)
	}
	if err := api.ValidatingWebhookConfigurations().Delete(k.Context(), v.Name, metav1.DeleteOptions{}); err != nil {
		k.Error(err)
	}
}

var start = map[string]string{"mutation-start": "yes"}

func hookOrdered(k *hookTest) {
	of := rulesOf("v1", "configmaps", "CREATE")
	k.mutating("b", k.hook("/second", of))
	k.mutating("a", k.hook("/first", of))
	made, err := k.create(start)
	if err != nil {
		k.Fatal(err)
	}
	if made.Data["mutation-stage-1"] != "yes" || made.Data["mutation-stage-2"] != "yes" || made.Data["mutation-start"] != "yes" {
		k.Errorf("it became %v", made.Data)
	}
}

func hookPods(k *hookTest) {
	k.mutating("inject", k.hook("/inject", rulesOf("v1", "pods", "CREATE")))
	account(k.T, k.c, k.own, "default")
	pod, err := k.client.CoreV1().Pods(k.own).Create(k.Context(), sleeper("injected", "i"), metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	if n := len(pod.Spec.InitContainers); n != 1 {
		k.Fatalf("it has %d init containers", n)
	}
	ct := pod.Spec.InitContainers[0]
	if ct.Name != "webhook-added" || ct.TerminationMessagePolicy != corev1.TerminationMessageReadFile || ct.ImagePullPolicy == "" {
		k.Errorf("the init container is %+v", ct)
	}
}

func hookMutateCustom(k *hookTest, prunes bool) {
	schema, name := dataSchema, "mutate"
	if prunes {
		schema, name = "{type: object, properties: {data: {type: object, properties: {mutation-start: {type: string}, mutation-stage-1: {type: string}}}}}", "prune"
	}
	all, d := k.custom(name, [2]string{"v1", schema})
	of := rulesOf(d.Spec.Group+"/v1", "things", "CREATE")
	k.mutating("custom", k.hook("/first", of), k.hook("/second", of))
	made, err := all.dyn.Resource(things(d.Spec.Group, "v1")).Namespace(k.own).Create(k.Context(), dataThing(d.Spec.Group, "v1", "a", map[string]any{"mutation-start": "yes"}), metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	data, _, _ := unstructured.NestedStringMap(made.Object, "data")
	if data["mutation-stage-1"] != "yes" || (data["mutation-stage-2"] == "yes") == prunes {
		k.Errorf("it became %v", made.Object)
	}
}

func hookStoredVersion(k *hookTest) {
	all, d := k.custom("stored", [2]string{"v1", dataSchema}, [2]string{"v2", dataSchema})
	k.mutating("custom", k.hook("/first", rulesOf(d.Spec.Group+"/v1", "things", "CREATE", "UPDATE")))
	objects := all.dyn.Resource(things(d.Spec.Group, "v1")).Namespace(k.own)
	made, err := objects.Create(k.Context(), dataThing(d.Spec.Group, "v1", "a", map[string]any{"mutation-start": "yes"}), metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	if data, _, _ := unstructured.NestedStringMap(made.Object, "data"); data["mutation-stage-1"] != "yes" {
		k.Fatalf("it became %v", made.Object)
	}
	all.patch(d.Name, `[{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]`)
	// The webhook wants v1, the store v2; the patch is of what both show.
	patched, err := objects.Patch(k.Context(), "a", types.MergePatchType, []byte(`{"data":{"dummy":"test","mutation-stage-1":null}}`), metav1.PatchOptions{})
	if err != nil {
		k.Fatal(err)
	}
	if data, _, _ := unstructured.NestedStringMap(patched.Object, "data"); data["mutation-stage-1"] != "yes" || data["dummy"] != "test" || data["mutation-start"] != "yes" {
		k.Errorf("it became %v", patched.Object)
	}
}

func hookListValidating(k *hookTest) {
	of := rulesOf("v1", "configmaps", "CREATE")
	for i := range 10 {
		k.validating(fmt.Sprint("v", i), k.hook("/deny-marked", of))
	}
	api, labelled := k.client.AdmissionregistrationV1().ValidatingWebhookConfigurations(), metav1.ListOptions{LabelSelector: "of=" + k.own}
	list, err := api.List(k.Context(), labelled)
	if err != nil || len(list.Items) != 10 {
		k.Fatalf("%d are listed: %v", len(list.Items), err)
	}
	_, err = k.create(marked)
	k.refused("a marked config map", err, unwanted)
	if err := api.DeleteCollection(k.Context(), metav1.DeleteOptions{}, labelled); err != nil {
		k.Fatal(err)
	}
	eventually(k.T, "nobody refuses it", func() error { _, err := k.create(marked); return err })
}

func hookListMutating(k *hookTest) {
	of := rulesOf("v1", "configmaps", "CREATE")
	for i := range 10 {
		k.mutating(fmt.Sprint("m", i), k.hook("/first", of))
	}
	api, labelled := k.client.AdmissionregistrationV1().MutatingWebhookConfigurations(), metav1.ListOptions{LabelSelector: "of=" + k.own}
	list, err := api.List(k.Context(), labelled)
	if err != nil || len(list.Items) != 10 {
		k.Fatalf("%d are listed: %v", len(list.Items), err)
	}
	if made, err := k.create(start); err != nil || made.Data["mutation-stage-1"] != "yes" {
		k.Errorf("it became %v: %v", made, err)
	}
	if err := api.DeleteCollection(k.Context(), metav1.DeleteOptions{}, labelled); err != nil {
		k.Fatal(err)
	}
	eventually(k.T, "nobody changes it", func() error {
		made, err := k.create(start)
		if err == nil && made.Data["mutation-stage-1"] != "" {
			err = fmt.Errorf("it became %v", made.Data)
		}
		return err
	})
}

func hookEditValidating(k *hookTest) {
	c := k.validating("edit", k.hook("/deny-marked", rulesOf("v1", "configmaps", "CREATE")))
	api := k.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	_, err := k.create(marked)
	k.refused("a marked config map", err, unwanted)
	c.Webhooks[0].Rules[0].Operations = []admissionv1.OperationType{"UPDATE"}
	if _, err := api.Update(k.Context(), c, metav1.UpdateOptions{}); err != nil {
		k.Fatal(err)
	}
	eventually(k.T, "creation is no longer its business", func() error { _, err := k.create(marked); return err })
	if _, err := api.Patch(k.Context(), c.Name, types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/rules/0/operations","value":["CREATE"]}]`), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
	eventually(k.T, "creation is its business again", func() error {
		if _, err := k.create(marked); err == nil || !strings.Contains(err.Error(), unwanted) {
			return fmt.Errorf("it was not refused: %w", err)
		}
		return nil
	})
}

func hookEditMutating(k *hookTest) {
	c := k.mutating("edit", k.hook("/first", rulesOf("v1", "configmaps", "CREATE")))
	api := k.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	becomes := func(what, want string) {
		k.Helper()
		eventually(k.T, what, func() error {
			made, err := k.create(start)
			if err == nil && made.Data["mutation-stage-1"] != want {
				err = fmt.Errorf("it became %v", made.Data)
			}
			return err
		})
	}
	becomes("it is changed", "yes")
	c.Webhooks[0].Rules[0].Operations = []admissionv1.OperationType{"UPDATE"}
	if _, err := api.Update(k.Context(), c, metav1.UpdateOptions{}); err != nil {
		k.Fatal(err)
	}
	becomes("creation is no longer its business", "")
	if _, err := api.Patch(k.Context(), c.Name, types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/rules/0/operations","value":["CREATE"]}]`), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
	becomes("creation is its business again", "yes")
}

// hookEverywhere asks every host, and has a controller ask.
func hookEverywhere(k *hookTest) {
	account(k.T, k.c, k.own, "default")
	k.mutating("inject", k.hook("/inject", rulesOf("v1", "pods", "CREATE")))
	k.validating("deny", k.hook("/deny-marked", rulesOf("v1", "*", "CREATE")))
	for _, h := range k.c.Hosts {
		client, err := k.c.ClientFor(h.Name, func(*rest.Config) {})
		if err != nil {
			k.Fatal(err)
		}
		eventually(k.T, "refused at "+h.Name, func() error {
			if _, err := client.CoreV1().ConfigMaps(k.own).Create(k.Context(), configMap("at-"+strings.ToLower(h.Name), marked), metav1.CreateOptions{DryRun: []string{"All"}}); err == nil || !strings.Contains(err.Error(), unwanted) {
				return fmt.Errorf("it was not refused: %w", err)
			}
			return nil
		})
	}
	kubectl(k.T, k.c, "create", "deployment", "d", "-n", k.own, "--image=conclave.test/busybox:1", "--", "sleep", "1000")
	eventually(k.T, "the pod of a deployment was seen by the webhook", func() error {
		list, err := k.client.CoreV1().Pods(k.own).List(k.Context(), metav1.ListOptions{LabelSelector: "app=d"})
		if err == nil && (len(list.Items) == 0 || len(list.Items[0].Spec.InitContainers) != 1) {
			err = fmt.Errorf("there are %d pods: %+v", len(list.Items), list.Items)
		}
		return err
	})
}
