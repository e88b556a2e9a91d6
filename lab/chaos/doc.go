// Package chaos drills a lab cluster: it breaks what the guarantees say may
// break, in an order that a seed repeats, while clients, watchers and probers
// note what they were told; and judges afterwards whether any of it was a lie.
//
// # What it owns
//
// The faults in force on the lab's hosts, the namespace "chaos" of the cluster
// and the workload in it, and the history of the run.
//
// # What always holds
//
//   - Which fault comes next is a pure function of the seed, the number of the
//     step and what was observed (Plan). Without Beyond it never takes away
//     more voters than the cluster promises to bear, and none before the
//     master set is whole again.
//   - The judges (judge.go, watch.go) are functions of what was recorded. A
//     write whose outcome nobody knows may have happened at any time after it
//     was sent, or never; one that was refused never.
//   - All times are this machine's own steady clock, whatever the hosts' wall
//     clocks are made to show.
//
// # Threads
//
// Run starts one goroutine for each client, watcher and prober, one that
// observes (which asks all hosts at once), and itself sows the faults. All end
// with the context that Run gives them, and Run returns after them.
package chaos
