package hosts

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"conclave/identity"
	"conclave/test/cluster"
	"conclave/test/conformance"
)

// eventLimit is far beyond what an event needs on a busy machine.
const eventLimit = time.Minute

// account waits for a service account: every namespace gets one.
func account(t *testing.T, c *cluster.Cluster, ns, name string) *corev1.ServiceAccount {
	t.Helper()
	var sa *corev1.ServiceAccount
	eventually(t, "service account "+name, func() (err error) {
		sa, err = c.Client.CoreV1().ServiceAccounts(ns).Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
	return sa
}

// review is what the API server says of a token.
func review(t *testing.T, c *cluster.Cluster, token string) authenticationv1.TokenReviewStatus {
	t.Helper()
	r, err := c.Client.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

// as is a client that shows no certificate, with a change of its own.
func as(t *testing.T, c *cluster.Cluster, change func(*rest.Config)) *kubernetes.Clientset {
	t.Helper()
	client, err := c.ClientFor("", func(r *rest.Config) {
		r.CertData, r.KeyData, r.CertFile, r.KeyFile = nil, nil, "", ""
		change(r)
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// TestServiceAccounts shows accounts and their tokens.
func TestServiceAccounts(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	accounts, pods := c.Client.CoreV1().ServiceAccounts(ns), c.Client.CoreV1().Pods(ns)
	account(t, c, ns, "default")

	t.Run("root CA", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace [Conformance]")
		// In a namespace of its own: the pods beside it need the CA.
		maps := c.Client.CoreV1().ConfigMaps(namespace(t, c))
		good := func(what string, not types.UID) (got *corev1.ConfigMap) {
			t.Helper()
			eventually(t, what, func() (err error) {
				got, err = maps.Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
				if err == nil && (!strings.Contains(got.Data["ca.crt"], "BEGIN CERTIFICATE") || got.UID == not) {
					err = fmt.Errorf("it holds %q", got.Data)
				}
				return err
			})
			return got
		}
		first := good("the root CA is published", "")
		if err := maps.Delete(t.Context(), first.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		second := good("the root CA is published again", first.UID)
		second.Data = map[string]string{"ca.crt": ""}
		if _, err := maps.Update(t.Context(), second, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if third := good("the root CA is repaired", ""); third.Data["ca.crt"] != first.Data["ca.crt"] {
			t.Error("another CA was published")
		}
	})
	t.Run("lifecycle", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should run through the lifecycle of a ServiceAccount [Conformance]")
		const label = "life=cycle"
		w, err := accounts.Watch(t.Context(), metav1.ListOptions{LabelSelector: label})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		saw := func(want watch.EventType) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), eventLimit)
			defer cancel()
			select {
			case e := <-w.ResultChan():
				if e.Type != want {
					t.Fatalf("event %s, want %s", e.Type, want)
				}
			case <-ctx.Done():
				t.Fatalf("no event %s came", want)
			}
		}
		if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "living", Labels: map[string]string{"life": "cycle"}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		saw(watch.Added)
		patched, err := accounts.Patch(t.Context(), "living", types.StrategicMergePatchType, []byte(`{"automountServiceAccountToken":false}`), metav1.PatchOptions{})
		if err != nil || patched.AutomountServiceAccountToken == nil || *patched.AutomountServiceAccountToken {
			t.Fatalf("patch: %v, %+v", err, patched)
		}
		saw(watch.Modified)
		everywhere, err := c.Client.CoreV1().ServiceAccounts("").List(t.Context(), metav1.ListOptions{LabelSelector: label})
		if err != nil || len(everywhere.Items) != 1 || everywhere.Items[0].Name != "living" || everywhere.Items[0].Namespace != ns {
			t.Errorf("list: %v, %+v", err, everywhere)
		}
		if err := accounts.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: label}); err != nil {
			t.Fatal(err)
		}
		saw(watch.Deleted)
		if _, err := accounts.Get(t.Context(), "living", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("after its deletion: %v", err)
		}
	})
	t.Run("update", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should update a ServiceAccount [Conformance]")
		sa, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "updated"}, AutomountServiceAccountToken: new(false)}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		sa.AutomountServiceAccountToken = new(true)
		if _, err := accounts.Update(t.Context(), sa, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		listed, err := accounts.List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=updated"})
		if err != nil || len(listed.Items) != 1 || !*listed.Items[0].AutomountServiceAccountToken {
			t.Errorf("%v: %+v", err, listed)
		}
	})
	t.Run("automount", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should allow opting out of API token automount [Conformance]")
		choices := map[string]*bool{"yes": new(true), "no": new(false), "unsaid": nil}
		for ofAccount, mount := range choices {
			if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "mount-" + ofAccount}, AutomountServiceAccountToken: mount}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			for ofPod, mount := range choices {
				pod := sleeper("mount-"+ofAccount+"-"+ofPod, "mount")
				pod.Spec.ServiceAccountName, pod.Spec.AutomountServiceAccountToken = "mount-"+ofAccount, mount
				pod.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "conclave.test/never"}} // what is injected shows without running it
				pod = createPod(t, c, ns, pod)
				mounted := slices.ContainsFunc(pod.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
					return m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount"
				})
				if want := ofPod == "yes" || ofPod == "unsaid" && ofAccount != "no"; mounted != want || mounted != (len(pod.Spec.Volumes) > 0) {
					t.Errorf("account says %s, pod says %s: mounted is %v", ofAccount, ofPod, mounted)
				}
			}
		}
	})
	t.Run("token request", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview [Conformance]")
		if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "asking"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		asked, err := accounts.CreateToken(t.Context(), "asking", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		status := review(t, c, asked.Status.Token)
		if !status.Authenticated || status.Error != "" || status.User.Username != "system:serviceaccount:"+ns+":asking" ||
			!slices.Contains(status.User.Groups, "system:serviceaccounts:"+ns) {
			t.Errorf("%+v", status)
		}
	})
	t.Run("mounted token", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should mount an API token into pods [Conformance]")
		if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "mounting"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pod := sleeper("mounted", "mounted")
		pod.Spec.ServiceAccountName = "mounting"
		pod = createPod(t, c, ns, pod)
		waitForPod(t, c, ns, "mounted", corev1.PodRunning)
		file := func(name string) string {
			return kubectl(t, c, "-n", ns, "exec", "mounted", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/"+name)
		}
		if got := file("namespace"); got != ns {
			t.Errorf("the namespace is %q", got)
		}
		ca, err := c.Client.CoreV1().ConfigMaps(ns).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if got := file("ca.crt"); err != nil || got != ca.Data["ca.crt"] {
			t.Errorf("%v: the CA is %q", err, got)
		}
		status := review(t, c, file("token"))
		if !status.Authenticated || status.User.Username != "system:serviceaccount:"+ns+":mounting" ||
			!slices.Equal(status.User.Extra["authentication.kubernetes.io/pod-name"], authenticationv1.ExtraValue{"mounted"}) ||
			!slices.Equal(status.User.Extra["authentication.kubernetes.io/pod-uid"], authenticationv1.ExtraValue{string(pod.UID)}) {
			t.Errorf("of its token the API server says %+v", status)
		}
	})
	t.Run("used from a pod", func(t *testing.T) {
		t.Parallel()
		pod := asker("asker", "whoami", "/api", "/api/v1/namespaces/"+ns+"/secrets", "/api/v1/namespaces/"+ns+"/pods")
		createPod(t, c, ns, pod)
		waitForPod(t, c, ns, "asker", corev1.PodSucceeded)
		said := kubectl(t, c, "-n", ns, "logs", "asker")
		mustContain(t, "what the pod may", said, "system:serviceaccount:"+ns+":default\n/api APIVersions\n",
			`secrets is forbidden: User \"system:serviceaccount:`+ns+`:default\" cannot list resource \"secrets\"`, `pods is forbidden`)
	})
	t.Run("projected token", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts should mount projected service account token [Conformance]")
		pod := sleeper("projected", "projected")
		project(pod, "", 3607)
		createPod(t, c, ns, pod)
		waitForPod(t, c, ns, "projected", corev1.PodRunning)
		if token := kubectl(t, c, "-n", ns, "exec", "projected", "--", "cat", "/projected/token"); !review(t, c, token).Authenticated {
			t.Errorf("the API server does not know %q", token)
		}
	})
	t.Run("discovery of the issuer", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] ServiceAccounts ServiceAccountIssuerDiscovery should support OIDC discovery of service account issuer [Conformance]")
		pod := asker("verifier", "oidc", "/projected/token", "conclave.test")
		project(pod, "conclave.test", 7200)
		createPod(t, c, ns, pod)
		eventually(t, "the pod has ended", func() error {
			p, err := pods.Get(t.Context(), "verifier", metav1.GetOptions{})
			if err == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				err = fmt.Errorf("it is %s", p.Status.Phase)
			}
			return err
		})
		if said := kubectl(t, c, "-n", ns, "logs", "verifier"); said != "verified system:serviceaccount:"+ns+":default\n" {
			t.Errorf("the pod says %q", said)
		}
	})
	t.Run("reviews of access", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-auth] SubjectReview should support SubjectReview API operations [Conformance]")
		user := "system:serviceaccount:" + ns + ":default"
		client, err := c.ClientFor("", func(r *rest.Config) { r.Impersonate = rest.ImpersonationConfig{UserName: user} })
		if err != nil {
			t.Fatal(err)
		}
		_, listErr := client.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
		_, askErr := client.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/", Verb: "get"}},
		}, metav1.CreateOptions{})
		for what, tc := range map[string]struct {
			attributes authorizationv1.ResourceAttributes
			err        error
		}{
			"list config maps":        {authorizationv1.ResourceAttributes{Namespace: ns, Verb: "list", Version: "v1", Resource: "configmaps"}, listErr},
			"ask what oneself may do": {authorizationv1.ResourceAttributes{Namespace: ns, Verb: "create", Group: "authorization.k8s.io", Version: "v1", Resource: "selfsubjectaccessreviews"}, askErr},
		} {
			if tc.err != nil && !apierrors.IsForbidden(tc.err) {
				t.Fatalf("%s: %v", what, tc.err)
			}
			groups := []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + ns}
			spec := authorizationv1.SubjectAccessReviewSpec{User: user, Groups: groups, ResourceAttributes: &tc.attributes}
			whole, err := c.Client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			local, err := c.Client.AuthorizationV1().LocalSubjectAccessReviews(ns).Create(t.Context(), &authorizationv1.LocalSubjectAccessReview{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns}, Spec: spec,
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if may := tc.err == nil; whole.Status.Allowed != may || local.Status.Allowed != may {
				t.Errorf("%s: it may: %v; the reviews say %+v and %+v", what, may, whole.Status, local.Status)
			}
		}
		if askErr != nil || listErr == nil {
			t.Errorf("one of the two should be allowed and the other not: %v, %v", askErr, listErr)
		}
	})
}

// asker is a pod that runs the tool once.
func asker(name string, args ...string) *corev1.Pod {
	pod := sleeper(name, name)
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Image, pod.Spec.Containers[0].Command, pod.Spec.Containers[0].Args = "conclave.test/tool:1", nil, args
	return pod
}

// project adds a volume with a token at /projected/token.
func project(pod *corev1.Pod, audience string, life int64) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: audience, ExpirationSeconds: &life}}},
	}}})
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "token", MountPath: "/projected"})
}

// TestStrangers asks without credentials, and with ones that are no good.
func TestStrangers(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	account(t, c, ns, "default")
	nobody := as(t, c, func(*rest.Config) {})
	for _, path := range []string{"/version", "/healthz", "/livez", "/readyz"} {
		if _, err := nobody.RESTClient().Get().AbsPath(path).DoRaw(t.Context()); err != nil {
			t.Errorf("%s is for everybody: %v", path, err)
		}
	}
	for _, path := range []string{"/api", "/apis", "/openapi/v2", "/metrics", "/", "/api/v1/namespaces", "/api/v1/namespaces/" + ns + "/secrets", "/api/v1/nodes", "/api/v1/namespaces/" + ns + "/pods/x/log"} {
		if _, err := nobody.RESTClient().Get().AbsPath(path).DoRaw(t.Context()); !apierrors.IsForbidden(err) {
			t.Errorf("%s without credentials: %v", path, err)
		}
	}
	if _, err := nobody.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a create without credentials: %v", err)
	}
	pretender := as(t, c, func(r *rest.Config) {
		r.Impersonate = rest.ImpersonationConfig{UserName: "admin", Groups: []string{"system:masters"}}
	})
	if _, err := pretender.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("somebody who only says that he is the administrator: %v", err)
	}

	// A certificate of our own, in an administrator's name, is none.
	dir := t.TempDir()
	impostor, err := identity.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := impostor.Found(t.Context(), identity.FoundOptions{Name: "impostor", MasterDir: filepath.Join(dir, "master")})
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority.SignClient("admin", []string{"system:masters"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign := as(t, c, func(r *rest.Config) { r.CertData, r.KeyData = cert, key })
	if _, err := foreign.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("with another cluster's certificate: %v", err)
	}

	token := func(account string, spec authenticationv1.TokenRequestSpec) string {
		t.Helper()
		r, err := c.Client.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Token
	}
	good := token("default", authenticationv1.TokenRequestSpec{})
	parts := strings.Split(good, ".")
	otherKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r, s, err := ecdsa.Sign(rand.Reader, otherKey, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	forged := parts[0] + "." + parts[1] + "." + encode(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	promoted := parts[0] + "." + encode(bytes.Replace(claims, []byte(`:default"`), []byte(`:admin"`), 1)) + "." + parts[2]

	if _, err := c.Client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "short"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ofShort := token("short", authenticationv1.TokenRequestSpec{})
	pod := sleeper("bound", "bound")
	pod.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "conclave.test/never"}}
	pod = createPod(t, c, ns, pod)
	ofPod := token("default", authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}})
	ask := func(token string) error {
		_, err := as(t, c, func(r *rest.Config) { r.BearerToken = token }).AuthenticationV1().SelfSubjectReviews().
			Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		return err
	}
	for what, token := range map[string]string{"an account's": good, "another account's": ofShort, "a pod's": ofPod} {
		if err := ask(token); err != nil {
			t.Errorf("%s token: %v", what, err)
		}
	}
	if err := c.Client.CoreV1().ServiceAccounts(ns).Delete(t.Context(), "short", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for what, token := range map[string]string{
		"garbage":                 "let-me-in",
		"a forged token":          forged,
		"a token of changed text": promoted,
		"a token without signing": encode([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		"a token for others":      token("default", authenticationv1.TokenRequestSpec{Audiences: []string{"somebody.else"}}),
		"a removed account's":     ofShort,
		"a removed pod's":         ofPod,
	} {
		if err := ask(token); !apierrors.IsUnauthorized(err) {
			t.Errorf("with %s: %v", what, err)
		}
	}

	// Between nodes, nobody is let in without a certificate of the cluster.
	for _, proto := range []string{"conclave-raft/1", "conclave-node/1"} {
		for what, certs := range map[string][]tls.Certificate{"no certificate": nil, "another cluster's": {must(tls.X509KeyPair(cert, key))}} {
			conn, err := tls.Dial("tcp", c.Hosts[0].Address.String()+":6443", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}, Certificates: certs})
			if err == nil {
				_, err = conn.Read(make([]byte, 1)) // a client learns of a refusal only here
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "tls:") {
				t.Errorf("%s with %s: %v", proto, what, err)
			}
		}
	}
	conn, err := tls.Dial("tcp", c.Hosts[0].Address.String()+":10250", &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return // not even a connection
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /pods HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	answer, _ := io.ReadAll(conn) // the end may be rude
	if len(answer) > 0 && !strings.Contains(string(answer), " 401 ") && !strings.Contains(string(answer), " 403 ") {
		t.Errorf("the kubelet API answers strangers: %s", answer)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestNodeRights uses the certificate of one host against what is another's.
func TestNodeRights(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	account(t, c, ns, "default")
	mine, other := c.Hosts[0], c.Hosts[1]
	for _, name := range []string{"mine", "theirs"} {
		if _, err := c.Client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pod := sleeper(name, name)
		pod.Spec.NodeName = map[string]string{"mine": mine.Name, "theirs": other.Name}[name]
		pod.Spec.ServiceAccountName = name
		pod.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}}}
		createPod(t, c, ns, pod)
	}
	waitForPod(t, c, ns, "mine", corev1.PodRunning)
	theirs := waitForPod(t, c, ns, "theirs", corev1.PodRunning)
	dir := filepath.Join(c.DataDir(mine), "identity")
	node := as(t, c, func(r *rest.Config) {
		r.CertFile, r.KeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	})
	ctx, core := t.Context(), node.CoreV1()
	tokenFor := func(account string, pod string) error {
		p, err := c.Client.CoreV1().Pods(ns).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		_, err = core.ServiceAccounts(ns).CreateToken(ctx, account, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
		}}, metav1.CreateOptions{})
		return err
	}
	label := []byte(`{"metadata":{"annotations":{"conclave.test/touched":"yes"}}}`)
	for what, may := range map[string]func() error{
		"read its own node":     func() error { _, err := core.Nodes().Get(ctx, mine.Name, metav1.GetOptions{}); return err },
		"read another node":     func() error { _, err := core.Nodes().Get(ctx, other.Name, metav1.GetOptions{}); return err },
		"read its pods' secret": func() error { _, err := core.Secrets(ns).Get(ctx, "mine", metav1.GetOptions{}); return err },
		"get its pods' token":   func() error { return tokenFor("mine", "mine") },
		"list its own pods": func() error {
			_, err := core.Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + mine.Name})
			return err
		},
		"ask who it is": func() error {
			_, err := node.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			return err
		},
	} {
		if err := may(); err != nil {
			t.Errorf("a node may %s: %v", what, err)
		}
	}
	for what, mayNot := range map[string]func() error{
		"change another node": func() error {
			_, err := core.Nodes().Patch(ctx, other.Name, types.MergePatchType, label, metav1.PatchOptions{})
			return err
		},
		"set another node's status": func() error {
			_, err := core.Nodes().Patch(ctx, other.Name, types.MergePatchType, []byte(`{"status":{"phase":"x"}}`), metav1.PatchOptions{}, "status")
			return err
		},
		"delete another node": func() error { return core.Nodes().Delete(ctx, other.Name, metav1.DeleteOptions{}) },
		"create another node": func() error {
			_, err := core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "no-such-host"}}, metav1.CreateOptions{})
			return err
		},
		"read another's secret": func() error { _, err := core.Secrets(ns).Get(ctx, "theirs", metav1.GetOptions{}); return err },
		"list secrets":          func() error { _, err := core.Secrets(ns).List(ctx, metav1.ListOptions{}); return err },
		"watch secrets":         func() error { _, err := core.Secrets("").Watch(ctx, metav1.ListOptions{}); return err },
		"write its pods' secret": func() error {
			_, err := core.Secrets(ns).Patch(ctx, "mine", types.MergePatchType, label, metav1.PatchOptions{})
			return err
		},
		"list all pods": func() error { _, err := core.Pods("").List(ctx, metav1.ListOptions{}); return err },
		"list another's pods": func() error {
			_, err := core.Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + other.Name})
			return err
		},
		"read another's pod":   func() error { _, err := core.Pods(ns).Get(ctx, "theirs", metav1.GetOptions{}); return err },
		"delete another's pod": func() error { return core.Pods(ns).Delete(ctx, "theirs", metav1.DeleteOptions{}) },
		"set another's pod's status": func() error {
			_, err := core.Pods(ns).UpdateStatus(ctx, theirs, metav1.UpdateOptions{})
			return err
		},
		"change its own pod": func() error {
			_, err := core.Pods(ns).Patch(ctx, "mine", types.MergePatchType, label, metav1.PatchOptions{})
			return err
		},
		"create a pod": func() error {
			pod := sleeper("made", "made")
			pod.Spec.NodeName = mine.Name
			_, err := core.Pods(ns).Create(ctx, pod, metav1.CreateOptions{})
			return err
		},
		"get another's token":         func() error { return tokenFor("theirs", "theirs") },
		"get another account's token": func() error { return tokenFor("theirs", "mine") },
		"exec in another's pod": func() error {
			return core.RESTClient().Post().Resource("pods").Namespace(ns).Name("theirs").SubResource("exec").Param("command", "id").Do(ctx).Error()
		},
		"list config maps": func() error { _, err := core.ConfigMaps(ns).List(ctx, metav1.ListOptions{}); return err },
		"renew another's lease": func() error {
			return node.CoordinationV1().Leases("kube-node-lease").Delete(ctx, other.Name, metav1.DeleteOptions{})
		},
		"be taken for an administrator": func() error {
			as := as(t, c, func(r *rest.Config) {
				r.CertFile, r.KeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
				r.Impersonate = rest.ImpersonationConfig{UserName: "admin", Groups: []string{"system:masters"}}
			})
			_, err := as.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
			return err
		},
	} {
		if err := mayNot(); !apierrors.IsForbidden(err) {
			t.Errorf("a node must not %s: %v", what, err)
		}
	}
}

// TestSecretsAtRest looks for a Secret's value on every disk.
func TestSecretsAtRest(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	account(t, c, ns, "default")
	random := func() string {
		raw := make([]byte, 16)
		rand.Read(raw)
		return hex.EncodeToString(raw)
	}
	hidden, plain := "hidden"+random(), "plain"+random()
	if _, err := c.Client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"value": hidden}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"value": plain}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.Hosts {
		pod := sleeper("reader-"+h.Name, "reader")
		pod.Spec.NodeName = h.Name
		withVolume(pod, "s", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}})
		pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "VALUE", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "value",
		}}}}
		createPod(t, c, ns, pod)
	}
	var token string
	for _, h := range c.Hosts {
		pod := "reader-" + h.Name
		waitForPod(t, c, ns, pod, corev1.PodRunning)
		said := kubectl(t, c, "-n", ns, "exec", pod, "--", "sh", "-c", "echo $VALUE; cat /v/s/value /var/run/secrets/kubernetes.io/serviceaccount/token")
		if strings.Count(said, hidden) != 2 {
			t.Errorf("%s does not have the secret: %s", pod, said)
		}
		token = said[strings.LastIndex(said, hidden)+len(hidden):]
	}
	where := map[string][]string{}
	for _, h := range c.Hosts {
		dir := c.DataDir(h)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // it went meanwhile
			case err != nil:
				return err
			case d.IsDir() && (path == filepath.Join(dir, "run") || path == filepath.Join(dir, "images")):
				return fs.SkipDir // memory, and what is everybody's
			case !d.Type().IsRegular():
				return nil
			}
			raw, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			for what, text := range map[string]string{"secret": hidden, "secret in base64": base64.StdEncoding.EncodeToString([]byte(hidden)), "token": strings.TrimSpace(token), "config map": plain} {
				if bytes.Contains(raw, []byte(text)) {
					where[what] = append(where[what], path)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, what := range []string{"secret", "secret in base64", "token"} {
		if len(where[what]) > 0 {
			t.Errorf("the %s can be read in %q", what, where[what])
		}
	}
	if len(where["config map"]) < 2 {
		t.Errorf("a config map can be read only in %q: the search proves nothing", where["config map"])
	}
}

// TestRemovedNodeIsRefused asks for a new certificate with the key of a node
// that was taken out of the cluster.
func TestRemovedNodeIsRefused(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	guest := c.Hosts[2]
	if err := c.Kill(guest.Name); err != nil {
		t.Fatal(err)
	}
	node, err := identity.Open(filepath.Join(c.DataDir(guest), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	renew := identity.RenewFrom(node, func() []string {
		return []string{c.Hosts[0].Address.String() + ":6443", c.Hosts[1].Address.String() + ":6443"}
	})
	request, err := node.CSR(guest.Name, nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a dead node's certificate is renewed", func() error {
		_, err := renew(t.Context(), request)
		return err
	})
	kubectl(t, c, "delete", "node", guest.Name)
	eventually(t, "every master refuses a node that was removed", func() error {
		if _, err := renew(t.Context(), request); !errors.Is(err, identity.ErrRefused) {
			return fmt.Errorf("the answer is %v", err)
		}
		return nil
	})
}
