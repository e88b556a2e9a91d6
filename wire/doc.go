// Package wire owns the one TLS port (6443), told apart by ALPN, and dialling
// a peer by its node id.
//
// # The port
//
// Port reads the ClientHello of each connection and goes by the protocols that
// it offers:
//
//	conclave-raft/1   → Raft(), the peer has shown a node's certificate
//	conclave-node/1   → Node(), the same
//	conclave-stream/1 → Node(), the same
//	conclave-join/1   → Node(), the peer may be nobody yet
//	h2, http/1.1, none → the Kubernetes API
//
// An API connection is handed to API() where the API is served here, and
// otherwise spliced to a master, its TLS untouched, so that client certificates
// reach the one who judges them. Where no master can be reached it is answered
// with 503 under the node's own certificate, which is of the cluster's CA and
// names the node's addresses.
//
// What always holds: a connection that says nothing for ten seconds, or says
// more than 64 KiB before its hello is whole, is closed; at most 1024
// connections are in that state; every listener yields connections whose
// handshake is done.
//
// # Dialling
//
// A node is a key, not an address: Dialer resolves an id to addresses anew for
// each connection and accepts only the machine that has the key. Calls
// between nodes are frames over ALPN conclave-node/1 (call.go), one connection
// for each peer: a second caller costs no second handshake, and an idle
// connection no timer. What is too long for a frame (a layer of an image) is
// HTTP/2 over conclave-stream/1, on connections that end when they are not
// used; so are joining and renewal.
//
// # Goroutines
//
// Port.Run runs one goroutine for each connection until its handshake is done
// and somebody accepted it, or, for a spliced one, two until it ends (and a timer
// while something written to the master is not known to be acknowledged); all of
// them end before Run returns. Connections that were accepted belong to their
// acceptor. ServeNode runs one per connection and one per call, and ends them
// all. Dialer has those of net/http2 and one for each connection of calls, which
// end with their connection, and one while such a connection is made; Close ends
// the connections that nobody uses.
package wire
