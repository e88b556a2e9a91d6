package api_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
	"conclave/api/webhook"
)

const signingRequests = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

// certificateRequest is a request in PEM for a user and groups.
func certificateRequest(t testing.TB, user string, groups ...string) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user, Organization: groups}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func signingRequest(t testing.TB, name, signer string, groups ...string) *certificatesv1.CertificateSigningRequest {
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: certificateRequest(t, name, groups...), SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}
}

func approved() certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}
}

// Whoever asks is who the server knows him to be, whatever he and webhooks say.
func TestRequestNamesItsMaker(t *testing.T) {
	st := newSite(t)
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"lie": func(webhook.Request) hookAnswer {
		return hookAnswer{patch: `[{"op":"add","path":"/spec/username","value":"root"},{"op":"add","path":"/spec/groups","value":["system:masters","x"]},{"op":"add","path":"/spec/extra","value":{"k":["v"]}}]`}
	}})
	st.hook("Mutating", h.config("Mutating", "liar", rule(`"CREATE","UPDATE"`, "certificates.k8s.io", "v1", `"*/*"`), `,"reinvocationPolicy":"IfNeeded"`, "lie"))
	r := signingRequest(t, "anna", "example.com/a")
	r.Spec.Username, r.Spec.UID, r.Spec.Groups = "boss", "1", []string{"bosses"}
	r.Spec.Extra = map[string]certificatesv1.ExtraValue{"k": {"v"}}
	r.Status = certificatesv1.CertificateSigningRequestStatus{Conditions: []certificatesv1.CertificateSigningRequestCondition{approved()}, Certificate: []byte("x")}
	body, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var made certificatesv1.CertificateSigningRequest
	a := st.request(st.admin(), "POST", signingRequests, string(body),
		"Impersonate-User", "otto", "Impersonate-Uid", "7", "Impersonate-Group", "system:masters", "Impersonate-Extra-Scopes", "all")
	a.into(t, &made)
	check := func(r *certificatesv1.CertificateSigningRequest) {
		t.Helper()
		if r.Spec.Username != "otto" || r.Spec.UID != "7" || !slices.Equal(r.Spec.Groups, []string{"system:masters", "system:authenticated"}) ||
			len(r.Spec.Extra) != 1 || !slices.Equal(r.Spec.Extra["scopes"], certificatesv1.ExtraValue{"all"}) {
			t.Errorf("it is of %q %q %q %q", r.Spec.Username, r.Spec.UID, r.Spec.Groups, r.Spec.Extra)
		}
	}
	check(&made)
	if a.code != 201 || len(made.Status.Conditions) != 0 || len(made.Status.Certificate) != 0 || made.Generation != 0 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if _, by := h.take(); len(by) == 0 {
		t.Error("the webhook was not asked")
	}
	cs := st.clientset("").CertificatesV1().CertificateSigningRequests()
	made.Labels = map[string]string{"a": "b"}
	made.Spec.Username, made.Spec.SignerName = "boss", "example.com/b"
	updated := must(cs.Update(t.Context(), &made, metav1.UpdateOptions{}))(t)
	if check(updated); updated.Labels["a"] != "b" || updated.Spec.SignerName != "example.com/a" {
		t.Errorf("updated to %+v", updated)
	}
	updated.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{approved()}
	check(must(cs.UpdateApproval(t.Context(), "anna", updated, metav1.UpdateOptions{}))(t))
}

// No request makes an administrator, not even one that a webhook has changed.
func TestRequestForAdministrators(t *testing.T) {
	st := newSite(t)
	cs, ctx := st.clientset("").CertificatesV1().CertificateSigningRequests(), t.Context()
	const why = `certificatesigningrequests.certificates.k8s.io "boss" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed`
	if _, err := cs.Create(ctx, signingRequest(t, "boss", certificatesv1.KubeAPIServerClientSignerName, "dev", "system:masters"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) || err.Error() != why {
		t.Errorf("%v", err)
	}
	must(cs.Create(ctx, signingRequest(t, "others", "example.com/a", "system:masters"), metav1.CreateOptions{}))(t)
	evil := base64.StdEncoding.EncodeToString(certificateRequest(t, "boss", "system:masters"))
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"swap": func(webhook.Request) hookAnswer {
		return hookAnswer{patch: fmt.Sprintf(`[{"op":"replace","path":"/spec/request","value":%q}]`, evil)}
	}})
	st.hook("Mutating", h.config("Mutating", "swapper", rule(`"CREATE"`, "certificates.k8s.io", "v1", `"*"`), "", "swap"))
	if _, err := cs.Create(ctx, signingRequest(t, "boss", certificatesv1.KubeAPIServerClientSignerName, "dev"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) || err.Error() != why {
		t.Errorf("after a webhook: %v", err)
	}
}

// Who may write a request's subresources may not yet approve or sign for every
// signer.
func TestRightsOfSigners(t *testing.T) {
	st, ctx := newSite(t), t.Context()
	roles := st.clientset("").RbacV1().ClusterRoles()
	may := func(rights ...string) { // "verb name", on signers
		t.Helper()
		const group = "certificates.k8s.io"
		r := clusterRole("judge", right("create,get,update", group, "certificatesigningrequests,certificatesigningrequests/approval,certificatesigningrequests/status"))
		for _, one := range rights {
			verb, name, _ := strings.Cut(one, " ")
			r.Rules = append(r.Rules, right(verb, group, "signers", name))
		}
		must(roles.Update(ctx, r, metav1.UpdateOptions{}))(t)
	}
	must(roles.Create(ctx, clusterRole("judge"), metav1.CreateOptions{}))(t)
	must(st.clientset("").RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding("judges", "judge", user("judge")), metav1.CreateOptions{}))(t)
	may()
	cs := st.as("judge").CertificatesV1().CertificateSigningRequests()
	r := must(cs.Create(ctx, signingRequest(t, "anna", "example.com/a"), metav1.CreateOptions{}))(t)
	r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{approved()}
	refused := func(err error, verb string) {
		t.Helper()
		if want := fmt.Sprintf("user not permitted to %s requests with signerName \"example.com/a\"", verb); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, rights := range [][]string{nil, {"approve example.com/b", "approve other.com/*", "sign example.com/a"}} {
		may(rights...)
		_, err := cs.UpdateApproval(ctx, "anna", r, metav1.UpdateOptions{})
		refused(err, "approve")
	}
	may("approve example.com/*")
	r = must(cs.UpdateApproval(ctx, "anna", r, metav1.UpdateOptions{}))(t)
	// What changes nothing of the status needs no right on the signer.
	r.Annotations = map[string]string{"a": "b"}
	r = must(cs.UpdateStatus(ctx, r, metav1.UpdateOptions{}))(t)
	failed := r.DeepCopy()
	failed.Status.Conditions = append(failed.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: "Mine", Status: corev1.ConditionTrue})
	_, err := cs.UpdateStatus(ctx, failed, metav1.UpdateOptions{})
	refused(err, "sign")
	may("sign example.com/a")
	must(cs.UpdateStatus(ctx, failed, metav1.UpdateOptions{}))(t)
}

// What client-go sees, in protobuf: times that the writer leaves out, the signer
// as a field, and the two subresources.
func TestRequestLife(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	st := newSite(t, func(c *api.Config) { c.Now = func() time.Time { return now } })
	cs, ctx := st.clientset("application/vnd.kubernetes.protobuf").CertificatesV1().CertificateSigningRequests(), t.Context()
	must(cs.Create(ctx, signingRequest(t, "b", "example.com/b"), metav1.CreateOptions{}))(t)
	r := must(cs.Create(ctx, signingRequest(t, "a", "example.com/a"), metav1.CreateOptions{}))(t)
	const of = "spec.signerName=example.com/a"
	if list := must(cs.List(ctx, metav1.ListOptions{FieldSelector: of}))(t); len(list.Items) != 1 || list.Items[0].Name != "a" {
		t.Errorf("listed %+v", list.Items)
	}
	w := must(cs.Watch(ctx, metav1.ListOptions{FieldSelector: of, ResourceVersion: r.ResourceVersion}))(t)
	defer w.Stop()
	r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{approved()}
	r = must(cs.UpdateApproval(ctx, "a", r, metav1.UpdateOptions{}))(t)
	if e := <-w.ResultChan(); e.Type != watch.Modified || len(e.Object.(*certificatesv1.CertificateSigningRequest).Status.Conditions) != 1 {
		t.Errorf("saw %+v", e)
	}
	if c := r.Status.Conditions[0]; !c.LastUpdateTime.Time.Equal(now) || !c.LastTransitionTime.Time.Equal(now) {
		t.Errorf("%+v at %v", c, now)
	}
	was := now
	now = now.Add(time.Minute)
	r.Status.Conditions[0].LastUpdateTime, r.Status.Conditions[0].LastTransitionTime, r.Status.Conditions[0].Message = metav1.Time{}, metav1.Time{}, "again"
	r = must(cs.UpdateApproval(ctx, "a", r, metav1.UpdateOptions{}))(t)
	if c := r.Status.Conditions[0]; !c.LastUpdateTime.Time.Equal(now) || !c.LastTransitionTime.Time.Equal(was) {
		t.Errorf("%+v at %v", c, now)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: st.ca.Raw})
	r.Status.Certificate = cert
	if got := must(cs.UpdateApproval(ctx, "a", r, metav1.UpdateOptions{}))(t); len(got.Status.Certificate) != 0 {
		t.Error("an approver has set the certificate")
	}
	r.ResourceVersion = ""
	if got := must(cs.UpdateStatus(ctx, r, metav1.UpdateOptions{}))(t); string(got.Status.Certificate) != string(cert) {
		t.Errorf("the certificate is %q", got.Status.Certificate)
	}
	r.Status.Certificate = nil
	if _, err := cs.UpdateStatus(ctx, r, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a certificate was taken back: %v", err)
	}
	// Who approves by applying owns what he says.
	body := `{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {name: b}, status: {conditions: [{type: Denied, status: "True", reason: Refused}]}}`
	var applied certificatesv1.CertificateSigningRequest
	a := st.request(st.admin(), "PATCH", signingRequests+"/b/approval?fieldManager=judge", body, "Content-Type", applyType)
	a.into(t, &applied)
	if a.code != 200 || len(applied.Status.Conditions) != 1 || !strings.Contains(managers(applied.ManagedFields), "judge Apply approval") {
		t.Errorf("%d %s", a.code, a.body)
	}
	for _, m := range applied.ManagedFields {
		if m.Manager == "judge" && !strings.Contains(string(m.FieldsV1.Raw), `Denied`) {
			t.Errorf("the judge owns %s", m.FieldsV1.Raw)
		}
	}
}
