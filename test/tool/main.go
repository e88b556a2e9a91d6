// Command tool is what the containers of the tests on hosts run: servers that
// say who they are, and clients for what they serve. Each area keeps its
// subcommands in a file of its own.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// commands are the subcommands by name; each gets the arguments behind it and
// ends when its context does.
var commands = map[string]func(ctx context.Context, args []string) error{
	"serve": serve,
	"get":   get,
	"watch": watchPage,
	"udp":   udp,
	"dig":   dig,
	"reach": reach,
	"sniff": sniff,

	"whoami": whoami,
	"oidc":   oidc,

	"guestbook": guestbook,

	"webhook":  webhook,
	"flunders": flunders,

	"euid":   euid,
	"health": health,

	"stamp": stamp,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	names := strings.Join(slices.Sorted(maps.Keys(commands)), ", ")
	if len(args) == 0 {
		return fmt.Errorf("name a subcommand: %s", names)
	}
	do, ok := commands[args[0]]
	if !ok {
		return fmt.Errorf("no subcommand %q; there are %s", args[0], names)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return do(ctx, args[1:])
}
