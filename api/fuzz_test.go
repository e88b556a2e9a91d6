package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func FuzzContinue(f *testing.F) {
	f.Add(continueToken{Revision: 7, Start: "a\x00b"}.encode())
	f.Add(continueToken{Revision: -1, Start: "\x00b"}.encode())
	f.Add("")
	f.Add("eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ==")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := decodeContinue(s)
		if err != nil {
			return
		}
		again, err := decodeContinue(token.encode())
		if err != nil || again != token {
			t.Errorf("%q: %+v, then %+v, %v", s, token, again, err)
		}
	})
}

func FuzzDecodeStored(f *testing.F) {
	for _, obj := range []Object{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "v"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "5"}, Spec: corev1.PodSpec{NodeName: "n"}},
	} {
		b, err := EncodeStored(obj)
		if err != nil {
			f.Fatal(err)
		}
		if again, err := DecodeStored(b); err != nil || again.GetResourceVersion() != "" || again.GetObjectKind().GroupVersionKind().Empty() {
			f.Fatalf("%v, %v", again, err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"kind":"Thing","apiVersion":"example.com/v1","metadata":{"name":"a"}}`))
	f.Add([]byte("k8s\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		obj, err := DecodeStored(data)
		if err != nil {
			return
		}
		again, err := EncodeStored(obj)
		if err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		if _, err := DecodeStored(again); err != nil {
			t.Fatalf("not decoded again: %v", err)
		}
	})
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"},"spec":{"x":1}}`), mediaJSON)
	f.Add([]byte("metadata: {name: a}\n"), mediaYAML)
	f.Add([]byte("k8s\x00\n\x00\x12\x00"), mediaProtobuf)
	gvk := corev1.SchemeGroupVersion.WithKind("Pod")
	f.Fuzz(func(t *testing.T, data []byte, media string) {
		obj, err := decodeBody(data, media, metav1.FieldValidationWarn, &corev1.Pod{}, gvk, nil, func(string) {})
		if err == nil && obj == nil {
			t.Error("neither an object nor an error")
		}
		if err != nil && asStatus(err).Code >= 500 {
			t.Errorf("the client's fault told as ours: %v", err)
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := verifyToken(testKey(t).Public(), token, time.Unix(0, 0)); err == nil {
			t.Error("a token that nobody signed was accepted")
		}
	})
}

func FuzzTarget(f *testing.F) {
	for _, p := range []string{"/", "/api", "/api/v1/pods", "/apis/apps/v1/namespaces/a/deployments/b/status", "/api/v1/namespaces/a/pods/b/proxy/c/d/", "/api/v1/namespaces/a/status", "//api//v1", "/api/v1/watch/pods"} {
		f.Add("GET", p, "watch=1")
	}
	f.Fuzz(func(t *testing.T, method, path, query string) {
		q, _ := url.ParseQuery(query)
		target := parseTarget(method, path, q)
		if target.Path != "" && !target.Resource.Empty() {
			t.Errorf("%q is both a path and a resource: %+v", path, target)
		}
		if strings.Contains(target.Name, "/") {
			t.Errorf("%q: name %q", path, target.Name)
		}
	})
}

func TestTargets(t *testing.T) {
	for _, tc := range []struct{ method, path, want string }{
		{"GET", "/api/v1/namespaces/a/pods", "list pods// a/"},
		{"GET", "/api/v1/namespaces/a/pods?watch=true", "watch pods// a/"},
		{"GET", "/api/v1/watch/namespaces/a/pods", "watch pods// a/"},
		{"GET", "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Db", "list pods// a/b"},
		{"GET", "/api/v1/namespaces/a", "get namespaces// a/a"},
		{"PUT", "/api/v1/namespaces/a/finalize", "update namespaces//finalize a/a"},
		{"PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "patch deployments/apps/scale a/b"},
		{"DELETE", "/api/v1/nodes", "deletecollection nodes// /"},
		{"POST", "/api/v1/namespaces/a/pods/b/exec", "create pods//exec a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b/log", "get pods//log a/b"},
		{"HEAD", "/version", "head /version"},
	} {
		u, err := url.Parse(tc.path)
		if err != nil {
			t.Fatal(err)
		}
		g := parseTarget(tc.method, u.Path, u.Query())
		got := g.Verb + " " + g.Resource.Resource + "/" + g.Resource.Group + "/" + g.Subresource + " " + g.Namespace + "/" + g.Name
		if g.Path != "" {
			got = g.Verb + " " + g.Path
		}
		if got != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.method, tc.path, got, tc.want)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]string{
		"":                    mediaJSON,
		"*/*":                 mediaJSON,
		"application/yaml":    mediaYAML,
		"text/html,*/*;q=0.5": mediaJSON,
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json":                       "application/json Table",
		"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json":    mediaJSON,
		"application/json;as=Table;v=v2;g=meta.k8s.io,application/vnd.kubernetes.protobuf":    mediaProtobuf,
		"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io": mediaProtobuf + " PartialObjectMetadataList",
		"text/html": "",
	} {
		f, ok := negotiate(accept, true)
		got := strings.TrimSpace(f.media + " " + f.as)
		if ok != (want != "") || got != want {
			t.Errorf("%q: %q, want %q", accept, got, want)
		}
	}
}

// The public table of errors: what the store says, as a client hears it.
func TestStorageErrors(t *testing.T) {
	for err, want := range map[error]int{
		ErrNotFound: http.StatusNotFound, ErrExists: http.StatusConflict, ErrConflict: http.StatusConflict, ErrExpired: http.StatusGone,
		ErrFuture: http.StatusGatewayTimeout, ErrNoLeader: http.StatusServiceUnavailable, ErrUnknownOutcome: http.StatusGatewayTimeout,
		ErrTooLarge: http.StatusRequestEntityTooLarge, ErrDiskFull: http.StatusInsufficientStorage,
	} {
		if got := asStatus(storageError(err, pods.GroupResource(), "x")); int(got.Code) != want {
			t.Errorf("%v: %d, want %d", err, got.Code, want)
		}
	}
}

var testKey = func() func(testing.TB) *ecdsa.PrivateKey {
	var once sync.Once
	var key *ecdsa.PrivateKey
	return func(t testing.TB) *ecdsa.PrivateKey {
		once.Do(func() {
			var err error
			if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				t.Fatal(err)
			}
		})
		return key
	}
}()

func TestTokenRoundTrip(t *testing.T) {
	now := time.Now()
	c := claims{Issuer: Issuer, Audience: audience{"a", "b"}, Expires: now.Unix() + 60, NotBefore: now.Unix(), Private: tokenOwner{Namespace: "n"}}
	token, err := signToken(testKey(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := verifyToken(testKey(t).Public(), token, now); err != nil || got.Private.Namespace != "n" || !got.Audience.intersects([]string{"b"}) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := verifyToken(testKey(t).Public(), token, now.Add(2*time.Minute)); err != errTokenEnded {
		t.Errorf("%v", err)
	}
	if _, err := verifyToken(testKey(t).Public(), token, now.Add(-time.Minute)); err == nil {
		t.Error("a token of the future was accepted")
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyToken(other.Public(), token, now); err != errNotOurs {
		t.Errorf("%v", err)
	}
}
