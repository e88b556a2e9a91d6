package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// answerer answers ARP requests for addresses that this host does not have.
// The kernel is not given the addresses, on purpose: it would go on answering
// after this process has ended, when another node has long taken over.
type answerer struct {
	log *slog.Logger
	// sysctl sets what teardown restores.
	sysctl func(key, value string) error
	links  map[int]*arpLink // by index
	timer  *time.Timer
	// shouts is how often newcomers are still to be announced.
	shouts map[netip.Addr]int
}

// A newcomer is announced more than once: packets get lost, most of all when
// hosts die.
const (
	arpShouts = 4
	arpPause  = 700 * time.Millisecond
)

func newAnswerer(log *slog.Logger, sysctl func(key, value string) error) *answerer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &answerer{log: log, sysctl: sysctl, links: map[int]*arpLink{}, timer: t, shouts: map[netip.Addr]int{}}
}

// again fires when shout is to be called again.
func (a *answerer) again() <-chan time.Time { return a.timer.C }

// set makes this host answer for these addresses and no others, each on the
// links whose network it is in, or else on the link that has our own address.
func (a *answerer) set(wanted []netip.Addr, own netip.Addr) error {
	byLink := map[int]map[netip.Addr]bool{}
	var errs []error
	if len(wanted) > 0 {
		have, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("listing this host's addresses: %w", err)
		}
		for _, w := range wanted {
			near := linksNear(w, have)
			if len(near) == 0 {
				near = linksNear(own, have)
			}
			if len(near) == 0 {
				errs = append(errs, fmt.Errorf("no link leads to %s", w))
			}
			for _, i := range near {
				if byLink[i] == nil {
					byLink[i] = map[netip.Addr]bool{}
				}
				byLink[i][w] = true
			}
		}
	}
	for i, l := range a.links {
		if byLink[i] == nil || l.ended() {
			l.close()
			delete(a.links, i)
		}
	}
	news := false
	for i, addresses := range byLink {
		l := a.links[i]
		if l == nil {
			var err error
			if l, err = openARP(i, a.log); err != nil {
				errs = append(errs, err)
				continue
			}
			a.links[i] = l
			// What comes here for an address that is not here is not to be
			// told a shorter way, but that nobody is there.
			errs = append(errs, a.sysctl("ipv4/conf/"+l.name+"/send_redirects", "0"))
		}
		newcomers := l.set(addresses)
		for _, newcomer := range newcomers {
			a.shouts[newcomer] = arpShouts
		}
		news = news || len(newcomers) > 0
	}
	if news {
		a.shout()
	}
	return errors.Join(errs...)
}

// repeat announces all that is answered for once more.
func (a *answerer) repeat() {
	for _, l := range a.links {
		for _, address := range l.held() {
			a.shouts[address] = arpShouts
		}
	}
	a.shout()
}

// shout announces, one time more, what is to be announced.
func (a *answerer) shout() {
	for address, left := range a.shouts {
		said := false
		for _, l := range a.links {
			said = l.announce(address) || said
		}
		if a.shouts[address]--; left == 1 || !said {
			delete(a.shouts, address)
		}
	}
	if len(a.shouts) > 0 {
		a.timer.Reset(arpPause)
	} else {
		a.timer.Stop()
	}
}

func (a *answerer) close() {
	for _, l := range a.links {
		l.close()
	}
	a.timer.Stop()
}

// linksNear are the links, not ours, that have an address in the network of a.
func linksNear(a netip.Addr, have []netlink.Addr) []int {
	var out []int
	for _, h := range have {
		if !h.Contains(net.IP(a.AsSlice())) || slices.Contains(out, h.LinkIndex) {
			continue
		}
		l, err := netlink.LinkByIndex(h.LinkIndex)
		if err != nil || l.Attrs().Name == bridgeName || l.Attrs().Name == vxlanName || len(l.Attrs().HardwareAddr) != 6 || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		out = append(out, h.LinkIndex)
	}
	return out
}

// arpLink is ARP on one link: a socket, and one goroutine that reads it.
type arpLink struct {
	name     string
	file     *os.File
	hardware net.HardwareAddr
	done     chan struct{} // closed when the reader has ended
	log      *slog.Logger

	mu      sync.Mutex
	answers map[netip.Addr]bool
	clashed map[netip.Addr]bool // was told of
}

func openARP(index int, log *slog.Logger) (*arpLink, error) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("looking up link %d: %w", index, err)
	}
	name := link.Attrs().Name
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		return nil, errors.Join(fmt.Errorf("listening for ARP on %s: %w", name, err), unix.Close(fd))
	}
	l := &arpLink{name: name, file: os.NewFile(uintptr(fd), "arp-"+name), hardware: link.Attrs().HardwareAddr, done: make(chan struct{}), log: log.With("link", name),
		answers: map[netip.Addr]bool{}, clashed: map[netip.Addr]bool{}}
	go l.read()
	return l, nil
}

func (l *arpLink) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *arpLink) close() {
	_ = l.file.Close() // unblocks the reader
	<-l.done
}

// set returns the addresses that are new.
func (l *arpLink) set(addresses map[netip.Addr]bool) (newcomers []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range addresses {
		if !l.answers[a] {
			newcomers = append(newcomers, a)
		}
	}
	l.answers, l.clashed = addresses, map[netip.Addr]bool{}
	return newcomers
}

func (l *arpLink) held() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.answers))
}

// read answers until the socket is closed.
func (l *arpLink) read() {
	defer close(l.done)
	frame := make([]byte, 128)
	for {
		n, err := l.file.Read(frame)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENETDOWN): // reported once; it may come up again
			continue
		case err != nil:
			l.log.Warn("ARP is not heard any more", "err", err)
			return
		}
		p, ok := parseARP(frame[:n])
		if !ok || bytes.Equal(p.senderMAC[:], l.hardware) {
			continue
		}
		l.mu.Lock()
		answer := p.op == arpRequest && l.answers[p.target]
		clash := p.sender != p.target && l.answers[p.sender] && !l.clashed[p.sender]
		if clash {
			l.clashed[p.sender] = true
		}
		l.mu.Unlock()
		if clash {
			// Another node that has just come back from where it saw nobody, or
			// a stranger. Who heard it shall know better; once, because there
			// is no end to it if it thinks so too.
			l.log.Warn("somebody else uses the address of a load balancer", "address", p.sender, "hardware", net.HardwareAddr(p.senderMAC[:]))
			l.announce(p.sender)
		}
		if answer {
			l.send(arpFrame(l.hardware, p.senderMAC[:], arpReply, p.target, p.senderMAC[:], p.sender))
		}
	}
}

func (l *arpLink) send(frame []byte) {
	if _, err := l.file.Write(frame); err != nil && !errors.Is(err, os.ErrClosed) {
		l.log.Debug("an ARP packet was not sent", "err", err)
	}
}

var everybody = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// announce tells everybody on the link that an address is here now, in both
// ways that are in use. It says whether this link answers for it.
func (l *arpLink) announce(a netip.Addr) bool {
	l.mu.Lock()
	here := l.answers[a]
	l.mu.Unlock()
	if here {
		l.send(arpFrame(l.hardware, everybody, arpRequest, a, make([]byte, 6), a))
		l.send(arpFrame(l.hardware, everybody, arpReply, a, everybody, a))
	}
	return here
}

const (
	arpRequest = 1
	arpReply   = 2
	arpLength  = 14 + 28 // Ethernet's header and ARP for IPv4
)

// arpHead is what ARP for IPv4 over Ethernet begins with.
var arpHead = []byte{0, 1, 8, 0, 6, 4}

type arpPacket struct {
	op             uint16
	senderMAC      [6]byte
	sender, target netip.Addr
}

// parseARP reads a frame; whatever is not ARP for IPv4 over Ethernet is none.
func parseARP(frame []byte) (p arpPacket, ok bool) {
	if len(frame) < arpLength || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP || !bytes.Equal(frame[14:20], arpHead) {
		return p, false
	}
	body := frame[14:]
	p.op = binary.BigEndian.Uint16(body[6:])
	copy(p.senderMAC[:], body[8:14])
	p.sender, p.target = netip.AddrFrom4([4]byte(body[14:18])), netip.AddrFrom4([4]byte(body[24:28]))
	return p, true
}

func arpFrame(from, to []byte, op uint16, sender netip.Addr, targetMAC []byte, target netip.Addr) []byte {
	f := slices.Concat(to, from, binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP), arpHead, binary.BigEndian.AppendUint16(nil, op))
	return slices.Concat(f, from, sender.AsSlice(), targetMAC, target.AsSlice())
}
