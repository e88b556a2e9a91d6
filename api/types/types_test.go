package types

import (
	"encoding/json"
	"reflect"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	certificatesv1 "k8s.io/api/certificates/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"
)

type message interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// TestLikePublished compares our types with the published ones: what one writes,
// in JSON or protobuf, the other reads.
func TestLikePublished(t *testing.T) {
	for _, pair := range []struct{ ours, published message }{
		{&MutatingWebhookConfiguration{}, &admissionregistrationv1.MutatingWebhookConfiguration{}},
		{&MutatingWebhookConfigurationList{}, &admissionregistrationv1.MutatingWebhookConfigurationList{}},
		{&ValidatingWebhookConfiguration{}, &admissionregistrationv1.ValidatingWebhookConfiguration{}},
		{&ValidatingWebhookConfigurationList{}, &admissionregistrationv1.ValidatingWebhookConfigurationList{}},
		{&ValidatingAdmissionPolicy{}, &admissionregistrationv1.ValidatingAdmissionPolicy{}},
		{&ValidatingAdmissionPolicyList{}, &admissionregistrationv1.ValidatingAdmissionPolicyList{}},
		{&ValidatingAdmissionPolicyBinding{}, &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}},
		{&ValidatingAdmissionPolicyBindingList{}, &admissionregistrationv1.ValidatingAdmissionPolicyBindingList{}},
		{&MutatingAdmissionPolicy{}, &admissionregistrationv1.MutatingAdmissionPolicy{}},
		{&MutatingAdmissionPolicyList{}, &admissionregistrationv1.MutatingAdmissionPolicyList{}},
		{&MutatingAdmissionPolicyBinding{}, &admissionregistrationv1.MutatingAdmissionPolicyBinding{}},
		{&MutatingAdmissionPolicyBindingList{}, &admissionregistrationv1.MutatingAdmissionPolicyBindingList{}},
		{&CertificateSigningRequest{}, &certificatesv1.CertificateSigningRequest{}},
		{&CertificateSigningRequestList{}, &certificatesv1.CertificateSigningRequestList{}},
		{&FlowSchema{}, &flowcontrolv1.FlowSchema{}},
		{&FlowSchemaList{}, &flowcontrolv1.FlowSchemaList{}},
		{&PriorityLevelConfiguration{}, &flowcontrolv1.PriorityLevelConfiguration{}},
		{&PriorityLevelConfigurationList{}, &flowcontrolv1.PriorityLevelConfigurationList{}},
		{&HorizontalPodAutoscaler{}, &autoscalingv2.HorizontalPodAutoscaler{}},
		{&HorizontalPodAutoscalerList{}, &autoscalingv2.HorizontalPodAutoscalerList{}},
	} {
		fill := randfill.NewWithSeed(1).NilChance(0.3).NumElements(1, 3).Funcs(
			func(f *metav1.FieldsV1, _ randfill.Continue) { f.Raw = []byte(`{}`) },
			func(m *metav1.TypeMeta, _ randfill.Continue) {},
			func(m *metav1.ObjectMeta, c randfill.Continue) {
				m.Name, m.Labels = c.String(5), map[string]string{"a": c.String(3)}
			},
			func(q *resource.Quantity, c randfill.Continue) {
				*q = *resource.NewMilliQuantity(c.Int63n(1e9), resource.DecimalSI)
			},
			func(m *metav1.Time, c randfill.Continue) { *m = metav1.Unix(c.Int63n(1e9), 0) },
			// Protobuf cannot tell a list that is missing under its key from an empty one.
			func(v *ExtraValue, c randfill.Continue) { *v = ExtraValue{c.String(3)}[:c.Intn(2)] },
			func(v *certificatesv1.ExtraValue, c randfill.Continue) {
				*v = certificatesv1.ExtraValue{c.String(3)}[:c.Intn(2)]
			},
		)
		for range 50 {
			fill.Fill(pair.published)
			exchange(t, pair.published, pair.ours)
			fill.Fill(pair.ours)
			exchange(t, pair.ours, pair.published)
		}
		if o, p := reflect.TypeOf(pair.ours), reflect.TypeOf(pair.published); o.Elem().Name() != p.Elem().Name() {
			t.Errorf("%s is compared with %s", o, p)
		}
	}
}

// exchange has to read what from wrote, and from what to wrote of it.
func exchange(t *testing.T, from, to message) {
	t.Helper()
	empty := func(m message) message { return reflect.New(reflect.TypeOf(m).Elem()).Interface().(message) }
	text := func(m message) string {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var fields any // the order of fields is nobody's business
		if err := json.Unmarshal(b, &fields); err != nil {
			t.Fatal(err)
		}
		if b, err = json.Marshal(fields); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	raw, err := from.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	to, back := empty(to), empty(from)
	if err := to.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	if text(from) != text(to) {
		t.Fatalf("protobuf: %T\n%s\n%T\n%s", from, text(from), to, text(to))
	}
	if raw, err = to.Marshal(); err != nil {
		t.Fatal(err)
	}
	if err := back.Unmarshal(raw); err != nil || !equality.Semantic.DeepEqual(from, back) {
		t.Fatalf("there and back: %v\n%s\n%s", err, text(from), text(back))
	}
	to = empty(to)
	if err := json.Unmarshal([]byte(text(from)), to); err != nil || text(to) != text(from) {
		t.Fatalf("JSON: %v\n%s\n%s", err, text(from), text(to))
	}
}

// TestDeepCopy looks for what a copy shares with its original.
func TestDeepCopy(t *testing.T) {
	fill := randfill.NewWithSeed(2).NilChance(0).NumElements(1, 2).Funcs(func(f *metav1.FieldsV1, _ randfill.Continue) { f.Raw = []byte(`{}`) })
	for _, obj := range []runtime.Object{&MutatingWebhookConfigurationList{}, &ValidatingWebhookConfigurationList{}, &ValidatingAdmissionPolicyList{}, &MutatingAdmissionPolicyBindingList{}, &CertificateSigningRequestList{}, &HorizontalPodAutoscalerList{}, &FlowSchemaList{}, &PriorityLevelConfigurationList{}} {
		fill.Fill(obj)
		copied := obj.DeepCopyObject()
		if !reflect.DeepEqual(obj, copied) {
			t.Errorf("a copy of %T differs", obj)
		}
		shares(t, reflect.TypeOf(obj).String(), reflect.ValueOf(obj), reflect.ValueOf(copied))
	}
}

func shares(t *testing.T, path string, a, b reflect.Value) {
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || a.Type() == reflect.TypeFor[*metav1.Time]() {
			return
		}
		if a.Pointer() == b.Pointer() {
			t.Errorf("%s is shared", path)
		}
		shares(t, path, a.Elem(), b.Elem())
	case reflect.Slice:
		if a.Len() > 0 && a.Pointer() == b.Pointer() {
			t.Errorf("%s is shared", path)
		}
		for i := range a.Len() {
			shares(t, path+"[]", a.Index(i), b.Index(i))
		}
	case reflect.Map:
		if a.Len() > 0 && a.Pointer() == b.Pointer() {
			t.Errorf("%s is shared", path)
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if a.Type() != reflect.TypeFor[metav1.Time]() {
				shares(t, path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		}
	}
}

// FuzzUnmarshal has to survive any bytes, and what it reads has to be written
// as it was.
func FuzzUnmarshal(f *testing.F) {
	raw, err := (&MutatingWebhookConfiguration{Webhooks: []MutatingWebhook{{Webhook: Webhook{Name: "a", Rules: []RuleWithOperations{{Operations: []string{"*"}}}}}}}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var c, back MutatingWebhookConfiguration
		if c.Unmarshal(raw) != nil {
			return
		}
		again, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := back.Unmarshal(again); err != nil {
			t.Fatal(err)
		}
	})
}
