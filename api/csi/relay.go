package csi

import (
	"encoding/binary"
	"errors"
)

// The leader reaches a driver by way of the node that it runs on. What comes
// back is an answer, a driver's refusal, or the reason why it was not asked.
const (
	relayAnswer = iota
	relayRefusal
	relayFailure
)

// Pack writes the outcome of a call for another node.
func Pack(response []byte, err error) []byte {
	var refusal *Error
	switch {
	case err == nil:
		return append([]byte{relayAnswer}, response...)
	case errors.As(err, &refusal):
		return append(binary.AppendUvarint([]byte{relayRefusal}, uint64(refusal.Code)), refusal.Message...)
	}
	return append([]byte{relayFailure}, err.Error()...)
}

// Unpack reads it.
func Unpack(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("the node answered nothing")
	}
	switch kind, b := b[0], b[1:]; kind {
	case relayAnswer:
		return b, nil
	case relayRefusal:
		code, n := binary.Uvarint(b)
		if n <= 0 || code > 1<<10 {
			return nil, errors.New("the node's answer ends early")
		}
		return nil, &Error{Code: int(code), Message: string(b[n:])}
	default:
		return nil, errors.New(string(b))
	}
}
