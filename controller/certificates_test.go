package controller

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/types"
)

// fakeSigner is a CA that refuses users whose names begin with "bad".
type fakeSigner struct {
	mu    sync.Mutex
	asked []signed
}

type signed struct {
	user  string
	usage x509.KeyUsage
	life  time.Duration
}

func (f *fakeSigner) sign(request []byte, usage x509.KeyUsage, life time.Duration) ([]byte, error) {
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, signed{r.Subject.CommonName, usage, life})
	if strings.HasPrefix(r.Subject.CommonName, "bad") {
		return nil, errors.New("no such user")
	}
	if life == 0 {
		life = 365 * 24 * time.Hour
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: r.Subject, NotBefore: time.Now(), NotAfter: time.Now().Add(life), KeyUsage: usage}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func (f *fakeSigner) all() []signed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]signed(nil), f.asked...)
}

func signingRequest(t *testing.T, name string, edit ...func(*types.CertificateSigningRequest)) *types.CertificateSigningRequest {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	r := &types.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: types.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: types.SignerClient,
			Usages: []string{"client auth", "key encipherment"},
		},
	}
	for _, f := range edit {
		f(r)
	}
	return r
}

// review adds a condition as an approver does.
func review(w *world, name, condition string) {
	w.Helper()
	change(w, signingRequests, "", name, func(r *types.CertificateSigningRequest) {
		r.Status.Conditions = append(r.Status.Conditions, types.CertificateSigningRequestCondition{Type: condition, Status: "True", Reason: "Test"})
	}, "approval")
	w.settle(0)
}

func TestCertificateSigner(t *testing.T) {
	inWorld(t, func(w *world) {
		hour := int32(3600)
		requests := []*types.CertificateSigningRequest{
			signingRequest(t, "anna"),
			signingRequest(t, "hourly", func(r *types.CertificateSigningRequest) { r.Spec.ExpirationSeconds = &hour }),
			signingRequest(t, "server", func(r *types.CertificateSigningRequest) {
				r.Spec.Usages = []string{"client auth", "server auth"}
			}),
			signingRequest(t, "useless", func(r *types.CertificateSigningRequest) { r.Spec.Usages = []string{"digital signature"} }),
			signingRequest(t, "bad-user"),
			signingRequest(t, "kubelet", func(r *types.CertificateSigningRequest) { r.Spec.SignerName = types.SignerKubeletClient }),
			signingRequest(t, "others", func(r *types.CertificateSigningRequest) { r.Spec.SignerName = "example.com/others" }),
			signingRequest(t, "denied"),
		}
		for _, r := range requests {
			create(w, signingRequests, r)
		}
		w.settle(time.Minute)
		if asked := w.signer.all(); len(asked) != 0 {
			t.Fatalf("signed without approval: %v", asked)
		}
		review(w, "denied", types.CertificateDenied)
		for _, r := range requests[:len(requests)-1] {
			review(w, r.Name, types.CertificateApproved)
		}
		for name, want := range map[string]string{ // the message of the failure
			"server": "invalid usage for client certificate: server auth", "useless": "missing required usage for client certificate: client auth",
			"bad-user": "no such user",
		} {
			r := read[*types.CertificateSigningRequest](w, signingRequests, "", name)
			last := r.Status.Conditions[len(r.Status.Conditions)-1]
			if len(r.Status.Certificate) != 0 || last.Type != types.CertificateFailed || last.Reason != "SignerValidationFailure" || last.Message != want || last.LastUpdateTime.IsZero() {
				t.Errorf("%s: %+v", name, r.Status)
			}
		}
		for _, name := range []string{"anna", "hourly"} {
			r := read[*types.CertificateSigningRequest](w, signingRequests, "", name)
			if _, ok := expiry(r.Status.Certificate); !ok || len(r.Status.Conditions) != 1 {
				t.Errorf("%s: %+v", name, r.Status)
			}
		}
		for _, name := range []string{"kubelet", "others", "denied"} {
			if r := read[*types.CertificateSigningRequest](w, signingRequests, "", name); len(r.Status.Certificate) != 0 || len(r.Status.Conditions) != 1 {
				t.Errorf("%s: %+v", name, r.Status)
			}
		}
		want := map[signed]bool{
			{"anna", x509.KeyUsageKeyEncipherment, 0}: true, {"hourly", x509.KeyUsageKeyEncipherment, time.Hour}: true, {"bad-user", x509.KeyUsageKeyEncipherment, 0}: true,
		}
		asked := w.signer.all()
		for _, a := range asked {
			if !want[a] {
				t.Errorf("asked to sign %+v", a)
			}
		}
		if len(asked) != len(want) {
			t.Errorf("asked %d times", len(asked))
		}
	})
}

// Each request is there until its time, and no longer.
func TestCertificateCleaner(t *testing.T) {
	inWorld(t, func(w *world) {
		tenMinutes := int32(600)
		for _, r := range []*types.CertificateSigningRequest{
			signingRequest(t, "issued"), signingRequest(t, "denied"), signingRequest(t, "bad"), signingRequest(t, "pending"),
			signingRequest(t, "short", func(r *types.CertificateSigningRequest) { r.Spec.ExpirationSeconds = &tenMinutes }),
			signingRequest(t, "unsigned", func(r *types.CertificateSigningRequest) { r.Spec.SignerName = "example.com/slow" }),
			signingRequest(t, "foreign", func(r *types.CertificateSigningRequest) { r.Spec.SignerName = "example.com/slow" }),
		} {
			create(w, signingRequests, r)
		}
		w.settle(0)
		for _, name := range []string{"issued", "bad", "short", "unsigned"} {
			review(w, name, types.CertificateApproved)
		}
		review(w, "denied", types.CertificateDenied)
		review(w, "foreign", "UnderReview")
		for _, step := range []struct {
			wait time.Duration
			left string
		}{
			{0, "bad denied foreign issued pending short unsigned"},
			{9 * time.Minute, "bad denied foreign issued pending short unsigned"},
			{2 * time.Minute, "bad denied foreign issued pending unsigned"}, // its certificate has expired
			{48 * time.Minute, "bad denied foreign issued pending unsigned"},
			{2 * time.Minute, "foreign pending unsigned"},
			{22*time.Hour + 58*time.Minute, "foreign pending unsigned"},
			{2 * time.Minute, "foreign"},
			{240 * time.Hour, "foreign"},
		} {
			w.settle(step.wait)
			var left []string
			for _, r := range all[*types.CertificateSigningRequest](w, signingRequests, "") {
				left = append(left, r.Name)
			}
			if got := strings.Join(left, " "); got != step.left {
				t.Fatalf("after %v more: %q, want %q", step.wait, got, step.left)
			}
		}
	})
}
