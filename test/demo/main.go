// Command demo shows the product in one go: three hosts, one `up` and two
// `join`s, an application from a real registry, the leader killed, a host
// powered off, and one table of what it all took. It exits non-zero if a step
// fails, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"conclave/lab"
	"conclave/test/cluster"
	"conclave/test/images"
)

func main() {
	switch {
	case lab.IsInit():
		os.Exit(lab.Init())
	case len(os.Args) > 1 && os.Args[1] == "probe":
		probe(os.Args[2])
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	d := &demo{start: time.Now()}
	err := d.run(ctx)
	if down := d.clean(); down != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", down))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type row struct{ what, value string }

type demo struct {
	start time.Time
	rows  []row
	undo  []func() error
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("%7.2f s  "+format+"\n", append([]any{time.Since(d.start).Seconds()}, args...)...)
}

func (d *demo) row(what, format string, args ...any) {
	d.rows = append(d.rows, row{what, fmt.Sprintf(format, args...)})
}

func (d *demo) clean() error {
	var failed error
	for i := len(d.undo) - 1; i >= 0; i-- {
		failed = errors.Join(failed, d.undo[i]())
	}
	return failed
}

// took runs a step and returns how long it was.
func took(do func() error) (time.Duration, error) {
	start := time.Now()
	err := do()
	return time.Since(start), err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func (d *demo) run(ctx context.Context) error {
	c, registry, err := d.hosts(ctx)
	if err != nil {
		return err
	}
	formed, err := took(func() error { return c.Form(ctx, func(f string, a ...any) { d.say("  "+f, a...) }) })
	if err != nil {
		return err
	}
	if err := c.Connect(ctx); err != nil {
		return err
	}
	d.row("one `up` and two `join`s → three nodes ready", "%s", seconds(formed))
	if out, err := c.Ask(ctx, "status"); err != nil {
		return err
	} else {
		fmt.Print(indent(out))
	}
	service, err := d.application(ctx, c, registry)
	if err != nil {
		return err
	}
	if err := d.killLeader(ctx, c, service); err != nil {
		return err
	}
	if err := d.powerOff(ctx, c, service); err != nil {
		return err
	}
	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	for _, r := range d.rows {
		fmt.Fprintf(table, "%s\t%s\n", r.what, r.value)
	}
	return table.Flush()
}

func indent(s string) string {
	return "           " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n           ") + "\n"
}

// hosts makes three bare hosts, and a registry that they can reach.
func (d *demo) hosts(ctx context.Context) (*cluster.Cluster, string, error) {
	subnet, err := lab.FreeSubnet(false)
	if err != nil {
		return nil, "", err
	}
	registry := fmt.Sprintf("%s:5000", subnet.Masked().Addr().Next())
	c, err := cluster.New(ctx, cluster.Config{
		Name: fmt.Sprintf("demo%d", os.Getpid()%100000), Hosts: 3, Bare: true, Args: []string{"--insecure-registry", registry},
	})
	if err != nil {
		return nil, "", err
	}
	d.undo = append(d.undo, c.Down)
	d.say("three hosts on %s", c.Subnet)
	if c.Subnet != subnet {
		return nil, "", fmt.Errorf("the subnet %s was taken meanwhile: try again", subnet)
	}
	stop, err := startRegistry(ctx, registry, filepath.Join(c.Dir, "registry"))
	if err != nil {
		return nil, "", err
	}
	d.undo = append(d.undo, stop)
	d.say("a registry at %s", registry)
	return c, registry, nil
}

// startRegistry runs Debian's docker-registry.
func startRegistry(ctx context.Context, address, dir string) (stop func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", dir, address)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("docker-registry: %w: `make deps-test` installs it", err)
	}
	stop = func() error {
		err := cmd.Process.Kill()
		_ = cmd.Wait() // it was killed: it has no other answer
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = cluster.Eventually(ctx, func() error { return get(ctx, http.DefaultClient, "http://"+address+"/v2/") })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the registry does not answer: %w", err), stop())
	}
	return stop, nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return err
}

const manifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: %s
        ports: [{containerPort: 8080}]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// application runs the web application and returns its Service's address.
func (d *demo) application(ctx context.Context, c *cluster.Cluster, registry string) (string, error) {
	image := registry + "/web:1"
	built, err := images.Build(ctx, images.Recipes["web"])
	if err != nil {
		return "", err
	}
	if err := images.Push(ctx, built, image); err != nil {
		return "", err
	}
	d.say("built the application's image and pushed it as %s", image)
	file := filepath.Join(c.Dir, "web.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, manifest, image), 0o644); err != nil {
		return "", err
	}
	rollout, err := took(func() error {
		if _, err := c.On(ctx, "1", c.Binary, "apply", "-f", file); err != nil {
			return err
		}
		return d.ready(ctx, c, 4, "")
	})
	if err != nil {
		return "", err
	}
	d.say("4 replicas are ready after %s", seconds(rollout))
	d.row("apply → 4 replicas ready (pull included)", "%s", seconds(rollout))
	service, err := c.Client.CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	page := "http://" + service.Spec.ClusterIP + "/"
	for _, h := range c.Hosts {
		out, err := c.Fetch(ctx, h.Name, page)
		if err != nil {
			return "", err
		}
		d.say("%s through the Service: %s", h.Name, line(out, "<p>"))
	}
	pod, err := d.onePod(ctx, c)
	if err != nil {
		return "", err
	}
	out, err := c.On(ctx, "1", c.Binary, "exec", pod, "--", "/web", "get", "http://web.default.svc.cluster.local/")
	if err != nil {
		return "", err
	}
	d.say("pod %s by DNS name: %s", pod, line(out, "<p>"))
	return page, nil
}

func line(out, with string) string {
	for l := range strings.Lines(out) {
		if strings.Contains(l, with) {
			return strings.TrimSpace(l)
		}
	}
	return strings.TrimSpace(out)
}

func (d *demo) pods(ctx context.Context, c *cluster.Cluster) ([]corev1.Pod, error) {
	list, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func (d *demo) onePod(ctx context.Context, c *cluster.Cluster) (string, error) {
	pods, err := d.pods(ctx, c)
	if err != nil || len(pods) == 0 {
		return "", errors.Join(err, errors.New("the application has no pods"))
	}
	return pods[0].Name, nil
}

// ready waits until the application has n ready pods on other nodes than away.
func (d *demo) ready(ctx context.Context, c *cluster.Cluster, n int, away string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return cluster.Eventually(ctx, func() error {
		pods, err := d.pods(ctx, c)
		if err != nil {
			return err
		}
		ready := 0
		for _, p := range pods {
			if p.Spec.NodeName == away || p.DeletionTimestamp != nil {
				continue
			}
			for _, condition := range p.Status.Conditions {
				if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if ready < n {
			return fmt.Errorf("%d of %d pods are ready", ready, n)
		}
		return nil
	})
}

// leader is the name of the host that leads.
func leader(ctx context.Context, c *cluster.Cluster) (string, error) {
	out, err := c.Ask(ctx, "status")
	if err != nil {
		return "", err
	}
	_, after, ok := strings.Cut(out, "leader ")
	name, _, _ := strings.Cut(after, ",")
	if !ok || name == "none" {
		return "", fmt.Errorf("no leader: %s", out)
	}
	return name, nil
}

// watchPage fetches the page through the Service from a host, 20 times a
// second, until the result is asked for.
func (d *demo) watchPage(ctx context.Context, c *cluster.Cluster, host, page string) (result func() string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	reader, writer := io.Pipe()
	var out strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The probe ends when its standard input does.
		_, _ = c.Exec(ctx, host, []string{self, "probe", page}, reader, &out, &out)
	}()
	return func() string {
		writer.Close()
		<-done
		cancel()
		return strings.TrimSpace(out.String())
	}, nil
}

// probe is the far side of watchPage, inside a host.
func probe(page string) {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answered, failed := 0, 0
	var gap, longest time.Duration
	last := time.Now()
	for {
		err := get(context.Background(), client, page)
		now := time.Now()
		if err == nil {
			answered++
			if gap > 0 {
				longest = max(longest, now.Sub(last))
			}
			gap, last = 0, now
		} else {
			failed++
			gap = now.Sub(last)
			longest = max(longest, gap)
		}
		select {
		case <-ended:
			if failed == 0 {
				fmt.Printf("never stopped: all %d fetches were answered\n", answered)
			} else {
				fmt.Printf("%d of %d fetches failed, the longest gap was %.2f s\n", failed, answered+failed, longest.Seconds())
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *demo) killLeader(ctx context.Context, c *cluster.Cluster, page string) error {
	chief, err := leader(ctx, c)
	if err != nil {
		return err
	}
	var survivor string
	for _, h := range c.Hosts {
		if h.Name != chief {
			survivor = h.Name
		}
	}
	result, err := d.watchPage(ctx, c, survivor, page)
	if err != nil {
		return err
	}
	client, err := c.ClientFor(survivor, func(r *rest.Config) { r.Timeout = 2 * time.Second })
	if err != nil {
		return err
	}
	if err := c.Kill(chief); err != nil {
		return err
	}
	d.say("killed conclave on %s, the leader", chief)
	n := 0
	away, err := took(func() error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return cluster.Eventually(ctx, func() error {
			n++
			_, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("after-%d", n)}}, metav1.CreateOptions{})
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("no write succeeded after the leader was killed: %w", err)
	}
	d.say("a write by way of %s succeeded after %s", survivor, seconds(away))
	d.row("leader killed → a write succeeded", "%s", seconds(away))
	// Long enough for gossip to have called the process dead, too.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(4 * time.Second):
	}
	answer := result()
	d.say("the page %s", answer)
	d.row("the page while the leader was away", "%s", answer)
	back, err := took(func() error {
		if err := c.Start(chief, "up"); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return cluster.Eventually(ctx, func() error {
			_, err := c.On(ctx, chief, c.Binary, "get", "nodes")
			return err
		})
	})
	if err != nil {
		return err
	}
	d.row("killed node started again → answers", "%s", seconds(back))
	return nil
}

func (d *demo) powerOff(ctx context.Context, c *cluster.Cluster, page string) error {
	if err := d.ready(ctx, c, 4, ""); err != nil {
		return err
	}
	victim, err := leader(ctx, c)
	if err != nil {
		return err
	}
	pods, err := d.pods(ctx, c)
	if err != nil {
		return err
	}
	// The host to lose is one with pods; the leader if it has any.
	counts := map[string]int{}
	for _, p := range pods {
		counts[p.Spec.NodeName]++
	}
	if counts[victim] == 0 {
		for name := range counts {
			victim = name
		}
	}
	var survivor string
	for _, h := range c.Hosts {
		if h.Name != victim {
			survivor = h.Name
		}
	}
	if c.Client, err = c.ClientFor(survivor, func(r *rest.Config) { r.Timeout = 2 * time.Second }); err != nil {
		return err
	}
	result, err := d.watchPage(ctx, c, survivor, page)
	if err != nil {
		return err
	}
	if err := c.PowerOff(victim); err != nil {
		return err
	}
	d.say("powered %s off, with %d pods", victim, counts[victim])
	replaced, err := took(func() error { return d.ready(ctx, c, 4, victim) })
	if err != nil {
		return err
	}
	d.say("4 replicas are ready on the other hosts after %s", seconds(replaced))
	d.row("host powered off → its pods replaced and ready", "%s", seconds(replaced))
	answer := result()
	d.say("the page %s", answer)
	d.row("the page while the host died", "%s", answer)
	return nil
}
