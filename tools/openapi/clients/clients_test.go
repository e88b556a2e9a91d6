// Package clients holds the OpenAPI documents to what kubectl's own library
// makes of them. It is a part of the tools' module so that kubectl's
// dependencies stay out of the product's.
package clients

import (
	"bytes"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/resource"
	clientopenapi "k8s.io/client-go/openapi"
	"k8s.io/client-go/openapi3"
	utilproto "k8s.io/kube-openapi/pkg/util/proto"
	explainv2 "k8s.io/kubectl/pkg/explain/v2"
	"k8s.io/kubectl/pkg/util/openapi"
	"k8s.io/kubectl/pkg/validation"

	"conclave/api/custom"
	served "conclave/api/openapi"
)

// client is what a server that serves the documents looks like to kubectl.
type client struct{}

func (client) Paths() (map[string]clientopenapi.GroupVersion, error) {
	out := map[string]clientopenapi.GroupVersion{}
	for _, d := range served.All() {
		if path, ok := strings.CutPrefix(d.Path, "v3/"); ok {
			out[path] = groupVersion{path, d.JSON}
		}
	}
	return out, nil
}

type groupVersion struct {
	path string
	text *served.Text
}

func (g groupVersion) Schema(string) ([]byte, error) { return g.text.Read() }
func (g groupVersion) ServerRelativeURL() string     { return "/openapi/v3/" + g.path }

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		gvr    schema.GroupVersionResource
		fields string
		want   []string
	}{
		{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, "spec.strategy", []string{
			"GROUP:      apps", "KIND:       Deployment", "FIELD: strategy <DeploymentStrategy>", "The deployment strategy to use to replace existing pods with new ones.",
			"rollingUpdate\t<RollingUpdateDeployment>", "type\t<string>", "enum: Recreate, RollingUpdate", "Possible enum values:"}},
		{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "spec.containers.resources", []string{"FIELD: resources <ResourceRequirements>", "limits\t<map[string]Quantity>"}},
		{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "", []string{"KIND:       Pod", "spec\t<PodSpec>"}},
	} {
		var out bytes.Buffer
		var path []string
		if tc.fields != "" {
			path = strings.Split(tc.fields, ".")
		}
		if err := explainv2.PrintModelDescription(path, &out, client{}, tc.gvr, false, -1, "plaintext"); err != nil {
			t.Errorf("explain %s %s: %v", tc.gvr.Resource, tc.fields, err)
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("explain %s %s does not say %q:\n%s", tc.gvr.Resource, tc.fields, want, out.String())
			}
		}
	}
	for _, k := range custom.Kinds() {
		var out bytes.Buffer
		if err := explainv2.PrintModelDescription(nil, &out, client{}, k.GVR(), true, -1, "plaintext"); err != nil || out.Len() == 0 {
			t.Errorf("explain %s: %v", k.Resource(), err)
		}
	}
}

// kubectl asks before a dry run or a strict apply whether the server knows the
// parameter.
func TestVerifiers(t *testing.T) {
	root := openapi3.NewRoot(client{})
	for _, param := range []resource.VerifiableQueryParam{"dryRun", resource.QueryParamFieldValidation} {
		verifier := resource.NewQueryParamVerifierV3(nil, client{}, param)
		for _, k := range custom.Kinds() {
			if err := verifier.HasSupport(k.GVK); err != nil {
				t.Errorf("%s: %v", k.GVK, err)
			}
		}
	}
	gvs, err := root.GroupVersions()
	if err != nil || len(gvs) != len(served.All())-1 {
		t.Errorf("groups and versions are %v (%v)", gvs, err)
	}
}

// The protobuf form of version 2 is what kubectl validates manifests with when
// it does so itself.
func TestClientSideValidation(t *testing.T) {
	document := &openapi_v2.Document{}
	text, err := served.Find("v2").Protobuf.Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(text, document); err != nil {
		t.Fatal(err)
	}
	if _, err := utilproto.NewOpenAPIData(document); err != nil {
		t.Fatal(err)
	}
	resources, err := openapi.NewOpenAPIData(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range custom.Kinds() {
		if resources.LookupResource(k.GVK) == nil {
			t.Errorf("no schema of %s", k.GVK)
		}
	}
	if types := resources.GetConsumes(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, "PATCH"); len(types) != 4 {
		t.Errorf("deployments are patched by %v", types)
	}
	schema := validation.NewSchemaValidation(getter{resources})
	good := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":{"replicas":1,"selector":{"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":1}},"template":{"spec":{"containers":[{"name":"c"}]}}}}`
	if err := schema.ValidateBytes([]byte(good)); err != nil {
		t.Error(err)
	}
	if err := schema.ValidateBytes([]byte(strings.Replace(good, `"replicas":1`, `"replicsa":"1"`, 1))); err == nil || !strings.Contains(err.Error(), `unknown field "replicsa"`) {
		t.Errorf("a misspelt field is %v", err)
	}
}

type getter struct{ resources openapi.Resources }

func (g getter) OpenAPISchema() (openapi.Resources, error) { return g.resources, nil }
