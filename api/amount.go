package api

import (
	"bytes"
	"fmt"
	"regexp"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// An amount such as "1e-2147483640", or one of a million digits, keeps
// apimachinery's parser of quantities busy for minutes or hours, and nothing can
// be put between that parser and a decoder. So a body in which something looks
// like one is first decoded with those digits made unreadable: that fails
// exactly where they would have been parsed as a quantity, whatever the format
// and the kind.
var (
	absurdNumber = regexp.MustCompile(`[0-9.][eE][+-]?[0-9]{4,}|[0-9.]{64,}`)
	// In JSON one sees where a number ends, and so spares the UIDs.
	absurdInJSON = regexp.MustCompile(`[0-9.][eE][+-]?[0-9]{4,}(?:[^0-9A-Za-z.+_-]|$)|[0-9.]{64,}`)
	// The characters of a number, as JSON may also write them. The second half
	// takes an escaped backslash for one thing, so that what follows it is none.
	escapedNumber = regexp.MustCompile(`\\(?:u00(?:3[0-9]|[46]5|2[bBdDeE])|.)`)
)

// refuseAbsurdAmounts refuses a body that holds a quantity with an exponent of
// four digits or more, or of 64 digits; other text may look as it likes.
func refuseAbsurdAmounts(data []byte, media string, codec runtime.Serializer, expected schema.GroupVersionKind, into runtime.Object) error {
	if media != mediaYAML && !maybeAbsurd(data) {
		return nil
	}
	switch media {
	case mediaYAML:
		plain, err := yaml.YAMLToJSON(data)
		if err != nil {
			return nil // the decoder says it better
		}
		data, media = plain, mediaJSON
		codec = bodyCodecs()[mediaJSON][0]
	case mediaJSON:
		data = escapedNumber.ReplaceAllFunc(data, func(m []byte) []byte {
			if len(m) == 2 {
				return m
			}
			return []byte{unhex(m[4])<<4 | unhex(m[5])}
		})
	}
	absurd := absurdInJSON
	if media == mediaProtobuf {
		absurd = absurdNumber
	}
	first := absurd.Find(data)
	if first == nil {
		return nil
	}
	harmless := absurd.ReplaceAllFunc(data, func(m []byte) []byte {
		return bytes.Map(func(r rune) rune {
			if r == '.' || r >= '0' && r <= '9' {
				return 'x'
			}
			return r
		}, m)
	})
	_, _, err := codec.Decode(harmless, &expected, into.DeepCopyObject())
	if err != nil && !runtime.IsStrictDecodingError(err) {
		return apierrors.NewBadRequest(fmt.Sprintf("the body holds an amount with too many digits or too large an exponent, such as %.40q: no resource is that large or small", first))
	}
	return nil
}

// maybeAbsurd is what nearly every body has to pay: it says, without the cost
// of regular expressions, whether one of them may match, be it behind escapes.
// YAML has more ways to write a number.
func maybeAbsurd(data []byte) bool {
	const none = -1
	number, exponent := 0, none // their digits up to here
	for _, c := range data {
		switch {
		case '0' <= c && c <= '9':
			number++
			if exponent != none {
				exponent++
			}
			if number == 64 || exponent == 4 {
				return true
			}
			continue
		case c == '.':
			number++
			exponent = none
			if number == 64 {
				return true
			}
			continue
		case (c == 'e' || c == 'E') && number > 0:
			exponent = 0
		case (c == '+' || c == '-') && exponent == 0:
		case c == '\\':
			return true
		default:
			exponent = none
		}
		number = 0
	}
	return false
}

// unhex is the value of a hexadecimal digit.
func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}
