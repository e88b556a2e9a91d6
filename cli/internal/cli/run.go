package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// App is a program.
type App struct {
	Name, Usage       string
	Reader            io.Reader
	Writer, ErrWriter io.Writer
	Commands          []*Command
}

// ActionFunc does what a command is for.
type ActionFunc func(*Context) error

// Command is a verb, or a group of them.
type Command struct {
	Name, Usage, ArgsUsage string
	Description            string // more than Usage, several lines perhaps
	Hidden                 bool   // from help
	SkipFlagParsing        bool   // all that follows is arguments
	Flags                  []Flag
	Subcommands            []*Command
	Action                 ActionFunc
}

// Context is one call of a command.
type Context struct {
	context.Context
	App     *App
	Command *Command
	values  map[string]any // by the flag's first name; all flags are there
	set     map[string]bool
	args    Args
}

// Args are what is no flag.
type Args []string

func (a Args) Slice() []string { return append([]string{}, a...) }
func (a Args) Len() int        { return len(a) }
func (a Args) Present() bool   { return len(a) > 0 }

// First is empty if there is none.
func (a Args) First() string {
	if len(a) == 0 {
		return ""
	}
	return a[0]
}

// Tail are all but the first.
func (a Args) Tail() []string {
	if len(a) < 2 {
		return []string{}
	}
	return a.Slice()[1:]
}

func (c *Context) Args() Args { return c.args }

// IsSet says whether the command line or the environment gives a flag its value.
func (c *Context) IsSet(name string) bool { return c.set[name] }

func value[T any](c *Context, name string) (v T) {
	v, _ = c.values[name].(T)
	return v
}

// Values of flags by their first name, zero for one that the command has not.
func (c *Context) String(name string) string          { return value[string](c, name) }
func (c *Context) Path(name string) string            { return value[string](c, name) }
func (c *Context) Bool(name string) bool              { return value[bool](c, name) }
func (c *Context) Int(name string) int                { return value[int](c, name) }
func (c *Context) Uint64(name string) uint64          { return value[uint64](c, name) }
func (c *Context) Duration(name string) time.Duration { return value[time.Duration](c, name) }
func (c *Context) StringSlice(name string) []string   { return value[[]string](c, name) }

// Run does what a command line asks for; args[0] is the program.
func (a *App) Run(ctx context.Context, args []string) error {
	words, commands := []string{a.Name}, a.Commands
	var command *Command
	rest := args[min(1, len(args)):]
	if n := len(args); n > 1 && args[n-1] == "--generate-bash-completion" {
		return a.complete(args[1 : n-1])
	}
	for len(rest) > 0 {
		next := find(commands, rest[0])
		if next == nil {
			break
		}
		command, commands, rest = next, next.Subcommands, rest[1:]
		words = append(words, command.Name)
	}
	if command == nil || len(command.Subcommands) > 0 {
		return a.group(words, command, commands, rest)
	}
	c := &Context{Context: ctx, App: a, Command: command, args: rest}
	if !command.SkipFlagParsing {
		help, err := c.read(rest)
		if help {
			return a.help(words, command)
		}
		if err != nil {
			return fmt.Errorf("%w: see `%s --help`", err, strings.Join(words, " "))
		}
	}
	return command.Action(c)
}

func find(commands []*Command, name string) *Command {
	if i := slices.IndexFunc(commands, func(c *Command) bool { return c.Name == name }); i >= 0 {
		return commands[i]
	}
	return nil
}

// group answers for commands that only hold others.
func (a *App) group(words []string, command *Command, commands []*Command, rest []string) error {
	switch {
	case len(rest) == 0, isHelp(rest[0]):
		return a.help(words, command)
	case rest[0] == "help" || rest[0] == "h":
		for _, word := range rest[1:] {
			if command = find(commands, word); command == nil {
				return noCommand(word, words)
			}
			commands, words = command.Subcommands, append(words, word)
		}
		return a.help(words, command)
	case strings.HasPrefix(rest[0], "-"):
		return fmt.Errorf("flag provided but not defined: %s: see `%s --help`", rest[0], strings.Join(words, " "))
	}
	return noCommand(rest[0], words)
}

func noCommand(name string, words []string) error {
	return fmt.Errorf("there is no command %q: see `%s --help`", name, strings.Join(words, " "))
}

func isHelp(arg string) bool { return arg == "--help" || arg == "-help" || arg == "-h" || arg == "--h" }

// read takes flags and arguments apart.
func (c *Context) read(args []string) (help bool, err error) {
	c.values, c.set, c.args = map[string]any{}, map[string]bool{}, nil
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		v, found, err := fromEnvironment(f)
		if err != nil {
			return false, err
		}
		if c.values[name], c.set[name] = f.describe().initial, found; found {
			c.values[name] = v
		}
	}
	given := map[string]bool{}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			if len(c.args) > 0 { // who runs what follows wants to know where it begins
				c.args = append(c.args, arg)
			}
			c.args = append(c.args, args...)
			return false, nil
		case !strings.HasPrefix(arg, "-") || arg == "-":
			c.args = append(c.args, arg)
			continue
		case isHelp(arg) && c.flag(strings.TrimLeft(arg, "-")) == nil:
			return true, nil
		}
		if args, err = c.take(arg, args, given); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (c *Context) flag(name string) Flag {
	if i := slices.IndexFunc(c.Command.Flags, func(f Flag) bool { return slices.Contains(f.Names(), name) }); i >= 0 {
		return c.Command.Flags[i]
	}
	return nil
}

// take reads one argument that is a flag, or several short ones written together,
// of which the last may have its value in the next argument.
func (c *Context) take(arg string, next []string, given map[string]bool) (rest []string, err error) {
	written, text, hasText := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
	flags := []Flag{c.flag(written)}
	if flags[0] == nil && !strings.HasPrefix(arg, "--") {
		flags = nil
		for _, letter := range written {
			flags = append(flags, c.flag(string(letter)))
		}
	}
	for i, f := range flags {
		if f == nil {
			return nil, fmt.Errorf("flag provided but not defined: %s", arg)
		}
		name, d, value := f.Names()[0], f.describe(), "true"
		switch last := i == len(flags)-1; {
		case last && hasText:
			value = text
		case d.isBool:
		case !last || len(next) == 0:
			return nil, fmt.Errorf("flag needs an argument: %s", arg)
		default:
			value, next = next[0], next[1:]
		}
		v, err := f.parse(value)
		if err != nil {
			return nil, fmt.Errorf("invalid value %q for flag --%s: %w", value, name, why(err))
		}
		if list, ok := v.([]string); ok && given[name] {
			v = append(c.values[name].([]string), list...)
		}
		c.values[name], c.set[name], given[name] = v, true, true
	}
	return next, nil
}
