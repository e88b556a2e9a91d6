package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// ServeNode answers on connections of Node() until ctx ends or the listener is
// closed; then it ends them all: calls of members, and HTTP/2 of members that ask
// for something long and of those who join or renew. A handler knows its peer by r.TLS. There is no timeout: a call may
// take long, and connections are the dialler's to close.
func ServeNode(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	conns := map[net.Conn]struct{}{}
	context.AfterFunc(ctx, func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for conn := range conns {
			conn.Close()
		}
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	server := &http2.Server{}
	base := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept a node's connection: %w", err)
		}
		mu.Lock()
		conns[conn] = struct{}{}
		mu.Unlock()
		if ctx.Err() != nil {
			conn.Close()
		}
		wg.Go(func() {
			proto := ""
			if c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
				proto = c.ConnectionState().NegotiatedProtocol
			}
			if proto == ProtoJoin || proto == ProtoStream {
				server.ServeConn(conn, &http2.ServeConnOpts{Context: ctx, BaseConfig: base, Handler: h})
			} else {
				serveCalls(ctx, conn, h, log)
			}
			conn.Close()
			mu.Lock()
			delete(conns, conn)
			mu.Unlock()
		})
	}
}
