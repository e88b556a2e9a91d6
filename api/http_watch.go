package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// watch streams the changes that the client asks for. It runs in the
// connection's own goroutine and writes each batch at once.
func (x *exchange) watch(ctx context.Context, c *call) error {
	o, err := x.listOptions()
	if err != nil {
		return err
	}
	if x.format.media == mediaYAML {
		x.format.media = mediaJSON // there is no framing for it
	}
	ctx, cancel := x.s.watchContext(ctx)
	defer cancel()
	st, err := c.openWatch(ctx, o, true)
	if err != nil {
		return err
	}
	media := x.format.media
	if media == mediaProtobuf {
		media += ";stream=watch"
	}
	h := x.w.Header()
	h.Set("Content-Type", media)
	h.Set("Cache-Control", "no-cache, private")
	h.Add("Vary", "Accept")
	x.w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(x.w)
	if err := rc.Flush(); err != nil {
		st.watcher.Stop()
		return nil
	}
	x.seat.Leave()
	first := true
	var b bytes.Buffer
	// What ends a stream is known to the client by its ending.
	_ = st.run(ctx, func(changes []change) error {
		b.Reset()
		for _, ch := range changes {
			object, err := x.encodeChange(c, ch, first)
			if err != nil {
				return err
			}
			if ch.err == nil {
				first = false
			}
			if err := frame(&b, string(ch.kind), object, x.format.media); err != nil {
				return err
			}
		}
		if _, err := x.w.Write(b.Bytes()); err != nil {
			return err
		}
		return rc.Flush()
	})
	return nil
}

// encodeChange is the object of one event. Only the first table of a stream
// says what its columns are.
func (x *exchange) encodeChange(c *call, ch change, first bool) ([]byte, error) {
	media := x.format.media
	if ch.err != nil {
		return encodeObject(asStatus(ch.err), media)
	}
	switch x.format.as {
	case "Table":
		rec := ch.record
		if rec == nil {
			rec = loose{ch.object(c.res)}
		}
		t, err := x.tableOf(c, listing{records: []Record{rec}}, !first)
		if err != nil {
			return nil, err
		}
		t.ResourceVersion = rec.Object().GetResourceVersion()
		return encodeObject(t, media)
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		return encodeObject(partial(ch.object(c.res), x.format.gv), media)
	}
	if ch.record == nil {
		return encodeObject(ch.object(c.res), media)
	}
	return encodeRecord(ch.record, media)
}

// frame appends one event of a stream.
func frame(b *bytes.Buffer, kind string, object []byte, media string) error {
	if media == mediaProtobuf {
		e := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}}
		raw, err := e.Marshal()
		if err != nil {
			return err
		}
		var size [4]byte
		binary.BigEndian.PutUint32(size[:], uint32(len(raw)))
		b.Write(size[:])
		b.Write(raw)
		return nil
	}
	b.WriteString(`{"type":"` + kind + `","object":`)
	b.Write(object)
	b.WriteString("}\n")
	return nil
}
