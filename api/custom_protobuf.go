package api

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// The protobuf form of OpenAPI's version 2 is gnostic's (openapiv2/OpenAPIv2.proto
// of github.com/google/gnostic-models, whose numbers these are). Its own code for
// making it is a megabyte and works on whole documents; what a custom resource
// adds is a schema for it and for its list.

// encoding is a protobuf message in the making.
type encoding []byte

func (m *encoding) bytes(field protowire.Number, value []byte) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), value)
}

func (m *encoding) text(field protowire.Number, value string) {
	if value != "" {
		m.bytes(field, []byte(value))
	}
}

func (m *encoding) flag(field protowire.Number, value bool) {
	if value {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), 1)
	}
}

func (m *encoding) count(field protowire.Number, value *int64) {
	if value != nil {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), uint64(*value))
	}
}

func (m *encoding) number(field protowire.Number, value *float64) {
	if value != nil {
		*m = protowire.AppendFixed64(protowire.AppendTag(*m, field, protowire.Fixed64Type), math.Float64bits(*value))
	}
}

// any is a value of any form: gnostic keeps its text, in YAML, of which JSON is
// a part.
func (m *encoding) any(field protowire.Number, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var a encoding
	a.text(2, string(text)+"\n")
	m.bytes(field, a)
	return nil
}

// named is an entry of a map.
func (m *encoding) named(field protowire.Number, name string, value []byte) {
	var entry encoding
	entry.text(1, name)
	entry.bytes(2, value)
	m.bytes(field, entry)
}

func (m *encoding) extensions(field protowire.Number, all spec.Extensions) error {
	for _, name := range sortedNames(all) {
		text, err := json.Marshal(all[name])
		if err != nil {
			return err
		}
		var a encoding
		a.text(2, string(text)+"\n")
		m.named(field, name, a)
	}
	return nil
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// protobuf2 is a Document that has these models and nothing else.
func protobuf2(models map[string]any) ([]byte, error) {
	var definitions, document encoding
	for _, name := range sortedNames(models) {
		s, ok := models[name].(*spec.Schema)
		if !ok {
			return nil, fmt.Errorf("the model %s is a %T", name, models[name])
		}
		m, err := schemaMessage(s)
		if err != nil {
			return nil, fmt.Errorf("encode the schema of %s: %w", name, err)
		}
		definitions.named(1, name, m)
	}
	document.bytes(9, definitions)
	return document, nil
}

func schemaMessage(s *spec.Schema) (encoding, error) {
	var m encoding
	m.text(1, s.Ref.String())
	m.text(2, s.Format)
	m.text(3, s.Title)
	m.text(4, s.Description)
	m.number(6, s.MultipleOf)
	m.number(7, s.Maximum)
	m.flag(8, s.ExclusiveMaximum)
	m.number(9, s.Minimum)
	m.flag(10, s.ExclusiveMinimum)
	m.count(11, s.MaxLength)
	m.count(12, s.MinLength)
	m.text(13, s.Pattern)
	m.count(14, s.MaxItems)
	m.count(15, s.MinItems)
	m.flag(16, s.UniqueItems)
	m.count(17, s.MaxProperties)
	m.count(18, s.MinProperties)
	for _, name := range s.Required {
		m.text(19, name)
	}
	for _, value := range s.Enum {
		if err := m.any(20, value); err != nil {
			return nil, err
		}
	}
	if len(s.Type) > 0 {
		var t encoding
		for _, name := range s.Type {
			t.text(1, name)
		}
		m.bytes(22, t)
	}
	if err := m.parts(s); err != nil {
		return nil, err
	}
	if s.Default != nil {
		if err := m.any(5, s.Default); err != nil {
			return nil, err
		}
	}
	if s.ExternalDocs != nil {
		var d encoding
		d.text(1, s.ExternalDocs.Description)
		d.text(2, s.ExternalDocs.URL)
		m.bytes(29, d)
	}
	if s.Example != nil {
		if err := m.any(30, s.Example); err != nil {
			return nil, err
		}
	}
	return m, m.extensions(31, s.Extensions)
}

// parts are the schemas below a schema. Of custom resources, version 2 has no
// anyOf and the like.
func (m *encoding) parts(s *spec.Schema) error {
	if a := s.AdditionalProperties; a != nil {
		var item encoding
		if a.Schema != nil {
			below, err := schemaMessage(a.Schema)
			if err != nil {
				return err
			}
			item.bytes(1, below)
		} else {
			item = protowire.AppendTag(item, 2, protowire.VarintType)
			item = protowire.AppendVarint(item, protowire.EncodeBool(a.Allows))
		}
		m.bytes(21, item)
	}
	if s.Items != nil && s.Items.Schema != nil {
		below, err := schemaMessage(s.Items.Schema)
		if err != nil {
			return err
		}
		var items encoding
		items.bytes(1, below)
		m.bytes(23, items)
	}
	if len(s.Properties) == 0 {
		return nil
	}
	var properties encoding
	for _, name := range sortedNames(s.Properties) {
		p := s.Properties[name]
		below, err := schemaMessage(&p)
		if err != nil {
			return err
		}
		properties.named(1, name, below)
	}
	m.bytes(25, properties)
	return nil
}
