// Command conclave turns machines into a Kubernetes cluster of equals.
package main

import (
	"os"

	"conclave/cli"
	"conclave/lab"
	"conclave/network/wireguard"
)

func main() {
	if lab.IsInit() {
		os.Exit(lab.Init())
	}
	if wireguard.IsProcess() {
		os.Exit(wireguard.Main())
	}
	os.Exit(cli.Main(os.Args))
}
