// Package flow owns the fairness of one API server (KEP-1040): which FlowSchema a
// request is of (Control.Match), when one of its level may be served (Schema.Enter),
// and which FlowSchemas and levels every cluster has (Schemas, Levels).
//
// A server has so many seats. Each level of priority has a share of them; while it
// leaves some idle, the others borrow them, as far as the levels say. A request
// takes a seat of its level until it is served, whatever it asks for. Where all are
// taken, it is refused or waits in a queue: each flow has a hand of the level's
// queues, chosen by its hash, and the request goes to the shortest of them, so that
// a flow that floods its own queues leaves most others with one that is not
// flooded. The next seat is the queue's that has had the least time of seats since
// requests have to wait (start-time fair queueing).
//
// What always holds: no level serves more than its limit, but for what it began
// before that was lowered; a request waits only while its level has no seat free;
// what waits is served in the order of its queue; requests of the exempt level
// neither wait nor are refused.
//
// Not done: requests that are wider than one seat. Kubernetes reckons with several
// for a list of many objects, and for the watchers that a write wakes.
//
// There is no goroutine here: limits are divided anew by whoever enters, leaves or
// waits when it is time; who waits looks once a second. Now is the given clock; only
// how long a request waits is measured by the process' own.
package flow
