package wireguard

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// The process is this program under another name. It has a link of the kernel
// (tun) as one end and a UDP socket as the other, and knows nothing but what it
// is told at its socket: first it greets with hello, then it answers in the
// text of WireGuard's configuration protocol.
const (
	processName = "conclave-wireguard"
	// hello names what is spoken. A process that greets otherwise is of a
	// version that is not understood any more, or not yet.
	hello = "conclave-wireguard 1\n"
	// listenFD is the descriptor at which it finds its socket.
	listenFD = 3
)

const (
	// mostInFlight bounds the packets that are on their way through the
	// library in one direction when more are taken in, which are up to 128 at
	// once. It would take in many thousands, of 64 KiB each, before it made
	// anybody wait; this is enough to keep its workers busy.
	mostInFlight = 32
	// stuckAfter is when packets that nobody saw leave count as dropped.
	stuckAfter = 10 * time.Millisecond
	// garbage is how much of what lives may be garbage beside it, in per cent.
	garbage = 25
	// Behind so many packets in restAfter the process has been busy; behind
	// fewer it is no more, and gives back the memory that it needed.
	busy      = 1000
	restAfter = 20 * time.Second
	// mostProcessors bounds what a busy tunnel takes of a large machine.
	mostProcessors = 4
)

// IsProcess says whether this program was started to be the process.
func IsProcess() bool { return len(os.Args) == 2 && os.Args[0] == processName }

// Main is the process's. It returns the exit status.
func Main() int {
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// serve returns when the link is gone.
func serve(link string) error {
	frugal()
	// A signal to a group that it is in by accident is not for it.
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	file := os.NewFile(listenFD, "listener")
	l, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("take over the listener: %w", err)
	}
	file.Close()
	end, err := openTun(link)
	if err != nil {
		return err
	}
	udp := &udpEnd{StdNetBind: conn.NewStdNetBind().(*conn.StdNetBind), in: end.in, out: end.out}
	d := device.NewDevice(end, udp, &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	end.tell(tun.EventMTUUpdate)
	// At a port that the kernel chooses. When it is told another, it says
	// whether it got that.
	if err := d.Up(); err != nil {
		return fmt.Errorf("open a UDP socket: %w", err)
	}
	go tidy(end.traffic, func() {
		runtime.GC()         // pools give up what they hold at the second
		debug.FreeOSMemory() // collection, which this is
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// The link may have another MTU than when it was opened: whoever
			// has changed it comes to say more.
			end.tell(tun.EventMTUUpdate)
			go func() {
				if _, err := io.WriteString(c, hello); err != nil {
					c.Close()
					return
				}
				d.IpcHandle(c) // until the caller goes
			}()
		}
	}()
	<-d.Wait()
	return nil
}

// frugal bounds what the process takes: memory and processors. Without it the
// kernel would think of it first when it is short of memory, and all
// connections between nodes would stop for a moment.
func frugal() {
	debug.SetGCPercent(garbage)
	runtime.GOMAXPROCS(min(runtime.NumCPU(), mostProcessors))
	// The buffers are of 64 KiB, of which a packet needs one page. In huge
	// pages the rest would be real memory too. Neither this nor the score is
	// needed for anything else: a container may not be allowed to set them.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
}

// traffic counts packets, and tells that there are some.
type traffic struct {
	packets atomic.Uint64
	some    chan struct{} // capacity 1
}

func newTraffic() *traffic { return &traffic{some: make(chan struct{}, 1)} }

func (t *traffic) add(n int) {
	t.packets.Add(uint64(n))
	select {
	case t.some <- struct{}{}:
	default:
	}
}

// tidy calls rest when the process has been busy and is no more: the Go runtime
// collects when memory is wanted, and an idle process wants none. While nothing
// passes it sleeps.
func tidy(t *traffic, rest func()) {
	was, last := false, t.packets.Load()
	for range t.some {
		time.Sleep(restAfter)
		now := t.packets.Load()
		is := now-last >= busy
		if was && !is {
			rest()
		}
		if was, last = is, now; is {
			t.add(0) // look again though nothing may come any more
		}
	}
}

// gate bounds the packets that are on their way through the library in one
// direction. Who brings one passes, who takes one out leaves. Some are dropped
// in between, which nobody is told: so when nothing leaves for a while, all
// that is left counts as dropped.
type gate struct {
	*traffic
	mu    sync.Mutex
	in    int
	moved chan struct{} // capacity 1: something has left
}

func newGate(t *traffic) *gate { return &gate{traffic: t, moved: make(chan struct{}, 1)} }

func (g *gate) full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in >= mostInFlight
}

// wait returns when there is room.
func (g *gate) wait() {
	for g.full() {
		select {
		case <-g.moved:
		case <-time.After(stuckAfter):
			g.mu.Lock()
			g.in = 0
			g.mu.Unlock()
		}
	}
}

func (g *gate) passed(n int) {
	g.mu.Lock()
	g.in += n
	g.mu.Unlock()
	if n > 0 {
		g.add(n)
	}
}

func (g *gate) left(n int) {
	g.mu.Lock()
	g.in = max(0, g.in-n)
	g.mu.Unlock()
	select {
	case g.moved <- struct{}{}:
	default:
	}
}

// tunEnd is the process's end of the link.
type tunEnd struct {
	tun.Device
	traffic *traffic
	in, out *gate

	mu     sync.Mutex // of events, which the library wants closed at the end
	events chan tun.Event
	closed bool
}

// openTun opens the link, which somebody has made.
func openTun(link string) (*tunEnd, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(link)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("attach to %s: %w", link, err)
	}
	// Unmonitored: nobody but us turns the link on and off, and the library's
	// monitor would wake every second.
	d, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", link, err)
	}
	t := newTraffic()
	return &tunEnd{Device: d, events: make(chan tun.Event, 4), traffic: t, in: newGate(t), out: newGate(t)}, nil
}

func (t *tunEnd) Events() <-chan tun.Event { return t.events }

func (t *tunEnd) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.out.wait()
	n, err := t.Device.Read(bufs, sizes, offset)
	t.out.passed(n)
	return n, err
}

func (t *tunEnd) Write(bufs [][]byte, offset int) (int, error) {
	defer t.in.left(len(bufs))
	return t.Device.Write(bufs, offset)
}

func (t *tunEnd) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.events)
	return t.Device.Close()
}

// tell tells the library of something. It looks at how things are, not at how
// often it is told: what finds no room is told already.
func (t *tunEnd) tell(e tun.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.events <- e:
	default:
	}
}

// udpEnd is the process's end towards the other nodes.
type udpEnd struct {
	*conn.StdNetBind
	in, out *gate
}

func (u *udpEnd) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := u.StdNetBind.Open(port)
	for i, receive := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			u.in.wait()
			n, err := receive(bufs, sizes, eps)
			u.in.passed(data(bufs[:n], sizes))
			return n, err
		}
	}
	return fns, actual, err
}

func (u *udpEnd) Send(bufs [][]byte, to conn.Endpoint) error {
	defer func() { u.out.left(data(bufs, nil)) }()
	return u.StdNetBind.Send(bufs, to)
}

// data counts the packets that carry something: neither handshakes, nor those
// that only say that somebody is there.
func data(bufs [][]byte, sizes []int) (n int) {
	for i, b := range bufs {
		if sizes != nil {
			b = b[:sizes[i]]
		}
		if len(b) > device.MessageKeepaliveSize && b[0] == device.MessageTransportType {
			n++
		}
	}
	return n
}
