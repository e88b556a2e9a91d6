package custom

import (
	"encoding/base64"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// formats are the formats of strings that custom resources know, by their names
// without dashes; every other format is ignored, as Kubernetes does.
var formats = map[string]func(string) bool{
	"bsonobjectid": matches(`^[0-9a-fA-F]{24}$`),
	"uri":          func(s string) bool { _, err := url.ParseRequestURI(s); return err == nil },
	"email":        func(s string) bool { a, err := mail.ParseAddress(s); return err == nil && a.Address != "" },
	"hostname":     isHostname,
	"ipv4":         func(s string) bool { a, err := netip.ParseAddr(s); return err == nil && a.Is4() },
	"ipv6":         func(s string) bool { ip := net.ParseIP(s); return ip != nil && strings.Contains(s, ":") },
	"cidr":         func(s string) bool { _, _, err := net.ParseCIDR(s); return err == nil },
	"mac":          func(s string) bool { _, err := net.ParseMAC(s); return err == nil },
	"uuid":         matches(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$`),
	"uuid3":        matches(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$`),
	"uuid4":        matches(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$`),
	"uuid5":        matches(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$`),
	"isbn":         func(s string) bool { return isISBN10(s) || isISBN13(s) },
	"isbn10":       isISBN10,
	"isbn13":       isISBN13,
	"creditcard":   isCreditCard,
	"ssn":          matches(`^\d{3}[- ]?\d{2}[- ]?\d{4}$`),
	"hexcolor":     matches(`^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$`),
	"rgbcolor":     matches(`^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$`),
	"byte":         func(s string) bool { _, err := base64.StdEncoding.DecodeString(s); return err == nil },
	"password":     func(string) bool { return true },
	"date":         func(s string) bool { _, err := time.Parse(time.DateOnly, s); return err == nil },
	"duration":     isDuration,
	"datetime":     isDateTime,
	"k8sshortname": func(s string) bool { return len(validation.IsDNS1123Label(s)) == 0 },
	"k8slongname":  func(s string) bool { return len(validation.IsDNS1123Subdomain(s)) == 0 },
}

// matches compiles its pattern when it is first asked.
func matches(pattern string) func(string) bool {
	compiled := sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
	return func(s string) bool { return compiled().MatchString(s) }
}

// formatOf is what a format says of strings, nil if nothing.
func formatOf(name string) func(string) bool { return formats[strings.ReplaceAll(name, "-", "")] }

// knownFormat says whether values of a type are checked against a format.
func knownFormat(kind, format string) bool {
	switch kind {
	case "", "string":
		return formatOf(format) != nil
	case "integer":
		return format == "int32" || format == "int64"
	case "number":
		return format == "float" || format == "double"
	}
	return false
}

var hostnameLabel = matches(`^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$`)

func isHostname(s string) bool {
	return len(s) <= 255 && hostnameLabel(s) && !slices.ContainsFunc(strings.Split(s, "."), func(p string) bool { return len(p) > 63 })
}

var dateTimes = []string{
	"2006-01-02T15:04:05.000Z", "2006-01-02T15:04:05.000000Z", "2006-01-02T15:04:05.000000000Z",
	time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04Z", "2006-01-02T15:04:05-0700", "2006-01-02T15:04:05.999999999-0700",
}

func isDateTime(s string) bool {
	s = strings.ToUpper(s)
	return slices.ContainsFunc(dateTimes, func(layout string) bool { _, err := time.Parse(layout, s); return err == nil })
}

// isDuration is of Go's durations and of "3 days" and the like.
func isDuration(s string) bool {
	if _, err := time.ParseDuration(s); err == nil {
		return true
	}
	return wordyDuration(strings.TrimSpace(s))
}

var wordyDuration = matches(`(?i)^((\d+(\.\d+)?)\s*(ns|nano|nanosecond|us|µs|micro|microsecond|ms|milli|millisecond|s|sec|second|m|min|minute|h|hr|hour|d|day|w|wk|week)s?\s*)+$`)

func digits(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, s)
}

func isISBN10(s string) bool {
	s = digits(s)
	if len(s) != 10 {
		return false
	}
	sum := 0
	for i, r := range s {
		n := int(r - '0')
		if i == 9 && (r == 'X' || r == 'x') {
			n = 10
		} else if n < 0 || n > 9 {
			return false
		}
		sum += (i + 1) * n
	}
	return sum%11 == 0
}

func isISBN13(s string) bool {
	s = digits(s)
	if len(s) != 13 {
		return false
	}
	sum := 0
	for i, r := range s {
		n := int(r - '0')
		if n < 0 || n > 9 {
			return false
		}
		sum += n * (1 + 2*(i%2))
	}
	return sum%10 == 0
}

var cardNumber = matches(`^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$`)

// isCreditCard also checks the last digit, by Luhn's rule.
func isCreditCard(s string) bool {
	s = strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
	if !cardNumber(s) {
		return false
	}
	sum := 0
	for i := range len(s) {
		n := int(s[len(s)-1-i] - '0')
		if i%2 == 1 {
			if n *= 2; n > 9 {
				n -= 9
			}
		}
		sum += n
	}
	return sum%10 == 0
}
