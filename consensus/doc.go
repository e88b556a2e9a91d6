// Package consensus owns the raft log, the versioned store that it feeds, the
// watches on that store, its snapshots, the set of voters, and the nodes'
// leases.
package consensus
