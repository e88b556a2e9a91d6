package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"conclave/agent"
	"conclave/cli/internal/cli"
	"conclave/identity"
)

// version is set by the linker.
var version = "dev"

// DefaultDataDir is where a node keeps everything.
const DefaultDataDir = "/var/lib/conclave"

// Main runs the command line and returns the exit status: 0, or 1 after one
// sentence on stderr, or what a command run by exec exited with.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := App(os.Stdin, os.Stdout, os.Stderr)
	err := app.Run(ctx, args)
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[exitCode](err); ok {
		return int(exit)
	}
	fmt.Fprintf(os.Stderr, "conclave: %v\n", err)
	return 1
}

// exitCode ends the program with the exit status of a command that ran elsewhere.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// App is the command line.
func App(stdin io.Reader, stdout, stderr io.Writer) *cli.App {
	dataDir := &cli.StringFlag{Name: "data-dir", Value: DefaultDataDir, Usage: "folder of this node's state", EnvVars: []string{"CONCLAVE_DATA_DIR"}}
	output := &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "json, yaml, wide or name instead of a table"}
	withData := func(flags ...cli.Flag) []cli.Flag { return append([]cli.Flag{dataDir}, flags...) }
	return &cli.App{
		Name: "conclave", Usage: "a Kubernetes cluster of equals in one binary",
		Reader: stdin, Writer: stdout, ErrWriter: stderr,
		Commands: append([]*cli.Command{
			{Name: "up", Usage: "start this node: the first of a new cluster, or again after a stop", Flags: withData(append(nodeFlags(), foundFlags()...)...), Action: runUp},
			{Name: "join", Usage: "start this node as a member of a cluster", ArgsUsage: "TOKEN [ADDRESS…]", Flags: withData(nodeFlags()...), Action: runJoin},
			{Name: "leave", Usage: "hand over, drain, and forget the cluster", Flags: withData(), Action: runLeave},
			{Name: "status", Usage: "nodes, masters, leader, and what is wrong", Flags: withData(output), Action: runStatus},
			{Name: "token", Usage: "print the command line that joins a node", Flags: withData(&cli.BoolFlag{Name: "bare", Usage: "print the token alone"}), Action: runToken},
			{Name: "kubeconfig", Usage: "print what kubectl needs", Flags: withData(), Action: runKubeconfig},
			recoverCommand(withData), snapshotCommand(withData), imageCommand(withData),
			{Name: "version", Usage: "print the version", Action: func(c *cli.Context) error {
				fmt.Fprintf(c.App.Writer, "conclave %s (Kubernetes %s, %s %s/%s)\n", version, serverVersion().GitVersion, goruntime.Version(), goruntime.GOOS, goruntime.GOARCH)
				return nil
			}},
			labCommand(), serviceCommand(),
		}, clientCommands(withData, output)...),
	}
}

func env(flag string) []string {
	return []string{"CONCLAVE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

// foundFlags are the settings of a cluster, which hold from its founding: the
// ranges of addresses for good, the others until they are changed in its
// ConfigMap kube-system/conclave.
func foundFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dual-stack", Usage: "of the new cluster: pods and Services have IPv6 addresses too, of random unique local ranges unless --pod-cidr and --service-cidr name some", EnvVars: env("dual-stack")},
		&cli.StringFlag{Name: "pod-cidr", Usage: "of the new cluster: `RANGE` of pods' addresses, IPv4, or IPv6, or both with a comma between (default: 10.244.0.0/16, or a random one on a machine of IPv6 alone)", EnvVars: env("pod-cidr")},
		&cli.StringFlag{Name: "service-cidr", Usage: "of the new cluster: `RANGE` of Services' addresses, in the same way (default: 10.96.0.0/16, or a random one)", EnvVars: env("service-cidr")},
		&cli.BoolFlag{Name: "encrypt", Usage: "of the new cluster: what pods of different nodes say to each other is encrypted, by WireGuard", EnvVars: env("encrypt")},
		&cli.DurationFlag{Name: "unreachable-toleration", Usage: "of the new cluster: how long pods that do not say so stay bound to a dead node", EnvVars: env("unreachable-toleration")},
	}
}

// nodeFlags are the settings of a node.
func nodeFlags() []cli.Flag {
	return append(resourceFlags(), []cli.Flag{
		&cli.StringFlag{Name: "address", Usage: "this machine's address, by which the others reach it (default: found)", EnvVars: env("address")},
		&cli.StringFlag{Name: "name", Usage: "the node's name (default: the host's)", EnvVars: env("name")},
		&cli.StringSliceFlag{Name: "label", Usage: "label `K=V` of the node; may be repeated", EnvVars: env("label")},
		&cli.BoolFlag{Name: "direct-routes", Usage: "send pods' packets without an overlay to nodes on the same link that say so too", EnvVars: env("direct-routes")},
		&cli.BoolFlag{Name: "no-master", Usage: "never make this node a master", EnvVars: env("no-master")},
		&cli.StringFlag{Name: "cgroup-parent", Value: "conclave", Usage: "cgroup below which pods run", EnvVars: env("cgroup-parent")},
		&cli.StringFlag{Name: "pod-manifest-path", Usage: "`DIR` of static pods, one a file (default: manifests/ in the data folder)", EnvVars: env("pod-manifest-path")},
		&cli.DurationFlag{Name: "shutdown-grace-period", Usage: "what pods get to end when systemd shuts this machine down (default: they are left to it)", EnvVars: env("shutdown-grace-period")},
		&cli.DurationFlag{Name: "shutdown-grace-period-critical-pods", Usage: "the last part of it, which is kept for critical pods", EnvVars: env("shutdown-grace-period-critical-pods")},
		&cli.StringFlag{Name: "shutdown-grace-period-by-pod-priority", Usage: "instead of those two, what pods get from each priority up, one after the other: `PRIORITY=DURATION,…`", EnvVars: env("shutdown-grace-period-by-pod-priority")},
		&cli.StringSliceFlag{Name: "insecure-registry", Usage: "`HOST:PORT` of a registry spoken to by plain HTTP; may be repeated", EnvVars: env("insecure-registry")},
		&cli.PathFlag{Name: "registries", Usage: "`FOLDER` with mirrors and certificates of registries, HOST/hosts.toml as containerd has them (default: registries in the data folder)", EnvVars: env("registries")},
		&cli.IntFlag{Name: "max-parallel-image-pulls", Value: 3, Usage: "images pulled at once", EnvVars: env("max-parallel-image-pulls")},
		&cli.PathFlag{Name: "image-credential-provider-config", Usage: "`FILE` that configures credential provider plugins, as kubelet's", EnvVars: env("image-credential-provider-config")},
		&cli.PathFlag{Name: "image-credential-provider-bin-dir", Usage: "`FOLDER` of credential provider plugins", EnvVars: env("image-credential-provider-bin-dir")},
		&cli.IntFlag{Name: "image-gc-high-threshold", Value: 85, Usage: "per cent of the disk in use from which on unused images are removed", EnvVars: env("image-gc-high-threshold")},
		&cli.IntFlag{Name: "image-gc-low-threshold", Value: 80, Usage: "per cent of the disk in use at which that ends", EnvVars: env("image-gc-low-threshold")},
		&cli.DurationFlag{Name: "image-minimum-gc-age", Value: 2 * time.Minute, Usage: "age below which no image is removed for want of room", EnvVars: env("image-minimum-gc-age")},
		&cli.DurationFlag{Name: "image-maximum-gc-age", Usage: "age above which an unused image is removed (default: never for that)", EnvVars: env("image-maximum-gc-age")},
		&cli.BoolFlag{Name: "seccomp-default", Usage: "give containers that name no seccomp profile the profile RuntimeDefault", EnvVars: env("seccomp-default")},
		&cli.StringSliceFlag{Name: "allowed-unsafe-sysctls", Usage: "`SYSCTL` that pods may set beside the safe ones, or a prefix and *; may be repeated", EnvVars: env("allowed-unsafe-sysctls")},
		&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error", EnvVars: env("log-level")},
		&cli.PathFlag{Name: "config", Usage: "YAML `FILE` with any of these settings, by their names", EnvVars: env("config")},
	}...)
}

func serverConfig(c *cli.Context) (ServerConfig, error) {
	settings, err := readSettings(c)
	if err != nil {
		return ServerConfig{}, err
	}
	config := ServerConfig{
		DataDir: settings.text("data-dir"), Name: settings.text("name"), NoMaster: settings.flag("no-master"), DirectRoutes: settings.flag("direct-routes"),
		StaticPods: settings.text("pod-manifest-path"), CgroupParent: strings.Trim(settings.text("cgroup-parent"), "/"), InsecureRegistries: settings.list("insecure-registry"),
		RegistryDir: settings.text("registries"), MaxParallelPulls: settings.number("max-parallel-image-pulls"),
		CredentialProviders: settings.text("image-credential-provider-config"), CredentialProviderBin: settings.text("image-credential-provider-bin-dir"),
		ImageGC: agent.ImageGC{
			HighThresholdPercent: settings.number("image-gc-high-threshold"), LowThresholdPercent: settings.number("image-gc-low-threshold"),
			MinimumAge: settings.duration("image-minimum-gc-age"), MaximumAge: settings.duration("image-maximum-gc-age"),
		},
		SeccompDefault: settings.flag("seccomp-default"), UnsafeSysctls: settings.list("allowed-unsafe-sysctls"),
		UnreachableToleration: settings.duration("unreachable-toleration"), Labels: map[string]string{},
		Tell: func(format string, args ...any) { fmt.Fprintf(c.App.Writer, format+"\n", args...) },
	}
	if config.Shutdown, err = readShutdown(settings.duration("shutdown-grace-period"), settings.duration("shutdown-grace-period-critical-pods"), settings.text("shutdown-grace-period-by-pod-priority")); err != nil {
		return config, err
	}
	config.DualStack, config.Encrypt = settings.flag("dual-stack"), settings.flag("encrypt")
	if config.Ranges, err = readRanges(settings.text("pod-cidr"), settings.text("service-cidr")); err != nil {
		return config, err
	}
	if config.NodeResources, err = readResources(settings); err != nil {
		return config, err
	}
	if text := settings.text("address"); text != "" {
		if config.Address, err = netip.ParseAddr(text); err != nil || config.Address.Is4In6() || !config.Address.IsGlobalUnicast() && !(config.Address.Is4() && config.Address.IsLinkLocalUnicast()) {
			return config, fmt.Errorf("--address %q: give the address by which the other nodes reach this machine", text)
		}
	}
	for _, label := range settings.list("label") {
		key, value, ok := strings.Cut(label, "=")
		if !ok {
			return config, fmt.Errorf("--label %q: write it as KEY=VALUE", label)
		}
		if err := checkLabel(key, value); err != nil {
			return config, fmt.Errorf("--label %q: %w", label, err)
		}
		config.Labels[key] = value
	}
	if config.Name != "" {
		if err := checkNodeName(config.Name); err != nil {
			return config, fmt.Errorf("--name %q: %w", config.Name, err)
		}
	}
	if config.RegistryDir == "" {
		config.RegistryDir = filepath.Join(config.DataDir, "registries")
	}
	if config.MaxParallelPulls < 1 {
		return config, fmt.Errorf("--max-parallel-image-pulls %d: at least one image is pulled at a time", config.MaxParallelPulls)
	}
	if (config.CredentialProviders == "") != (config.CredentialProviderBin == "") {
		return config, errors.New("--image-credential-provider-config and --image-credential-provider-bin-dir come together")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(settings.text("log-level"))); err != nil {
		return config, fmt.Errorf("--log-level %q: use debug, info, warn or error", settings.text("log-level"))
	}
	config.Log = slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
	return config, settings.err
}

func runUp(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("up takes no arguments: to join a cluster use `conclave join %s`", c.Args().First())
	}
	config, err := serverConfig(c)
	if err != nil {
		return err
	}
	return serve(c.Context, config)
}

func runJoin(c *cli.Context) error {
	if !c.Args().Present() {
		return errors.New("join needs a token: `conclave token` on any member prints the whole command")
	}
	token, err := identity.ParseToken(c.Args().First())
	if err != nil {
		return err
	}
	config, err := serverConfig(c)
	if err != nil {
		return err
	}
	config.Join = &token
	for _, address := range c.Args().Tail() {
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]"), fmt.Sprint(apiPort))
		}
		config.JoinAddresses = append(config.JoinAddresses, address)
	}
	return serve(c.Context, config)
}

func serve(ctx context.Context, config ServerConfig) error {
	hushLibraries(config.Log)
	server, err := NewServer(config)
	if err != nil {
		return err
	}
	boundGarbage()
	return server.Run(ctx)
}

// --- the socket of the node on this machine -----------------------------------

// call asks the running node.
func call(c *cli.Context, method, path string, body io.Reader) (*http.Response, error) {
	dir := c.String("data-dir")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socketPath(dir))
	}}}
	request, err := http.NewRequestWithContext(c.Context, method, "http://node"+path, body)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, errors.New("only root may talk to the node: run this with sudo")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("conclave does not run with data folder %s: start it with `conclave up`", dir)
	case err != nil:
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		reason, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16))
		return nil, errors.New(strings.TrimSpace(string(reason)))
	}
	return response, nil
}

// ask calls the running node and decodes its answer.
func ask(c *cli.Context, method, path string, body io.Reader, answer any) error {
	response, err := call(c, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(answer)
}

func runStatus(c *cli.Context) error {
	var s Status
	if err := ask(c, http.MethodGet, "/status?paths", nil, &s); err != nil {
		return err
	}
	switch c.String("output") {
	case "json":
		out := json.NewEncoder(c.App.Writer)
		out.SetIndent("", "  ")
		return out.Encode(s)
	case "":
	default:
		return fmt.Errorf("status prints a table or -o json, not %q", c.String("output"))
	}
	leader := s.Leader
	if leader == "" {
		leader = "none"
	}
	fmt.Fprintf(c.App.Writer, "cluster %.8s, leader %s, term %d: %s\n\n", s.Cluster, leader, s.Term, s.Masters)
	table := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tADDRESS\tSTATE\tROLE\tID")
	for _, m := range s.Members {
		name := m.Name
		if m.ID == s.Node.ID {
			name += " (this)"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%.8s\n", name, m.Address, m.State, m.Role, m.ID)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if s.Encryption != "" {
		fmt.Fprintf(c.App.Writer, "\nbetween nodes, what pods say is encrypted; here by %s\n", s.Encryption)
	}
	for i, p := range s.Problems {
		if i == 0 {
			fmt.Fprintln(c.App.Writer)
		}
		fmt.Fprintln(c.App.Writer, "problem:", p)
	}
	return nil
}

func runToken(c *cli.Context) error {
	var token string
	if err := ask(c, http.MethodGet, "/token", nil, &token); err != nil {
		return err
	}
	if !c.Bool("bare") {
		token = "conclave join " + token
	}
	fmt.Fprintln(c.App.Writer, token)
	return nil
}

func runKubeconfig(c *cli.Context) error {
	var config string
	if err := ask(c, http.MethodGet, "/kubeconfig", nil, &config); err != nil {
		return err
	}
	fmt.Fprint(c.App.Writer, config)
	return nil
}

func runLeave(c *cli.Context) error {
	response, err := call(c, http.MethodPost, "/leave", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines, last := &lineWriter{w: c.App.Writer}, ""
	lines.each = func(line string) { last = line }
	if _, err := io.Copy(lines, response.Body); err != nil && last != "left" {
		return fmt.Errorf("the node ended before it had left: %w", err)
	}
	if reason, failed := strings.CutPrefix(last, "error: "); failed {
		return errors.New(reason)
	}
	// The node removes what it made before its process ends and frees the folder.
	lock, err := os.Open(c.String("data-dir") + "/lock")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	for wait := 10 * time.Millisecond; syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil; wait = min(2*wait, time.Second) {
		select {
		case <-c.Context.Done():
			return c.Context.Err()
		case <-time.After(wait):
		}
	}
	left, err := os.ReadDir(c.String("data-dir"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("the node left the cluster, but could not remove everything: see its log, and %s", c.String("data-dir"))
	}
	return nil
}

// lineWriter passes bytes on and calls each with every whole line, except that
// a line beginning with "error: " is kept for the caller to print.
type lineWriter struct {
	w    io.Writer
	each func(line string)
	rest []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := strings.Cut(string(l.rest), "\n")
		if !whole {
			return len(p), nil
		}
		l.rest = []byte(rest)
		l.each(line)
		if !strings.HasPrefix(line, "error: ") {
			if _, err := fmt.Fprintln(l.w, line); err != nil {
				return 0, err
			}
		}
	}
}
