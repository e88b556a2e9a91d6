package csi

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message that is being written. Fields that have their
// zero value are left out, as proto3 does.
type message []byte

func (m *message) text(n protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, n, protowire.BytesType), s)
	}
}

func (m *message) texts(n protowire.Number, list []string) {
	for _, s := range list {
		*m = protowire.AppendString(protowire.AppendTag(*m, n, protowire.BytesType), s)
	}
}

func (m *message) number(n protowire.Number, v int64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, n, protowire.VarintType), uint64(v))
	}
}

func (m *message) truth(n protowire.Number, v bool) {
	if v {
		m.number(n, 1)
	}
}

// part is a message within: it is written even if it is empty, for its being
// there says something.
func (m *message) part(n protowire.Number, part message) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, n, protowire.BytesType), part)
}

func (m *message) pairs(n protowire.Number, pairs map[string]string) {
	for k, v := range pairs {
		var entry message
		entry.text(1, k)
		entry.text(2, v)
		m.part(n, entry)
	}
}

// read is a protobuf message that came: its fields by number, in their order.
type read map[protowire.Number][]value

type value struct {
	number uint64
	bytes  []byte
}

// parse reads a message of which nothing is believed yet.
func parse(b []byte) (read, error) {
	r := read{}
	for len(b) > 0 {
		n, t, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, fmt.Errorf("the message is broken: %w", protowire.ParseError(size))
		}
		b = b[size:]
		var v value
		switch t {
		case protowire.VarintType:
			v.number, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v.bytes, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, t, b)
		}
		if size < 0 {
			return nil, fmt.Errorf("the message is broken: %w", protowire.ParseError(size))
		}
		b = b[size:]
		if t == protowire.VarintType || t == protowire.BytesType {
			r[n] = append(r[n], v)
		}
	}
	return r, nil
}

// last is the value of a field that is there once: the last one counts.
func (r read) last(n protowire.Number) value {
	if all := r[n]; len(all) > 0 {
		return all[len(all)-1]
	}
	return value{}
}

func (r read) text(n protowire.Number) string  { return string(r.last(n).bytes) }
func (r read) number(n protowire.Number) int64 { return int64(r.last(n).number) }
func (r read) truth(n protowire.Number) bool   { return r.last(n).number != 0 }

func (r read) texts(n protowire.Number) (list []string) {
	for _, v := range r[n] {
		list = append(list, string(v.bytes))
	}
	return list
}

func (r read) pairs(n protowire.Number) (map[string]string, error) {
	if len(r[n]) == 0 {
		return nil, nil
	}
	pairs := make(map[string]string, len(r[n]))
	for _, v := range r[n] {
		entry, err := parse(v.bytes)
		if err != nil {
			return nil, err
		}
		pairs[entry.text(1)] = entry.text(2)
	}
	return pairs, nil
}
