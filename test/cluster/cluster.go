// Package cluster gives the demo, the benchmark and the tests on hosts a real
// cluster: lab hosts that run the built binary, kubectl of the same version, and
// images without a registry. It owns the lab that it made and removes it; it
// starts no goroutine that outlives a call.
package cluster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"conclave/lab"
	"conclave/test/images"
)

// Cluster is a lab whose hosts form a cluster.
type Cluster struct {
	*lab.Lab
	Root       string // the project's folder
	Dir        string // scratch space of this cluster
	Kubeconfig string
	Client     *kubernetes.Clientset
}

// Config says what to make.
type Config struct {
	Name  string // of the lab
	Hosts int
	Args  []string // further arguments of every host's conclave
	Up    []string // those of `conclave up` alone
	// Binary is another build to run than the project's own.
	Binary string
	// Bare hosts run nothing yet: Form starts them.
	Bare bool
	// IPv6 hosts have no other addresses.
	IPv6 bool
	// DiskSize gives every host a disk of its own of so many bytes.
	DiskSize int64
	Say      func(format string, args ...any)
}

// Root finds the project's folder from anywhere inside it.
func Root() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if raw, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && bytes.HasPrefix(raw, []byte("module conclave\n")) {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("run this inside the project's folder")
		}
	}
	return "", err
}

// New makes the hosts and, unless they are to stay bare, the cluster.
func New(ctx context.Context, c Config) (_ *Cluster, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("hosts are made of namespaces, which needs root")
	}
	root, err := Root()
	if err != nil {
		return nil, err
	}
	binary := cmp.Or(c.Binary, os.Getenv("CONCLAVE_BINARY"), filepath.Join(root, "bin", "conclave"))
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("%w: run `make build` first", err)
	}
	if c.Say == nil {
		c.Say = func(string, ...any) {}
	}
	// Unix sockets live below this folder, and their paths are short.
	dir, err := os.MkdirTemp("/var/tmp", "conclave-")
	if err != nil {
		return nil, err
	}
	cl := &Cluster{Root: root, Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, cl.Down())
		}
	}()
	cl.Lab, err = lab.Create(lab.Config{Name: c.Name, Dir: filepath.Join(dir, "lab"), Binary: binary, Args: c.Args, UpArgs: c.Up, IPv6: c.IPv6, DiskSize: c.DiskSize})
	if err != nil {
		return nil, err
	}
	for range c.Hosts {
		if _, err := cl.Add(); err != nil {
			return nil, err
		}
	}
	if c.Bare {
		return cl, nil
	}
	if err := cl.Form(ctx, c.Say); err != nil {
		return nil, err
	}
	return cl, cl.Connect(ctx)
}

// Connect makes the clients, by way of the first host that answers.
func (c *Cluster) Connect(ctx context.Context) error {
	text, err := c.Ask(ctx, "kubeconfig")
	if err != nil {
		return err
	}
	c.Kubeconfig = filepath.Join(c.Dir, "kubeconfig")
	if err := os.WriteFile(c.Kubeconfig, []byte(text), 0o600); err != nil {
		return err
	}
	c.Client, err = c.ClientFor("", func(*rest.Config) {})
	return err
}

// ClientFor is a client that talks to one host, the kubeconfig's own if empty,
// by connections of its own: those that client-go would lend it may be of the
// time before the host lost its power, and take seconds to find that out.
func (c *Cluster) ClientFor(host string, change func(*rest.Config)) (*kubernetes.Clientset, error) {
	config, err := c.RESTConfig(host)
	if err != nil {
		return nil, err
	}
	config.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	change(config)
	return kubernetes.NewForConfig(config)
}

// HTTPClient speaks to the API of one host, the kubeconfig's own if empty, without
// client-go: a client with connections of its own, and the address of the API.
func (c *Cluster) HTTPClient(host string) (*http.Client, string, error) {
	config, err := c.RESTConfig(host)
	if err != nil {
		return nil, "", err
	}
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, "", err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}}, config.Host, nil
}

// RESTConfig is what clients of one host need, the kubeconfig's own if empty.
func (c *Cluster) RESTConfig(host string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 1000, 1000
	if host != "" {
		h, err := c.Host(host)
		if err != nil {
			return nil, err
		}
		config.Host = "https://" + net.JoinHostPort(h.Address.String(), "6443")
	}
	return config, nil
}

// Kubectl runs kubectl of the version that Conclave serves, and returns what it
// printed on both streams.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlInput(ctx, "", args...)
}

// KubectlInput is Kubectl with standard input.
func (c *Cluster) KubectlInput(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "bin", "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "HOME="+c.Dir, "KUBECACHEDIR="+filepath.Join(c.Dir, "cache"))
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// On runs a command on a host and returns what it printed.
func (c *Cluster) On(ctx context.Context, host string, argv ...string) (string, error) {
	return c.OnInput(ctx, host, nil, argv...)
}

// OnInput is On with standard input.
func (c *Cluster) OnInput(ctx context.Context, host string, input io.Reader, argv ...string) (string, error) {
	var out bytes.Buffer
	code, err := c.Exec(ctx, host, argv, input, &out, &out)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d", code)
	}
	if err != nil {
		err = fmt.Errorf("on %s: %s: %w: %s", host, strings.Join(argv, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
}

// Fetch gets a page from a host.
func (c *Cluster) Fetch(ctx context.Context, host, url string) (string, error) {
	tool := filepath.Join(c.Root, "bin", "web")
	if _, err := os.Stat(tool); err != nil {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", tool, "./examples/web")
		cmd.Dir, cmd.Env = c.Root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build examples/web: %w: %s", err, out)
		}
	}
	return c.On(ctx, host, tool, "get", url)
}

// Import builds images by their recipes' names and imports them on every host.
func (c *Cluster) Import(ctx context.Context, names ...string) error {
	for _, name := range names {
		tar, err := Image(ctx, c.Root, name)
		if err != nil {
			return err
		}
		for _, h := range c.Hosts {
			if _, err := c.On(ctx, h.Name, c.Binary, "image", "import", tar); err != nil {
				return err
			}
		}
	}
	return nil
}

// Image builds an image and keeps its tar in bin/images, until the program in it
// changes.
func Image(ctx context.Context, root, name string) (string, error) {
	recipe, ok := images.Recipes[name]
	if !ok {
		return "", fmt.Errorf("no recipe for an image %q", name)
	}
	tar := filepath.Join(root, "bin", "images", name+".tar")
	if fresh(root, recipe.Sources(), tar) {
		return tar, nil
	}
	if err := os.MkdirAll(filepath.Dir(tar), 0o755); err != nil {
		return "", err
	}
	img, err := images.Build(ctx, recipe)
	if err != nil {
		return "", err
	}
	part := fmt.Sprintf("%s.%d", tar, os.Getpid()) // two test processes may build it at once
	if err := images.Save(img, recipe.Name, part); err != nil {
		return "", err
	}
	return tar, os.Rename(part, tar)
}

// fresh says whether a file is newer than those that a pattern names, if any, in
// the project's folder.
func fresh(root, pattern, file string) bool {
	made, err := os.Stat(file)
	if err != nil {
		return false
	}
	if pattern == "" {
		return true
	}
	sources, _ := filepath.Glob(filepath.Join(root, pattern))
	for _, source := range sources {
		if info, err := os.Stat(source); err != nil || info.ModTime().After(made.ModTime()) {
			return false
		}
	}
	return true
}

// Tool builds the tests' tool for the hosts themselves, and returns its path.
func Tool(ctx context.Context, root string) (string, error) {
	tool := filepath.Join(root, "bin", "tool")
	if fresh(root, images.Recipes["tool"].Sources(), tool) {
		return tool, nil
	}
	part := fmt.Sprintf("%s.%d", tool, os.Getpid())
	cmd := exec.CommandContext(ctx, "go", "build", "-o", part, "./test/tool")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test/tool: %w: %s", err, out)
	}
	return tool, os.Rename(part, tool)
}

// Down removes the hosts and all that was made for them.
func (c *Cluster) Down() error {
	var failed error
	if c.Lab != nil {
		failed = c.Lab.Down()
	}
	if failed != nil {
		return failed // the state file is needed to try again
	}
	return os.RemoveAll(c.Dir)
}

// Eventually tries until it succeeds, or returns the last error when ctx ends.
func Eventually(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up: %w)", err, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
