package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"golang.org/x/term"

	"conclave/cli/internal/cli"
	"conclave/snapshot"
)

// --- in the server ----------------------------------------------------------------

// statePath is where a master hands out the whole cluster, secrets included, to
// its own machine's root and to nodes that may be masters.
const statePath = "/conclave/v1/state"

// syncLimit is how long a snapshot waits to be the newest state.
const syncLimit = 15 * time.Second

// takeSnapshot is the cluster as this master has it, with everything that was
// acknowledged before the call, unless it may be old.
func (s *Server) takeSnapshot(ctx context.Context, m *master, stale bool) (snapshot.Content, error) {
	if !stale {
		try, cancel := context.WithTimeout(ctx, syncLimit)
		defer cancel()
		if err := m.consensus.Sync(try); err != nil {
			return snapshot.Content{}, fmt.Errorf("%w: to save what this node has, old as it may be, say --stale", err)
		}
	}
	state := m.consensus.State()
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() { // ends when the reader has all, or with ctx
		defer stop()
		w.CloseWithError(state.Write(w))
	}()
	cluster, _ := s.node.Cluster()
	return snapshot.Content{
		Header: snapshot.Header{
			Cluster: cluster.ID, Revision: state.Revision(), Made: time.Now().UTC().Truncate(time.Second),
			Node: s.node.Name(), Version: version, Incarnation: m.life.Number,
		},
		Secrets: m.authority.Bundle(), State: r,
	}, nil
}

// serveState streams the cluster. A stream that breaks off is an error to its
// reader.
func (s *Server) serveState(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	m := s.master.Load()
	if m == nil || !m.ready.Load() {
		s.passState(ctx, w, r)
		return
	}
	content, err := s.takeSnapshot(ctx, m, r.URL.Query().Has("stale"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := content.Stream(w); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// passState fetches the stream from a master.
func (s *Server) passState(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	failed := errors.New("no master is known")
	for _, id := range s.masters() {
		if id == s.node.ID() {
			continue
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+id+statePath+"?"+r.URL.RawQuery, nil)
		if err != nil {
			failed = err
			break
		}
		answer, err := s.dialer.HTTP(id).RoundTrip(request)
		if err != nil {
			failed = err
			continue
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		if _, err := io.Copy(w, answer.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		return
	}
	http.Error(w, fmt.Sprintf("no master hands out the state: %v", failed), http.StatusServiceUnavailable)
}

// snapshots runs the schedule while this node leads.
func (s *Server) snapshots(m *master, config snapshot.Config) *snapshot.Runner {
	config.Take = func(ctx context.Context) (snapshot.Content, error) { return s.takeSnapshot(ctx, m, false) }
	config.Dir = s.config.DataDir
	runner := snapshot.New(config)
	m.snapshots.Store(runner)
	return runner
}

// --- the commands -----------------------------------------------------------------

func snapshotCommand(withData func(...cli.Flag) []cli.Flag) *cli.Command {
	s3 := []cli.Flag{
		&cli.StringFlag{Name: "endpoint", Usage: "address of the S3 server (default: AWS's)", EnvVars: []string{"CONCLAVE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}},
		&cli.StringFlag{Name: "region", Usage: "region of the bucket", EnvVars: []string{"CONCLAVE_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"}},
	}
	passphrase := &cli.PathFlag{Name: "passphrase-file", Usage: "`FILE` with the passphrase (or set CONCLAVE_SNAPSHOT_PASSPHRASE, or type it)"}
	return &cli.Command{
		Name: "snapshot", Usage: "save and restore a whole cluster",
		Subcommands: []*cli.Command{
			{
				Name: "save", Usage: "write the cluster into one encrypted file", ArgsUsage: "FILE|FOLDER/|s3://BUCKET/KEY", Action: runSave,
				Flags: withData(append(s3, passphrase,
					&cli.StringSliceFlag{Name: "recipient", Usage: "encrypt for this key of `conclave snapshot key` instead of a passphrase; may be repeated"},
					&cli.BoolFlag{Name: "stale", Usage: "save what this node has, even if it is cut off from the others"})...),
			},
			{
				Name: "restore", Usage: "found the cluster of a snapshot anew on this machine, and start this node", ArgsUsage: "FILE|s3://BUCKET/KEY", Action: runRestore,
				Flags: withData(append(append(nodeFlags(), s3...), passphrase,
					&cli.PathFlag{Name: "identity", Usage: "`FILE` of the key that the snapshot was encrypted for"},
					&cli.BoolFlag{Name: "give-up-newer", Usage: "restore although nodes answer that have newer state"})...),
			},
			{Name: "ls", Usage: "list the snapshots in a folder or bucket, or say what one file is", ArgsUsage: "FILE|FOLDER|s3://BUCKET/PREFIX", Action: runSnapshots, Flags: s3},
			{Name: "key", Usage: "make a key pair: the file opens snapshots, the recipient that is printed is for making them", ArgsUsage: "FILE", Action: runKey},
		},
	}
}

// s3Settings are the credentials and what the flags say.
func s3Settings(c *cli.Context) snapshot.S3 {
	s := snapshot.S3FromEnvironment(os.Getenv)
	if endpoint := c.String("endpoint"); endpoint != "" {
		s.Endpoint = endpoint
	}
	if region := c.String("region"); region != "" {
		s.Region = region
	}
	return s
}

// oneArgument is what a command is about.
func oneArgument(c *cli.Context, what string) (string, error) {
	if c.Args().Len() != 1 {
		return "", fmt.Errorf("snapshot %s needs %s: %s", c.Command.Name, what, c.Command.ArgsUsage)
	}
	return c.Args().First(), nil
}

// passphrase is what a file, the environment or somebody at the terminal says.
func passphrase(c *cli.Context, twice bool) (string, error) {
	if path := c.Path("passphrase-file"); path != "" {
		raw, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("--passphrase-file: %w", err)
		}
		return strings.TrimRight(string(raw), "\r\n"), nil
	}
	if text := os.Getenv("CONCLAVE_SNAPSHOT_PASSPHRASE"); text != "" {
		return text, nil
	}
	in, ok := c.App.Reader.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", errors.New("a snapshot holds the cluster's keys and is encrypted: give --passphrase-file, CONCLAVE_SNAPSHOT_PASSPHRASE, or a key of `conclave snapshot key`")
	}
	read := func(prompt string) (string, error) {
		fmt.Fprint(c.App.ErrWriter, prompt)
		defer fmt.Fprintln(c.App.ErrWriter)
		text, err := term.ReadPassword(int(in.Fd()))
		return string(text), err
	}
	text, err := read("passphrase of the snapshot: ")
	if err != nil || !twice {
		return text, err
	}
	again, err := read("once more: ")
	if err == nil && again != text {
		err = errors.New("the two passphrases differ")
	}
	return text, err
}

func runSave(c *cli.Context) error {
	where, err := oneArgument(c, "a place to save to")
	if err != nil {
		return err
	}
	place, name, err := snapshot.Locate(where, s3Settings(c))
	if err != nil {
		return err
	}
	recipients, err := snapshot.Recipients(strings.Join(c.StringSlice("recipient"), " "))
	if err != nil {
		return fmt.Errorf("--recipient: %w", err)
	}
	if len(recipients) == 0 {
		text, err := passphrase(c, true)
		if err != nil {
			return err
		}
		r, err := snapshot.PassphraseRecipient(text)
		if err != nil {
			return err
		}
		recipients = []age.Recipient{r}
	}
	query := ""
	if c.Bool("stale") {
		query = "?stale"
	}
	answer, err := call(c, http.MethodGet, "/state"+query, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := snapshot.ReadStream(answer.Body)
	if err != nil {
		return fmt.Errorf("read the cluster's state: %w", err)
	}
	temp, err := os.CreateTemp(c.String("data-dir"), "snapshot-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := snapshot.Write(temp, content, recipients...); err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	size, err := temp.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = temp.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	if name == "" {
		name = content.Header.Name()
	}
	if err := place.Put(c.Context, name, temp, size); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "saved cluster %.8s at revision %d: %s in %s, %d bytes\n", content.Header.Cluster, content.Header.Revision, name, place, size)
	return nil
}

// fetch brings a snapshot to where it can be read twice. The file is the
// caller's to close; what was fetched for it goes with the function returned.
func fetch(ctx context.Context, place snapshot.Place, name, dir string) (_ *os.File, remove func(), err error) {
	if folder, ok := place.(snapshot.Folder); ok {
		file, err := os.Open(string(folder) + "/" + name)
		return file, func() {}, err
	}
	from, err := place.Get(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	temp, err := os.CreateTemp(dir, "snapshot-*")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { os.Remove(temp.Name()) }
	if _, err := io.Copy(temp, from); err != nil {
		temp.Close()
		remove()
		return nil, nil, fmt.Errorf("fetch %s%s: %w", place, name, err)
	}
	return temp, remove, nil
}

func runRestore(c *cli.Context) error {
	where, err := oneArgument(c, "a snapshot")
	if err != nil {
		return err
	}
	config, err := serverConfig(c)
	if err != nil {
		return err
	}
	if config.NoMaster {
		return errors.New("the first node of a cluster is its first master: leave --no-master away")
	}
	place, name, err := snapshot.Locate(where, s3Settings(c))
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("%s is a folder: `conclave snapshot ls %s` names the snapshots in it", where, where)
	}
	var keys []age.Identity
	if path := c.Path("identity"); path != "" {
		raw, err := os.ReadFile(path)
		if err == nil {
			keys, err = snapshot.Identities(bytes.NewReader(raw))
		}
		if err != nil {
			return fmt.Errorf("--identity: %w", err)
		}
	} else {
		text, err := passphrase(c, false)
		if err != nil {
			return err
		}
		key, err := snapshot.PassphraseIdentity(text)
		if err != nil {
			return err
		}
		keys = []age.Identity{key}
	}
	config.Restore = &restoration{
		giveUpNewer: c.Bool("give-up-newer"),
		open: func(ctx context.Context) (restored, func(), error) {
			file, remove, err := fetch(ctx, place, name, config.DataDir)
			if err != nil {
				return restored{}, nil, err
			}
			done := func() { file.Close(); remove() }
			content, err := snapshot.Open(file, keys...)
			if err != nil {
				done()
				return restored{}, nil, fmt.Errorf("%s: %w", where, err)
			}
			return restored{
				what: fmt.Sprintf("the snapshot of %s (revision %d)", content.Header.Made.Format(time.RFC3339), content.Header.Revision),
				life: content.Header.Incarnation, cluster: content.Header.Cluster, bundle: content.Secrets, state: content.State,
			}, done, nil
		},
	}
	return serve(c.Context, config)
}

func runSnapshots(c *cli.Context) error {
	where, err := oneArgument(c, "a place to look at")
	if err != nil {
		return err
	}
	place, name, err := snapshot.Locate(where, s3Settings(c))
	if err != nil {
		return err
	}
	if folder, ok := place.(snapshot.Folder); ok && name != "" {
		file, err := os.Open(string(folder) + "/" + name)
		if err != nil {
			return err
		}
		defer file.Close()
		head, err := snapshot.ReadHeader(file)
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		out := json.NewEncoder(c.App.Writer)
		out.SetIndent("", "  ")
		return out.Encode(head)
	}
	if name != "" { // a prefix without its slash
		if place, _, err = snapshot.Locate(where+"/", s3Settings(c)); err != nil {
			return err
		}
	}
	all, err := place.List(c.Context)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tMADE\tREVISION\tSIZE")
	for _, e := range all {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\n", e.Name, e.Made.Format(time.RFC3339), e.Revision, e.Size)
	}
	return table.Flush()
}

func runKey(c *cli.Context) error {
	path, err := oneArgument(c, "a file for the private key")
	if err != nil {
		return err
	}
	file, recipient, err := snapshot.NewKey()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = out.WriteString(file); err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, recipient)
	return nil
}
