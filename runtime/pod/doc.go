// Command pod is the small program that stays with each pod.
//
// It owns the processes of one pod: it starts each container through
// libcontainer, is their parent, writes their output to files in the CRI log
// format, and keeps a record of each on a tmpfs. The engine starts it in a
// session and a cgroup of its own and speaks to it over a unix socket
// (internal/proto); whether the engine lives is nothing to it. It ends when it
// is told to (shutdown), having killed what still ran.
//
// What always holds: a record is on disk before anybody is told of it; a
// container's exit is recorded after the last byte of its output was written
// to its log.
//
// A pod that must not run twice has a guard here (fence.go), which kills what is
// in the pod when the instant comes until which the node may run it, as read in
// a page of memory that the engine moves on; it asks nobody, and lives only
// while the pod has containers.
//
// The process itself lives in the pod's network, IPC and UTS namespaces, so
// its containers inherit them and join nothing but the pod's user namespace, if
// it has one: who holds that is started by the engine. With a shared process
// namespace, its init is a child that does nothing but reap (pause.go), and
// does so before Go starts, because every such pod pays for it.
//
// It is not a subreaper: in a process namespace orphans go to that namespace's
// init, and those of a pod in the host's go to the host's; they are found and
// killed by their cgroup. A reaper here would compete with libcontainer for
// the exit codes of its children.
//
// Processes that libcontainer forgot are waited for all the same (births.go).
//
// Goroutines: one accepts connections; one is the guard of a fenced pod; one serves each connection and ends
// with it; per container one waits for the exit and one per output stream
// copies, all ending with the container. None of them holds a thread: pidfds
// and pipes wait in Go's poller. Memory is the point of this program:
// memory.go says when it gives some back to the kernel.
package main
