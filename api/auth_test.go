package api_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/apitest"
)

// A token lives as long as the account and the pod that it is for.
func TestTokens(t *testing.T) {
	now := time.Now()
	st := newSite(t, func(c *api.Config) { c.Now = func() time.Time { return now } })
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	accounts := cs.CoreV1().ServiceAccounts("shop")
	must(cs.CoreV1().Pods("shop").Create(ctx, testPod("p"), metav1.CreateOptions{}))(t)
	seconds := int64(600)
	free := must(accounts.CreateToken(ctx, "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{}))(t).Status
	bound := must(accounts.CreateToken(ctx, "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"},
	}}, metav1.CreateOptions{}))(t).Status
	vault := must(accounts.CreateToken(ctx, "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}}}, metav1.CreateOptions{}))(t).Status
	if d := free.ExpirationTimestamp.Sub(now); d < 598*time.Second || d > 600*time.Second {
		t.Errorf("expires in %v", d)
	}
	nobody := st.transport("")
	who := func(token string) string {
		a := st.request(nobody, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "{}", "Authorization", "Bearer "+token)
		if a.code == 401 {
			return ""
		}
		var r authenticationv1.SelfSubjectReview
		a.into(t, &r)
		return r.Status.UserInfo.Username + " " + strings.Join(r.Status.UserInfo.Groups, ",")
	}
	const account = "system:serviceaccount:shop:default system:serviceaccounts,system:serviceaccounts:shop,system:authenticated"
	for name, tc := range map[string]struct{ token, want string }{
		"plain": {free.Token, account}, "bound": {bound.Token, account}, "of another audience": {vault.Token, ""},
		"cut": {free.Token[:len(free.Token)-4], ""}, "changed": {free.Token[:len(free.Token)-4] + "AAAA", ""},
	} {
		if got := who(tc.token); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	if a := st.request(nobody, "GET", "/api/v1/namespaces/shop/pods", "", "Authorization", "Bearer "+free.Token); a.code != 403 ||
		!strings.Contains(a.status(t).Message, `pods is forbidden: User "system:serviceaccount:shop:default" cannot list resource "pods" in API group "" in the namespace "shop"`) {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(nobody, "GET", "/api", "", "Authorization", "Bearer "+free.Token); a.code != 200 {
		t.Errorf("discovery: %d %s", a.code, a.body)
	}
	review := must(cs.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: vault.Token, Audiences: []string{"vault", "other"}}}, metav1.CreateOptions{}))(t)
	if !review.Status.Authenticated || len(review.Status.Audiences) != 1 || review.Status.User.UID == "" {
		t.Errorf("%+v", review.Status)
	}
	zero := int64(0)
	if err := cs.CoreV1().Pods("shop").Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if who(bound.Token) != "" || who(free.Token) != account {
		t.Error("the bound token must end with its pod, and no other")
	}
	now = now.Add(11 * time.Minute)
	if who(free.Token) != "" {
		t.Error("an expired token was accepted")
	}
	if err := accounts.Delete(ctx, "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	review = must(cs.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: vault.Token, Audiences: []string{"vault"}}}, metav1.CreateOptions{}))(t)
	if review.Status.Authenticated || review.Status.Error == "" {
		t.Errorf("%+v", review.Status)
	}
	short := int64(60)
	if _, err := accounts.CreateToken(ctx, "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}}, metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	var keys struct{ Keys []map[string]string }
	if err := json.Unmarshal(st.request(st.admin(), "GET", "/openid/v1/jwks", "").body, &keys); err != nil || len(keys.Keys) != 1 || keys.Keys[0]["alg"] != "ES256" || len(keys.Keys[0]["x"]) != 43 {
		t.Errorf("%v %v", keys, err)
	}
}

// A certificate of another CA proves nothing.
func TestForeignCertificate(t *testing.T) {
	st, other := newSite(t), newSite(t)
	if a := st.request(other.admin(), "GET", "/api", ""); a.code != 403 || !strings.Contains(string(a.body), "system:anonymous") {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// What a node may, and above all what not.
func TestNodeRights(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	c, ctx := st.Local(apitest.Admin), t.Context()
	create := func(obj api.Object) {
		t.Helper()
		if _, err := c.Create(ctx, api.GVROf(obj), obj.GetNamespace(), "", obj, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"n1", "n2"} {
		create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}})
		p := testPod("on-" + n)
		p.Namespace = "shop"
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "secret-" + n}}}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "map-" + n}}}},
			{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim-" + n}}}}
		create(p)
		if _, err := c.Create(ctx, api.GVROf(p), "shop", p.Name, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Target: corev1.ObjectReference{Name: n}}, metav1.CreateOptions{}, "binding"); err != nil {
			t.Fatal(err)
		}
		create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "secret-" + n, Namespace: "shop"}})
		create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "map-" + n, Namespace: "shop"}})
		create(testClaim("shop", "claim-"+n, nil))
		// One that a pod uses, and one that is only kept on the node.
		create(testVolume("used-"+n, func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: "claim-" + n}
		}))
		create(testVolume("kept-"+n, func(v *corev1.PersistentVolume) {
			v.Labels, v.Finalizers = map[string]string{api.LabelVolumeNode: n}, []string{api.FinalizerLocalPath}
		}))
	}
	rt := st.transport("system:node:n1", "system:nodes")
	merge := []string{"Content-Type", "application/merge-patch+json"}
	shop := "/api/v1/namespaces/shop"
	for _, tc := range []struct {
		method, path, body string
		ok                 bool
	}{
		{"GET", "/api/v1/nodes", "", true},
		{"GET", "/api/v1/services", "", true},
		{"GET", "/api/v1/namespaces", "", true},
		{"GET", "/apis/discovery.k8s.io/v1/endpointslices", "", true},
		{"PATCH", "/api/v1/nodes/n1/status", `{"status":{"phase":"Running"}}`, true},
		{"PATCH", "/api/v1/nodes/n2/status", `{"status":{"phase":"Running"}}`, false},
		{"PATCH", "/api/v1/nodes/n1", `{"metadata":{"labels":{"disk":"ssd"}}}`, true},
		{"PATCH", "/api/v1/nodes/n1", `{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}`, false},
		{"PATCH", "/api/v1/nodes/n1", `{"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]}}`, false},
		{"DELETE", "/api/v1/nodes/n2", "", false},
		{"POST", "/api/v1/nodes", `{"metadata":{"name":"n3"}}`, false},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", "", true},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", "", false},
		{"GET", "/api/v1/pods", "", false},
		{"GET", "/api/v1/pods?fieldSelector=status.podIP%21%3D10.0.0.1", "", false},
		{"GET", "/api/v1/pods?fieldSelector=status.podIP%21%3D", "", true},
		{"GET", "/apis/networking.k8s.io/v1/networkpolicies", "", true},
		{"GET", "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dconclave", "", true},
		{"GET", "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dother", "", false},
		{"GET", "/api/v1/namespaces/shop/configmaps/conclave", "", false},
		{"PATCH", "/api/v1/namespaces/kube-system/configmaps/conclave", `{"data":{"a":"b"}}`, false},
		{"GET", shop + "/pods/on-n1", "", true},
		{"GET", shop + "/pods/on-n2", "", false},
		{"PATCH", shop + "/pods/on-n1/status", `{"status":{"phase":"Running"}}`, true},
		{"PATCH", shop + "/pods/on-n2/status", `{"status":{"phase":"Running"}}`, false},
		{"PATCH", shop + "/pods/on-n1", `{"metadata":{"labels":{"a":"b"}}}`, false},
		{"POST", shop + "/pods", `{"metadata":{"name":"x"},"spec":{"containers":[{"name":"a","image":"b"}]}}`, false},
		{"POST", shop + "/pods/on-n2/exec?command=id", "", false},
		{"DELETE", shop + "/pods/on-n2", "", false},
		{"GET", shop + "/secrets/secret-n1", "", true},
		{"GET", shop + "/secrets/secret-n2", "", false},
		{"GET", shop + "/secrets?fieldSelector=metadata.name%3Dsecret-n1", "", true},
		{"GET", shop + "/secrets", "", false},
		{"GET", "/api/v1/secrets", "", false},
		{"PATCH", shop + "/secrets/secret-n1", "{}", false},
		{"GET", shop + "/configmaps/map-n1", "", true},
		{"GET", shop + "/configmaps/map-n2", "", false},
		{"GET", shop + "/persistentvolumeclaims/claim-n1", "", true},
		{"GET", shop + "/persistentvolumeclaims/claim-n2", "", false},
		{"GET", shop + "/persistentvolumeclaims", "", false},
		{"PATCH", shop + "/persistentvolumeclaims/claim-n1", "{}", false},
		{"GET", "/api/v1/persistentvolumes/used-n1", "", true},
		{"GET", "/api/v1/persistentvolumes/used-n2", "", false},
		{"GET", "/api/v1/persistentvolumes/kept-n1", "", true},
		{"GET", "/api/v1/persistentvolumes/kept-n2", "", false},
		{"GET", "/api/v1/persistentvolumes", "", false},
		{"GET", "/api/v1/persistentvolumes?labelSelector=conclave.io%2Fnode%3Dn1", "", true},
		{"GET", "/api/v1/persistentvolumes?labelSelector=conclave.io%2Fnode%3Dn2", "", false},
		{"PATCH", "/api/v1/persistentvolumes/used-n1", `{"metadata":{"annotations":{"a":"b"}}}`, false},
		{"PATCH", "/api/v1/persistentvolumes/kept-n2", `{"metadata":{"annotations":{"conclave.io/made":"now"}}}`, false},
		{"PATCH", "/api/v1/persistentvolumes/kept-n1", `{"metadata":{"labels":{"conclave.io/node":"n2"}}}`, false},
		{"PATCH", "/api/v1/persistentvolumes/kept-n1", `{"metadata":{"finalizers":["conclave.io/local-path"]}}`, false}, // it drops another
		{"PATCH", "/api/v1/persistentvolumes/kept-n1", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`, false},
		{"PATCH", "/api/v1/persistentvolumes/kept-n1", `{"metadata":{"annotations":{"conclave.io/made":"now"}}}`, true},
		{"PATCH", "/api/v1/persistentvolumes/kept-n1", `{"metadata":{"finalizers":["kubernetes.io/pv-protection"]}}`, true},
		{"DELETE", "/api/v1/persistentvolumes/kept-n1", "", false},
		{"POST", shop + "/serviceaccounts/default/token", `{}`, false}, // of no pod
		{"POST", shop + "/serviceaccounts/default/token", `{"spec":{"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"on-n1"}}}`, true},
		{"POST", shop + "/serviceaccounts/default/token", `{"spec":{"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"on-n2"}}}`, false},
		{"POST", shop + "/events", `{"metadata":{"name":"e"},"involvedObject":{"namespace":"shop"}}`, true},
		{"GET", shop + "/events", "", false},
		{"DELETE", shop + "/pods/on-n1", `{"gracePeriodSeconds":0}`, true},
	} {
		h := merge
		if tc.method != "PATCH" {
			h = nil
		}
		a := st.request(rt, tc.method, tc.path, tc.body, h...)
		if ok := a.code < 300; ok != tc.ok || !ok && a.code != 403 {
			t.Errorf("%s %s %s: %d %s", tc.method, tc.path, tc.body, a.code, a.body)
		}
	}
}

// Of the pods of other nodes, a node sees what network policies ask for.
func TestNodeSeesPeers(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	c, ctx := st.Local(apitest.Admin), t.Context()
	p := testPod("p")
	p.Namespace, p.Labels, p.Annotations = "shop", map[string]string{"app": "web"}, map[string]string{"note": "private"}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: "private"}}
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}}
	made, err := c.Create(ctx, api.GVROf(p), "shop", "", p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := func(u api.User) []api.Object {
		t.Helper()
		list, _, err := st.Local(u).List(ctx, api.GVROf(p), "", metav1.ListOptions{FieldSelector: api.PeersSelector})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	other := api.User{Name: "system:node:n2", Groups: []string{"system:nodes", "system:authenticated"}}
	if got := all(other); len(got) != 0 {
		t.Errorf("a pod without address is a peer: %v", got)
	}
	running := made.(*corev1.Pod).DeepCopy()
	running.Status.PodIP, running.Status.PodIPs = "10.244.0.9", []corev1.PodIP{{IP: "10.244.0.9"}}
	if _, err := c.Update(ctx, api.GVROf(p), "shop", running, metav1.UpdateOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	got := all(other)
	if len(got) != 1 {
		t.Fatal(got)
	}
	peer := got[0].(*corev1.Pod)
	if peer.Status.PodIP != "10.244.0.9" || peer.Labels["app"] != "web" || peer.UID != made.GetUID() || len(peer.Spec.Containers) != 1 ||
		len(peer.Spec.Containers[0].Ports) != 1 || peer.Spec.Containers[0].Ports[0].Name != "http" {
		t.Errorf("%+v", peer)
	}
	answer := st.request(st.transport("system:node:n2", "system:nodes"), "GET", "/api/v1/pods?fieldSelector=status.podIP%21%3D", "")
	for text, shown := range map[string]bool{"private": false, "10.244.0.9": true} {
		if strings.Contains(string(answer.body), text) != shown {
			t.Errorf("%q: want it shown %v: %s", text, shown, answer.body)
		}
	}
	if full := all(apitest.Admin)[0].(*corev1.Pod); len(full.Spec.Containers[0].Env) != 1 {
		t.Errorf("an administrator is shown %+v", full)
	}
}

func TestAccessReviews(t *testing.T) {
	st := newSite(t)
	cs, ctx := st.clientset(""), t.Context()
	self := must(cs.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "delete", Resource: "nodes"},
	}}, metav1.CreateOptions{}))(t)
	if !self.Status.Allowed {
		t.Errorf("%+v", self.Status)
	}
	other := must(cs.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "jane", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "delete", Resource: "nodes"},
	}}, metav1.CreateOptions{}))(t)
	if other.Status.Allowed {
		t.Errorf("%+v", other.Status)
	}
	_, err := cs.AuthorizationV1().LocalSubjectAccessReviews("a").Create(ctx, &authorizationv1.LocalSubjectAccessReview{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a"},
		Spec:       authorizationv1.SubjectAccessReviewSpec{User: "jane", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods", Namespace: "b"}},
	}, metav1.CreateOptions{})
	if !apierrors.IsBadRequest(err) {
		t.Errorf("%v", err)
	}
	rules := must(cs.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{}))(t)
	if len(rules.Status.ResourceRules) != 3 || rules.Status.ResourceRules[0].Verbs[0] != "*" {
		t.Errorf("%+v", rules.Status)
	}
}
