package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/yaml"

	"conclave/api/custom"
	"conclave/tools/openapi/definitions"
)

const (
	snapshotModule = "github.com/kubernetes-csi/external-snapshotter/client/v8"
	// snapshots are before the names of the types of volume snapshots.
	snapshots     = snapshotModule + "/apis/volumesnapshot/v1."
	snapshotGroup = "snapshot.storage.k8s.io"
	snapshotModel = "io.k8s.storage.snapshot.v1." // as where they are custom resources
)

// withSnapshots adds to the published types' schemas those of volume snapshots,
// as the definitions of custom resources in their own module have them: its types
// are not marked for openapi-gen.
func withSnapshots() (common.GetOpenAPIDefinitions, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", snapshotModule).Output()
	if err != nil {
		return nil, fmt.Errorf("find module %s: %w", snapshotModule, err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "config/crd/snapshot.storage.k8s.io_volumesnapshot*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) != 3 {
		return nil, fmt.Errorf("module %s has the definitions %v, not three", snapshotModule, files)
	}
	models := map[bool]map[string]*spec.Schema{true: {}, false: {}} // by whether they are for version 2
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		d := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.Unmarshal(text, d); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		for v2, all := range models {
			own, err := custom.Models(d, "v1", v2)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", file, err)
			}
			maps.Copy(all, own)
		}
	}
	return func(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
		all := definitions.GetOpenAPIDefinitions(ref)
		r := ref(snapshots)
		for name, model := range models[strings.HasPrefix(r.String(), "#/definitions/")] {
			all[snapshots+strings.TrimPrefix(name, snapshotModel)] = definition(model, ref)
		}
		return all
	}, nil
}

// definition makes of a custom resource's model what openapi-gen would: what is
// of its own type is referred to through ref.
func definition(model *spec.Schema, ref common.ReferenceCallback) common.OpenAPIDefinition {
	d := common.OpenAPIDefinition{Schema: *model}
	d.Schema.Extensions = nil // the kind, which the builders add
	d.Schema.Properties = maps.Clone(model.Properties)
	refer := func(s spec.Schema) spec.Schema {
		at := s.Ref.String()
		name := at[strings.LastIndexByte(at, '/')+1:]
		if short, ours := strings.CutPrefix(name, snapshotModel); ours {
			name = snapshots + short
		}
		d.Dependencies = append(d.Dependencies, name)
		s.Ref = ref(name)
		return s
	}
	for name, p := range d.Schema.Properties {
		switch {
		case name == "metadata":
			p = refer(p)
		case name == "items" && p.Items != nil && p.Items.Schema != nil:
			item := refer(*p.Items.Schema)
			p.Items = &spec.SchemaOrArray{Schema: &item}
		}
		d.Schema.Properties[name] = p
	}
	return d
}
