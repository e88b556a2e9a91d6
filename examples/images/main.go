// Command images makes the images of the examples and writes each as NAME.tar,
// for `conclave image import`.
//
//	go run ./examples/images -o /tmp nginx redis
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"conclave/test/images"
)

func main() {
	dir := flag.String("o", ".", "folder to write the tars to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := build(ctx, *dir, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, dir string, names []string) error {
	known := slices.Sorted(maps.Keys(images.Recipes))
	if len(names) == 0 {
		names = known
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, n := range names {
		recipe, ok := images.Recipes[n]
		if !ok {
			return fmt.Errorf("no image %q: there are %s", n, strings.Join(known, ", "))
		}
		img, err := images.Build(ctx, recipe)
		if err != nil {
			return err
		}
		file := filepath.Join(dir, n+".tar")
		if err := images.Save(img, recipe.Name, file); err != nil {
			return err
		}
		fmt.Printf("%s  %s\n", file, recipe.Name)
	}
	return nil
}
