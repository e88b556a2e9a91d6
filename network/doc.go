// Package network owns everything between a pod's socket and another's: pod
// addresses, the links between nodes, the rules that carry Services and host
// ports, and DNS. It programs the network namespace that this process runs in,
// by netlink and nftables, and starts no other program.
//
// # What is made
//
//	conclave0     a bridge with this node's address in its range of pod
//	              addresses (the first) and ClusterDNS's address
//	cvl…          the host's end of each pod's link, a port of the bridge; the
//	              pod's end is eth0 in a namespace that a file in RunDir binds
//	conclave.vx   the overlay to the other nodes: VXLAN, UDP 8472, VNI 1, one
//	              static route, neighbour and forwarding entry for each node;
//	              between two nodes with DirectRoutes that share a link, the
//	              route leads over that link instead
//	conclave.wg   instead of the overlay, in a cluster that encrypts (Encrypt):
//	              a WireGuard tunnel, UDP 51820, one peer and one route for each
//	              node; encrypt.go and the package wireguard have it
//	table ip conclave, table ip6 conclave
//	              the rules; nft.go has the picture
//	table ip conclave-policy, table ip6 conclave-policy
//	              network policies, while one isolates a pod of this node;
//	              policy_nft.go has the picture
//	table bridge conclave
//	              keeps pods from handing each other frames past those;
//	              ports.go has it
//
// A cluster has a first family of addresses, IPv4 or IPv6, and a dual-stack one
// (PodCIDR6) IPv6 as its second. The first is that of nodes' own addresses, of
// DNS and of the overlay, which carries both. What is of a family is there where
// the cluster has it and not otherwise: in one of IPv4 alone nothing here knows
// of IPv6, and links of ours have none. What differs between the two is a family
// (family.go), which all else takes; a proxy, a table and compiled policies are
// each of one. A pod's second address has the place in the node's range that its
// first one has.
//
// A pod has its addresses alone (/32, /128) and reaches even its neighbours by
// way of the bridge's addresses. So every packet between pods passes the IP layer of
// the host, where services are translated back, whether or not the kernel is
// set to show bridged packets to IP rules.
//
// # What always holds
//
//   - Names of links, the table and the route protocol are fixed: a restart
//     finds what was made before, and Teardown removes that and nothing else.
//   - What pods need is in the kernel. While this process is away, traffic
//     flows on; only DNS pauses.
//   - A change of rules is one transaction: no packet sees half of it. Rules
//     are plain data (Rules), put together from what each service wants, which
//     a pure function says (proxy.go): so a change costs what it changes.
//     After a failure, and at the start, all is built from scratch.
//   - A load balancer's address is answered for by this process alone, not by
//     the kernel (arp.go): with the process its answers end, and another
//     node's begin. Which node's is a pure function of who is alive.
//   - In a cluster that encrypts, what is for a pod of another node leaves by
//     the tunnel, and what is from a pod has come out of it or from the bridge;
//     everything else in a pod's name is dropped.
//   - Until nodes, services and endpoints have been seen once, what an earlier
//     process left in the kernel stays: it knows more. DNS says "I do not know
//     yet" rather than "no".
//   - A pod that network policies select is isolated when Attach returns. What
//     an earlier process left of policies stays until all that they depend on
//     has been seen, or a pod comes that it did not know.
//   - Dir holds one small file for each attached pod, written at Attach and
//     removed at Detach, this node's range, and the cluster's network policies,
//     written when they change, and the key of a node that encrypts. Nothing
//     else is ever written to disk. An address given back rests as long as the
//     range allows.
//   - Names of the cluster's domain, and reverse names of its addresses, are
//     never asked of anybody else.
//   - Work in another network namespace happens on a thread that does nothing
//     else and ends with it (netns.go).
//
// # What is not promised
//
// Packets of the overlay, where there is no tunnel, are not encrypted;
// those that do not come from a node's address are dropped. A host firewall
// that drops forwarded packets (Docker sets one up) has the last word.
//
// # Goroutines
//
// Run starts, and waits for:
//
//   - followPaths, which tests the path to a node's pods when it comes or comes
//     back, and one that fails until it does not. Otherwise it sleeps; each
//     test has a goroutine while it lasts, at most 16 at a time;
//   - one api.Follow for each of nodes, services, endpointslices and this
//     node's pods; they write what they see into cluster and kick the loop;
//   - one api.Follow for network policies and, while one depends on them, for
//     namespaces and the pods of all nodes, with the loop that starts and ends
//     these; they write into policyState and kick the loop;
//   - program, the one loop that touches links and rules. It waits for a kick,
//     lets changes of two milliseconds come together, and does one pass; it
//     repeats a failed pass, ever more slowly, and otherwise sleeps. Pods are
//     followed only to find addresses that leaked;
//   - runBalance, the loop that opens health check ports, each with an HTTP
//     server, and answers for load balancers' addresses, with one reader of
//     ARP for each link that has some. Where there are none, it has neither;
//   - one api.Follow for the cluster's settings, which tell DNS whom to ask;
//   - the DNS server: one listener each for UDP and TCP, and one goroutine for
//     each request under way, and for each server that is looked at for a
//     loop, which end by their own time limits.
//
// Where a process of its own encrypts, one more waits for its end (package
// wireguard).
//
// Attach and Detach run on their caller's goroutine, many at a time, one for
// each pod.
package network
