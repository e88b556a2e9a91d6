// Command bench measures the rows of the targets on this machine, in one run,
// and prints each beside its target. Hosts are namespaces, so all of them share
// this machine's cores with the clients: compare only within one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"conclave/lab"
	"conclave/test/cluster"
)

func main() {
	if lab.IsInit() {
		os.Exit(lab.Init())
	}
	var b bench
	flag.IntVar(&b.trials, "trials", 5, "trials of each row that is a distribution")
	flag.IntVar(&b.deaths, "deaths", 20, "how often a leader dies, each way")
	flag.DurationVar(&b.idle, "idle", time.Minute, "how long the idle rows watch")
	flag.StringVar(&b.profiles, "profiles", "", "folder: keep profiles of the full node there")
	flag.StringVar(&b.only, "only", "", "regular expression: measure only these rows")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	trials   int
	deaths   int
	idle     time.Duration
	only     string
	profiles string
	rows     [][3]string
	start    time.Time
}

func (b *bench) row(what, measured, target string) {
	b.rows = append(b.rows, [3]string{what, measured, target})
	fmt.Printf("%7.1f s  %s: %s (target %s)\n", time.Since(b.start).Seconds(), what, measured, target)
}

// part is a group of rows that are measured on one cluster.
type part struct {
	name string
	do   func(context.Context) error
}

func (b *bench) run(ctx context.Context) error {
	b.start = time.Now()
	wanted, err := regexp.Compile(b.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	var failed error
	for _, p := range []part{
		{"binary", b.binary}, {"scheduler", b.scheduler}, {"one node", b.oneNode}, {"three nodes", b.threeNodes},
		{"full node", b.fullNode},
		{"API writes", b.writes}, {"watchers", b.watchers}, {"state", b.state},
		{"leader killed", b.leaderKilled}, {"host dead", b.hostDead}, {"masters", b.masters},
	} {
		if !wanted.MatchString(p.name) {
			continue
		}
		if err := p.do(ctx); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "ROW\tMEASURED\tTARGET")
	for _, r := range b.rows {
		fmt.Fprintln(table, strings.Join(r[:], "\t"))
	}
	return errors.Join(table.Flush(), failed)
}

// distribution is durations as median and worst.
func distribution(all []time.Duration) string {
	slices.Sort(all)
	return fmt.Sprintf("median %.3f s, worst %.3f s of %d", all[len(all)/2].Seconds(), all[len(all)-1].Seconds(), len(all))
}

func (b *bench) binary(context.Context) error {
	root, err := cluster.Root()
	if err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(root, "bin", "conclave"))
	if err != nil {
		return err
	}
	b.row("binary", fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), "≤ 45 MB")
	return nil
}

var placed = regexp.MustCompile(`([\d.]+) pods/s`)

func (b *bench) scheduler(ctx context.Context) error {
	root, err := cluster.Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchtime", "10000x", "./scheduler")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	match := placed.FindSubmatch(out)
	if match == nil {
		return fmt.Errorf("the scheduler's benchmark names no pods/s: %s", out)
	}
	b.row("scheduler, 5,000 nodes, 10,000 pods", string(match[1])+" pods/s", "≥ 10,000/s")
	return nil
}

// fresh makes hosts with nothing on them, and the function that removes them.
func (b *bench) fresh(ctx context.Context, hosts int) (*cluster.Cluster, func(), error) {
	c, err := cluster.New(ctx, cluster.Config{Name: fmt.Sprintf("b%d", os.Getpid()%1000000), Hosts: hosts, Bare: true})
	if err != nil {
		return nil, nil, err
	}
	return c, func() {
		if err := c.Down(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: clean up:", err)
		}
	}, nil
}

// formed is fresh, with a cluster that has the busybox image everywhere.
func (b *bench) formed(ctx context.Context, hosts int) (*cluster.Cluster, func(), error) {
	c, down, err := b.fresh(ctx, hosts)
	if err != nil {
		return nil, nil, err
	}
	err = c.Form(ctx, func(string, ...any) {})
	if err == nil {
		err = c.Connect(ctx)
	}
	if err == nil {
		err = c.Import(ctx, "busybox")
	}
	if err == nil && hosts >= 3 {
		err = waitVoters(ctx, c, 3)
	}
	if err != nil {
		down()
		return nil, nil, err
	}
	return c, down, nil
}

// pause waits for a while.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// said waits until a host's conclave has said something since offset.
func said(ctx context.Context, c *cluster.Cluster, h *lab.Host, what string) error {
	for {
		raw, err := os.ReadFile(c.LogPath(h))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if strings.Contains(string(raw), what) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not say %q", h.Name, what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// waitVoters waits until the cluster has n voters.
func waitVoters(ctx context.Context, c *cluster.Cluster, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return cluster.Eventually(ctx, func() error {
		out, err := c.Ask(ctx, "status")
		if err != nil {
			return err
		}
		if got := voters(out); got < n {
			return fmt.Errorf("%d voters", got)
		}
		return nil
	})
}

// voters are as many as `conclave status` printed.
func voters(status string) int {
	n := 0
	for line := range strings.Lines(status) {
		fields := strings.Fields(strings.Replace(line, " (this)", "", 1))
		if len(fields) == 5 && (fields[3] == "master" || fields[3] == "leader") {
			n++
		}
	}
	return n
}
