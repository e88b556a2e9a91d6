package proto

import "github.com/opencontainers/runtime-spec/specs-go"

// Spec is the part of an OCI runtime specification that is used here, under the
// names that the specification has for it. encoding/json keeps what it knows of
// a type and of all types in it, those of other systems too, for as long as
// the process lives; a pod process reads one specification or two.
type Spec struct {
	Version string         `json:"ociVersion"`
	Process *specs.Process `json:"process"`
	Root    *specs.Root    `json:"root"`
	Mounts  []specs.Mount  `json:"mounts,omitempty"`
	Linux   *Linux         `json:"linux"`
}

// Linux is the part of a Spec that is Linux' own.
type Linux struct {
	Resources         *specs.LinuxResources  `json:"resources,omitempty"`
	CgroupsPath       string                 `json:"cgroupsPath,omitempty"`
	Namespaces        []specs.LinuxNamespace `json:"namespaces,omitempty"`
	Devices           []specs.LinuxDevice    `json:"devices,omitempty"`
	Seccomp           *specs.LinuxSeccomp    `json:"seccomp,omitempty"`
	RootfsPropagation string                 `json:"rootfsPropagation,omitempty"`
	MaskedPaths       []string               `json:"maskedPaths,omitempty"`
	ReadonlyPaths     []string               `json:"readonlyPaths,omitempty"`
}

// OCI is the specification in the words of the specification's own package. It
// shares all that it points to.
func (s *Spec) OCI() *specs.Spec {
	return &specs.Spec{
		Version: s.Version, Process: s.Process, Root: s.Root, Mounts: s.Mounts,
		Linux: &specs.Linux{
			CgroupsPath: s.Linux.CgroupsPath, Namespaces: s.Linux.Namespaces, Resources: s.Linux.Resources,
			Devices: s.Linux.Devices, Seccomp: s.Linux.Seccomp, RootfsPropagation: s.Linux.RootfsPropagation,
			MaskedPaths: s.Linux.MaskedPaths, ReadonlyPaths: s.Linux.ReadonlyPaths,
		},
	}
}
