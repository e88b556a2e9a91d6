package types

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// foreign is a type that has its own code for protobuf, such as ObjectMeta.
type foreign interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

var (
	foreignType = reflect.TypeFor[foreign]()
	bytesType   = reflect.TypeFor[[]byte]()
	metaType    = reflect.TypeFor[metav1.TypeMeta]()
)

// number is the number of a field in protobuf; ok is false for what is not a
// field of its own: the type's name, and structs that are only embedded.
func number(f reflect.StructField) (n protowire.Number, ok bool) {
	parts := strings.Split(f.Tag.Get("protobuf"), ",")
	if len(parts) < 2 {
		return 0, false
	}
	i, err := strconv.Atoi(parts[1])
	return protowire.Number(i), err == nil
}

// marshal is the message of a struct. Values that are not pointers are written
// even if they are zero, as the published types do.
func marshal(s reflect.Value) ([]byte, error) {
	var b []byte
	for i := range s.NumField() {
		f, v := s.Type().Field(i), s.Field(i)
		n, ok := number(f)
		var err error
		switch {
		case ok:
			b, err = appendField(b, n, v)
		case f.Anonymous && f.Type != metaType:
			var inner []byte
			inner, err = marshal(v)
			b = append(b, inner...)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return b, nil
}

func appendField(b []byte, n protowire.Number, v reflect.Value) ([]byte, error) {
	switch {
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			return b, nil
		}
		return appendField(b, n, v.Elem())
	case v.Type() == bytesType:
		if v.IsNil() {
			return b, nil
		}
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v.Bytes()), nil
	case v.Kind() == reflect.Slice:
		var err error
		for i := range v.Len() {
			if b, err = appendField(b, n, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return b, nil
	case v.Kind() == reflect.Map:
		return appendMap(b, n, v)
	case v.Kind() == reflect.String:
		return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v.String()), nil
	case v.Kind() == reflect.Bool:
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), protowire.EncodeBool(v.Bool())), nil
	case v.CanInt():
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(v.Int())), nil
	case v.Kind() == reflect.Struct:
		message, err := marshalStruct(v)
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), message), err
	}
	return nil, fmt.Errorf("a %s has no protobuf form here", v.Type())
}

func marshalStruct(v reflect.Value) ([]byte, error) {
	if reflect.PointerTo(v.Type()).Implements(foreignType) {
		p := reflect.New(v.Type())
		p.Elem().Set(v)
		return p.Interface().(foreign).Marshal()
	}
	return marshal(v)
}

// appendMap is of maps from strings to lists of strings, which are messages with
// the list as their first field.
func appendMap(b []byte, n protowire.Number, v reflect.Value) ([]byte, error) {
	var keys []string
	for _, key := range v.MapKeys() {
		keys = append(keys, key.String())
	}
	slices.Sort(keys)
	for _, key := range keys {
		entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
		list, err := appendField(nil, 1, v.MapIndex(reflect.ValueOf(key)))
		if err != nil {
			return nil, err
		}
		entry = protowire.AppendBytes(protowire.AppendTag(entry, 2, protowire.BytesType), list)
		b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), entry)
	}
	return b, nil
}

// unmarshal reads a message into a struct. Fields that it does not know are
// skipped.
func unmarshal(data []byte, s reflect.Value) error {
	for len(data) > 0 {
		n, wire, size := protowire.ConsumeTag(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		var whole uint64
		var raw []byte
		switch wire {
		case protowire.VarintType:
			whole, size = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			raw, size = protowire.ConsumeBytes(data)
		default:
			size = protowire.ConsumeFieldValue(n, wire, data)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		if v := fieldOf(s, n); v.IsValid() {
			if err := readField(v, wire, whole, raw); err != nil {
				return fmt.Errorf("field %d of %s: %w", n, s.Type(), err)
			}
		}
	}
	return nil
}

// fieldOf is the field with a number, the zero value if there is none.
func fieldOf(s reflect.Value, n protowire.Number) reflect.Value {
	for i := range s.NumField() {
		f := s.Type().Field(i)
		is, ok := number(f)
		if ok && is == n {
			return s.Field(i)
		}
		if !ok && f.Anonymous && f.Type != metaType {
			if v := fieldOf(s.Field(i), n); v.IsValid() {
				return v
			}
		}
	}
	return reflect.Value{}
}

func readField(v reflect.Value, wire protowire.Type, whole uint64, raw []byte) error {
	need := protowire.BytesType
	switch {
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return readField(v.Elem(), wire, whole, raw)
	case v.Kind() == reflect.Slice && v.Type() != bytesType:
		item := reflect.New(v.Type().Elem()).Elem()
		if err := readField(item, wire, whole, raw); err != nil {
			return err
		}
		v.Set(reflect.Append(v, item))
		return nil
	case v.Kind() == reflect.Bool, v.CanInt():
		need = protowire.VarintType
	}
	if wire != need {
		return fmt.Errorf("wire type %d where %d is expected", wire, need)
	}
	switch {
	case v.Type() == bytesType:
		v.SetBytes(append([]byte{}, raw...))
	case v.Kind() == reflect.Map:
		return readEntry(v, raw)
	case v.Kind() == reflect.String:
		v.SetString(string(raw))
	case v.Kind() == reflect.Bool:
		v.SetBool(protowire.DecodeBool(whole))
	case v.CanInt():
		v.SetInt(int64(whole))
	case v.Kind() == reflect.Struct:
		if f, ok := v.Addr().Interface().(foreign); ok {
			return f.Unmarshal(raw)
		}
		return unmarshal(raw, v)
	default:
		return fmt.Errorf("a %s has no protobuf form here", v.Type())
	}
	return nil
}

// readEntry adds an entry to a map that appendMap could have written.
func readEntry(v reflect.Value, raw []byte) error {
	var entry struct {
		Key   string `protobuf:"bytes,1,opt,name=key"`
		Value struct {
			Items []string `protobuf:"bytes,1,rep,name=items"`
		} `protobuf:"bytes,2,opt,name=value"`
	}
	entry.Value.Items = []string{} // a list is there, though it may be empty
	if err := unmarshal(raw, reflect.ValueOf(&entry).Elem()); err != nil {
		return err
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	v.SetMapIndex(reflect.ValueOf(entry.Key), reflect.ValueOf(entry.Value.Items).Convert(v.Type().Elem()))
	return nil
}
