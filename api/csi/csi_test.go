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
		_, _ = Registration(t.Context(), call)
		_, _ = unframe(b)
	})
}
