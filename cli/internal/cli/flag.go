package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Flag is one of the types below.
type Flag interface {
	// Names are the name and the short forms, without dashes.
	Names() []string
	describe() description
	// parse reads a value as it is written.
	parse(text string) (any, error)
}

// description is what all flags have.
type description struct {
	usage   string
	env     []string
	initial any
	shown   string // the default, for people; empty if there is nothing to say
	isBool  bool
	hidden  bool
}

// Flags by the type of their value. A word of Usage in backquotes names the value.
type (
	StringFlag struct {
		Name, Value, Usage string
		Aliases, EnvVars   []string
		Hidden             bool // from help
	}
	// PathFlag is the path of a file.
	PathFlag StringFlag
	BoolFlag struct {
		Name, Usage      string
		Aliases, EnvVars []string
	}
	IntFlag struct {
		Name, Usage      string
		Value            int
		Aliases, EnvVars []string
	}
	Uint64Flag struct {
		Name, Usage      string
		Value            uint64
		Aliases, EnvVars []string
	}
	DurationFlag struct {
		Name, Usage      string
		Value            time.Duration
		Aliases, EnvVars []string
	}
	// StringSliceFlag may be given several times, and several values at once with
	// commas between them.
	StringSliceFlag struct {
		Name, Usage      string
		Aliases, EnvVars []string
	}
)

func names(name string, aliases []string) []string { return append([]string{name}, aliases...) }

func (f *StringFlag) Names() []string      { return names(f.Name, f.Aliases) }
func (f *PathFlag) Names() []string        { return names(f.Name, f.Aliases) }
func (f *BoolFlag) Names() []string        { return names(f.Name, f.Aliases) }
func (f *IntFlag) Names() []string         { return names(f.Name, f.Aliases) }
func (f *Uint64Flag) Names() []string      { return names(f.Name, f.Aliases) }
func (f *DurationFlag) Names() []string    { return names(f.Name, f.Aliases) }
func (f *StringSliceFlag) Names() []string { return names(f.Name, f.Aliases) }

func (f *StringFlag) describe() description {
	d := description{usage: f.Usage, env: f.EnvVars, initial: f.Value, hidden: f.Hidden}
	if f.Value != "" {
		d.shown = strconv.Quote(f.Value)
	}
	return d
}
func (f *PathFlag) describe() description { return (*StringFlag)(f).describe() }
func (f *BoolFlag) describe() description {
	return description{usage: f.Usage, env: f.EnvVars, initial: false, isBool: true}
}
func (f *IntFlag) describe() description {
	return description{usage: f.Usage, env: f.EnvVars, initial: f.Value, shown: unlessZero(f.Value)}
}
func (f *Uint64Flag) describe() description {
	return description{usage: f.Usage, env: f.EnvVars, initial: f.Value, shown: unlessZero(f.Value)}
}
func (f *DurationFlag) describe() description {
	return description{usage: f.Usage, env: f.EnvVars, initial: f.Value, shown: unlessZero(f.Value)}
}
func (f *StringSliceFlag) describe() description {
	return description{usage: f.Usage, env: f.EnvVars, initial: []string(nil)}
}

func unlessZero[T comparable](v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return fmt.Sprint(v)
}

func (f *StringFlag) parse(text string) (any, error)   { return text, nil }
func (f *PathFlag) parse(text string) (any, error)     { return text, nil }
func (f *BoolFlag) parse(text string) (any, error)     { return strconv.ParseBool(text) }
func (f *DurationFlag) parse(text string) (any, error) { return time.ParseDuration(text) }
func (f *IntFlag) parse(text string) (any, error) {
	n, err := strconv.ParseInt(text, 0, strconv.IntSize)
	return int(n), err
}
func (f *Uint64Flag) parse(text string) (any, error) { return strconv.ParseUint(text, 0, 64) }
func (f *StringSliceFlag) parse(text string) (any, error) {
	var list []string
	for _, item := range strings.Split(text, ",") {
		list = append(list, strings.TrimSpace(item))
	}
	return list, nil
}

// fromEnvironment is the value that a variable gives to a flag. An empty one gives
// none to what is more than a text.
func fromEnvironment(f Flag) (value any, found bool, err error) {
	d := f.describe()
	for _, name := range d.env {
		text, ok := os.LookupEnv(name)
		if _, isText := d.initial.(string); !ok || text == "" && !isText {
			continue
		}
		if value, err = f.parse(text); err != nil {
			return nil, false, fmt.Errorf("%s=%q: %w", name, text, why(err))
		}
		return value, true, nil
	}
	return nil, false, nil
}

// why is what is wrong with a value, without the name of the function that says so.
func why(err error) error {
	if n, ok := err.(*strconv.NumError); ok {
		return n.Err
	}
	return err
}
