package csi

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// serve is a gRPC server as small as the client.
func serve(t *testing.T, socket string, answer func(method string, request []byte) ([]byte, string, string)) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		request, err := unframe(body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		w.Header().Set("Content-Type", "application/grpc")
		response, status, text := answer(r.URL.Path, request)
		if status == "0" {
			w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(response))), response...))
		}
		w.Header().Set("Grpc-Status", status)
		w.Header().Set("Grpc-Message", text)
	})}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func TestSocket(t *testing.T) {
	for name, socket := range map[string]string{
		"short": filepath.Join(t.TempDir(), "s"),
	} {
		t.Run(name, func(t *testing.T) {
			serve(t, socket, func(method string, request []byte) ([]byte, string, string) {
				if method == "/refuse" {
					return nil, "5", "no such volume: 100%25"
				}
				return append([]byte(method+" "), request...), "0", ""
			})
			call := Socket(socket)
			if got, err := call(t.Context(), "/echo", []byte("hello")); err != nil || string(got) != "/echo hello" {
				t.Errorf("%q, %v", got, err)
			}
			_, err := call(t.Context(), "/refuse", nil)
			if !IsCode(err, NotFound) || !Final(err) || err.Error() != "rpc error: code = NotFound desc = no such volume: 100%" {
				t.Errorf("refused with %v", err)
			}
		})
	}
	if _, err := Socket(filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "nobody"))(t.Context(), "/x", nil); err == nil || Final(err) {
		t.Errorf("nobody answered: %v", err)
	}
}

// TestMessages writes requests and reads them back by their numbers.
func TestMessages(t *testing.T) {
	var got read
	call := func(response message) Caller {
		return func(_ context.Context, method string, request []byte) ([]byte, error) {
			r, err := parse(request)
			if err != nil {
				t.Fatal(err)
			}
			got = r
			return response, nil
		}
	}
	pairs := func(n int) map[string]string {
		m, err := got.pairs(1)
		if n != 1 {
			m, err = got.pairs(4)
		}
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	var zone, where, volume, answer message
	zone.pairs(1, map[string]string{"zone": "a"})
	volume.number(1, 1<<40)
	volume.text(2, "vol-1")
	volume.pairs(3, map[string]string{"k": ""})
	volume.part(5, zone)
	where.part(1, zone)
	answer.part(1, volume)
	v, err := CreateVolume(t.Context(), call(answer), Create{Name: "pvc-1", Required: 5, Parameters: map[string]string{"a": "b", "c": ""}, Capability: Capability{FSType: "ext4", Mode: SingleNodeWriter}, Requisite: []map[string]string{{"zone": "a"}}})
	if err != nil || !reflect.DeepEqual(v, Volume{ID: "vol-1", Capacity: 1 << 40, Context: map[string]string{"k": ""}, Accessible: []map[string]string{{"zone": "a"}}}) {
		t.Errorf("made %+v, %v", v, err)
	}
	if got.text(1) != "pvc-1" || !reflect.DeepEqual(pairs(4), map[string]string{"a": "b", "c": ""}) || !bytes.Equal(got.last(7).bytes, where) {
		t.Errorf("asked for %v", got)
	}
	var at, snapshot, entry, found message
	at.number(1, 1700000000)
	at.number(2, 5)
	snapshot.number(1, 9)
	snapshot.text(2, "snap-1")
	snapshot.text(3, "vol-1")
	snapshot.part(4, at)
	snapshot.truth(5, true)
	entry.part(1, snapshot)
	found.part(1, entry)
	want := Snapshot{ID: "snap-1", SourceVolume: "vol-1", Size: 9, Created: time.Unix(1700000000, 5), Ready: true}
	// Of CreateSnapshot the answer has a snapshot where a list has an entry.
	if s, err := CreateSnapshot(t.Context(), call(entry), "vol-1", "s", map[string]string{"a": "b"}, nil); err != nil || s != want || got.text(1) != "vol-1" || got.text(2) != "s" || pairs(4)["a"] != "b" {
		t.Errorf("took %+v, %v; asked for %v", s, err, got)
	}
	if s, ok, err := FindSnapshot(t.Context(), call(found), "snap-1", nil); err != nil || !ok || s != want || got.text(4) != "snap-1" {
		t.Errorf("found %+v %t, %v; asked for %v", s, ok, err, got)
	}
	if _, ok, err := FindSnapshot(t.Context(), call(nil), "snap-1", nil); err != nil || ok {
		t.Errorf("found one in an empty list: %v", err)
	}
	if _, err := CreateVolume(t.Context(), call(answer), Create{SnapshotID: "snap-1"}); err != nil || string(got.last(6).bytes) != "\x0a\x08\x0a\x06snap-1" {
		t.Errorf("asked for a volume of %q, %v", got.last(6).bytes, err)
	}
	if _, err := parse([]byte{0x0a, 0x05, 'x'}); err == nil {
		t.Error("a message that ends early was taken")
	}
	if m := ModeOf([]corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}, true); m != SingleNodeSingleWriter {
		t.Errorf("mode %d", m)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte{0x0a, 0x02, 0x10, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		call := func(context.Context, string, []byte) ([]byte, error) { return b, nil }
		_, _ = CreateVolume(t.Context(), call, Create{})
		_, _ = GetNodeInfo(t.Context(), call)
		_, _ = NodeCapabilities(t.Context(), call)
		_, _ = CreateSnapshot(t.Context(), call, "", "", nil, nil)
		_, _, _ = FindSnapshot(t.Context(), call, "", nil)
		_, _ = Registration(t.Context(), call)
		_, _ = unframe(b)
	})
}
