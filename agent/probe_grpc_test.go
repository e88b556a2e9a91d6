package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestGRPCProbe(t *testing.T) {
	var mu sync.Mutex
	asked, state := "", uint64(1)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) < 7 {
			t.Errorf("%x %v", body, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		asked = string(body[7:])
		message := binary.AppendUvarint([]byte{8}, state)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...))
		w.Header().Set("Grpc-Status", "0")
	})
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().(*net.TCPAddr).String())
	check := func() (bool, string) {
		good, output, err := checkHealth(t.Context(), at.Addr().String(), &corev1.GRPCAction{Port: int32(at.Port())}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		return good, output
	}
	if good, output := check(); !good || asked != "shop" {
		t.Errorf("serving: %v %q, asked for %q", good, output, asked)
	}
	mu.Lock()
	state = 2
	mu.Unlock()
	if good, output := check(); good || output != `service unhealthy (responded with "NOT_SERVING")` {
		t.Errorf("not serving: %v %q", good, output)
	}
	server.Close()
	if good, output := check(); good || !strings.HasPrefix(output, fmt.Sprintf("failed to connect service %q", at)) {
		t.Errorf("gone: %v %q", good, output)
	}
}
