package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"
)

// euid prints whose rights this program has: it may be a setuid copy.
func euid(context.Context, []string) error {
	fmt.Println(os.Geteuid())
	return nil
}

// health answers gRPC's health checks at an address: the service is always
// well, or, if services are named, these alone are. A call is an HTTP/2 request
// with one framed message.
func health(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("health: give the address to listen at, such as :5000, and the services that are well, if it is not all")
	}
	const serving, notServing, head = 1, 2, 7 // of the frame five bytes, of the message two
	mux := http.NewServeMux()
	mux.HandleFunc("POST /grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		asked, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		state := uint64(serving)
		if len(args) > 1 && (len(asked) < head || !slices.Contains(args[1:], string(asked[head:]))) {
			state = notServing
		}
		message := binary.AppendUvarint([]byte{1 << 3}, state)
		frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(frame)
		w.Header().Set("Grpc-Status", "0")
	})
	server := &http.Server{Addr: args[0], Handler: mux, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
