package kinds

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/types"
)

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func requestOf(t testing.TB, template *x509.CertificateRequest) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return inPEM("CERTIFICATE REQUEST", der)
}

func certificateOf(t testing.TB) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "anna"}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return inPEM("CERTIFICATE", der)
}

func goodRequest(t testing.TB) *csr {
	return &csr{ObjectMeta: metav1.ObjectMeta{Name: "anna"}, Spec: types.CertificateSigningRequestSpec{
		Request: requestOf(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "anna"}}), SignerName: types.SignerClient, Usages: []string{"client auth"},
	}}
}

func TestValidateRequest(t *testing.T) {
	seconds := func(n int32) *int32 { return &n }
	good := goodRequest(t)
	forged := bytes.Clone(good.Spec.Request)
	der, _ := pem.Decode(forged)
	der.Bytes[len(der.Bytes)-1] ^= 1
	const usages = `supported values: "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only", "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping"`
	long := strings.Repeat("a", 64)
	for name, tc := range map[string]struct {
		edit func(*csr)
		want []string
	}{
		"good":     {func(*csr) {}, nil},
		"any name": {func(r *csr) { r.Name = "csr:Anna_1" }, nil},
		"all said": {func(r *csr) {
			r.Spec.ExpirationSeconds, r.Spec.SignerName, r.Spec.Usages = seconds(600), "example.com/ns.signer-1", keyUsages
		}, nil},
		"nothing": {func(r *csr) { r.Spec = types.CertificateSigningRequestSpec{} }, []string{
			`spec.request: Invalid value: null: PEM block type must be CERTIFICATE REQUEST`, `spec.usages: Required value`, `spec.signerName: Required value`,
		}},
		"no PEM":       {func(r *csr) { r.Spec.Request = der.Bytes }, []string{`spec.request: Invalid value: …`}},
		"another PEM":  {func(r *csr) { r.Spec.Request = certificateOf(t) }, []string{`spec.request: Invalid value: …`}},
		"no request":   {func(r *csr) { r.Spec.Request = inPEM("CERTIFICATE REQUEST", []byte("x")) }, []string{`spec.request: Invalid value: …`}},
		"not its key":  {func(r *csr) { r.Spec.Request = inPEM("CERTIFICATE REQUEST", der.Bytes) }, []string{`spec.request: Invalid value: …`}},
		"a path":       {func(r *csr) { r.Name = "a/b" }, []string{`metadata.name: Invalid value: "a/b": may not contain '/'`}},
		"wrong usage":  {func(r *csr) { r.Spec.Usages = []string{"client auth", "flying"} }, []string{`spec.usages[1]: Unsupported value: "flying": ` + usages}},
		"double usage": {func(r *csr) { r.Spec.Usages = []string{"signing", "signing"} }, []string{`spec.usages[1]: Duplicate value: "signing"`}},
		"short":        {func(r *csr) { r.Spec.ExpirationSeconds = seconds(599) }, []string{`spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)`}},
		"legacy": {func(r *csr) { r.Spec.SignerName = types.SignerLegacy }, []string{
			`spec.signerName: Invalid value: "kubernetes.io/legacy-unknown": the legacy signerName is not allowed via this API version`,
		}},
		"no path":   {func(r *csr) { r.Spec.SignerName = "example.com" }, []string{`spec.signerName: Invalid value: "example.com": must be a fully qualified domain and path of the form 'example.com/signer-name'`}},
		"two paths": {func(r *csr) { r.Spec.SignerName = "example.com/a/b" }, []string{`spec.signerName: Invalid value: "example.com/a/b": must be a fully qualified domain and path of the form 'example.com/signer-name'`}},
		"no domain": {func(r *csr) { r.Spec.SignerName = "example/a" }, []string{`spec.signerName: Invalid value: "example": should be a domain with at least two segments separated by dots`}},
		"odd labels": {func(r *csr) { r.Spec.SignerName = "Example.com/A" }, []string{
			`spec.signerName: Invalid value: "Example.com": validating label "Example": a lowercase RFC 1123 label must consist of…`,
			`spec.signerName: Invalid value: "A": validating label "A": a lowercase RFC 1123 subdomain must consist of…`,
		}},
		"long label":  {func(r *csr) { r.Spec.SignerName = long + ".com/a" }, []string{`spec.signerName: Invalid value: "` + long + `.com": validating label "` + long + `": must be no more than 63 characters`}},
		"long domain": {func(r *csr) { r.Spec.SignerName = strings.Repeat("aaaa.", 51) + "com/a" }, []string{`spec.signerName: Too long: may not be more than 253 bytes`}},
		"long": {func(r *csr) { r.Spec.SignerName = "a.b/" + strings.Repeat(strings.Repeat("a", 200)+".", 3) + "a" }, []string{
			`spec.signerName: Too long: may not be more than 571 bytes`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := good.DeepCopyObject().(*csr)
			tc.edit(r)
			expect(t, validateRequest(r), tc.want...)
		})
	}
}

func is(condition string) types.CertificateSigningRequestCondition {
	return types.CertificateSigningRequestCondition{Type: condition, Status: "True", Reason: "R"}
}

// Each way of updating changes its own part, and is told what it may not do.
func TestRequestUpdates(t *testing.T) {
	cert, other := certificateOf(t), certificateOf(t)
	k := table["certificatesigningrequests.certificates.k8s.io"]
	conditions := func(names ...string) (all []types.CertificateSigningRequestCondition) {
		for _, n := range names {
			all = append(all, is(n))
		}
		return all
	}
	const at = "status.conditions: Forbidden: updates may not "
	for name, tc := range map[string]struct {
		sub           string
		before, after []string // conditions
		had, has      []byte   // certificates
		edit          func(*csr)
		want          []string
		cells         string // of the outcome
	}{
		"the object alone":    {after: []string{"Approved"}, has: cert, edit: func(r *csr) { r.Spec.SignerName = "a.b/c" }, cells: "Pending"},
		"approve":             {sub: "approval", after: []string{"Approved"}, has: cert, cells: "Approved"},
		"deny":                {sub: "approval", after: []string{"Denied"}, cells: "Denied"},
		"fail by approval":    {sub: "approval", after: []string{"Failed"}, cells: "Pending,Failed"},
		"another condition":   {sub: "approval", after: []string{"Mine"}, cells: "Pending"},
		"change the reason":   {sub: "approval", before: []string{"Approved"}, after: []string{"Approved"}, edit: func(r *csr) { r.Status.Conditions[0].Reason = "Other" }, cells: "Approved"},
		"both":                {sub: "approval", before: []string{"Denied"}, after: []string{"Denied", "Approved"}, want: []string{`status.conditions[1].type: Invalid value: "Approved": Approved and Denied conditions are mutually exclusive`}},
		"both at once":        {sub: "approval", after: []string{"Approved", "Denied"}, want: []string{`status.conditions[1].type: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive`}},
		"take back":           {sub: "approval", before: []string{"Approved"}, want: []string{at + `remove a condition of type "Approved"`}},
		"change the mind":     {sub: "approval", before: []string{"Approved"}, after: []string{"Denied"}, want: []string{at + `remove a condition of type "Approved"`}},
		"twice":               {sub: "approval", after: []string{"Mine", "Mine"}, want: []string{`status.conditions[1].type: Duplicate value: "Mine"`}},
		"no type":             {sub: "approval", after: []string{""}, want: []string{`status.conditions[0].type: Required value`}},
		"not approved":        {sub: "approval", after: []string{"Approved"}, edit: func(r *csr) { r.Status.Conditions[0].Status = "False" }, want: []string{`status.conditions[0].status: Unsupported value: "False": supported values: "True"`}},
		"no status":           {sub: "approval", after: []string{"Mine"}, edit: func(r *csr) { r.Status.Conditions[0].Status = "" }, want: []string{`status.conditions[0].status: Required value`}},
		"odd status":          {sub: "approval", after: []string{"Mine"}, edit: func(r *csr) { r.Status.Conditions[0].Status = "Maybe" }, want: []string{`status.conditions[0].status: Unsupported value: "Maybe": supported values: "False", "True", "Unknown"`}},
		"issue":               {sub: "status", before: []string{"Approved"}, after: []string{"Approved"}, has: cert, cells: "Approved,Issued"},
		"issue two":           {sub: "status", has: append(append([]byte("text\n"), cert...), other...), cells: "Pending,Issued"},
		"fail":                {sub: "status", before: []string{"Approved"}, after: []string{"Approved", "Failed"}, cells: "Approved,Failed"},
		"approve by status":   {sub: "status", after: []string{"Approved"}, want: []string{at + `add a condition of type "Approved"`}},
		"deny by status":      {sub: "status", after: []string{"Denied"}, want: []string{at + `add a condition of type "Denied"`}},
		"take back by status": {sub: "status", before: []string{"Denied"}, want: []string{at + `remove a condition of type "Denied"`}},
		"change by status":    {sub: "status", before: []string{"Approved"}, after: []string{"Approved"}, edit: func(r *csr) { r.Status.Conditions[0].Reason = "Other" }, cells: "Approved"},
		"recover":             {sub: "status", before: []string{"Failed"}, want: []string{at + `remove a condition of type "Failed"`}},
		"issue anew":          {sub: "status", had: cert, has: other, want: []string{`status.certificate: Forbidden: updates may not modify existing certificate content`}},
		"revoke":              {sub: "status", had: cert, want: []string{`status.certificate: Forbidden: updates may not modify existing certificate content`}},
		"no PEM":              {sub: "status", has: []byte("x"), want: []string{`status.certificate: Invalid value: "<certificate data>": must contain at least one CERTIFICATE PEM block`}},
		"a key":               {sub: "status", has: append(bytes.Clone(cert), inPEM("PRIVATE KEY", []byte("x"))...), want: []string{`status.certificate: Invalid value: "<certificate data>": only CERTIFICATE PEM blocks are allowed, found "PRIVATE KEY"`}},
		"a header": {sub: "status", has: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: []byte("x")}),
			want: []string{`status.certificate: Invalid value: "<certificate data>": no PEM block headers are permitted`}},
		"an empty block":   {sub: "status", has: inPEM("CERTIFICATE", nil), want: []string{`status.certificate: Invalid value: "<certificate data>": found CERTIFICATE PEM block containing 0 certificates`}},
		"no certificate":   {sub: "status", has: inPEM("CERTIFICATE", []byte("x")), want: []string{`status.certificate: Invalid value: "<certificate data>": …`}},
		"the spec, status": {sub: "status", edit: func(r *csr) { r.Spec.Username = "root" }, cells: "Pending"},
		"the spec, verdict": {sub: "approval", after: []string{"Approved"}, edit: func(r *csr) {
			r.Spec.Request, r.Spec.Groups = nil, []string{"system:masters"}
		}, cells: "Approved"},
	} {
		t.Run(name, func(t *testing.T) {
			old := goodRequest(t)
			old.ResourceVersion, old.Spec.Username = "1", "anna"
			r := old.DeepCopyObject().(*csr)
			old.Status = types.CertificateSigningRequestStatus{Conditions: conditions(tc.before...), Certificate: tc.had}
			r.Status = types.CertificateSigningRequestStatus{Conditions: conditions(tc.after...), Certificate: tc.has}
			if tc.edit != nil {
				tc.edit(r)
			}
			prepare, validate := k.PrepareForUpdate, k.ValidateUpdate
			switch {
			case tc.sub == "status":
				prepare, validate = k.PrepareForStatusUpdate, k.ValidateStatusUpdate
			case tc.sub != "":
				prepare, validate = k.Sub(tc.sub).Prepare, k.Sub(tc.sub).Validate
			}
			prepare(r, old)
			expect(t, validate(r, old), tc.want...)
			if r.Spec.Username != "anna" || r.Spec.SignerName != types.SignerClient || !bytes.Equal(r.Spec.Request, old.Spec.Request) {
				t.Errorf("the spec has changed: %+v", r.Spec)
			}
			if name == "change by status" && r.Status.Conditions[0].Reason != "R" {
				t.Error("a signer has changed what the approver said")
			}
			if cells := k.Cells(r, time.Now()); len(tc.want) == 0 && cells[len(cells)-1] != tc.cells {
				t.Errorf("it is shown as %v, want %s", cells, tc.cells)
			}
		})
	}
}

func TestRequestCells(t *testing.T) {
	k := table["certificatesigningrequests.certificates.k8s.io"]
	r := goodRequest(t)
	now := time.Unix(1e9, 0)
	life := int32(24 * 3600)
	r.Spec.Username, r.Spec.ExpirationSeconds, r.CreationTimestamp = "root", &life, metav1.NewTime(now.Add(-time.Minute))
	for i, want := range []any{"anna", "60s", types.SignerClient, "root", "24h", "Pending"} {
		if got := k.Cells(r, now)[i]; got != want {
			t.Errorf("%s: %v, want %v", k.Columns[i].Name, got, want)
		}
	}
	r.Spec.ExpirationSeconds = nil
	if got := k.Cells(r, now)[4]; got != "<none>" {
		t.Errorf("no duration is shown as %v", got)
	}
}

func TestRequestWarnings(t *testing.T) {
	k := table["certificatesigningrequests.certificates.k8s.io"]
	user := pkix.Name{CommonName: "anna", Organization: []string{"dev"}}
	for name, tc := range map[string]struct {
		signer  string
		request x509.CertificateRequest
		want    string
	}{
		"a user":              {types.SignerClient, x509.CertificateRequest{Subject: user}, ""},
		"a name":              {types.SignerClient, x509.CertificateRequest{Subject: user, DNSNames: []string{"a.b"}}, "alternative names are left out"},
		"a unit":              {types.SignerClient, x509.CertificateRequest{Subject: pkix.Name{CommonName: "anna", OrganizationalUnit: []string{"x"}}}, "other parts of the subject"},
		"a kubelet":           {types.SignerKubeletClient, x509.CertificateRequest{}, "Conclave's nodes get their certificates by joining: nobody signs for kubernetes.io/kube-apiserver-client-kubelet"},
		"a kubelet's server":  {types.SignerKubeletServer, x509.CertificateRequest{}, "nobody signs for kubernetes.io/kubelet-serving"},
		"an unknown of K8s":   {"kubernetes.io/other", x509.CertificateRequest{}, "nobody signs for kubernetes.io/other"},
		"somebody else's own": {"example.com/a", x509.CertificateRequest{DNSNames: []string{"a.b"}}, ""},
	} {
		r := goodRequest(t)
		r.Spec.SignerName, r.Spec.Request = tc.signer, requestOf(t, &tc.request)
		got := strings.Join(k.Warnings(r, nil), "\n")
		if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		if again := k.Warnings(r, r); len(again) != 0 {
			t.Errorf("%s: an update warns again: %q", name, again)
		}
	}
}
