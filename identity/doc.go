// Package identity owns what a node is: its key, its certificate, the
// cluster's CA, the front proxy's, join tokens, and the key that seals Secrets at
// rest.
//
// What always holds:
//   - A node is its key. Its id is the first 16 bytes of the SHA-256 of its
//     public key, in hex; a certificate whose URI names another id than its
//     key's is never issued and never accepted.
//   - A folder belongs to at most one cluster. cluster.json is the commit
//     point: it is written last, so that a crash while founding or joining
//     leaves a fresh node that can try again.
//   - Who has a certificate by a request of his own is a client of the API and
//     nothing else: no such certificate passes for a node's, or an
//     administrator's, whatever was asked for and approved.
//   - A secret never travels to somebody who has not shown the CA that the
//     token names, and the token's secret never travels at all: the joiner
//     proves that it knows it, with a MAC bound to the TLS connection.
//
// # Clocks
//
// Small machines boot with a wrong clock. Between nodes:
//   - A clock behind is harmless: certificates are backdated by a day, and
//     whoever verifies a peer moves its own clock forward to the beginning of
//     the certificate's life. A cluster can therefore form in 1970.
//   - An expired certificate is refused (with ten minutes of grace), with one
//     exception: on ProtoJoin, which carries only joining and renewal, both
//     ends ignore the expiry. So a node that was off for a month, or a cluster
//     whose clocks all jumped forward, renews and is back by itself. What an
//     expired certificate may not do is renew a membership that was ended:
//     JoinServer.Admit decides that, not the clock. Without an Admit, a
//     certificate may be renewed for 30 days after its end.
//   - An authority never issues into its own past: its clock is taken to be at
//     least the time when it was made.
//   - A new certificate that ends sooner than the one in use, while that one is
//     still good, is dropped: its issuer's clock is behind.
//
// Timers do not see the wall clock jump, so each handshake looks at the wall
// clock too and wakes the renewal if it is due.
//
// # Goroutines
//
// Certificates.Run is one loop in its caller's goroutine; it ends with its
// context. Join, and what RenewFrom returns, start one goroutine per address
// and return when all of them have ended. Nothing else runs in the background.
package identity
