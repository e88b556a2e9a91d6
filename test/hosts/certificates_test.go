package hosts

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// keyPair is a key, and a request by it in PEM; edit is told the id that a node of
// this key would have.
type keyPair struct{ key, request []byte }

func newKeyPair(t *testing.T, edit func(r *x509.CertificateRequest, id string)) keyPair {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	public := must(x509.MarshalPKIXPublicKey(key.Public()))
	sum := sha256.Sum256(public)
	r := &x509.CertificateRequest{}
	edit(r, hex.EncodeToString(sum[:16]))
	encode := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return keyPair{
		encode("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))),
		encode("CERTIFICATE REQUEST", must(x509.CreateCertificateRequest(rand.Reader, r, key))),
	}
}

func requestFor(name, signer string, pair keyPair) *certificatesv1.CertificateSigningRequest {
	seconds := int32(3600)
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pair.request, SignerName: signer, ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
		},
	}
}

// forget removes a test's requests.
func forget(t *testing.T, c *cluster.Cluster, names ...string) {
	t.Cleanup(func() {
		for _, name := range names {
			if err := c.Client.CertificatesV1().CertificateSigningRequests().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		}
	})
}

func TestCertificatesAPI(t *testing.T) {
	t.Parallel()
	c := three(t)
	conformance.Shows(t, "[sig-auth] Certificates API [Privileged:ClusterAdmin] should support CSR API operations [Conformance]")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	requests := c.Client.CertificatesV1().CertificateSigningRequests()
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	groups, err := c.Client.Discovery().ServerGroups()
	try("discover the groups", err)
	found := false
	for _, g := range groups.Groups {
		found = found || g.Name == "certificates.k8s.io" && g.PreferredVersion.GroupVersion == "certificates.k8s.io/v1"
	}
	if !found {
		t.Fatal("there is no group certificates.k8s.io")
	}
	list, err := c.Client.Discovery().ServerResourcesForGroupVersion("certificates.k8s.io/v1")
	try("discover the resources", err)
	verbs := map[string]string{}
	for _, r := range list.APIResources {
		verbs[r.Name] = strings.Join(r.Verbs, " ")
	}
	for name, want := range map[string]string{
		"certificatesigningrequests":          "create delete deletecollection get list patch update watch",
		"certificatesigningrequests/approval": "get patch update", "certificatesigningrequests/status": "get patch update",
	} {
		if verbs[name] != want {
			t.Errorf("%s has the verbs %q, want %q", name, verbs[name], want)
		}
	}

	signer := "conclave.test/" + strings.ToLower(t.Name())
	pair := newKeyPair(t, func(r *x509.CertificateRequest, _ string) { r.Subject.CommonName = "e2e.example.com" })
	var made *certificatesv1.CertificateSigningRequest
	for range 3 {
		r := requestFor("", signer, pair)
		r.GenerateName = "csr-"
		made, err = requests.Create(ctx, r, metav1.CreateOptions{})
		try("create", err)
		forget(t, c, made.Name)
	}
	if made.Spec.Username == "" || len(made.Spec.Groups) == 0 {
		t.Errorf("nobody made it: %+v", made.Spec)
	}
	got, err := requests.Get(ctx, made.Name, metav1.GetOptions{})
	try("get", err)
	if got.UID != made.UID || *got.Spec.ExpirationSeconds != 3600 {
		t.Errorf("got %+v", got)
	}
	ours := metav1.ListOptions{FieldSelector: "spec.signerName=" + signer}
	all, err := requests.List(ctx, ours)
	try("list", err)
	if len(all.Items) != 3 {
		t.Errorf("listed %d of 3", len(all.Items))
	}
	w, err := requests.Watch(ctx, metav1.ListOptions{ResourceVersion: all.ResourceVersion, FieldSelector: "metadata.name=" + made.Name})
	try("watch", err)
	defer w.Stop()
	patch := func(body string, sub ...string) *certificatesv1.CertificateSigningRequest {
		t.Helper()
		r, err := requests.Patch(ctx, made.Name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		try("patch "+strings.Join(sub, ""), err)
		return r
	}
	r := patch(`{"metadata":{"annotations":{"patched":"true"}}}`)
	r.Annotations["updated"] = "true"
	r, err = requests.Update(ctx, r, metav1.UpdateOptions{})
	try("update", err)
	if r.Annotations["patched"] != "true" || r.Annotations["updated"] != "true" {
		t.Errorf("its annotations are %v", r.Annotations)
	}
	saw := func(what string, is func(watch.Event) bool) {
		t.Helper()
		for {
			select {
			case e, open := <-w.ResultChan():
				if !open {
					t.Fatalf("the watch ended before %s", what)
				}
				if is(e) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no event of %s", what)
			}
		}
	}
	saw("the update", func(e watch.Event) bool {
		o, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
		return ok && e.Type == watch.Modified && o.Annotations["updated"] == "true"
	})

	config, err := c.RESTConfig("")
	try("configure a client", err)
	raw, err := dynamic.NewForConfig(config)
	try("make a client", err)
	for _, sub := range []string{"approval", "status"} {
		o, err := raw.Resource(certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests")).Get(ctx, made.Name, metav1.GetOptions{}, sub)
		try("get "+sub, err)
		if o.GetUID() != made.UID || o.GroupVersionKind() != certificatesv1.SchemeGroupVersion.WithKind("CertificateSigningRequest") {
			t.Errorf("%s shows %s %s", sub, o.GroupVersionKind(), o.GetUID())
		}
	}
	r = patch(`{"metadata":{"annotations":{"patchedapproval":"true"}},"status":{"conditions":[{"type":"ApprovalPatch","status":"True","reason":"e2e"}]}}`, "approval")
	if len(r.Status.Conditions) != 1 || r.Status.Conditions[0].Type != "ApprovalPatch" || r.Annotations["patchedapproval"] != "true" {
		t.Errorf("patched the approval to %+v", r)
	}
	r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "E2E", Message: "Set from an e2e test",
	})
	r, err = requests.UpdateApproval(ctx, made.Name, r, metav1.UpdateOptions{})
	try("update approval", err)
	if len(r.Status.Conditions) != 2 || r.Status.Conditions[1].Message != "Set from an e2e test" {
		t.Errorf("updated the approval to %+v", r.Status)
	}
	certificate := selfSigned(t)
	r = patch(`{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"certificate":"`+base64.StdEncoding.EncodeToString(certificate)+`"}}`, "status")
	if string(r.Status.Certificate) != string(certificate) || r.Annotations["patchedstatus"] != "true" {
		t.Errorf("patched the status to %+v", r)
	}
	r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: "StatusUpdate", Status: corev1.ConditionTrue, Reason: "E2E", Message: "Set from an e2e test",
	})
	r, err = requests.UpdateStatus(ctx, r, metav1.UpdateOptions{})
	try("update status", err)
	if len(r.Status.Conditions) != 3 || r.Status.Conditions[2].Type != "StatusUpdate" || string(r.Status.Certificate) != string(certificate) {
		t.Errorf("updated the status to %+v", r.Status)
	}

	try("delete", requests.Delete(ctx, made.Name, metav1.DeleteOptions{}))
	saw("the deletion", func(e watch.Event) bool { return e.Type == watch.Deleted })
	if _, err := requests.Get(ctx, made.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
	if all, err = requests.List(ctx, ours); err != nil || len(all.Items) != 2 {
		t.Errorf("two should be left: %+v %v", all, err)
	}
	try("delete the collection", requests.DeleteCollection(ctx, metav1.DeleteOptions{}, ours))
	if all, err = requests.List(ctx, ours); err != nil || len(all.Items) != 0 {
		t.Errorf("none should be left: %+v %v", all, err)
	}
}

func selfSigned(t *testing.T) []byte {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e.example.com"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: must(x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key))})
}

// issued requests a certificate, approves the request as an administrator does,
// and fetches what was signed.
func issued(t *testing.T, c *cluster.Cluster, name string, pair keyPair) []byte {
	t.Helper()
	forget(t, c, name)
	if _, err := c.Client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), requestFor(name, certificatesv1.KubeAPIServerClientSignerName, pair), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "certificate", "approve", name)
	kubectl(t, c, "wait", "--for=jsonpath={.status.certificate}", "--timeout=60s", "csr/"+name)
	return must(base64.StdEncoding.DecodeString(kubectl(t, c, "get", "csr", name, "-o", "jsonpath={.status.certificate}")))
}

// TestCertificateOfAUser goes the way of somebody who joins the team: a request,
// an approval, and a certificate that is good at every node.
func TestCertificateOfAUser(t *testing.T) {
	t.Parallel()
	c := three(t)
	const name = "certificate-of-a-user"
	pair := newKeyPair(t, func(r *x509.CertificateRequest, _ string) {
		r.Subject = pkix.Name{CommonName: "anna", Organization: []string{"dev", "ops"}}
	})
	forget(t, c, name)
	manifest := fmt.Sprintf(`{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {name: %s},
  spec: {request: %s, signerName: kubernetes.io/kube-apiserver-client, expirationSeconds: 3600, usages: [client auth]}}`, name, base64.StdEncoding.EncodeToString(pair.request))
	if _, err := c.KubectlInput(t.Context(), manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	shown := func(condition string) {
		t.Helper()
		rows := strings.Split(strings.TrimSpace(kubectl(t, c, "get", "csr", name)), "\n")
		if got := strings.Join(strings.Fields(rows[0]), " "); got != "NAME AGE SIGNERNAME REQUESTOR REQUESTEDDURATION CONDITION" {
			t.Errorf("the columns are %s", got)
		}
		if f := strings.Fields(rows[len(rows)-1]); len(f) != 6 || f[2] != certificatesv1.KubeAPIServerClientSignerName || f[4] != "60m" || f[5] != condition {
			t.Errorf("it is shown as %q, want %s", f, condition)
		}
	}
	shown("Pending")
	kubectl(t, c, "certificate", "approve", name)
	kubectl(t, c, "wait", "--for=jsonpath={.status.certificate}", "--timeout=60s", "csr/"+name)
	shown("Approved,Issued")
	certificate := must(base64.StdEncoding.DecodeString(kubectl(t, c, "get", "csr", name, "-o", "jsonpath={.status.certificate}")))

	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	crt, key := file("anna.crt", certificate), file("anna.key", pair.key)
	config := must(c.RESTConfig(""))
	kubeconfig := file("config", []byte(fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]\nusers: [{name: anna, user: {client-certificate: %q, client-key: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: anna}}]\ncurrent-context: c\n",
		config.Host, file("ca.crt", config.CAData), crt, key)))
	who := kubectl(t, c, "--kubeconfig", kubeconfig, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}")
	if want := `anna ["dev","ops","system:authenticated"]`; who != want {
		t.Errorf("with the certificate it is %q, want %q", who, want)
	}
	for _, h := range c.Hosts { // with a master and without, spliced
		anna, err := c.ClientFor(h.Name, func(r *rest.Config) {
			r.CertFile, r.KeyFile, r.CertData, r.KeyData = "", "", certificate, pair.key
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := anna.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "anna" cannot list resource "nodes"`) {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
	kubectl(t, c, "delete", "csr", name)

	// An administrator is not made that way.
	boss := newKeyPair(t, func(r *x509.CertificateRequest, _ string) {
		r.Subject = pkix.Name{CommonName: "boss", Organization: []string{"system:masters"}}
	})
	_, err := c.Client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), requestFor(name+"-boss", certificatesv1.KubeAPIServerClientSignerName, boss), metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed") {
		t.Errorf("a request for the administrators' group: %v", err)
	}
	denied := name + "-denied"
	forget(t, c, denied)
	if _, err := c.Client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), requestFor(denied, certificatesv1.KubeAPIServerClientSignerName, pair), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "certificate", "deny", denied)
	if out, err := c.Kubectl(t.Context(), "certificate", "approve", denied); err == nil {
		t.Errorf("approved what was denied: %s", out)
	}
}

// TestCertificateOfNoNode has a certificate signed that asked for all that makes a
// node's, and tries it wherever nodes talk to each other.
func TestCertificateOfNoNode(t *testing.T) {
	t.Parallel()
	c := three(t)
	pair := newKeyPair(t, func(r *x509.CertificateRequest, id string) {
		r.Subject = pkix.Name{CommonName: "anna", OrganizationalUnit: []string{"master-eligible"}}
		r.URIs = []*url.URL{{Scheme: "conclave", Host: "node", Path: "/" + id}}
		r.DNSNames = []string{c.Hosts[0].Name, "kubernetes"}
	})
	certificate := issued(t, c, "certificate-of-no-node", pair)
	tlsPair := must(tls.X509KeyPair(certificate, pair.key))
	leaf := must(x509.ParseCertificate(tlsPair.Certificate[0]))
	if len(leaf.URIs)+len(leaf.DNSNames)+len(leaf.Subject.OrganizationalUnit) != 0 {
		t.Errorf("the certificate has %s and the names %v %v", leaf.Subject, leaf.URIs, leaf.DNSNames)
	}
	for _, h := range c.Hosts {
		for _, at := range []struct{ port, proto string }{
			{"6443", "conclave-raft/1"}, {"6443", "conclave-node/1"}, {"6443", "conclave-join/1"}, {"6443", "conclave-stream/1"}, {"10250", "http/1.1"},
		} {
			conn, err := tls.Dial("tcp", h.Address.String()+":"+at.port, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{at.proto}, Certificates: []tls.Certificate{tlsPair}})
			if err == nil {
				_, err = conn.Read(make([]byte, 1)) // a client learns of a refusal only here
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "tls: bad certificate") {
				t.Errorf("%s of %s: %v", at.proto, h.Name, err)
			}
		}
	}

	// A node's own subject is not signed for, approved or not.
	node := newKeyPair(t, func(r *x509.CertificateRequest, id string) {
		r.Subject = pkix.Name{CommonName: "system:node:" + c.Hosts[0].Name, Organization: []string{"system:nodes"}, OrganizationalUnit: []string{"master-eligible"}}
		r.URIs = []*url.URL{{Scheme: "conclave", Host: "node", Path: "/" + id}}
	})
	const name = "certificate-of-a-node"
	forget(t, c, name, name+"-kubelet")
	requests := c.Client.CertificatesV1().CertificateSigningRequests()
	if _, err := requests.Create(t.Context(), requestFor(name, certificatesv1.KubeAPIServerClientSignerName, node), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "certificate", "approve", name)
	eventually(t, "the signer refuses", func() error {
		r, err := requests.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range r.Status.Conditions {
			if condition.Type == certificatesv1.CertificateFailed && condition.Reason == "SignerValidationFailure" && strings.Contains(condition.Message, "nodes get their certificates by joining") {
				if len(r.Status.Certificate) != 0 {
					t.Error("a failed request has a certificate")
				}
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", r.Status)
	})
	out, err := c.KubectlInput(t.Context(), fmt.Sprintf(`{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {name: %s-kubelet},
  spec: {request: %s, signerName: kubernetes.io/kubelet-serving, usages: [server auth]}}`, name, base64.StdEncoding.EncodeToString(node.request)), "create", "--warnings-as-errors", "-f", "-")
	if err == nil || !strings.Contains(err.Error()+out, "nobody signs for kubernetes.io/kubelet-serving") {
		t.Errorf("a request to a kubelet's signer without a warning: %s %v", out, err)
	}
}
