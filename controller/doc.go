// Package controller owns the objects that are made from other objects: one
// reconciler per kind, run by the leader alone.
//
// # What always holds
//
//   - Reconciling from the whole state is the only way of working; an event is
//     a hint which key to look at. Everything is reconciled once at the start,
//     after every resource has been listed, and again after every gap in a
//     watch, because a gap ends in a list that is compared with what is known.
//     So there is no periodic pass: a watch either delivers or says that it
//     did not. What falls due by time alone (deadlines, tolerations, expiry, the
//     next look of an autoscaler at what pods use) is asked for by the
//     reconciliation that saw it.
//   - A controller reads its own writes. The cache is an index of pointers to
//     the store's immutable objects and takes in the result of each write
//     before the write returns; older news that arrives later is dropped by
//     its revision, and an object deleted here is not revived by it. This
//     makes Kubernetes' expectations unnecessary.
//   - One key is reconciled by one worker at a time.
//   - No two controllers own the same output: New refuses.
//   - Every change is made on a deep copy and written with the version that it
//     was made from; a conflict is a reason to look again, not an error.
//
// # Threads
//
// Run starts one follower per resource and, while there are definitions of
// custom resources, one for each of these, the workers of each controller, one
// goroutine that writes events and one that waits for news of liveness. All
// end with Run's context, and Run returns after them; a resource that cannot
// be followed ends them all. A queue has no goroutine of its own, and a timer
// only while something is due later. At rest nothing runs and nothing is
// written; while there is a HorizontalPodAutoscaler, its worker asks nodes every
// 15 s what pods use, and writes what has changed.
//
// # Where it departs from Kubernetes
//
//   - Liveness comes from gossip and leases, not from timestamps: a dead node
//     is marked at once, and its pods, which nobody else can finish, are
//     deleted without grace. Pods on a suspected or dead node are taken out of
//     EndpointSlices altogether rather than marked.
//   - A host that answers but whose process is down is given Kubernetes' own
//     times (40 s, 5 min): its pods run on, and keep their traffic.
//   - When a node returns, its last reported conditions are put back, since
//     an agent reports only changes.
//   - At most 1,000 finished pods are kept, not 12,500.
//   - An autoscaler that says no behavior has the default one in everything, where
//     Kubernetes has an older rule for scaling up (to twice as many or to four).
//     It looks at once when its spec changes, repeats a warning after five minutes,
//     not after every look, and leaves a metric in its status that has moved by
//     less than a hundredth of its target.
package controller
