package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// program is one with a command of every kind; did is what was called last.
func program(did *string, out *strings.Builder) *App {
	say := func(c *Context) error {
		*did = fmt.Sprintf("%s %q", c.Command.Name, c.Args().Slice())
		for _, f := range c.Command.Flags {
			if name := f.Names()[0]; c.IsSet(name) {
				*did += fmt.Sprintf(" %s=%v", name, c.values[name])
			}
		}
		return nil
	}
	return &App{Name: "tool", Usage: "a tool", Writer: out, ErrWriter: out, Commands: []*Command{
		{Name: "get", Usage: "show things", ArgsUsage: "KIND", Description: "In two\nlines.", Action: say, Flags: []Flag{
			&BoolFlag{Name: "all", Aliases: []string{"A"}, Usage: "of all"}, &StringFlag{Name: "namespace", Aliases: []string{"n"}, Value: "default", Usage: "where", EnvVars: []string{"TOOL_TEST_NS"}},
			&PathFlag{Name: "config", Usage: "read `FILE` first"}, &IntFlag{Name: "tail", Value: -1, Usage: "last lines", EnvVars: []string{"TOOL_TEST_TAIL"}},
			&Uint64Flag{Name: "seed"}, &DurationFlag{Name: "wait", Value: time.Minute, Usage: "for so long"}, &StringFlag{Name: "secret", Hidden: true},
			&StringSliceFlag{Name: "label", Aliases: []string{"l"}, Usage: "label `K=V`", EnvVars: []string{"TOOL_TEST_LABELS"}},
		}},
		{Name: "exec", Usage: "run", Action: say, Flags: []Flag{&BoolFlag{Name: "stdin", Aliases: []string{"i"}}, &BoolFlag{Name: "tty", Aliases: []string{"t"}}, &StringFlag{Name: "container", Aliases: []string{"c"}}}},
		{Name: "lab", Usage: "hosts", Subcommands: []*Command{
			{Name: "up", Usage: "make them", Action: say, Flags: []Flag{&StringFlag{Name: "address"}}},
			{Name: "guest", Hidden: true, SkipFlagParsing: true, Action: say},
		}},
	}}
}

func TestRun(t *testing.T) {
	t.Setenv("TOOL_TEST_NS", "shop")
	t.Setenv("TOOL_TEST_LABELS", "a=b, c=d")
	t.Setenv("TOOL_TEST_TAIL", "")
	const env = ` namespace=shop label=[a=b c=d]`
	for in, want := range map[string]string{
		"get":                             `get []` + env,
		"get pods -A":                     `get ["pods"] all=true` + env,
		"get -A=false pods":               `get ["pods"] all=false` + env,
		"get pods -n kube-system":         `get ["pods"] namespace=kube-system label=[a=b c=d]`,
		"get pods --namespace=x=y web":    `get ["pods" "web"] namespace=x=y label=[a=b c=d]`,
		"get -l x=y -l p=q,r=s":           `get [] namespace=shop label=[x=y p=q r=s]`,
		"get --tail -5 -wait 3s --seed 7": `get [] namespace=shop tail=-5 seed=7 wait=3s label=[a=b c=d]`,
		"get --config - -":                `get ["-"] namespace=shop config=- label=[a=b c=d]`,
		"exec -it pod -- sh -c ls":        `exec ["pod" "--" "sh" "-c" "ls"] stdin=true tty=true`,
		"exec pod -c n -- ls -n y":        `exec ["pod" "--" "ls" "-n" "y"] container=n`,
		"exec pod -itc main -- ls":        `exec ["pod" "--" "ls"] stdin=true tty=true container=main`,
		"exec -- -90s 2":                  `exec ["-90s" "2"]`,
		"lab up 2 --address 10.88.0.20":   `up ["2"] address=10.88.0.20`,
		"lab guest --any -x -- y":         `guest ["--any" "-x" "--" "y"]`,
		"bogus":                           "there is no command \"bogus\": see `tool --help`",
		"lab bogus":                       "there is no command \"bogus\": see `tool lab --help`",
		"lab help bogus":                  "there is no command \"bogus\": see `tool lab --help`",
		"--bogus":                         "flag provided but not defined: --bogus: see `tool --help`",
		"get --bogus":                     "flag provided but not defined: --bogus: see `tool get --help`",
		"exec -ix":                        "flag provided but not defined: -ix: see `tool exec --help`",
		"exec -ci":                        "flag needs an argument: -ci: see `tool exec --help`",
		"get pods -n":                     "flag needs an argument: -n: see `tool get --help`",
		"get --tail many":                 `invalid value "many" for flag --tail: invalid syntax: see ` + "`tool get --help`",
		"get --wait 3":                    `invalid value "3" for flag --wait: time: missing unit in duration "3": see ` + "`tool get --help`",
		"get --all=perhaps":               `invalid value "perhaps" for flag --all: invalid syntax: see ` + "`tool get --help`",
	} {
		var got string
		if err := program(&got, &strings.Builder{}).Run(t.Context(), append([]string{"tool"}, strings.Fields(in)...)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s\n does %s\n not  %s", in, got, want)
		}
	}
	t.Setenv("TOOL_TEST_TAIL", "many")
	var did string
	if err := program(&did, &strings.Builder{}).Run(t.Context(), []string{"tool", "get"}); err == nil || !strings.HasPrefix(err.Error(), `TOOL_TEST_TAIL="many": invalid syntax`) {
		t.Errorf("a bad variable: %v", err)
	}
	failing := &App{Name: "tool", Commands: []*Command{{Name: "fail", Action: func(*Context) error { return errors.ErrUnsupported }}}}
	if err := failing.Run(t.Context(), []string{"tool", "fail"}); err != errors.ErrUnsupported {
		t.Errorf("what an action says came as %v", err)
	}
}

// Defaults are what a flag has that nobody sets, and it is not set.
func TestDefaults(t *testing.T) {
	app := &App{Name: "tool", Commands: []*Command{{Name: "get", Flags: program(new(string), nil).Commands[0].Flags, Action: func(c *Context) error {
		if c.Int("tail") != -1 || c.String("namespace") != "default" || c.Duration("wait") != time.Minute || c.Bool("all") || c.Uint64("seed") != 0 || c.Path("config") != "" || c.StringSlice("label") != nil || c.IsSet("tail") || c.Bool("none") {
			t.Errorf("they are %v", c.values)
		}
		if c.Args().First() != "" || c.Args().Present() || len(c.Args().Tail()) != 0 {
			t.Errorf("arguments %q", c.Args())
		}
		return nil
	}}}}
	if err := app.Run(t.Context(), []string{"tool", "get"}); err != nil {
		t.Error(err)
	}
}

func TestHelp(t *testing.T) {
	const top = `NAME:
   tool - a tool

USAGE:
   tool command [options]

COMMANDS:
   get   show things
   exec  run
   lab   hosts

OPTIONS:
   --help, -h  show help
`
	const get = `NAME:
   tool get - show things

USAGE:
   tool get [options] KIND

DESCRIPTION:
   In two
   lines.

OPTIONS:
   --all, -A                        of all
   --namespace value, -n value      where (default: "default") [$TOOL_TEST_NS]
   --config FILE                    read FILE first
   --tail value                     last lines (default: -1) [$TOOL_TEST_TAIL]
   --seed value                     
   --wait value                     for so long (default: 1m0s)
   --label K=V, -l K=V              label K=V [$TOOL_TEST_LABELS]
   --help, -h                       show help
`
	squeeze := func(s string) string { // how wide the columns are is tabwriter's
		var lines []string
		for line := range strings.Lines(s) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
	for in, want := range map[string]string{
		"": top, "--help": top, "-h": top, "help": top, "get --help": get, "get pods -h": get, "help get": get,
		"--generate-bash-completion": "get\nexec\nlab\n", "lab --generate-bash-completion": "up\n", "get --n --generate-bash-completion": "--namespace\n",
	} {
		var did string
		var out strings.Builder
		if err := program(&did, &out).Run(t.Context(), append([]string{"tool"}, strings.Fields(in)...)); err != nil || did != "" || squeeze(out.String()) != squeeze(want) {
			t.Errorf("%q does %q and prints (%v)\n%s", in, did, err, out.String())
		}
	}
	var out strings.Builder
	if err := program(new(string), &out).Run(t.Context(), []string{"tool", "lab"}); err != nil || strings.Contains(out.String(), "guest") || !strings.Contains(out.String(), "make them") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
