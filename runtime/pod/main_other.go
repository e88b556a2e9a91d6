//go:build !linux || !cgo

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "conclave-pod was built without cgo and cannot start containers: build it with CGO_ENABLED=1 on Linux")
	os.Exit(1)
}
