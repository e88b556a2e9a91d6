package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	limits "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/mutation"
	"k8s.io/apiserver/pkg/cel/mutation/dynamic"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"conclave/api/cel"
)

type mutate struct {
	expression *cel.Expression
	json       bool // its value is a JSON patch, otherwise an apply configuration
}

// Applies says whether a policy's matchConditions are met.
func (p *Policy) Applies(ctx context.Context, in *cel.Input) (bool, error) {
	return p.conditions.Match(ctx, in)
}

// Mutations is how many changes the policy makes.
func (p *Policy) Mutations() int { return len(p.mutations) }

// Change is what a mutation says: one of both.
type Change struct {
	Patch []byte                     // RFC 6902
	Apply *unstructured.Unstructured // of no kind
}

// Change evaluates a mutation of in.Object.
func (p *Policy) Change(ctx context.Context, i int, in *cel.Input) (*Change, error) {
	m := &p.mutations[i]
	v, err := cel.Begin(ctx, p.compiler.cel, in, limits.RuntimeCELCostBudget).Eval(m.expression)
	if err != nil {
		return nil, err
	}
	if m.json {
		patch, err := patchOf(v)
		return &Change{Patch: patch}, err
	}
	o, ok := v.(*dynamic.ObjectVal)
	if !ok { // which the compiler refuses
		return nil, fmt.Errorf("unsupported return type from ApplyConfiguration expression: %v", v.Type())
	}
	if err := o.CheckTypeNamesMatchFieldPathNames(); err != nil {
		return nil, fmt.Errorf("type mismatch: %w", err)
	}
	content, ok := o.Value().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("invalid return type: %T", v)
	}
	return &Change{Apply: &unstructured.Unstructured{Object: content}}, nil
}

// patchOf is a list of operations as RFC 6902 writes it.
func patchOf(v ref.Val) ([]byte, error) {
	list, ok := v.(traits.Lister)
	if !ok { // which the compiler refuses
		return nil, fmt.Errorf("type mismatch: the expression of a JSON patch evaluates to a %v", v.Type())
	}
	type operation struct {
		Op    string          `json:"op"`
		Path  string          `json:"path"`
		From  string          `json:"from,omitempty"`
		Value json.RawMessage `json:"value,omitempty"`
	}
	patch := []operation{}
	for it := list.Iterator(); it.HasNext() == celtypes.True; {
		native, err := it.Next().ConvertToNative(reflect.TypeFor[*mutation.JSONPatchVal]())
		if err != nil {
			return nil, fmt.Errorf("type mismatch: the expression of a JSON patch has to evaluate to a list of JSONPatch: %w", err)
		}
		op := native.(*mutation.JSONPatchVal)
		one := operation{Op: op.Op, Path: op.Path, From: op.From}
		if op.Val != nil {
			if one.Value, err = jsonOf(op.Val); err != nil {
				return nil, err
			}
		}
		patch = append(patch, one)
	}
	return json.Marshal(patch)
}

func jsonOf(v ref.Val) ([]byte, error) {
	if o, ok := v.(*dynamic.ObjectVal); ok {
		if err := o.CheckTypeNamesMatchFieldPathNames(); err != nil {
			return nil, fmt.Errorf("type mismatch: %w", err)
		}
	}
	native, err := v.ConvertToNative(reflect.TypeFor[*structpb.Value]())
	if err != nil {
		return nil, fmt.Errorf("the value of a JSON patch is none in JSON: %w", err)
	}
	return protojson.Marshal(native.(*structpb.Value))
}

// Apply merges an apply configuration into an object, as server-side apply does.
// Lists and maps that are replaced as a whole it may not set: who says something
// of one of their parts would remove the others.
func Apply(types managedfields.TypeConverter, obj runtime.Object, config *unstructured.Unstructured) (runtime.Object, error) {
	config.SetGroupVersionKind(obj.GetObjectKind().GroupVersionKind())
	said, err := types.ObjectToTyped(config)
	if err != nil {
		return nil, fmt.Errorf("error applying patch: failed to convert patch object to typed object: %w", err)
	}
	if whole := atomics(nil, said.Schema(), said.TypeRef(), said.AsValue()); len(whole) > 0 {
		return nil, fmt.Errorf("error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: %s", strings.Join(whole, ", "))
	}
	live, err := types.ObjectToTyped(obj, typed.AllowDuplicates)
	if err != nil {
		return nil, fmt.Errorf("error applying patch: failed to convert original object to typed object: %w", err)
	}
	merged, err := live.Merge(said)
	if err != nil {
		return nil, fmt.Errorf("error applying patch: failed to merge patch: %w", err)
	}
	return types.TypedToObject(merged)
}

// atomics are the paths of a value to what is replaced as a whole.
func atomics(path fieldpath.Path, s *schema.Schema, of schema.TypeRef, v value.Value) (found []string) {
	a, ok := s.Resolve(of)
	if !ok {
		return nil
	}
	if v.IsMap() && a.Map != nil {
		if a.Map.ElementRelationship == schema.Atomic {
			found = append(found, path.String())
		}
		v.AsMap().Iterate(func(key string, of value.Value) bool {
			if f, ok := a.Map.FindField(key); ok {
				found = append(found, atomics(append(path, fieldpath.PathElement{FieldName: &key}), s, f.Type, of)...)
			}
			return true
		})
	}
	if v.IsList() && a.List != nil {
		if a.List.ElementRelationship == schema.Atomic {
			found = append(found, path.String())
		}
		list := v.AsList()
		for i := range list.Length() {
			found = append(found, atomics(append(path, fieldpath.PathElement{Index: &i}), s, a.List.ElementType, list.At(i))...)
		}
	}
	return found
}
