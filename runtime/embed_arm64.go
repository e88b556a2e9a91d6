package runtime

import "embed"

// One folder for each architecture, so that no binary carries another's.
//
//go:embed embedded/arm64
var embedded embed.FS
