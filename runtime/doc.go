// Package runtime owns containers: images, root filesystems, OCI specs and
// processes.
package runtime
