package cli

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst moves the flags of a command line before its other arguments, as
// the library wants them: kubectl's users write `get pods -A`. What follows
// "--" stays as it is.
func flagsFirst(commands []*cli.Command, args []string) []string {
	i := 1
	var command *cli.Command
	for i < len(args) {
		at := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if at < 0 {
			break
		}
		command, commands = commands[at], commands[at].Subcommands
		i++
	}
	if command == nil {
		return args
	}
	rest := args[i:]
	var flags, others []string
	for k := 0; k < len(rest); k++ {
		arg := rest[k]
		if arg == "--" {
			others = append(others, rest[k:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			others = append(others, arg)
			continue
		}
		flags = append(flags, arg)
		if takesValue(command, strings.TrimLeft(arg, "-")) && k+1 < len(rest) {
			k++
			flags = append(flags, rest[k])
		}
	}
	return slices.Concat(args[:i], flags, others)
}

// takesValue says whether a flag, written without its dashes, has its value in
// the next argument. Of short flags written together the last may.
func takesValue(command *cli.Command, written string) bool {
	if strings.Contains(written, "=") {
		return false
	}
	for _, f := range command.Flags {
		names := f.Names()
		_, isSwitch := f.(*cli.BoolFlag)
		if slices.Contains(names, written) || slices.Contains(names, written[len(written)-1:]) && isShortGroup(command, written) {
			return !isSwitch
		}
	}
	return false
}

// isShortGroup says whether each letter is a flag of its own, as in -it.
func isShortGroup(command *cli.Command, written string) bool {
	for _, letter := range written {
		if !slices.ContainsFunc(command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), string(letter)) }) {
			return false
		}
	}
	return true
}
