package kinds

import (
	"encoding/json"
	"math/rand"
	"reflect"
	"slices"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes/scheme"

	"conclave/api/types"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/yaml"
)

// use runs everything that a row can do over two objects of its kind.
func use(t *testing.T, k *Kind, obj, old runtime.Object) {
	t.Helper()
	k.Default(obj)
	once := obj.DeepCopyObject()
	k.Default(obj)
	if !equality.Semantic.DeepEqual(once, obj) {
		t.Errorf("%s: a second Default changed\n%s\ninto\n%s", k.Resource(), asYAML(t, once), asYAML(t, obj))
	}
	k.Default(old)

	created := obj.DeepCopyObject()
	k.PrepareForCreate(created)
	again := created.DeepCopyObject()
	k.Default(again)
	if !equality.Semantic.DeepEqual(created, again) {
		t.Errorf("%s: Default changed a created object\n%s\ninto\n%s", k.Resource(), asYAML(t, created), asYAML(t, again))
	}
	errors := [][]*field.Error{k.Validate(created)}
	for _, prepare := range []struct {
		prepare  func(obj, old runtime.Object)
		validate func(obj, old runtime.Object) field.ErrorList
	}{{k.PrepareForUpdate, k.ValidateUpdate}, {k.PrepareForStatusUpdate, k.ValidateStatusUpdate}} {
		next, before := obj.DeepCopyObject(), old.DeepCopyObject()
		prepare.prepare(next, old)
		errors = append(errors, prepare.validate(next, old))
		if !equality.Semantic.DeepEqual(old, before) {
			t.Errorf("%s: preparing or validating an update changed the old object", k.Resource())
		}
	}
	for _, list := range errors {
		for _, e := range list {
			if e.Error() == "" {
				t.Errorf("%s: an error without words", k.Resource())
			}
		}
	}
	before := created.DeepCopyObject()
	k.Warnings(created, nil)
	k.Warnings(created, old)
	for name := range k.Fields(created) {
		if !slices.Contains(k.FieldNames, name) {
			t.Errorf("%s: field %s is not in FieldNames", k.Resource(), name)
		}
	}
	if n := len(k.Fields(created)); n != len(k.FieldNames) {
		t.Errorf("%s: %d fields, %d names", k.Resource(), n, len(k.FieldNames))
	}
	if n := len(k.Cells(created, time.Unix(2e9, 0))); n != len(k.Columns) {
		t.Errorf("%s: %d cells for %d columns", k.Resource(), n, len(k.Columns))
	}
	if k.GetScale != nil {
		scale, err := k.GetScale(created)
		if err == nil {
			err = k.SetScale(created.DeepCopyObject(), scale)
		}
		if err != nil {
			t.Errorf("%s: scale: %v", k.Resource(), err)
		}
	}
	if k.Validate(created); !equality.Semantic.DeepEqual(created, before) {
		t.Errorf("%s: something that only reads changed the object", k.Resource())
	}
}

func asYAML(t *testing.T, obj runtime.Object) string {
	out, err := yaml.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// words make random strings now and then mean something.
var words = []string{
	"", "a", "nginx:1", "ClusterFirst", "Always", "None", "ClusterIP", "LoadBalancer", "NodePort", "TCP", "10.0.0.1", "::1", "In", "Exists",
	"v1", "metadata.name", "metadata.labels['a']", "limits.cpu", "a/b", "..", "/x/../y", "25%", "RollingUpdate", "linux", "windows", "1.2.3.4/8", "IPv4",
}

func filler(seed int64) *randfill.Filler {
	return randfill.New().RandSource(rand.NewSource(seed)).NilChance(.4).NumElements(0, 3).MaxDepth(14).Funcs(
		func(s *string, c randfill.Continue) { *s = words[c.Intn(len(words))] },
		func(n *int32, c randfill.Continue) { *n = int32(c.Intn(70000) - 10) },
		func(n *int64, c randfill.Continue) { *n = int64(c.Intn(5000) - 10) },
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewMilliQuantity(int64(c.Intn(4000)-10), resource.DecimalSI)
		},
		func(l *corev1.ResourceList, c randfill.Continue) {
			*l = corev1.ResourceList{}
			for _, name := range []corev1.ResourceName{"cpu", "memory", "storage", "a.b/c", "hugepages-2Mi", "x"} {
				if c.Bool() {
					(*l)[name] = *resource.NewMilliQuantity(int64(c.Intn(4000)), resource.DecimalSI)
				}
			}
		},
		func(m *metav1.FieldsV1, c randfill.Continue) { *m = metav1.FieldsV1{} },
		func(r *runtime.RawExtension, c randfill.Continue) {
			if c.Bool() {
				r.Raw = []byte(`{"a":1}`)
			}
		},
		func(m *metav1.Time, c randfill.Continue) { *m = metav1.Unix(int64(c.Intn(1e9)), 0) },
		func(m *metav1.MicroTime, c randfill.Continue) {
			*m = metav1.NewMicroTime(time.Unix(int64(c.Intn(1e9)), 0))
		},
	)
}

// Nothing that a client may send makes a row panic, and defaulting is done
// when it is done.
func TestRandomObjects(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	for _, k := range Builtin() {
		t.Run(k.Resource(), func(t *testing.T) {
			for seed := range int64(rounds) {
				f := filler(seed)
				obj, old := k.New(), k.New()
				f.Fill(obj)
				f.Fill(old)
				// What comes from a client has been through an encoding.
				use(t, k, decoded(t, k, obj), decoded(t, k, old))
				use(t, k, decoded(t, k, obj), decoded(t, k, obj))
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func decoded(t *testing.T, k *Kind, obj runtime.Object) runtime.Object {
	t.Helper()
	m, ok := obj.(interface{ Marshal() ([]byte, error) })
	out := k.New()
	if !ok {
		data, err := json.Marshal(obj)
		if err == nil {
			err = json.Unmarshal(data, out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := out.(unmarshaler).Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	return out
}

type unmarshaler interface{ Unmarshal([]byte) error }

func FuzzProtobuf(f *testing.F) {
	rows := slices.DeleteFunc(Builtin(), func(k *Kind) bool { _, ok := k.New().(unmarshaler); return !ok })
	for i, k := range rows {
		obj := k.New()
		filler(int64(i)).Fill(obj)
		data, err := obj.(interface{ Marshal() ([]byte, error) }).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(i, data)
	}
	f.Fuzz(func(t *testing.T, i int, data []byte) {
		k := rows[uint(i)%uint(len(rows))]
		obj, old := k.New(), k.New()
		if obj.(unmarshaler).Unmarshal(data) != nil {
			t.Skip("not an object")
		}
		if err := old.(unmarshaler).Unmarshal(data); err != nil {
			t.Fatal(err)
		}
		use(t, k, obj, old)
	})
}

func TestTable(t *testing.T) {
	own := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{types.AddToScheme, snapshotv1.AddToScheme} {
		if err := add(own); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for _, k := range Builtin() {
		if name := k.GVR().String(); seen[name] {
			t.Errorf("two rows %s", name)
		}
		if !seen[k.Resource()] && k.Stored == k.Resource() {
			t.Errorf("%s is stored in another version, whose row does not come first", k.GVR())
		}
		seen[k.GVR().String()], seen[k.Resource()] = true, true
		for _, of := range []struct {
			obj  runtime.Object
			kind string
		}{{k.New(), k.GVK.Kind}, {k.NewList(), k.GVK.Kind + "List"}} {
			gvks, _, err := own.ObjectKinds(of.obj)
			if err != nil {
				gvks, _, err = scheme.Scheme.ObjectKinds(of.obj)
			}
			if err != nil || gvks[0] != k.GVK.GroupVersion().WithKind(of.kind) {
				t.Errorf("%s makes %v (%v)", k.Resource(), gvks, err)
			}
		}
		if k.Status != (k.GVK.Kind != "Event" && reflect.ValueOf(k.New()).Elem().FieldByName("Status").IsValid()) {
			t.Errorf("%s: Status is %t", k.Resource(), k.Status)
		}
		if k.GVR().Resource != k.Plural || k.GVR().Group != k.GVK.Group {
			t.Errorf("%s: GVR is %s", k.Resource(), k.GVR())
		}
		for _, c := range k.Columns {
			if c.Name == "" || c.Type == "" || c.Description == "" {
				t.Errorf("%s: column %+v is not complete", k.Resource(), c)
			}
		}
		v := reflect.ValueOf(*k)
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if v.Field(i).Kind() == reflect.Func && v.Field(i).IsNil() && !slices.Contains([]string{"GetScale", "SetScale", "ToStored", "FromStored", "Decoded", "Order"}, name) {
				t.Errorf("%s: no %s", k.Resource(), name)
			}
		}
	}
	for _, want := range []string{"pods", "deployments.apps", "statefulsets.apps", "persistentvolumeclaims", "events", "events.events.k8s.io", "ipaddresses.networking.k8s.io"} {
		if !seen[want] {
			t.Errorf("no row %s", want)
		}
	}
}

// Every row of the table of what does not work yet names a field that exists,
// and is found when the field is set.
func TestGaps(t *testing.T) {
	for _, of := range []struct {
		obj  any
		gaps []gap
	}{{&corev1.PodSpec{}, podGaps}, {&corev1.Container{}, containerGaps}, {&corev1.NodeSpec{}, nodeGaps},
		{&corev1.PersistentVolumeClaimSpec{}, claimGaps}, {&corev1.PersistentVolumeSpec{}, slices.Concat(volumeGaps, localGaps)}} {
		for _, g := range of.gaps {
			full := reflect.New(reflect.TypeOf(of.obj).Elem())
			randfill.New().RandSource(rand.NewSource(1)).NilChance(0).NumElements(1, 1).MaxDepth(12).Funcs(
				func(b *bool, _ randfill.Continue) { *b = len(g.but) == 0 },
				func(q *resource.Quantity, _ randfill.Continue) { *q = resource.MustParse("1") },
				func(m *metav1.FieldsV1, _ randfill.Continue) {},
			).Fill(full.Interface())
			if found := g.find(specPath, full); len(found) != 1 {
				t.Errorf("%s: found %v in a full %T", g.path, found, of.obj)
			}
			if found := g.find(specPath, reflect.ValueOf(of.obj)); len(found) != 0 {
				t.Errorf("%s: found %v in an empty %T", g.path, found, of.obj)
			}
		}
	}
}
