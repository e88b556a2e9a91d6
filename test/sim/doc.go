// Package sim runs whole clusters in one process under virtual time
// (testing/synctest): the gossip, consensus and liveness packages of the
// product, wired as cli/server.go wires them, on machines made of memory, over
// the lossy switch of gossip/gossiptest. It is tests and nothing else.
//
// A seed is a history: how many machines there are, how far apart and how fast
// their disks are, what happens to them and when, and what clients write and
// read meanwhile. In the end everything is healed, and what the clients, the
// watchers and the replicas saw is checked (check_test.go says for what).
//
//	go test ./test/sim -run TestSeeds -seed 42 -count=1 -v     one seed, with its history
//	go test ./test/sim -run TestSeeds -seeds 10000 -timeout 0   many, on all cores
//
// The seed decides everything that this package and the switch decide. It does
// not decide the order in which the scheduler of Go runs what is due at the same
// moment, nor the dice of raft and memberlist: a seed that failed once may have
// to run some times to fail again (-count=50).
//
// # Goroutines
//
// All are in the bubble of one seed, which does not end before they have.
package sim
