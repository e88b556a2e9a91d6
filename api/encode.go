package api

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// encoder writes objects in JSON, one after another, into out. It belongs to one
// goroutine.
//
// managedFields are JSON already and a large part of an object, and encoding/json
// reads again what a MarshalJSON returns: two thirds of what encoding a pod would
// cost. So an object is encoded with a mark in their place, and they are put there.
type encoder struct {
	out    bytes.Buffer
	one    bytes.Buffer // what json writes to
	json   *json.Encoder
	copies map[reflect.Type]reflect.Value // to leave the mark in
}

func newEncoder() *encoder {
	e := &encoder{copies: make(map[reflect.Type]reflect.Value)}
	e.json = json.NewEncoder(&e.one)
	return e
}

var encoders = sync.Pool{New: func() any { return newEncoder() }}

// mark is what no object has in its managedFields, nor anywhere else.
var (
	mark     = []metav1.ManagedFieldsEntry{{Manager: rand.Text()}}
	markJSON = []byte(`"managedFields":[{"manager":"` + mark[0].Manager + `"}]`)
)

// encodeJSON is one object in JSON. The object says its own kind.
func encodeJSON(obj Object) ([]byte, error) {
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	e.out.Reset()
	if err := e.append(obj); err != nil {
		return nil, err
	}
	return bytes.Clone(e.out.Bytes()), nil
}

func (e *encoder) append(obj Object) error {
	e.one.Reset()
	_, untyped := obj.(*unstructured.Unstructured) // whose managedFields are no JSON yet
	if managed := obj.GetManagedFields(); !untyped && len(managed) > 0 {
		if err := e.marked(obj); err != nil {
			return err
		}
		if before, after, found := bytes.Cut(e.one.Bytes(), markJSON); found {
			e.out.Write(before)
			if err := appendManagedFields(&e.out, managed); err != nil {
				return err
			}
			e.out.Write(bytes.TrimSuffix(after, []byte("\n")))
			return nil
		}
		e.one.Reset() // of a type that does not show them
	}
	if err := e.json.Encode(obj); err != nil {
		return err
	}
	e.out.Write(bytes.TrimSuffix(e.one.Bytes(), []byte("\n")))
	return nil
}

// marked encodes a shallow copy of a typed object whose managedFields are the mark.
func (e *encoder) marked(obj Object) error {
	from := reflect.ValueOf(obj).Elem()
	to, known := e.copies[from.Type()]
	if !known {
		to = reflect.New(from.Type())
		e.copies[from.Type()] = to
	}
	to.Elem().Set(from)
	defer to.Elem().SetZero()
	to.Interface().(Object).SetManagedFields(mark)
	return e.json.Encode(to.Interface())
}

// appendManagedFields writes the member of metadata, with its name.
func appendManagedFields(b *bytes.Buffer, entries []metav1.ManagedFieldsEntry) error {
	b.WriteString(`"managedFields":[`)
	for i, m := range entries {
		if i > 0 {
			b.WriteByte(',')
		}
		fields, subresource := m.FieldsV1, m.Subresource
		m.FieldsV1, m.Subresource = nil, ""
		head, err := json.Marshal(m)
		if err != nil {
			return err
		}
		b.Write(bytes.TrimSuffix(head, []byte("}")))
		separator := ","
		if len(head) == len("{}") {
			separator = ""
		}
		if fields != nil {
			raw := fields.Raw
			if raw == nil {
				raw = []byte("null")
			}
			b.WriteString(separator + `"fieldsV1":`)
			b.Write(raw)
			separator = ","
		}
		if subresource != "" {
			name, err := json.Marshal(subresource)
			if err != nil {
				return err
			}
			b.WriteString(separator + `"subresource":`)
			b.Write(name)
		}
		b.WriteByte('}')
	}
	b.WriteByte(']')
	return nil
}

// batch is how many objects of a list are encoded at a time.
const batch = 128

// writeItems writes records in JSON, with commas between them and without the
// prefix. Batches of them are encoded at once on all processors, and there are
// never more of them than twice as many, so that a list of any length needs
// little memory. What was encoded is not kept: a long list would be all there is.
func writeItems(w io.Writer, records []Record, prefix []byte) error {
	type result struct {
		e   *encoder
		err error
	}
	encode := func(records []Record) result {
		e := encoders.Get().(*encoder)
		e.out.Reset()
		for _, rec := range records {
			if e.out.Len() > 0 {
				e.out.WriteByte(',')
			}
			start := e.out.Len()
			obj := rec.Object()
			if err := e.append(obj); err != nil {
				return result{e, fmt.Errorf("encoding %s/%s: %w", obj.GetNamespace(), obj.GetName(), err)}
			}
			if item := e.out.Bytes()[start:]; len(prefix) > 0 && bytes.HasPrefix(item, prefix) {
				item[0] = '{'
				e.out.Truncate(start + 1 + copy(item[1:], item[len(prefix):]))
			}
		}
		return result{e: e}
	}
	stop := make(chan struct{})
	defer close(stop)
	batches := make(chan chan result, runtime.GOMAXPROCS(0))
	go func() {
		defer close(batches)
		for len(records) > 0 {
			some := records[:min(batch, len(records))]
			records = records[len(some):]
			done := make(chan result, 1)
			select {
			case batches <- done:
			case <-stop:
				return
			}
			go func() { done <- encode(some) }()
		}
	}()
	separator := []byte(nil)
	for done := range batches {
		r := <-done
		if r.err != nil {
			return r.err
		}
		if _, err := w.Write(separator); err != nil {
			return err
		}
		_, err := w.Write(r.e.out.Bytes())
		encoders.Put(r.e)
		if err != nil {
			return err
		}
		separator = []byte(",")
	}
	return nil
}
