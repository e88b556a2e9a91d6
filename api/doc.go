// Package api owns the Kubernetes surface of Conclave: one generic handler
// over a table of kinds (package kinds) that gives every kind all verbs, patch
// in its four kinds, watches, subresources, discovery, printing,
// authentication, authorisation and admission; and the two clients by which
// the other rooms read and write.
//
// What it asks of the replicated store is the interface Storage. Names, UIDs
// and times are made here, before the log, so that applying the log is
// deterministic. Records that Storage hands out are shared and never changed:
// every change is made on a deep copy and written with the version it was
// made from.
//
// What always holds:
//
//   - an object in the store carries its kind and apiVersion, so that encoding
//     a shared object needs no copy;
//   - every write names the version that it was computed from, also where the
//     client named none: such a write is computed again when somebody else was
//     faster;
//   - an error becomes a metav1.Status in one place, errors.go;
//   - nobody is let in by default: what no role allows, and for nodes what does not
//     follow from their pods, is refused (authz.go).
//
// A request over HTTP whose user is known needs a seat of its level of priority
// before anything else is decided (fairness.go, package flow); what this process asks
// itself needs none.
//
// The rows of custom resources are made of the definitions that this replica
// stores, and compared with them at each request (custom.go).
//
// Admission policies (policies.go) and webhooks (webhooks.go) are asked here, too,
// while a write is computed, and the webhooks by which custom resources are converted
// (custom_convert.go): the calls themselves are package webhook's. What the
// server writes on its own account (own) is asked of nobody.
//
// A write is decided on this replica's state, which may be behind. So before
// it is refused because of what is missing or different here, this replica is
// brought up to date once and the decision is made again.
//
// # Threads
//
// A request runs in the goroutine of its connection, a watch over HTTP too:
// the stream is pulled from Storage by the goroutine that writes it, so that a
// slow client holds up nobody. A Watch of a Client runs one goroutine, which
// ends when Stop is called, its context ends or the server's Run ends. Follow
// runs in its caller. A write asks its validating webhooks at once, each in a
// goroutine for which it waits. Run looks after reservations of service addresses every
// ten minutes, follows the definitions of custom resources in a goroutine beside
// it, to end watches of what is served otherwise now, and ends all watches when
// its context ends.
package api
