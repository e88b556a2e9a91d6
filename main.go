// Command conclave turns machines into a Kubernetes cluster of equals.
package main

import (
	"os"

	"conclave/cli"
	"conclave/lab"
)

func main() {
	if lab.IsInit() {
		os.Exit(lab.Init())
	}
	os.Exit(cli.Main(os.Args))
}
