package api

import (
	"bytes"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"google.golang.org/protobuf/encoding/protowire"
)

// stranger is a stored object of a kind that this server does not know: while a
// cluster is upgraded node by node, a leader of the newer version writes such.
// This one keeps it as it came, so that it is there for the next version of this
// server, and shows it to nobody: no path leads to it.
type stranger struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	stored []byte
}

// DeepCopyObject implements runtime.Object.
func (s *stranger) DeepCopyObject() runtime.Object {
	return &stranger{s.TypeMeta, *s.ObjectMeta.DeepCopy(), s.stored}
}

// strangerOf reads what every kind has in common: the envelope, and in it the
// metadata, which is every message's first field.
func strangerOf(data []byte) (*stranger, error) {
	var envelope runtime.Unknown
	body, ok := bytes.CutPrefix(data, protobufPrefix)
	if !ok {
		return nil, errors.New("decode stored object: neither JSON nor Kubernetes' protobuf")
	}
	if err := envelope.Unmarshal(body); err != nil {
		return nil, fmt.Errorf("decode stored object: %w", err)
	}
	s := &stranger{stored: bytes.Clone(data), TypeMeta: metav1.TypeMeta{APIVersion: envelope.APIVersion, Kind: envelope.Kind}}
	for rest := envelope.Raw; len(rest) > 0; {
		number, wire, size := protowire.ConsumeField(rest)
		if size < 0 {
			return nil, fmt.Errorf("decode stored %s: %w", envelope.Kind, protowire.ParseError(size))
		}
		if number == 1 && wire == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(rest)
			meta, _ := protowire.ConsumeBytes(rest[tag:])
			if err := s.ObjectMeta.Unmarshal(meta); err != nil {
				return nil, fmt.Errorf("decode the metadata of a stored %s: %w", envelope.Kind, err)
			}
		}
		rest = rest[size:]
	}
	return s, nil
}
