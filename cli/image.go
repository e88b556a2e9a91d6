package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// imageRow is what the node says of an image.
type imageRow struct {
	ID    string
	Names []string
	Size  int64
}

func imageCommand(withData func(...cli.Flag) []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "image", Usage: "the images on this node",
		Subcommands: []*cli.Command{
			{Name: "import", Usage: "read images from docker-archive or OCI layout tars; - is standard input", ArgsUsage: "FILE…", Flags: withData(), Action: importImages},
			{Name: "ls", Usage: "list images", Flags: withData(), Action: func(c *cli.Context) error {
				var images []imageRow
				if err := ask(c, http.MethodGet, "/images", nil, &images); err != nil {
					return err
				}
				table := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
				fmt.Fprintln(table, "IMAGE\tID\tSIZE")
				for _, i := range images {
					names := i.Names
					if len(names) == 0 {
						names = []string{"<none>"}
					}
					for _, name := range names {
						fmt.Fprintf(table, "%s\t%.12s\t%.1f MiB\n", name, strings.TrimPrefix(i.ID, "sha256:"), float64(i.Size)/(1<<20))
					}
				}
				return table.Flush()
			}},
			{Name: "rm", Usage: "remove images by name, digest or ID", ArgsUsage: "IMAGE…", Flags: withData(), Action: func(c *cli.Context) error {
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
		},
	}
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
