package rules

import (
	"errors"
	"fmt"
	"strings"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Path reads a rule's fieldPath, such as .spec['a.b'].c, which is relative to the
// place of the rule. An error says that the schema has no such field.
func Path(text string, s *structural.Structural) (p *field.Path, err error) {
	for rest := text; rest != ""; {
		var name string
		if name, rest, err = step(rest); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		switch {
		case s.Properties != nil:
			below, ok := s.Properties[name]
			if !ok {
				return nil, fmt.Errorf("%s: there is no field %s", text, name)
			}
			p, s = p.Child(name), &below
		case s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil:
			p, s = p.Key(name), s.AdditionalProperties.Structural
		default:
			return nil, fmt.Errorf("%s: nothing is known of %s", text, name)
		}
	}
	return p, nil
}

// step takes the first name off a path.
func step(text string) (name, rest string, err error) {
	switch {
	case strings.HasPrefix(text, "['"):
		return quoted(text[2:])
	case strings.HasPrefix(text, "."):
		name, end := text[1:], strings.IndexAny(text[1:], ".[]")
		if end >= 0 {
			name, rest = name[:end], name[end:]
		}
		if name == "" {
			return "", "", errors.New("a name is missing")
		}
		return name, rest, nil
	}
	return "", "", fmt.Errorf("%s does not begin with a dot or ['", text)
}

var unescaped = map[byte]byte{'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v', '\'': '\'', '\\': '\\'}

// quoted reads a name up to '].
func quoted(text string) (name, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			if i++; i == len(text) {
				return "", "", errors.New("a quote is not closed")
			}
			c, ok := unescaped[text[i]]
			if !ok {
				return "", "", fmt.Errorf("\\%c is not known", text[i])
			}
			b.WriteByte(c)
		case '\'':
			if !strings.HasPrefix(text[i:], "']") {
				return "", "", errors.New("a bracket is not closed")
			}
			return b.String(), text[i+2:], nil
		default:
			b.WriteByte(text[i])
		}
	}
	return "", "", errors.New("a quote is not closed")
}
