package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"conclave/cli/internal/cli"
)

// settings are a node's flags, with what --config says where a flag and its
// environment variable say nothing. The first setting that cannot be read is in
// err.
type settings struct {
	c    *cli.Context
	file map[string]any
	err  error
}

func readSettings(c *cli.Context) (*settings, error) {
	s := &settings{c: c}
	path := c.Path("config")
	if path == "" {
		return s, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	if err := yaml.UnmarshalStrict(raw, &s.file); err != nil {
		return nil, fmt.Errorf("--config %s: %w", path, err)
	}
	var known []string
	for _, f := range c.Command.Flags {
		if name := f.Names()[0]; name != "config" && name != "help" {
			known = append(known, name)
		}
	}
	for name := range s.file {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("--config %s: there is no setting %q: there are %s", path, name, strings.Join(known, ", "))
		}
	}
	return s, nil
}

// from returns what the file says of a setting, if the command line says nothing.
func (s *settings) from(name string) (any, bool) {
	if s.c.IsSet(name) {
		return nil, false
	}
	v, ok := s.file[name]
	return v, ok
}

func (s *settings) bad(name string, v any, want string) {
	if s.err == nil {
		s.err = fmt.Errorf("--config: %s: %v is not %s", name, v, want)
	}
}

func (s *settings) text(name string) string {
	if v, ok := s.from(name); ok {
		text, ok := v.(string)
		if !ok {
			s.bad(name, v, "a text")
		}
		return text
	}
	return s.c.String(name)
}

func (s *settings) flag(name string) bool {
	if v, ok := s.from(name); ok {
		yes, ok := v.(bool)
		if !ok {
			s.bad(name, v, "true or false")
		}
		return yes
	}
	return s.c.Bool(name)
}

func (s *settings) duration(name string) time.Duration {
	if v, ok := s.from(name); ok {
		d, err := time.ParseDuration(fmt.Sprint(v))
		if err != nil {
			s.bad(name, v, `a duration such as "30s"`)
		}
		return d
	}
	return s.c.Duration(name)
}

func (s *settings) number(name string) int {
	if v, ok := s.from(name); ok {
		n, err := strconv.Atoi(fmt.Sprint(v))
		if err != nil {
			s.bad(name, v, "a whole number")
		}
		return n
	}
	return s.c.Int(name)
}

func (s *settings) list(name string) []string {
	v, ok := s.from(name)
	if !ok {
		return s.c.StringSlice(name)
	}
	items, ok := v.([]any)
	if !ok {
		s.bad(name, v, "a list")
	}
	var all []string
	for _, item := range items {
		all = append(all, fmt.Sprint(item))
	}
	return all
}

func checkLabel(key, value string) error {
	if problems := validation.IsQualifiedName(key); len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}

func checkNodeName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}

// totalMemory is this machine's, in bytes; 0 where the kernel does not say.
func totalMemory() uint64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
}
