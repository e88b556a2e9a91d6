package consensus

import (
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Object is what the store keeps: an API object with metadata. The alias is
// the same type as the API server's own, without an import.
type Object = interface {
	runtime.Object
	metav1.Object
}

// Record is one version of one object, immutable and shared by every reader.
type Record = interface {
	// Object carries its resourceVersion. Copy it before changing it.
	Object() Object
	// Revision is the raft index of the write that made this version.
	Revision() uint64
	// Encoding returns what encode made of this version under this name. The
	// result is shared for as long as somebody uses it.
	Encoding(name string, encode func(Object) ([]byte, error)) ([]byte, error)
}

// Verb is what a Write does to its key.
type Verb uint8

// The values are written to the log: append only.
const (
	Create Verb = iota + 1 // the key must not exist
	Update                 // the key must exist
	Delete                 // the key must exist
)

func (v Verb) String() string {
	switch v {
	case Create:
		return "create"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return "unknown verb"
}

// Write is one change to one object. Its preconditions are checked where the
// log is applied, so that every replica decides alike.
type Write struct {
	Verb      Verb
	Resource  string // plural, then the group unless it is core: "deployments.apps"
	Namespace string // empty for cluster-scoped kinds
	Name      string
	Object    Object // complete but for its resourceVersion; nil for Delete
	// Version, if not 0, is the revision that the stored object must have.
	Version uint64
	// UID, if not empty, is the UID that the stored object must have.
	UID types.UID
}

// Outcomes of writes and of reads from the past, matched with errors.Is.
var (
	ErrNotFound = errors.New("object not found")
	ErrExists   = errors.New("object already exists")
	ErrConflict = errors.New("object was changed by somebody else")
	// ErrExpired: a revision is older than the window of events kept.
	ErrExpired = errors.New("revision is too old")
	// ErrFuture: a revision is newer than any that exists.
	ErrFuture = errors.New("revision is in the future")
	// ErrNoLeader: nothing was written, there is no leader or no quorum now.
	ErrNoLeader = errors.New("the cluster has no leader")
	// ErrUnknownOutcome: the write may or may not have happened.
	ErrUnknownOutcome = errors.New("the outcome of the write is not known")
	ErrTooLarge       = errors.New("object is too large")
	// ErrDiskFull: the log could not be written.
	ErrDiskFull = errors.New("the disk that holds the log is full")
	// ErrDamaged: what is on this node's disk is not what was written, or the
	// state that came of it is not the others'. The node must not go on with it,
	// nor vote again under this id before the others have taken it out of their
	// configuration: SetDamagedAside.
	ErrDamaged = errors.New("the log on this node's disk is damaged")
)

// Event is one change, in the order in which the log was applied.
type Event struct {
	Type   watch.EventType // Added, Modified or Deleted
	Record Record          // for Deleted: the last state, with the revision of the deletion
	// Previous is the version before, nil for Added.
	Previous Record
}
