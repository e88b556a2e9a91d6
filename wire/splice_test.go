package wire

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestSpliceToADeadHost cuts the network below a splice: a client that writes
// learns of it long before the kernel would say so.
func TestSpliceToADeadHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network of its own needs root")
	}
	type ends struct{ client, node, upstream, master net.Conn }
	made := make(chan ends)
	cut := make(chan struct{})
	go func() { // in a network namespace that ends with this thread
		defer close(made)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Error(err)
			return
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		var e ends
		e.client, e.node = net.Pipe()
		if e.upstream, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Error(err)
			return
		}
		if e.master, err = l.Accept(); err != nil {
			t.Error(err)
			return
		}
		made <- e
		<-cut
		if err := netlink.LinkSetDown(lo); err != nil {
			t.Error(err)
		}
	}()
	e, ok := <-made
	if !ok {
		t.FailNow()
	}
	defer e.client.Close()
	defer e.master.Close()
	done := make(chan struct{})
	go func() { splice(e.node, e.upstream, nil); close(done) }()
	fmt.Fprint(e.client, "question")
	if _, err := io.ReadFull(e.master, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(e.master, "answer")
	if _, err := io.ReadFull(e.client, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	close(cut)
	if _, open := <-made; open {
		t.FailNow()
	}
	began := time.Now()
	fmt.Fprint(e.client, "question")
	if _, err := e.client.Read(make([]byte, 1)); err == nil {
		t.Error("a dead host answers")
	}
	<-done
	t.Logf("the client learnt of it after %s", time.Since(began))
}
