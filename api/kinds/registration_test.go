package kinds

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"conclave/api/types"
)

func TestAPIServices(t *testing.T) {
	row := registrationRows()[0].Complete()
	service := func(o *types.APIService) {
		o.Spec.Service = &types.APIServiceReference{Namespace: "shop", Name: "s"}
	}
	for name, tc := range map[string]struct {
		edit func(*types.APIService)
		want string // the errors, one behind the other
	}{
		"local":  {func(*types.APIService) {}, ""},
		"remote": {service, ""},
		"core": {func(o *types.APIService) {
			o.Name, o.Spec.Group = "v1.", ""
		}, ""},
		"name": {func(o *types.APIService) { o.Name = "v1.other" },
			"metadata.name: Invalid value: \"v1.other\": must be `spec.version+\".\"+spec.group`: \"v1.example.com\""},
		"group": {func(o *types.APIService) { o.Name, o.Spec.Group = "v1.Example", "Example" },
			`spec.group: Invalid value: "Example": a lowercase RFC 1123 subdomain must consist`},
		"no group": {func(o *types.APIService) { o.Name, o.Spec.Group, o.Spec.Version = "v2.", "", "v2" },
			"spec.group: Required value: only v1 may have an empty group and it better be legacy kube"},
		"version": {func(o *types.APIService) { o.Name, o.Spec.Version = "1.example.com", "1" },
			`spec.version: Invalid value: "1": a DNS-1035 label must consist`},
		"low": {func(o *types.APIService) { o.Spec.GroupPriorityMinimum, o.Spec.VersionPriority = 0, 0 },
			"spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000\nspec.versionPriority: Invalid value: 0: must be positive and less than 1000"},
		"high": {func(o *types.APIService) { o.Spec.GroupPriorityMinimum, o.Spec.VersionPriority = 20001, 1001 },
			"spec.groupPriorityMinimum: Invalid value: 20001: must be positive and less than 20000\nspec.versionPriority: Invalid value: 1001: must be positive and less than 1000"},
		"highest": {func(o *types.APIService) { o.Spec.GroupPriorityMinimum, o.Spec.VersionPriority = 20000, 1000 }, ""},
		"local with trust": {func(o *types.APIService) { o.Spec.CABundle, o.Spec.InsecureSkipTLSVerify = []byte("abc"), true },
			"spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle\nspec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify"},
		"nobody": {func(o *types.APIService) { o.Spec.Service = &types.APIServiceReference{Port: ptr.To(int32(0))} },
			"spec.service.namespace: Required value\nspec.service.name: Required value\nspec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive"},
		"both": {func(o *types.APIService) {
			service(o)
			o.Spec.CABundle, o.Spec.InsecureSkipTLSVerify = []byte("abc"), true
		}, "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"},
	} {
		good := func() *types.APIService {
			return &types.APIService{
				ObjectMeta: metav1.ObjectMeta{Name: "v1.example.com", ResourceVersion: "1"},
				Spec:       types.APIServiceSpec{Group: "example.com", Version: "v1", GroupPriorityMinimum: 100, VersionPriority: 10},
			}
		}
		o := good()
		tc.edit(o)
		row.Default(o)
		check := func(when string, errs []string) {
			if len(errs) != len(strings.Split(tc.want, "\n")) && tc.want != "" || tc.want == "" && len(errs) > 0 {
				t.Errorf("%s, %s: %q", name, when, errs)
				return
			}
			for i, e := range errs {
				if want := strings.Split(tc.want, "\n")[i]; !strings.HasPrefix(e, want) {
					t.Errorf("%s, %s: %q is not %q", name, when, e, want)
				}
			}
		}
		texts := func(errs field.ErrorList) (all []string) {
			for _, e := range errs {
				all = append(all, e.Error())
			}
			return all
		}
		check("create", texts(row.Validate(o)))
		old := good()
		old.Name = o.Name
		check("update", texts(row.ValidateUpdate(o, old)))
	}

	o := &types.APIService{}
	service(o)
	row.Default(o)
	if *o.Spec.Service.Port != 443 {
		t.Errorf("the port is %d", *o.Spec.Service.Port)
	}
	o.Status.Conditions = []types.APIServiceCondition{{Type: "Available", Status: "True"}}
	row.PrepareForCreate(o)
	if len(o.Status.Conditions) != 0 {
		t.Error("who makes one says that it is available")
	}
	o.Spec.Service = nil
	row.PrepareForCreate(o)
	if c := o.Condition("Available"); c == nil || c.Status != "True" || c.Reason != "Local" || c.Message != "Local APIServices are always available" {
		t.Errorf("a local one is %+v", c)
	}
	bad := &types.APIService{Status: types.APIServiceStatus{Conditions: []types.APIServiceCondition{{Type: "Available", Status: "Maybe"}}}}
	if errs := row.ValidateStatusUpdate(bad, o); !strings.Contains(errs.ToAggregate().Error(), `status.conditions[0].status: Unsupported value: "Maybe": supported values: "True", "False", "Unknown"`) {
		t.Error(errs)
	}
}

func TestAPIServiceColumns(t *testing.T) {
	row := registrationRows()[0].Complete()
	now := time.Now()
	cells := func(service *types.APIServiceReference, conditions ...types.APIServiceCondition) string {
		return fmt.Sprint(row.Cells(&types.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: "v1.example.com", CreationTimestamp: metav1.NewTime(now.Add(-time.Minute))},
			Spec:       types.APIServiceSpec{Service: service}, Status: types.APIServiceStatus{Conditions: conditions},
		}, now))
	}
	ref := &types.APIServiceReference{Namespace: "shop", Name: "s"}
	for got, want := range map[string]string{
		cells(nil, types.LocallyAvailable(metav1.Time{})): "[v1.example.com Local True 60s]",
		cells(ref): "[v1.example.com shop/s Unknown 60s]",
		cells(ref, types.APIServiceCondition{Type: "Available", Status: "False", Reason: "ServiceNotFound"}): "[v1.example.com shop/s False (ServiceNotFound) 60s]",
		cells(ref, types.APIServiceCondition{Type: "Available", Status: "False"}):                            "[v1.example.com shop/s False 60s]",
	} {
		if got != want {
			t.Errorf("%s is not %s", got, want)
		}
	}
}
