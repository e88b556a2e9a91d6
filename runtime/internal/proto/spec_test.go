package proto

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Pod processes of other versions read what is written as the specification's
// own types, and OCI must not lose a field that a later version adds.
func TestSpecIsOCI(t *testing.T) {
	score := 7
	s := Spec{
		Version: "1.2.0", Process: &specs.Process{Args: []string{"a"}, Cwd: "/", OOMScoreAdj: &score}, Root: &specs.Root{Path: "r", Readonly: true},
		Mounts: []specs.Mount{{Destination: "/m", Options: []string{"ro"}}},
		Linux: &Linux{
			CgroupsPath: "c", Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}, Resources: &specs.LinuxResources{Unified: map[string]string{"a": "b"}},
			Devices: []specs.LinuxDevice{{Path: "/dev/d", Type: "c"}}, Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
			RootfsPropagation: "shared", MaskedPaths: []string{"m"}, ReadonlyPaths: []string{"o"},
		},
	}
	for _, v := range []reflect.Value{reflect.ValueOf(s), reflect.ValueOf(*s.Linux)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Fatalf("this test sets no %s", v.Type().Field(i).Name)
			}
		}
	}
	raw, err := json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	var oci specs.Spec
	if err := json.Unmarshal(raw, &oci); err != nil {
		t.Fatal(err)
	}
	if got := s.OCI(); !reflect.DeepEqual(got, &oci) {
		t.Errorf("written and read it is %+v, by OCI %+v", oci, got)
	}
}
