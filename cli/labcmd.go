package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"conclave/cli/internal/cli"
	"conclave/lab"
)

func labCommand() *cli.Command {
	name := &cli.StringFlag{Name: "lab", Value: "lab", Usage: "name of the lab", EnvVars: []string{"CONCLAVE_LAB"}}
	dir := &cli.StringFlag{Name: "lab-dir", Value: lab.DefaultDir, Usage: "folder of all labs", EnvVars: []string{"CONCLAVE_LAB_DIR"}}
	flags := func(more ...cli.Flag) []cli.Flag { return append([]cli.Flag{name, dir}, more...) }
	// on opens the lab and passes each host named on the command line to do.
	on := func(do func(c *cli.Context, l *lab.Lab, hosts []string) error) cli.ActionFunc {
		return func(c *cli.Context) error {
			l, err := lab.Open(c.String("lab-dir"), c.String("lab"))
			if err != nil {
				return err
			}
			return do(c, l, c.Args().Slice())
		}
	}
	each := func(do func(l *lab.Lab, host string) error) cli.ActionFunc {
		return on(func(c *cli.Context, l *lab.Lab, hosts []string) error {
			if len(hosts) == 0 {
				return errors.New("name the hosts, or their numbers: `conclave lab ls` lists them")
			}
			for _, h := range hosts {
				if err := do(l, h); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return &cli.Command{
		Name: "lab", Usage: "a cluster of hosts made of namespaces on this machine, for drills",
		Subcommands: append([]*cli.Command{
			{Name: "up", Usage: "make hosts and form a cluster of them", Flags: flags(
				&cli.IntFlag{Name: "nodes", Value: 3, Usage: "how many hosts"},
				&cli.BoolFlag{Name: "ipv6", Usage: "give the hosts IPv6 addresses alone, of which the cluster is then, too"},
				&cli.StringFlag{Name: "subnet", Usage: "a /24 for the hosts, or a /64 of IPv6 (default: a free one of 10.88.0.0/16, or of fd88::/56)"},
				&cli.StringFlag{Name: "disk-size", Usage: "give every host a disk of its own of this `SIZE`, such as 1Gi (default: this machine's)"},
				&cli.BoolFlag{Name: "bare", Usage: "make the hosts, start nothing on them"},
				&cli.StringSliceFlag{Name: "arg", Usage: "further argument of `conclave up` and `join` on every host; may be repeated"},
				&cli.StringSliceFlag{Name: "up-arg", Usage: "further argument of `conclave up` alone, such as --dual-stack; may be repeated"},
			), Action: labUp},
			{Name: "ls", Usage: "list the hosts", Flags: flags(), Action: on(func(c *cli.Context, l *lab.Lab, _ []string) error {
				table := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
				fmt.Fprintln(table, "HOST\tADDRESS\tSTATE\tPID")
				for _, s := range l.Status() {
					fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", s.Name, s.Address, s.State, strings.TrimPrefix(fmt.Sprint(s.PID), "0"))
				}
				return table.Flush()
			})},
			{Name: "exec", Usage: "run a command on a host", ArgsUsage: "HOST -- COMMAND…", Flags: flags(), Action: on(func(c *cli.Context, l *lab.Lab, args []string) error {
				if len(args) > 1 && args[1] == "--" {
					args = append(args[:1:1], args[2:]...)
				}
				if len(args) < 2 {
					return errors.New("lab exec needs a host and a command: conclave lab exec HOST -- COMMAND…")
				}
				code, err := l.Exec(c.Context, args[0], args[1:], c.App.Reader, c.App.Writer, c.App.ErrWriter)
				if err == nil && code != 0 {
					return exitCode(code)
				}
				return err
			})},
			{Name: "kubeconfig", Usage: "print what kubectl needs, for the first host that answers", Flags: flags(), Action: on(func(c *cli.Context, l *lab.Lab, _ []string) error {
				config, err := l.Ask(c.Context, "kubeconfig")
				fmt.Fprint(c.App.Writer, config)
				return err
			})},
			{Name: "kill", Usage: "end conclave on hosts with SIGKILL; their pods go on", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).Kill)},
			{Name: "stop", Usage: "end conclave on hosts with SIGTERM", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).Stop)},
			{Name: "power-off", Usage: "cut the power of hosts", ArgsUsage: "HOST…", Flags: flags(), Action: on(func(_ *cli.Context, l *lab.Lab, hosts []string) error {
				if len(hosts) == 0 {
					return errors.New("name the hosts, or their numbers: `conclave lab ls` lists them")
				}
				return l.PowerOff(hosts...)
			})},
			{Name: "start", Usage: "switch hosts on, and start conclave on them", ArgsUsage: "HOST…", Flags: flags(
				&cli.StringFlag{Name: "address", Usage: "give the host this address from now on (it must be off)"},
			), Action: on(func(c *cli.Context, l *lab.Lab, hosts []string) error {
				var address netip.Addr
				if text := c.String("address"); text != "" {
					var err error
					if address, err = netip.ParseAddr(text); err != nil {
						return fmt.Errorf("--address: %w", err)
					}
				}
				for _, host := range hosts {
					if err := labStart(l, host, address); err != nil {
						return err
					}
				}
				return nil
			})},
			{Name: "partition", Usage: "cut the network between groups of hosts; those not named form one more", ArgsUsage: "HOST,HOST… [HOST,HOST…]…", Flags: flags(), Action: on(func(_ *cli.Context, l *lab.Lab, args []string) error {
				var groups [][]string
				for _, a := range args {
					groups = append(groups, strings.Split(a, ","))
				}
				if len(groups) == 0 {
					return errors.New("name at least one group: conclave lab partition 1,2")
				}
				return l.Partition(groups...)
			})},
			{Name: "heal", Usage: "remove every cut", Flags: flags(), Action: on(func(_ *cli.Context, l *lab.Lab, _ []string) error { return l.Heal() })},
			{Name: "down", Usage: "remove the lab and all that it made", Flags: flags(), Action: on(func(_ *cli.Context, l *lab.Lab, _ []string) error { return l.Down() })},
		}, chaosCommands(flags, on, each)...),
	}
}

// labStart boots a host if it is off, and starts its conclave.
func labStart(l *lab.Lab, host string, address netip.Addr) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	for _, s := range l.Status() {
		if s.Name != h.Name {
			continue
		}
		if s.State == "off" {
			if err := l.Boot(host, address); err != nil {
				return err
			}
		} else if address.IsValid() {
			return fmt.Errorf("host %s is on: power it off before you change its address", h.Name)
		}
	}
	return l.Start(host, "up")
}

func labUp(c *cli.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config := lab.Config{Name: c.String("lab"), Dir: c.String("lab-dir"), Binary: self, Args: c.StringSlice("arg"), UpArgs: c.StringSlice("up-arg"), IPv6: c.Bool("ipv6")}
	if text := c.String("subnet"); text != "" {
		config.Subnet, err = netip.ParsePrefix(text)
		bits := 24
		if config.Subnet.Addr().Is6() {
			bits = 64
		}
		if err != nil || config.Subnet.Bits() != bits || config.Subnet.Addr().Is4In6() || config.IPv6 && bits == 24 {
			return fmt.Errorf("--subnet %q: give an IPv4 network of 24 bits, such as 10.88.0.0/24, or one of IPv6 of 64 bits, such as fd88::/64", text)
		}
	}
	if text := c.String("disk-size"); text != "" {
		size, err := resource.ParseQuantity(text)
		if err != nil || size.Value() < 64<<20 {
			return fmt.Errorf("--disk-size %q: give a size of at least 64Mi, such as 1Gi", text)
		}
		config.DiskSize = size.Value()
	}
	if n := c.Int("nodes"); n < 1 || n > 200 {
		return fmt.Errorf("--nodes %d: a lab has 1 to 200 hosts", n)
	}
	start := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(c.App.Writer, "%6.2f s  "+format+"\n", append([]any{time.Since(start).Seconds()}, args...)...)
	}
	l, err := lab.Create(config)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down())
		}
	}()
	for range c.Int("nodes") {
		h, err := l.Add()
		if err != nil {
			return err
		}
		say("host %s at %s", h.Name, h.Address)
	}
	if c.Bool("bare") {
		return nil
	}
	return l.Form(c.Context, say)
}
