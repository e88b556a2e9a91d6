package consensus

import (
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestSnapshotStalls: whoever sends a snapshot is gone in the middle of it, as a
// host that loses its power, and no packet says so.
func TestSnapshotStalls(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		transports := map[string]*transport{}
		for _, id := range []string{"from", "to"} {
			log, err := newGuardedLog(raft.NewInmemStore())
			if err != nil {
				t.Fatal(err)
			}
			h := w.host(t, id)
			h.node = &Node{} // it is there
			c := h.config()
			transports[id] = newTransport(&c, 0, newRaftLog(c.Log), &disk{log: log, silent: &silence{}})
		}
		rest, more := io.Pipe()
		sent := make(chan error, 1)
		go func() {
			q := raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Size: 1 << 30}
			sent <- transports["from"].NetworkTransport.InstallSnapshot("to", "to", &q, &raft.InstallSnapshotResponse{}, rest)
		}()
		go func() {
			for range 6 { // slow, and not stalled
				more.Write(make([]byte, 1<<19)) // more than is kept on the way
				time.Sleep(snapshotStall / 2)
			}
		}()
		q := <-transports["to"].Consumer()
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, q.Reader)
			read <- err
		}()
		time.Sleep(5 * snapshotStall / 2)
		select {
		case err := <-read:
			t.Fatalf("it ended while it came: %v", err)
		default:
		}
		select {
		case err := <-read:
			if err == nil {
				t.Error("a part of a snapshot counts as all")
			}
		case <-time.After(time.Minute):
			t.Error("it is still waited for")
		}
		more.Close()
		for _, tr := range transports {
			tr.Close()
		}
		q.Respond(nil, io.ErrUnexpectedEOF)
		<-sent
		for _, tr := range transports {
			tr.wait()
		}
	})
}
