package kinds

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

var table = func() map[string]*Kind {
	rows := map[string]*Kind{}
	for _, k := range Builtin() {
		if k.Stored != k.Resource() { // not an older version of another row
			rows[k.Resource()] = k
		}
	}
	return rows
}()

// parse reads an object of a row from YAML, strictly, and defaults it.
func parse[T runtime.Object](t *testing.T, resource, text string) T {
	t.Helper()
	k := table[resource]
	if k == nil {
		t.Fatalf("no row %q", resource)
	}
	obj := k.New()
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatalf("parse %s: %v\n%s", resource, err, text)
	}
	k.Default(obj)
	return obj.(T)
}

// expect compares errors with one line each, as users see them. Lines that end
// in "…" are prefixes.
func expect(t *testing.T, got field.ErrorList, want ...string) {
	t.Helper()
	var lines []string
	for _, e := range got {
		lines = append(lines, e.Error())
	}
	ok := len(lines) == len(want)
	for i := 0; ok && i < len(want); i++ {
		if prefix, cut := strings.CutSuffix(want[i], "…"); cut {
			ok = strings.HasPrefix(lines[i], prefix)
		} else {
			ok = lines[i] == want[i]
		}
	}
	if !ok {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(lines, "\n\t"), strings.Join(want, "\n\t"))
	}
}
