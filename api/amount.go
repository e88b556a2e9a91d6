package api

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"

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
	// In JSON one sees where a number ends; without that, UIDs would match.
	absurdInJSON = regexp.MustCompile(`[0-9.][eE][+-]?[0-9]{4,}(?:[^0-9A-Za-z.+_-]|$)|[0-9.]{64,}`)
	// The characters of a number, as JSON may also write them. The second half
	// takes an escaped backslash for one thing, so that what follows it is none.
	escapedNumber = regexp.MustCompile(`\\(?:u00(?:3[0-9]|[46]5|2[bBdDeE])|.)`)
)

// refuseAbsurdAmounts refuses a body that holds a quantity with an exponent of
// four digits or more, or of 64 digits; other text may look as it likes.
func refuseAbsurdAmounts(data []byte, media string, codec runtime.Serializer, expected schema.GroupVersionKind, into runtime.Object) error {
	if media != mediaYAML && !maybeAbsurd(data, media != mediaProtobuf) {
		return nil
	}
	var harmless, first []byte
	switch media {
	case mediaProtobuf:
		harmless, first = hideAbsurdStrings(data)
	case mediaYAML:
		plain, err := yaml.YAMLToJSON(data)
		if err != nil {
			return nil // the decoder says it better
		}
		codec = bodyCodecs()[mediaJSON][0]
		harmless, first = hideAbsurdJSON(plain)
	default:
		harmless, first = hideAbsurdJSON(data)
	}
	if first == nil {
		return nil
	}
	_, _, err := codec.Decode(harmless, &expected, into.DeepCopyObject())
	if err != nil && !runtime.IsStrictDecodingError(err) {
		return apierrors.NewBadRequest(fmt.Sprintf("the body holds an amount with too many digits or too large an exponent, such as %.40q: no resource is that large or small", first))
	}
	return nil
}

// hideAbsurdJSON makes absurd numbers unreadable, and returns the first of them.
func hideAbsurdJSON(data []byte) (harmless, first []byte) {
	data = escapedNumber.ReplaceAllFunc(data, func(m []byte) []byte {
		if len(m) == 2 {
			return m
		}
		return []byte{unhex(m[4])<<4 | unhex(m[5])}
	})
	harmless = absurdInJSON.ReplaceAllFunc(data, func(m []byte) []byte {
		m = bytes.Clone(m)
		hideDigits(m)
		return m
	})
	return harmless, absurdInJSON.Find(data)
}

// hideAbsurdStrings does the same in a protobuf message. What stands between
// strings there may be digits too, so only what has its length before it
// counts as one.
func hideAbsurdStrings(data []byte) (harmless, first []byte) {
	harmless = bytes.Clone(data)
	ofNumber := func(c byte) bool {
		return '0' <= c && c <= '9' || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
	}
	for start := 0; start < len(data); start++ {
		end := start
		for end < len(data) && ofNumber(data[end]) {
			end++
		}
		for ; start < end; start++ {
			n := lengthBefore(data[:start])
			if n == 0 || n > uint64(end-start) {
				continue
			}
			if s := data[start : start+int(n)]; len(s) >= 64 || maybeAbsurd(s, false) {
				hideDigits(harmless[start : start+int(n)])
				if first == nil {
					first = s
				}
			}
		}
	}
	return harmless, first
}

// lengthBefore is the number, written as protobuf writes lengths, with which
// data ends; 0 if it ends with none.
func lengthBefore(data []byte) uint64 {
	if len(data) == 0 || data[len(data)-1] >= 0x80 {
		return 0
	}
	start := len(data) - 1
	for start > 0 && data[start-1] >= 0x80 && len(data)-start < binary.MaxVarintLen64 {
		start--
	}
	n, _ := binary.Uvarint(data[start:])
	return n
}

func hideDigits(number []byte) {
	for i, c := range number {
		if c == '.' || '0' <= c && c <= '9' {
			number[i] = 'x'
		}
	}
}

// maybeAbsurd is what nearly every body has to pay: it says, without the cost
// of regular expressions, whether an absurd number may be there. In JSON, which
// is full of hexadecimal digits, it says so only where absurdInJSON finds one,
// be it behind escapes; YAML has more ways to write a number.
func maybeAbsurd(data []byte, inJSON bool) bool {
	const none = -1
	number, exponent := 0, none // their digits up to here
	signed := false             // the exponent
	for i := 0; i < len(data); i++ {
		c := data[i]
		if c == '\\' && inJSON && i+1 < len(data) {
			if m := data[i:]; ofNumber(m) {
				c, i = unhex(m[4])<<4|unhex(m[5]), i+5
			} else if m[1] == '\\' {
				i++ // it escapes nothing
			}
		}
		switch {
		case '0' <= c && c <= '9':
			number++
			if exponent != none {
				exponent++
			}
			if number == 64 || exponent == 4 && !inJSON {
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
		case exponent >= 4 && !inWord(c):
			return true
		case (c == 'e' || c == 'E') && number > 0:
			exponent, signed = 0, false
		case (c == '+' || c == '-') && exponent == 0 && !signed:
			signed = true
		default:
			exponent = none
		}
		number = 0
	}
	return exponent >= 4
}

// ofNumber says that an escape of JSON is what escapedNumber finds: a character
// of a number.
func ofNumber(b []byte) bool {
	if len(b) < 6 || b[1] != 'u' || b[2] != '0' || b[3] != '0' {
		return false
	}
	switch b[4] {
	case '3':
		return '0' <= b[5] && b[5] <= '9'
	case '4', '6':
		return b[5] == '5'
	case '2':
		return strings.IndexByte("bBdDeE", b[5]) >= 0
	}
	return false
}

// inWord says that a number in JSON does not end before c.
func inWord(c byte) bool {
	return c == '.' || c == '+' || c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
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
