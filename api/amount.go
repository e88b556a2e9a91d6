package api

import (
	"regexp"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// An amount such as "1e-2147483640" keeps apimachinery's parser of quantities
// busy for hours, and nothing can be put between that parser and a decoder. So
// a body in which something looks like one is first decoded with the digits of
// each such exponent made unreadable: that fails exactly where one of them
// would have been parsed as a quantity, whatever the format and the kind.
var (
	longExponent   = regexp.MustCompile(`[0-9.][eE][+-]?[0-9]{4,}`)
	exponentDigits = regexp.MustCompile(`[0-9]{4,}$`)
	// The characters of a number, as JSON may also write them. The second half
	// takes an escaped backslash for one thing, so that what follows it is none.
	escapedNumber = regexp.MustCompile(`\\(?:u00(?:3[0-9]|[46]5|2[bBdDeE])|.)`)
)

// refuseHugeExponents refuses a body that holds a quantity whose exponent has
// four digits or more; other text may look as it likes.
func refuseHugeExponents(data []byte, media string, codec runtime.Serializer, expected schema.GroupVersionKind, into runtime.Object) error {
	if media != mediaYAML && !mayHoldExponent(data) {
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
	if !longExponent.Match(data) {
		return nil
	}
	harmless := longExponent.ReplaceAllFunc(data, func(m []byte) []byte {
		return exponentDigits.ReplaceAllFunc(m, func(digits []byte) []byte {
			out := make([]byte, len(digits))
			for i := range out {
				out[i] = 'x'
			}
			return out
		})
	})
	_, _, err := codec.Decode(harmless, &expected, into.DeepCopyObject())
	if err != nil && !runtime.IsStrictDecodingError(err) {
		return apierrors.NewBadRequest("the body holds an amount with an exponent of four digits or more (" + string(longExponent.Find(data)) + "): no resource is that large or small")
	}
	return nil
}

// mayHoldExponent is what nearly every body has to pay: it says, without the
// cost of regular expressions, whether one may find a long exponent, be it
// behind escapes. YAML has more ways to write a number.
func mayHoldExponent(data []byte) bool {
	digits := 0 // in a row, up to here
	for i := len(data) - 1; i > 0; i-- {
		switch c := data[i]; {
		case c == '\\':
			return true
		case '0' <= c && c <= '9':
			digits++
			continue
		case digits >= 4 && (c == '+' || c == '-'):
			continue // a second sign makes it none, which the expressions know
		case digits >= 4 && (c == 'e' || c == 'E'):
			if before := data[i-1]; before == '.' || '0' <= before && before <= '9' {
				return true
			}
		}
		digits = 0
	}
	return len(data) > 0 && data[0] == '\\'
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
