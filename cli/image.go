package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"conclave/cli/internal/cli"
	"conclave/runtime"
)

func imageCommand(withData func(...cli.Flag) []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "image", Usage: "images, on this node and in the cluster",
		Subcommands: []*cli.Command{
			{Name: "pull", Usage: "bring images to this node, from another node or their registry", ArgsUsage: "IMAGE…", Flags: withData(
				&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "`NAME` for the registry (default: the node's credentials)"},
				&cli.BoolFlag{Name: "password-stdin", Usage: "read the password for the registry from standard input"},
			), Action: pullImages},
			{Name: "import", Usage: "read images from docker-archive or OCI layout tars; - is standard input", ArgsUsage: "FILE…", Flags: withData(), Action: importImages},
			{Name: "ls", Usage: "list images and the nodes that have them", Flags: withData(&cli.BoolFlag{Name: "here", Usage: "those of this node alone"}), Action: listImages},
			{Name: "rm", Usage: "remove images from this node by name, digest or ID", ArgsUsage: "IMAGE…", Flags: withData(), Action: func(c *cli.Context) error {
				if !c.Args().Present() {
					return fmt.Errorf("image rm needs an image: `conclave image ls` lists them")
				}
				for _, ref := range c.Args().Slice() {
					var nothing any
					if err := ask(c, http.MethodDelete, "/images?ref="+url.QueryEscape(ref), nil, &nothing); err != nil {
						return err
					}
				}
				return nil
			}},
			{Name: "prune", Usage: "remove the images that nothing on this node uses", Flags: withData(), Action: pruneImages},
		},
	}
}

func listImages(c *cli.Context) error {
	path := "/images"
	if c.Bool("here") {
		path += "?here=1"
	}
	var images []imageRow
	if err := ask(c, http.MethodGet, path, nil, &images); err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tID\tSIZE\tNODES")
	for _, i := range images {
		names := i.Names
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, name := range names {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", name, shortID(i.ID), mebibytes(i.Size), strings.Join(i.Nodes, ","))
		}
	}
	return table.Flush()
}

func shortID(id string) string { return fmt.Sprintf("%.12s", strings.TrimPrefix(id, "sha256:")) }

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func pullImages(c *cli.Context) error {
	if !c.Args().Present() {
		return errors.New("image pull needs the name of an image")
	}
	credential := runtime.Credential{Username: c.String("username")}
	if c.Bool("password-stdin") {
		password, err := io.ReadAll(io.LimitReader(c.App.Reader, 64<<10))
		if err != nil {
			return fmt.Errorf("read the password: %w", err)
		}
		credential.Password = strings.TrimRight(string(password), "\r\n")
	}
	if (credential.Username == "") != (credential.Password == "") {
		return errors.New("--username and --password-stdin come together")
	}
	var body []byte
	if credential.Username != "" {
		var err error
		if body, err = json.Marshal(credential); err != nil {
			return err
		}
	}
	for _, ref := range c.Args().Slice() {
		if err := pullImage(c, ref, body); err != nil {
			return err
		}
	}
	return nil
}

// pullImage shows how far it is in one line on a terminal, and elsewhere only
// what it came to.
func pullImage(c *cli.Context, ref string, credential []byte) error {
	response, err := call(c, http.MethodPost, "/images/pull?ref="+url.QueryEscape(ref), bytes.NewReader(credential))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	terminal := isTerminal(c.App.Writer)
	clear := ""
	if terminal {
		clear = "\r\x1b[K"
	} else {
		fmt.Fprintf(c.App.Writer, "pulling %s\n", ref)
	}
	lines := json.NewDecoder(response.Body)
	for {
		var news pullNews
		if err := lines.Decode(&news); err != nil {
			return fmt.Errorf("pull %s: the node ended before it was done: %w", ref, err)
		}
		switch {
		case news.Error != "":
			fmt.Fprint(c.App.Writer, clear)
			return errors.New(news.Error)
		case news.Image != nil:
			fmt.Fprintf(c.App.Writer, "%spulled %s (%s, %s)\n", clear, ref, shortID(news.Image.ID), mebibytes(news.Image.Size))
			return nil
		case terminal:
			fmt.Fprintf(c.App.Writer, "%spulling %s: %s of %s", clear, ref, mebibytes(news.Done), mebibytes(news.Total))
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func pruneImages(c *cli.Context) error {
	var answer pruned
	if err := ask(c, http.MethodPost, "/images/prune", nil, &answer); err != nil {
		return err
	}
	var freed int64
	for _, i := range answer.Images {
		freed += i.Size
		fmt.Fprintf(c.App.Writer, "removed %s\n", strings.Join(append(i.Names, i.ID)[:max(1, len(i.Names))], ", "))
	}
	fmt.Fprintf(c.App.Writer, "%d images removed, %s\n", len(answer.Images), mebibytes(freed))
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

func importImages(c *cli.Context) error {
	if !c.Args().Present() {
		return fmt.Errorf("image import needs a tar file, or - for standard input")
	}
	for _, file := range c.Args().Slice() {
		var in io.Reader = c.App.Reader
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		var images []imageRow
		if err := ask(c, http.MethodPost, "/images", in, &images); err != nil {
			return fmt.Errorf("import %s: %w", file, err)
		}
		for _, i := range images {
			fmt.Fprintf(c.App.Writer, "imported %s\n", strings.Join(append(i.Names, i.ID)[:max(1, len(i.Names))], ", "))
		}
	}
	return nil
}
