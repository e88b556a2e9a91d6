package api

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Object is an API object with metadata: everything that the store keeps. It
// is an alias, as Record is, so that consensus can use the same type without
// importing this package.
type Object = interface {
	runtime.Object
	metav1.Object
}

// Record is one version of one object. It is immutable and shared by every
// reader: whoever wants to change the object makes a deep copy first.
type Record = interface {
	// Object carries its resourceVersion.
	Object() Object
	// Revision is the raft index of the write that made this version.
	Revision() uint64
	// Encoding returns the bytes that encode made for this version under this
	// name (a media type and version), calling encode at most a few times in
	// the life of the record. A failed encode is not remembered.
	Encoding(name string, encode func(Object) ([]byte, error)) ([]byte, error)
}

// Verb is what a Write does to its key.
type Verb uint8

// The three changes that the store knows. Their values are written to disk:
// append only.
const (
	Create Verb = iota + 1 // the key must not exist
	Update                 // the key must exist
	Delete                 // the key must exist
)

// Write is one change to one object. Its preconditions are checked where the
// log is applied, so that every replica decides alike.
type Write struct {
	Verb      Verb
	Resource  string // "pods", "deployments.apps": plural, then the group unless it is core
	Namespace string // empty for cluster-scoped kinds
	Name      string
	Object    Object // complete, but for its resourceVersion; nil for Delete
	// Version, if not 0, is the revision that the stored object must have.
	Version uint64
	// UID, if not empty, is the UID that the stored object must have.
	UID types.UID
}

// Outcomes of a Write and of reads from the past. Storage returns errors that
// match these with errors.Is; api alone turns them into a metav1.Status.
var (
	ErrNotFound = errors.New("object not found")
	ErrExists   = errors.New("object already exists")
	ErrConflict = errors.New("object was changed by somebody else")
	// ErrExpired says that a revision is older than the window of events kept.
	ErrExpired = errors.New("revision is too old")
	// ErrFuture says that a revision is newer than any that exists.
	ErrFuture = errors.New("revision is in the future")
	// ErrNoLeader says that nothing was written: there is no quorum or no
	// leader right now.
	ErrNoLeader = errors.New("the cluster has no leader")
	// ErrUnknownOutcome says that the write may or may not have happened: the
	// leader was lost, or the context ended, while it was under way.
	ErrUnknownOutcome = errors.New("the outcome of the write is not known")
	ErrTooLarge       = errors.New("object is too large")
	// ErrDiskFull says that the log could not be written.
	ErrDiskFull = errors.New("the disk that holds the log is full")
)

// Event is one change, in the order in which the log was applied.
type Event struct {
	Type   watch.EventType // Added, Modified or Deleted
	Record Record          // for Deleted: the last state, with the revision of the deletion
	// Previous is the version before, nil for Added. Selectors need it: an
	// object that stops matching is a deletion to the watcher.
	Previous Record
}

// Watcher reads events from the store's window at its own pace.
type Watcher interface {
	// Next waits until there are events after the last ones returned, and
	// returns them all with the revision up to which nothing is missing. It
	// returns an empty batch only when progress was asked for by a cancelled
	// wait: when ctx ends, it returns ctx's error and the watcher stays
	// usable. ErrExpired says that the reader was too slow: the window moved
	// past it.
	Next(ctx context.Context) ([]Event, uint64, error)
	// Revision is the revision up to which Next has returned everything, moved
	// forward to the store's own where no event of this watcher lies between:
	// an honest bookmark.
	Revision() uint64
	// Stop frees the watcher.
	Stop()
}

// Storage is what the API server asks of the replicated store. consensus
// implements it by way of an adapter in cli/server.go.
type Storage interface {
	// Get returns the newest version that this replica has, nil if none.
	Get(resource, namespace, name string) Record
	// List returns all objects of a resource, of one namespace unless it is
	// empty, sorted by namespace and name, and the revision of that view.
	List(resource, namespace string) ([]Record, uint64)
	// ListAt is List as it was at a revision in the window: ErrExpired,
	// ErrFuture.
	ListAt(resource, namespace string, revision uint64) ([]Record, error)
	// Watch returns the events of a resource ("" for all) after a revision:
	// ErrExpired, ErrFuture.
	Watch(resource, namespace string, after uint64) (Watcher, error)
	// ListAndWatch is List, and a Watch of all that comes after, in one step.
	ListAndWatch(resource, namespace string) ([]Record, Watcher, error)
	// Revision is the newest revision that this replica has applied.
	Revision() uint64
	// Changed is a number that grows whenever this replica applies a change to
	// an object of these resources, and stays the same while it does not. It
	// costs little: it is asked with every request.
	Changed(resources ...string) uint64
	// Sync returns once this replica has everything that was acknowledged
	// anywhere before the call (a linearizable read): ErrNoLeader.
	Sync(ctx context.Context) error
	// WaitFor returns once this replica has applied a revision.
	WaitFor(ctx context.Context, revision uint64) error
	// Write commits one change and returns once this replica has applied it.
	// The record is the new version, or for Delete the last state.
	Write(ctx context.Context, w Write) (Record, error)
}
