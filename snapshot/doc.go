// Package snapshot owns the files that hold a whole cluster: their form, their
// encryption, where they are kept, and the schedule on which they are made.
//
// # The file
//
//	"conclave snapshot\n" | version 1 | length (4, big endian) | header (JSON) |
//	age (filippo.io/age), in which: length (4) | header | length (4) | secrets | state |
//	SHA-256 of all before
//
// The header says of which cluster, when, at which revision. It can be read
// without a key, and stands inside the encryption once more, so that nobody can
// change it. The checksum tells damage from a wrong key. The secrets are the
// authority of the cluster (its CA and the keys that seal), the state is what
// consensus writes.
//
// # What always holds
//
//   - Nothing is handed out of a file before all of it was read once and its
//     checksum was right; what is handed out is authenticated piece by piece,
//     and its end is the end of the file. A damaged file is refused whole.
//   - A file is never seen half written: local ones are renamed into place, S3
//     takes an object whole or not at all.
//   - The cluster holds nothing that opens the snapshots that it makes on a
//     schedule: it knows recipients, not identities.
//   - Only after a snapshot is safe are older ones of the same cluster deleted,
//     and never files of another name.
//
// # Goroutines
//
// Runner.Run is one loop in its caller's goroutine beside one follower of its
// configuration; both end with its context. Nothing else runs.
package snapshot
