package wire

import (
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a client writes to a master whose host is dead is acknowledged by nobody.
// The kernel would try for minutes; a splice looks ackWait after a write, and
// ends the connection if by then nothing was heard for as long although it was
// sent again, so that the client can go to another master. A slow or paused
// process on a live host is not taken for dead: its kernel acknowledges.
const (
	ackWait  = 600 * time.Millisecond
	ackAgain = 100 * time.Millisecond
)

// splice copies both ways until both have ended. From the master to the client
// the kernel copies, if both are TCP connections. An end of one direction is
// passed on as such; an error ends both.
func splice(client, upstream net.Conn, said []byte) {
	defer client.Close()
	defer upstream.Close()
	g := &guarded{Conn: upstream}
	defer g.release()
	if _, err := g.Write(said); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(client, upstream, upstream)
	}()
	pass(g, client, struct{ io.Reader }{client}) // what is written must be seen
	<-done
}

// pass copies what a connection says.
func pass(to, from net.Conn, said io.Reader) {
	_, err := io.Copy(to, said)
	half, ok := to.(interface{ CloseWrite() error })
	if err == nil && ok && half.CloseWrite() == nil {
		return
	}
	to.Close()
	from.Close()
}

// guarded is the connection to a master, which is closed when its host is dead.
// It has no timer while all that was written is acknowledged.
type guarded struct {
	net.Conn
	mu       sync.Mutex
	timer    *time.Timer // nil before the first write
	looking  bool        // timer runs
	released bool
}

func (g *guarded) Write(b []byte) (int, error) {
	n, err := g.Conn.Write(b)
	g.look(ackWait)
	return n, err
}

func (g *guarded) CloseWrite() error {
	if half, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return g.Conn.Close()
}

// look checks the connection after a while, if that is not to happen anyway.
func (g *guarded) look(after time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.released || g.looking:
		return
	case g.timer == nil:
		g.timer = time.AfterFunc(after, g.check)
	default:
		g.timer.Reset(after)
	}
	g.looking = true
}

func (g *guarded) check() {
	g.mu.Lock()
	g.looking = false
	g.mu.Unlock()
	switch open, again, silent := delivery(g.Conn); {
	case open && again && silent >= ackWait:
		g.Conn.Close()
	case open:
		g.look(ackAgain)
	}
}

func (g *guarded) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.released = true
	if g.timer != nil {
		g.timer.Stop()
	}
}

// delivery asks the kernel whether something that was written is not
// acknowledged, whether it was sent again since the newest acknowledgement, and
// how long ago that was.
func delivery(conn net.Conn) (open, again bool, silent time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return false, false, 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false, false, 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			open, again, silent = info.Unacked > 0, info.Retransmits > 0, time.Duration(info.Last_ack_recv)*time.Millisecond
		}
	}) // fails where the connection is closed: there is nothing to look at
	return open, again, silent
}
