// Package consensus owns the raft log, the versioned store that it feeds, the
// watches on that store, its snapshots, the set of voters, and the nodes'
// leases.
//
// # What always holds
//
//   - A revision is the raft index of an entry. The store changes only by
//     applying committed entries in their order, and what an entry does depends
//     on the store and the entry alone: every replica comes to the same state,
//     the same revisions and the same refusals. [Store.Check] verifies what it
//     can of that.
//   - A record never changes. Readers share it; only its cache of encodings
//     moves, and that holds nothing beyond the moment.
//   - A write that was acknowledged is on the disks of a majority of the
//     voters. A [Node.Write] happens at most once, however often it is sent: an
//     entry counts only in the term for which it was proposed, so that a sender
//     who lost its leader learns from the next one whether the entry is in the
//     log, and knows that otherwise it never will be.
//   - After [Node.Sync] the replica has all that was acknowledged anywhere
//     before the call.
//   - A watcher misses nothing and sees nothing twice, or is told that it was
//     too slow (ErrExpired). Nobody waits for a watcher.
//   - At rest nothing is written to disk.
//   - A node whose lease the leader calls expired has known for a third of the
//     lease that it might be.
//   - What a node runs under its fence no leader replaces before the fence is
//     down, whoever leads, and whether a leader knows that it does not any more
//     (fence.go).
//
// # The store
//
// One sorted index for each resource, a copy-on-write B-tree whose copy costs
// nothing, and one window of the newest events, bounded in number and in
// bytes. A watcher is a position in the window: it pulls when its resource's
// channel says that something came. The past (ListAt) is the present with the
// window's events undone. A snapshot is a copy of the indexes; writing it down
// does not hold up the log. After a restart the window begins at the snapshot
// and grows by the entries behind it, so that most watches resume.
//
// # The log
//
// hashicorp/raft on raft-boltdb. raft's term and vote are in a small file of
// their own that is written in place: raft does not survive a failed write
// there, and a full disk must not end the process. A leader whose log takes no
// more steps down and asks for no votes for a few seconds, again and again until
// there is room; it goes on serving reads. An entry or a snapshot of a version
// that this program does not know ends Run with an error: to skip it would be to
// diverge.
//
// Three things are done around raft, none of them against it. A follower hears
// of a commit at once and not after a time-out (transport.go). A follower looks
// whether its leader is overdue exactly when it is, where raft looks at some
// time in the next interval (node.go, poke); the voters take turns, which
// spares split votes. And heartbeats are as rare as a lost one can be borne.
// With the default timing a dead leader is replaced in about as long as one
// heartbeat time-out, 400 ms; raft alone needs half as long again.
//
// # The master set
//
// [Config.Members] says who is there, plan decides on at most one change
// (plan.go), keepMasters makes it (members.go). A node is a non-voter first and
// gets its vote when it has had the whole log for a moment. Dead means that
// gossip does not see a node and its lease has ended; a dead voter leaves the
// configuration before its replacement votes, because the dead one counts in
// every majority. It leaves at once if a standby is ready, or if the others can
// then lose one more; otherwise after half a minute, because one that is still
// a voter has its vote the moment it is back. A target that falls with the
// number of nodes is held for as long, while there are nodes enough. So seven
// nodes that die one after another go from five voters to three and on to two
// of three. A voter that lives and has not followed for half a minute is
// replaced too, if a standby is ready.
//
// What serves makes way only for what suits clearly better (another zone, twice
// the memory, a disk eight times as fast), when that has been so for five
// minutes. An exchange makes fewer voters share a zone, or as many and the sum
// of their worth clearly larger: thus exchanges end. The better one has its vote
// before the other loses it, and a leader hands over before.
//
// A node that was removed while it was away is back with an old log, and maybe
// in a term beyond ours. It is not heard (transport.go, errRemoved), not added
// before it has forgotten (members.go, isNew), and forgets when the leader has
// told it, with all changes of the configuration committed, that it is out.
//
// A leader that stops hands over first (Resign): the voters make their
// connections to each other, then raft transfers, and the old leader stays until
// the new one takes writes.
//
// hashicorp/raft-autopilot is not used: it works by a timer of seconds on
// health that it polls from the servers, has no notion of a number of voters
// that follows the number of nodes or of a standby, and removes dead servers
// by its own idea of death; what would be left of it is less than plan.go.
//
// # Threads
//
// Run starts, and ends before it returns: watchRaft (leadership and raft's
// observations), pulse (overdue leaders), confirm (whether this node may lead;
// it ends with the answer), watchRetirement (whether this node is still
// wanted), learn (who asks for votes that this node does not know as a voter,
// stranger.go), speak (silent.go; it ends with the silence), the transport's
// relay, raft's own goroutines, and two for each pipeline to a follower. While
// this node leads there are two more, one that keeps the masters and one that
// compares their states (compare.go), and now and then one that prepares a
// node. A write, a verification of the leader and a question to it each have a
// goroutine that ends with their
// answer; none is left when Run returns. The store and the watchers have none.
// [LeaseClient.Run] has a loop, and one goroutine for each renewal.
//
// Decisions are in functions without a clock: Store, plan, entry. The clock is
// read in the loops.
package consensus
