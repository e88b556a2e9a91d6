package api

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Amounts that no parser must see, and text that only looks like one.
func TestAbsurdAmounts(t *testing.T) {
	gvk := corev1.SchemeGroupVersion.WithKind("Pod")
	pod := &corev1.Pod{TypeMeta: typeMeta(gvk), ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{"note": "n"}}}
	pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Limits: corev1.ResourceList{corev1.ResourceCPU: apiresource.MustParse("1234567890123")},
	}}}
	for media, inQuotes := range map[string]string{mediaJSON: `"`, mediaYAML: ``, mediaProtobuf: ``} {
		body, err := encodeObject(pod, media)
		if err != nil {
			t.Fatal(err)
		}
		with := func(old, amount string) []byte {
			if media == mediaProtobuf && len(old) != len(amount) {
				t.Fatalf("%q and %q differ in length", old, amount)
			}
			if !bytes.Contains(body, []byte(old)) {
				t.Fatalf("%s lacks %q: %s", media, old, body)
			}
			return bytes.Replace(body, []byte(old), []byte(amount), 1)
		}
		bad := [][]byte{with("1234567890123", "1e-2147483640"), with("1234567890123", "+1E2147483647"), with("1234567890123", ".5e-999999999")}
		good := [][]byte{with("1234567890123", "1.00000000e-3")}
		switch media {
		case mediaJSON:
			bad = append(bad,
				with(inQuotes+"1234567890123"+inQuotes, "1e-2147483640"),
				with("1234567890123", "1"+strings.Repeat("0", 1<<20)),
				with("1234567890123", "."+strings.Repeat("0", 80)+"1"),
				with("1234567890123", `1\u0065\u002d21474836\u00340`),
				// A duplicate is parsed too, though the last one counts.
				with(`{"cpu":`, `{"cpu":"1e-2147483640","cpu":`))
			good = append(good, with("1234567890123", "1e18"), with("1234567890123", "12E"), with(`"note":"n"`, `"note":"`+strings.Repeat("7", 100)+`"`), with(`"note":"n"`, `"note":"1e-2147483640 \\u0065"`), with(`"note":"n"`, `"1e-2147483640":"\u0031e2147483640"`))
		case mediaProtobuf:
			// UIDs stand before the tag of resourceVersion, which is a digit.
			withUID := *pod
			withUID.UID, withUID.ResourceVersion = "3b9aca00-0000-4000-8000-0000000019e428", "1234"
			b, err := encodeObject(&withUID, media)
			if err != nil {
				t.Fatal(err)
			}
			good = append(good, b)
		case mediaYAML:
			bad = append(bad, with(`"1234567890123"`, `"1\x65-2147483\`+"\n"+`    640"`))
			good = append(good, with("note: \"n\"", "note: 1e-2147483640x"))
		}
		for _, b := range bad {
			_, err := decodeBody(b, media, metav1.FieldValidationIgnore, &corev1.Pod{}, gvk, nil, func(string) {})
			if err == nil || asStatus(err).Code != 400 || !strings.Contains(err.Error(), "exponent") {
				t.Errorf("%s: %v for %q", media, err, b)
			}
		}
		for _, b := range good {
			if _, err := decodeBody(b, media, metav1.FieldValidationIgnore, &corev1.Pod{}, gvk, nil, func(string) {}); err != nil {
				t.Errorf("%s: %v for %q", media, err, b)
			}
		}
	}
}

// quickLook compares the quick look with the expressions.
func quickLook(t *testing.T, s string) {
	t.Helper()
	_, first := hideAbsurdJSON([]byte(s))
	if found := maybeAbsurd([]byte(s), true); found != (first != nil) {
		t.Errorf("%q: %v, and the expressions find %q", s, found, first)
	}
	if absurdInJSON.MatchString(s) && !maybeAbsurd([]byte(s), false) {
		t.Errorf("%q: not found in text that is no JSON", s)
	}
}

var numbers = []string{"1e1234", ".E+12345", "9e-00001x", "1e123", "e1234", "12e+-1234", `1\u0065`, "1e1234e", "+1E2147483647", "a-1234e", strings.Repeat("12.4", 16), "1e5e1234", "1.e1234", `1\\e1234`, `\\1e1234`, `\u1e1234`, `\1e1234`, `1e1234\n`, "0a1e1234f", `"1e1234"`}

// The quick look finds what the expressions find, in texts made of the pieces of
// numbers.
func TestMaybeAbsurd(t *testing.T) {
	for _, s := range numbers {
		quickLook(t, s)
	}
	pieces := append([]string{"0", "12", "1234", "e", "E", ".", "+", "-", "_", `\`, "u", "00", "65", `\u0065`, `\u0031`, `\u002b`, `\u0041`, `"`, "x", ",", strings.Repeat("7", 60)}, numbers...)
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		var b strings.Builder
		for range random.IntN(9) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		quickLook(t, b.String())
	}
}

func FuzzMaybeAbsurd(f *testing.F) {
	for _, s := range numbers {
		f.Add(s)
	}
	f.Fuzz(quickLook)
}

// A length may be written longer than it need be.
func TestAbsurdStrings(t *testing.T) {
	for _, length := range []string{"\x0d", "\x8d\x00", "\x8d\x80\x80\x00"} {
		harmless, first := hideAbsurdStrings([]byte("\x0a" + length + "1e-2147483640\x10\x01"))
		if string(first) != "1e-2147483640" || string(harmless) != "\x0a"+length+"xe-xxxxxxxxxx\x10\x01" {
			t.Errorf("%q: %q, %q", length, first, harmless)
		}
	}
}
