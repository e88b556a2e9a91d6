package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/yaml"

	"conclave/cli/internal/cli"
)

// These commands are enough to live without kubectl. They are thin: the server
// prints the tables, applies, and carries the streams.

func clientCommands(withData func(...cli.Flag) []cli.Flag, output cli.Flag) []*cli.Command {
	namespace := &cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Value: metav1.NamespaceDefault, Usage: "namespace of the objects"}
	all := &cli.BoolFlag{Name: "all-namespaces", Aliases: []string{"A"}, Usage: "objects of every namespace"}
	selector := &cli.StringFlag{Name: "selector", Aliases: []string{"l"}, Usage: "only objects with these labels"}
	config := &cli.PathFlag{Name: "kubeconfig", Usage: "talk to the cluster that `FILE` names, instead of the node on this machine"}
	file := &cli.StringFlag{Name: "filename", Aliases: []string{"f"}, Usage: "`FILE` of manifests, - for standard input"}
	container := &cli.StringFlag{Name: "container", Aliases: []string{"c"}, Usage: "container of the pod"}
	flags := func(more ...cli.Flag) []cli.Flag { return withData(append([]cli.Flag{namespace, config}, more...)...) }
	return []*cli.Command{
		{Name: "get", Usage: "show objects", ArgsUsage: "KIND [NAME…] | KIND/NAME…", Flags: flags(all, selector, output,
			&cli.BoolFlag{Name: "stale", Usage: "what any master has, even one that is cut off from the others"}), Action: runGet},
		{Name: "apply", Usage: "make objects as a manifest says (server-side apply)", Flags: flags(file, &cli.BoolFlag{Name: "force-conflicts", Usage: "take over fields that others manage"}), Action: runApply},
		{Name: "delete", Usage: "delete objects", ArgsUsage: "KIND NAME… | KIND/NAME…", Flags: flags(file, &cli.IntFlag{Name: "grace-period", Value: -1, Usage: "seconds that pods get to end"}), Action: runDelete},
		{Name: "logs", Usage: "show what a container printed", ArgsUsage: "POD", Flags: flags(container,
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on as it prints more"}, &cli.BoolFlag{Name: "previous", Aliases: []string{"p"}, Usage: "of the container before its last restart"},
			&cli.IntFlag{Name: "tail", Value: -1, Usage: "last lines only"}, &cli.BoolFlag{Name: "timestamps", Usage: "with the time of each line"}), Action: runLogs},
		{Name: "exec", Usage: "run a command in a container", ArgsUsage: "POD -- COMMAND…", Flags: flags(container,
			&cli.BoolFlag{Name: "stdin", Aliases: []string{"i"}, Usage: "pass standard input"}, &cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "with a terminal"}), Action: runExec},
	}
}

// kube is a client of the cluster and what it knows of its kinds.
type kube struct {
	config *rest.Config
	client *rest.RESTClient
	kinds  served
}

func newKube(c *cli.Context) (*kube, error) {
	raw := []byte(nil)
	if path := c.Path("kubeconfig"); path != "" {
		var err error
		if raw, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
	} else {
		var text string
		if err := ask(c, http.MethodGet, "/kubeconfig", nil, &text); err != nil {
			return nil, err
		}
		raw = []byte(text)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(raw)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "conclave/" + version
	config.WarningHandler = rest.NewWarningWriter(c.App.ErrWriter, rest.WarningWriterOptions{Deduplicate: true})
	config.QPS = -1 // one person's commands need no throttle
	config.NegotiatedSerializer = unstructuredSerializer()
	config.GroupVersion = &schema.GroupVersion{}
	config.APIPath = "/"
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, err
	}
	kinds, err := discover(c.Context, client)
	if err != nil {
		return nil, err
	}
	return &kube{config, client, kinds}, nil
}

// path is where a resource is, or one object of it.
func path(m *meta.RESTMapping, namespace, name string) string {
	parts := []string{"", "apis", m.Resource.Group, m.Resource.Version}
	if m.Resource.Group == "" {
		parts = []string{"", "api", m.Resource.Version}
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace && namespace != "" {
		parts = append(parts, "namespaces", namespace)
	}
	parts = append(parts, m.Resource.Resource)
	if name != "" {
		parts = append(parts, name)
	}
	return strings.Join(parts, "/")
}

// target is one kind, and names of it; no name means all.
type target struct {
	mapping *meta.RESTMapping
	names   []string
}

// targets reads `KIND [NAME…]`, `KIND,KIND` and `KIND/NAME…`.
func (k *kube) targets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, errors.New("name what you mean: KIND [NAME…], or KIND/NAME")
	}
	var all []target
	if strings.Contains(args[0], "/") {
		for _, arg := range args {
			kind, name, ok := strings.Cut(arg, "/")
			if !ok || name == "" {
				return nil, fmt.Errorf("%q: write every object as KIND/NAME, or one KIND before all names", arg)
			}
			mapping, err := k.kinds.word(kind)
			if err != nil {
				return nil, err
			}
			all = append(all, target{mapping, []string{name}})
		}
		return all, nil
	}
	kinds := strings.Split(args[0], ",")
	if args[0] == "all" {
		kinds = []string{"pods", "services", "deployments", "replicasets"}
	}
	for _, kind := range kinds {
		mapping, err := k.kinds.word(kind)
		if err != nil {
			return nil, err
		}
		all = append(all, target{mapping, args[1:]})
	}
	return all, nil
}

const tableAccept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

func runGet(c *cli.Context) error {
	k, err := newKube(c)
	if err != nil {
		return err
	}
	targets, err := k.targets(c.Args().Slice())
	if err != nil {
		return err
	}
	namespace := c.String("namespace")
	if c.Bool("all-namespaces") {
		namespace = ""
	}
	format := c.String("output")
	if !slices.Contains([]string{"", "wide", "name", "json", "yaml"}, format) {
		return fmt.Errorf("-o %q: use wide, name, json or yaml", format)
	}
	empty, printed := true, 0
	for _, t := range targets {
		names := t.names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			request := k.client.Get().AbsPath(path(t.mapping, namespace, name))
			if name == "" {
				request.Param("labelSelector", c.String("selector"))
			}
			if c.Bool("stale") {
				request.Param("resourceVersion", "0")
			}
			if format == "json" || format == "yaml" {
				raw, err := answer(c.Context, request.SetHeader("Accept", "application/json"))
				if err != nil {
					return err
				}
				if err := printObject(c.App.Writer, raw, format, printed); err != nil {
					return err
				}
				printed, empty = printed+1, false
				continue
			}
			table := &metav1.Table{}
			if err := getTable(c.Context, request, table); err != nil {
				return err
			}
			if len(table.Rows) == 0 {
				continue
			}
			if printed > 0 && format != "name" {
				fmt.Fprintln(c.App.Writer)
			}
			printed, empty = printed+1, false
			if err := printTable(c.App.Writer, table, t.mapping, format, c.Bool("all-namespaces"), len(targets) > 1); err != nil {
				return err
			}
		}
	}
	if empty {
		where := ""
		if namespace != "" {
			where = " in " + namespace + " namespace"
		}
		fmt.Fprintf(c.App.ErrWriter, "No resources found%s.\n", where)
	}
	return nil
}

func printObject(w io.Writer, raw []byte, format string, before int) (err error) {
	if format == "yaml" {
		if before > 0 {
			fmt.Fprintln(w, "---")
		}
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return err
		}
	}
	_, err = w.Write(append([]byte(strings.TrimSpace(string(raw))), '\n'))
	return err
}

// printTable prints what the server made a table of.
func printTable(w io.Writer, table *metav1.Table, m *meta.RESTMapping, format string, namespaced, prefixed bool) error {
	out := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	var head []string
	var shown []int
	for i, column := range table.ColumnDefinitions {
		if column.Priority == 0 || format == "wide" {
			head, shown = append(head, strings.ToUpper(column.Name)), append(shown, i)
		}
	}
	namespaced = namespaced && m.Scope.Name() == meta.RESTScopeNameNamespace
	if namespaced {
		head = append([]string{"NAMESPACE"}, head...)
	}
	if format != "name" {
		fmt.Fprintln(out, strings.Join(head, "\t"))
	}
	for _, row := range table.Rows {
		object := metav1.PartialObjectMetadata{}
		if err := json.Unmarshal(row.Object.Raw, &object); err != nil {
			return err
		}
		if format == "name" {
			group := ""
			if m.Resource.Group != "" {
				group = "." + m.Resource.Group
			}
			fmt.Fprintf(out, "%s%s/%s\n", strings.ToLower(m.GroupVersionKind.Kind), group, object.Name)
			continue
		}
		var cells []string
		if namespaced {
			cells = append(cells, object.Namespace)
		}
		for n, i := range shown {
			cell := fmt.Sprint(row.Cells[i])
			if n == 0 && prefixed {
				cell = strings.ToLower(m.GroupVersionKind.Kind) + "/" + cell
			}
			cells = append(cells, cell)
		}
		fmt.Fprintln(out, strings.Join(cells, "\t"))
	}
	return out.Flush()
}

// manifests reads the objects of a file.
func manifests(c *cli.Context) ([]*unstructured.Unstructured, error) {
	name := c.String("filename")
	in := c.App.Reader
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	decoder := utilyaml.NewYAMLOrJSONDecoder(in, 4096)
	var all []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(object.Object) == 0 {
			continue // an empty document between two ---
		}
		if object.GetKind() == "" || object.GetAPIVersion() == "" {
			return nil, fmt.Errorf("%s: object %d has no kind and apiVersion", name, len(all)+1)
		}
		all = append(all, object)
	}
}

// forEachManifest runs do on each object of the file, which has a namespace then.
func (k *kube) forEachManifest(c *cli.Context, do func(m *meta.RESTMapping, o *unstructured.Unstructured) error) error {
	objects, err := manifests(c)
	if err != nil {
		return err
	}
	if len(objects) == 0 {
		return fmt.Errorf("%s holds no objects", c.String("filename"))
	}
	for _, o := range objects {
		m, err := k.kinds.kind(o.GroupVersionKind())
		if err != nil {
			return err
		}
		if m.Scope.Name() == meta.RESTScopeNameNamespace && o.GetNamespace() == "" {
			o.SetNamespace(c.String("namespace"))
		}
		if err := do(m, o); err != nil {
			return err
		}
	}
	return nil
}

func runApply(c *cli.Context) error {
	if c.String("filename") == "" {
		return errors.New("apply needs a manifest: -f FILE, or -f - for standard input")
	}
	k, err := newKube(c)
	if err != nil {
		return err
	}
	return k.forEachManifest(c, func(m *meta.RESTMapping, o *unstructured.Unstructured) error {
		if o.GetName() == "" {
			return fmt.Errorf("a %s in %s has no name: apply needs one", m.GroupVersionKind.Kind, c.String("filename"))
		}
		body, err := o.MarshalJSON()
		if err != nil {
			return err
		}
		request := k.client.Patch(types.ApplyPatchType).AbsPath(path(m, o.GetNamespace(), o.GetName())).
			Param("fieldManager", "conclave").Param("fieldValidation", metav1.FieldValidationStrict).
			SetHeader("Accept", "application/json").Body(body)
		if c.Bool("force-conflicts") {
			request.Param("force", "true")
		}
		if _, err := answer(c.Context, request); err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "%s/%s applied\n", strings.ToLower(m.GroupVersionKind.Kind), o.GetName())
		return nil
	})
}

func runDelete(c *cli.Context) error {
	k, err := newKube(c)
	if err != nil {
		return err
	}
	remove := func(m *meta.RESTMapping, namespace, name string) error {
		options := &metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"}}
		if grace := int64(c.Int("grace-period")); grace >= 0 {
			options.GracePeriodSeconds = &grace
		}
		body, err := json.Marshal(options)
		if err != nil {
			return err
		}
		_, err = answer(c.Context, k.client.Delete().AbsPath(path(m, namespace, name)).SetHeader("Accept", "application/json").Body(body))
		if err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "%s %q deleted\n", strings.ToLower(m.GroupVersionKind.Kind), name)
		return nil
	}
	if c.String("filename") != "" {
		return k.forEachManifest(c, func(m *meta.RESTMapping, o *unstructured.Unstructured) error {
			err := remove(m, o.GetNamespace(), o.GetName())
			if apierrors.IsNotFound(err) {
				return nil // as the manifest wants it
			}
			return err
		})
	}
	targets, err := k.targets(c.Args().Slice())
	if err != nil {
		return err
	}
	for _, t := range targets {
		if len(t.names) == 0 {
			return errors.New("delete needs names: KIND NAME…, KIND/NAME, or -f FILE")
		}
		for _, name := range t.names {
			if err := remove(t.mapping, c.String("namespace"), name); err != nil {
				return err
			}
		}
	}
	return nil
}

func runLogs(c *cli.Context) error {
	if c.Args().Len() != 1 {
		return errors.New("logs needs one pod: conclave logs POD")
	}
	k, err := newKube(c)
	if err != nil {
		return err
	}
	request := k.client.Get().AbsPath("/api/v1/namespaces", c.String("namespace"), "pods", c.Args().First(), "log")
	for flag, param := range map[string]string{"follow": "follow", "previous": "previous", "timestamps": "timestamps"} {
		if c.Bool(flag) {
			request.Param(param, "true")
		}
	}
	if c.String("container") != "" {
		request.Param("container", c.String("container"))
	}
	if tail := c.Int("tail"); tail >= 0 {
		request.Param("tailLines", fmt.Sprint(tail))
	}
	stream, err := request.Stream(c.Context)
	if err != nil {
		return err
	}
	defer stream.Close()
	if _, err := io.Copy(c.App.Writer, stream); err != nil && c.Context.Err() == nil {
		return err
	}
	return nil
}

func runExec(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) > 1 && args[1] == "--" {
		args = slices.Delete(args, 1, 2)
	}
	if len(args) < 2 {
		return errors.New("exec needs a pod and a command: conclave exec POD -- COMMAND…")
	}
	k, err := newKube(c)
	if err != nil {
		return err
	}
	tty := c.Bool("tty")
	stdin, isFile := c.App.Reader.(*os.File)
	if tty && (!isFile || !term.IsTerminal(int(stdin.Fd()))) {
		fmt.Fprintln(c.App.ErrWriter, "standard input is no terminal: going on without one")
		tty = false
	}
	query := url.Values{"command": args[1:], "stdout": {"true"}}
	if c.Bool("stdin") {
		query.Set("stdin", "true")
	}
	if tty {
		query.Set("tty", "true")
	} else {
		query.Set("stderr", "true")
	}
	if c.String("container") != "" {
		query.Set("container", c.String("container"))
	}
	target := k.client.Post().AbsPath("/api/v1/namespaces", c.String("namespace"), "pods", args[0], "exec").URL()
	target.RawQuery = query.Encode()
	modern, err := remotecommand.NewWebSocketExecutor(k.config, http.MethodGet, target.String())
	if err != nil {
		return err
	}
	older, err := remotecommand.NewSPDYExecutor(k.config, http.MethodPost, target)
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewFallbackExecutor(modern, older, httpstream.IsUpgradeFailure)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdout: c.App.Writer, Tty: tty}
	if c.Bool("stdin") {
		options.Stdin = c.App.Reader
	}
	if tty {
		restore, err := term.MakeRaw(int(stdin.Fd()))
		if err != nil {
			return err
		}
		defer term.Restore(int(stdin.Fd()), restore)
		sizes := newTerminalSizes(c.Context, int(stdin.Fd()))
		defer sizes.stop()
		options.TerminalSizeQueue = sizes
	} else {
		options.Stderr = c.App.ErrWriter
	}
	err = executor.StreamWithContext(c.Context, options)
	if exit, ok := errors.AsType[utilexec.CodeExitError](err); ok {
		return exitCode(exit.Code)
	}
	return err
}

// terminalSizes tells the far end how large the terminal is, now and after
// each change.
type terminalSizes struct {
	ctx     context.Context
	fd      int
	changed chan os.Signal
	first   bool
}

func newTerminalSizes(ctx context.Context, fd int) *terminalSizes {
	t := &terminalSizes{ctx: ctx, fd: fd, changed: make(chan os.Signal, 1), first: true}
	signal.Notify(t.changed, syscall.SIGWINCH)
	return t
}

func (t *terminalSizes) stop() { signal.Stop(t.changed) }

func (t *terminalSizes) Next() *remotecommand.TerminalSize {
	if !t.first {
		select {
		case <-t.changed:
		case <-t.ctx.Done():
			return nil
		}
	}
	t.first = false
	width, height, err := term.GetSize(t.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}

// unstructuredSerializer is enough for errors and discovery: everything else is
// sent and read as raw JSON.
func unstructuredSerializer() runtime.NegotiatedSerializer {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.Unversioned)
	return serializer.NewCodecFactory(scheme).WithoutConversion()
}

// answer sends a request and returns what the server sent. A refusal has the
// server's own words, which client-go's Raw and DoRaw leave out; DoRaw would
// leave out warnings too.
func answer(ctx context.Context, request *rest.Request) ([]byte, error) {
	result := request.Do(ctx)
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

// getTable asks the server to print.
func getTable(ctx context.Context, request *rest.Request, table *metav1.Table) error {
	raw, err := answer(ctx, request.SetHeader("Accept", tableAccept))
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, table)
}
