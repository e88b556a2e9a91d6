package csi

import (
	"context"
	"time"
)

// Snapshot is one that a driver has.
type Snapshot struct {
	ID, SourceVolume string
	Size             int64 // bytes that a volume restored from it needs; 0: unknown
	Created          time.Time
	Ready            bool // that volumes can be made of it
}

func snapshotOf(b []byte) (Snapshot, error) {
	r, err := parse(b)
	if err != nil {
		return Snapshot{}, err
	}
	at, err := parse(r.last(4).bytes)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{Size: r.number(1), ID: r.text(2), SourceVolume: r.text(3), Ready: r.truth(5)}
	if len(r[4]) > 0 {
		s.Created = time.Unix(at.number(1), at.number(2))
	}
	return s, nil
}

// CreateSnapshot takes a snapshot of a volume, or finds the one that was taken
// under its name.
func CreateSnapshot(ctx context.Context, call Caller, volumeID, name string, parameters, secrets map[string]string) (Snapshot, error) {
	var m message
	m.text(1, volumeID)
	m.text(2, name)
	m.pairs(3, secrets)
	m.pairs(4, parameters)
	r, err := ask(ctx, call, "/csi.v1.Controller/CreateSnapshot", m)
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotOf(r.last(1).bytes)
}

// DeleteSnapshot removes a snapshot; one that is not there is removed.
func DeleteSnapshot(ctx context.Context, call Caller, id string, secrets map[string]string) error {
	return remove(ctx, call, "DeleteSnapshot", id, secrets)
}

// FindSnapshot asks a driver that lists its snapshots for one of them; there may
// be none.
func FindSnapshot(ctx context.Context, call Caller, id string, secrets map[string]string) (s Snapshot, found bool, err error) {
	var m message
	m.text(4, id)
	m.pairs(5, secrets)
	r, err := ask(ctx, call, "/csi.v1.Controller/ListSnapshots", m)
	if err != nil {
		return Snapshot{}, false, err
	}
	for _, v := range r[1] {
		entry, err := parse(v.bytes)
		if err != nil {
			return Snapshot{}, false, err
		}
		if s, err = snapshotOf(entry.last(1).bytes); err != nil || s.ID == id {
			return s, err == nil, err
		}
	}
	return Snapshot{}, false, nil
}
