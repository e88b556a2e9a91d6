package cli

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// help says what can be done with a command, or with the program if it is nil.
// words are what was typed to get there.
func (a *App) help(words []string, command *Command) error {
	usage, commands, flags, args := a.Usage, a.Commands, []Flag(nil), ""
	if command != nil {
		usage, commands, flags, args = command.Usage, command.Subcommands, command.Flags, command.ArgsUsage
	}
	line := strings.Join(words, " ")
	t := tabwriter.NewWriter(a.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "NAME:\n   %s - %s\n\nUSAGE:\n   %s", line, usage, line)
	if len(commands) > 0 {
		fmt.Fprint(t, " command")
	}
	fmt.Fprint(t, " [options]")
	if args != "" {
		fmt.Fprint(t, " "+args)
	}
	fmt.Fprintln(t)
	if command != nil && command.Description != "" {
		fmt.Fprintf(t, "\nDESCRIPTION:\n   %s\n", strings.ReplaceAll(command.Description, "\n", "\n   "))
	}
	if len(commands) > 0 {
		fmt.Fprint(t, "\nCOMMANDS:\n")
		for _, c := range commands {
			if !c.Hidden {
				fmt.Fprintf(t, "   %s\t%s\n", c.Name, c.Usage)
			}
		}
	}
	fmt.Fprint(t, "\nOPTIONS:\n")
	for _, f := range flags {
		if !f.describe().hidden {
			fmt.Fprintln(t, "   "+explain(f))
		}
	}
	fmt.Fprintln(t, "   --help, -h\tshow help")
	return t.Flush()
}

// explain is a flag's line of help, its two columns apart by a tab.
func explain(f Flag) string {
	d := f.describe()
	placeholder, usage := "value", d.usage
	if before, rest, ok := strings.Cut(usage, "`"); ok {
		if name, after, ok := strings.Cut(rest, "`"); ok {
			placeholder, usage = name, before+name+after
		}
	}
	var forms []string
	for _, name := range f.Names() {
		form := dashed(name)
		if !d.isBool {
			form += " " + placeholder
		}
		forms = append(forms, form)
	}
	if d.shown != "" {
		usage += " (default: " + d.shown + ")"
	}
	for _, name := range d.env {
		usage += " [$" + name + "]"
	}
	return strings.Join(forms, ", ") + "\t" + usage
}

func dashed(name string) string {
	if utf8.RuneCountInString(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// complete lists what may come next on a line that ends in the middle: what bash
// asks for by way of --generate-bash-completion.
func (a *App) complete(args []string) error {
	commands, flags := a.Commands, []Flag(nil)
	for _, word := range args {
		if c := find(commands, word); c != nil {
			commands, flags = c.Subcommands, c.Flags
		}
	}
	var words []string
	if n := len(args); n > 0 && strings.HasPrefix(args[n-1], "-") {
		for _, f := range flags {
			if f.describe().hidden {
				continue
			}
			words = append(words, dashed(f.Names()[0]))
		}
		words = slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, args[n-1]) })
	} else {
		for _, c := range commands {
			if !c.Hidden {
				words = append(words, c.Name)
			}
		}
	}
	for _, w := range words {
		fmt.Fprintln(a.Writer, w)
	}
	return nil
}
