// Package lab makes hosts on one machine, for the demo, the tests and a user's
// own drills: each host is a set of network, mount, process and host-name
// namespaces joined to the others by a bridge, with an address, a data folder
// and a cgroup parent of its own, and runs the real binary with real
// containers.
//
// It owns one folder (state and the hosts' data), one bridge, one veth pair per
// host, one mounted file per host where hosts have disks of their own, and the
// cgroups below /conclave-lab/NAME; it touches nothing that it did not make, but
// for the clock function in the memory of a conclave whose clock it makes wrong
// (skew.go). Powering a host off kills the first process of its process
// namespace, and so everything that ran there: the kernel takes the mounts and
// links with it, as a power cut would, and only the data folder stays.
//
// A Lab value keeps no goroutine: every verb reads the state file, acts, and
// writes it back under a file lock, so that each can be its own short-lived
// command. The one process that stays is each host's init (see Init), which
// ends when the host is powered off.
package lab
