// Package gossip owns membership: who is here and alive, and what each node
// offers. It is hashicorp/memberlist, encrypted, with four things around it.
//
// A node is its id, wherever it is. In memberlist a node's name is
// "id@address:port", so that a node whose address changed is a new one there,
// accepted at once, while the old one dies by itself; memberlist alone would
// refuse the new address of a name that it believes alive. Each start and each
// change of address has a higher epoch, which is kept on disk and travels in
// the Meta; of several entries of one id the one with the highest epoch counts,
// whatever the state of the others.
//
// Suspicion can be seen. memberlist tells its delegates of joins and deaths,
// not of suspicion, and its list of members does not show it. But each change
// that it accepts about a member it also broadcasts, and each broadcast passes
// through our transport: the tap decrypts what is sent and reads the suspect,
// alive and dead messages in it, with their incarnations. That is exact,
// needs no polling, and is at most one gossip interval late.
//
// It comes back by itself. Peers' addresses are remembered on disk; whenever a
// remembered peer is not alive here, its address is tried again, after 1 s, 2 s,
// and so on up to 10 s, and the LAN is asked if nobody at all is alive. That
// heals partitions that lasted longer than memberlist gossips to the dead. A
// node that remembers nobody asks the LAN when it starts.
//
// The socket is our own transport, because memberlist's allocates 64 KiB for
// each packet that it reads.
//
// What always holds: callbacks of memberlist, which run under its lock, only
// update the table of entries and leave hints; nothing calls memberlist while
// it holds the table's lock. Nothing is written to disk unless the set of
// peers' addresses changed: at once for a peer that is new, else at most every
// five seconds. An idle pool runs
// memberlist's timers (two or three probes and five gossip ticks a second) and none of
// its own.
//
// Timing, on a LAN: a host that lost power is suspected after about a second
// and dead after two to three. A node whose own probes fail for want of
// processor time slows down instead of accusing others (memberlist's
// Lifeguard), and an accusation that nobody else confirms takes three times as
// long.
//
// # Goroutines
//
// Run is one loop in its caller's goroutine. It runs the transport's two
// readers, memberlist's own (which end soon after its Shutdown, without being
// waited for: memberlist offers no way), and one at a time that tries to reach
// missing peers. Announce has one reader per interface and one goroutine that
// watches addresses come and go; Discover one reader per interface. All end
// before their function returns.
package gossip
