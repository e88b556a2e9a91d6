// Package gossip owns membership: who is here and alive, and what each node
// offers.
package gossip
