//go:build !amd64 && !arm64

package runtime

import "embed"

// No program is built for this architecture: Config.PodBinary may name one.
var embedded embed.FS
