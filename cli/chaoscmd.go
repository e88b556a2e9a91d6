package cli

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"conclave/cli/internal/cli"
	"conclave/lab"
	"conclave/lab/chaos"
)

// chaosCommands are the verbs of a lab that break things.
func chaosCommands(flags func(...cli.Flag) []cli.Flag, on func(func(*cli.Context, *lab.Lab, []string) error) cli.ActionFunc, each func(func(*lab.Lab, string) error) cli.ActionFunc) []*cli.Command {
	return []*cli.Command{
		{Name: "pause", Usage: "stop conclave on hosts where it stands (SIGSTOP)", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).Pause)},
		{Name: "resume", Usage: "let paused ones go on (SIGCONT)", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).Resume)},
		{Name: "skew", Usage: "make the wall clock of conclave wrong on hosts; 0 makes it right", ArgsUsage: "DURATION HOST…", Flags: flags(), Action: on(func(_ *cli.Context, l *lab.Lab, args []string) error {
			if len(args) < 2 {
				return errors.New("name a time and hosts: conclave lab skew 1h 2, conclave lab skew -- -90s 2")
			}
			by, err := time.ParseDuration(args[0])
			if err != nil {
				return err
			}
			for _, host := range args[1:] {
				if err := l.Skew(host, by); err != nil {
					return err
				}
			}
			return nil
		})},
		{Name: "fill-disk", Usage: "leave no room on the disks of hosts (of a lab made with --disk-size)", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).FillDisk)},
		{Name: "free-disk", Usage: "make room again", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).FreeDisk)},
		{Name: "corrupt-log", Usage: "overwrite the newest entry of the log of masters that are stopped", ArgsUsage: "HOST…", Flags: flags(), Action: each((*lab.Lab).CorruptLog)},
		{Name: "chaos", Usage: "break a cluster in every way that it promises to bear, and check that it keeps its promises", Flags: flags(
			&cli.IntFlag{Name: "nodes", Value: 7, Usage: "how many hosts, if the lab is not there yet"},
			&cli.DurationFlag{Name: "duration", Value: 10 * time.Minute, Usage: "how long faults are made"},
			&cli.Uint64Flag{Name: "seed", Usage: "repeats the order of the faults (default: a new one)"},
			&cli.BoolFlag{Name: "beyond", Usage: "ask more than the guarantees promise: majorities go away, too"},
			&cli.StringSliceFlag{Name: "without", Usage: "leave out a `KIND` of fault (" + strings.Join(chaos.Kinds(), ", ") + "); may be repeated"},
			&cli.PathFlag{Name: "report", Usage: "write a page with a timeline to `FILE`"},
			&cli.PathFlag{Name: "history", Usage: "write all that was done and seen to `FILE`, one JSON object a line (default: a file for temporary ones)"},
		), Action: runChaos},
		{Name: "guest", Hidden: true, SkipFlagParsing: true, Action: func(c *cli.Context) error { return chaos.Guest(c.Context, c.Args().Slice()) }},
	}
}

func runChaos(c *cli.Context) (err error) {
	seed := c.Uint64("seed")
	if !c.IsSet("seed") {
		seed = rand.Uint64N(1_000_000)
	}
	if n := c.Int("nodes"); n < 3 || n > 50 {
		return fmt.Errorf("--nodes %d: a drill needs 3 to 50 hosts", n)
	}
	if c.Duration("duration") <= 0 {
		return fmt.Errorf("--duration %s: faults need time", c.Duration("duration"))
	}
	var without []chaos.Kind
	for _, kind := range c.StringSlice("without") {
		if !slices.Contains(chaos.Kinds(), kind) {
			return fmt.Errorf("--without %q: the kinds of fault are %s", kind, strings.Join(chaos.Kinds(), ", "))
		}
		without = append(without, chaos.Kind(kind))
	}
	if len(without) >= len(chaos.Kinds()) {
		return errors.New("--without: no kind of fault is left")
	}
	start := time.Now()
	say := func(at time.Duration, text string) { fmt.Fprintf(c.App.Writer, "%7.2f s  %s\n", at.Seconds(), text) }
	path := c.Path("history")
	if path == "" {
		path = filepath.Join(os.TempDir(), fmt.Sprintf("conclave-chaos-%d.jsonl", seed))
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("--history: %w", err)
	}
	history := bufio.NewWriter(file)
	defer func() { err = errors.Join(err, history.Flush(), file.Close()) }()

	l, err := lab.Open(c.String("lab-dir"), c.String("lab"))
	if errors.Is(err, lab.ErrNoLab) {
		var down func() error
		if l, down, err = drillLab(c, func(format string, args ...any) { say(time.Since(start), fmt.Sprintf(format, args...)) }); err == nil {
			defer func() { err = errors.Join(err, down()) }()
		}
	}
	if err != nil {
		return err
	}
	command := fmt.Sprintf("conclave lab chaos --nodes %d --duration %s --seed %d", len(l.Hosts), c.Duration("duration"), seed)
	if c.Bool("beyond") {
		command += " --beyond"
	}
	for _, kind := range without {
		command += " --without " + string(kind)
	}
	say(time.Since(start), command)
	report, err := chaos.Run(c.Context, chaos.Config{
		Lab: l, Seed: seed, Duration: c.Duration("duration"), Beyond: c.Bool("beyond"), Without: without, History: history, Say: say,
	})
	if report == nil {
		return err
	}
	report.Command = command
	fmt.Fprintln(c.App.Writer)
	err = errors.Join(err, report.Text(c.App.Writer))
	fmt.Fprintln(c.App.Writer, "history:", path)
	if page := c.Path("report"); page != "" {
		err = errors.Join(err, writePage(report, page))
	}
	if n := len(report.Violations); n > 0 {
		err = errors.Join(err, keepLogs(l, path+".logs"), fmt.Errorf("%d violations of what is promised: %s has the history, and %s.logs what the hosts said", n, path, path))
	}
	return err
}

// drillDisk is the size of each host's disk. It is a hole in a file until
// something is written to it.
const drillDisk = 1 << 30

// drillLab makes a lab for one drill, and what removes it.
func drillLab(c *cli.Context, say func(format string, args ...any)) (_ *lab.Lab, down func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	config := lab.Config{Name: c.String("lab"), Dir: c.String("lab-dir"), Binary: self, DiskSize: drillDisk}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		say("no disk will be filled: that needs mkfs.ext4, of the package e2fsprogs")
		config.DiskSize = 0
	}
	l, err := lab.Create(config)
	if err != nil {
		return nil, nil, err
	}
	for range c.Int("nodes") {
		if _, err := l.Add(); err != nil {
			return nil, nil, errors.Join(err, l.Down())
		}
	}
	if err := l.Form(c.Context, say); err != nil {
		return nil, nil, errors.Join(err, l.Down())
	}
	return l, l.Down, nil
}

func writePage(r *chaos.Report, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return errors.Join(r.HTML(f), f.Close())
}

// keepLogs copies what the hosts' conclaves said.
func keepLogs(l *lab.Lab, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, h := range l.Hosts {
		raw, err := os.ReadFile(l.LogPath(h))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, h.Name+".log"), raw, 0o644)
		}
		if err != nil {
			return fmt.Errorf("keep the log of %s: %w", h.Name, err)
		}
	}
	return nil
}
