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

// answerer answers who asks on a link for addresses that this host does not
// have: by ARP for those of IPv4, by neighbour discovery for those of IPv6. The
// kernel is not given the addresses, on purpose: it would go on answering after
// this process has ended, when another node has long taken over.
type answerer struct {
	log *slog.Logger
	// sysctl sets what teardown restores.
	sysctl func(key, value string) error
	links  map[answerKey]*answerLink
	timer  *time.Timer
	// shouts is how often newcomers are still to be announced.
	shouts map[netip.Addr]int
}

// answerKey is a link, and the family in which it is answered on.
type answerKey struct {
	index int
	ip    *family
}

// speech is how neighbours of one family ask for each other. Frames are of
// Ethernet.
type speech struct {
	name      string
	ethertype uint16
	// filter lets only questions through, for the kernel's sake; nil: all
	// frames of the type are some.
	filter []unix.SockFilter
	// parse reads a frame; one that asks and says nothing is not ok.
	parse func(frame []byte) (heard, bool)
	// reply answers a question that was heard.
	reply func(own net.HardwareAddr, h heard) []byte
	// announce says that an address is here now.
	announce func(own net.HardwareAddr, a netip.Addr) [][]byte
	// join makes questions for these addresses arrive; what it returns ends
	// that. It is nil where they come to everybody.
	join func(index int, all []netip.Addr) (func() error, error)
}

// heard is what a neighbour said.
type heard struct {
	mac  [6]byte
	from netip.Addr // who asks; may be unspecified
	asks netip.Addr // for this one; invalid if for none
	// claims is what it says, beside asking, that it has; invalid if nothing
	// is.
	claims netip.Addr
}

var speeches = map[*family]speech{ip4: arpSpeech, ip6: ndpSpeech}

// A newcomer is announced more than once: packets get lost, most of all when
// hosts die.
const (
	shoutTimes = 4
	shoutPause = 700 * time.Millisecond
)

func newAnswerer(log *slog.Logger, sysctl func(key, value string) error) *answerer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &answerer{log: log, sysctl: sysctl, links: map[answerKey]*answerLink{}, timer: t, shouts: map[netip.Addr]int{}}
}

// again fires when shout is to be called again.
func (a *answerer) again() <-chan time.Time { return a.timer.C }

// set makes this host answer for these addresses and no others, each on the
// links whose network it is in, or else on the link that has our own address.
func (a *answerer) set(wanted []netip.Addr, own netip.Addr) error {
	byLink, err := placesOf(wanted, own)
	if byLink == nil {
		return err
	}
	errs := []error{err}
	for key, l := range a.links {
		if byLink[key] == nil || l.ended() {
			l.close()
			delete(a.links, key)
		}
	}
	news := false
	for key, addresses := range byLink {
		l := a.links[key]
		if l == nil {
			if l, err = openLink(key, a.log); err != nil {
				errs = append(errs, err)
				continue
			}
			a.links[key] = l
			if key.ip == ip4 {
				// What comes here for an address that is not here is not to be
				// told a shorter way, but that nobody is there.
				errs = append(errs, a.sysctl("ipv4/conf/"+l.name+"/send_redirects", "0"))
			}
		}
		newcomers, err := l.set(addresses)
		errs = append(errs, err)
		for _, newcomer := range newcomers {
			a.shouts[newcomer] = shoutTimes
		}
		news = news || len(newcomers) > 0
	}
	if news {
		a.shout()
	}
	return errors.Join(errs...)
}

// placesOf are the links on which to answer for addresses.
func placesOf(wanted []netip.Addr, own netip.Addr) (map[answerKey]map[netip.Addr]bool, error) {
	byLink := map[answerKey]map[netip.Addr]bool{}
	if len(wanted) == 0 {
		return byLink, nil
	}
	have, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing this host's addresses: %w", err)
	}
	var errs []error
	for _, w := range wanted {
		near := linksNear(w, have)
		if len(near) == 0 {
			near = linksNear(own, have)
		}
		if len(near) == 0 {
			errs = append(errs, fmt.Errorf("no link leads to %s", w))
		}
		for _, i := range near {
			key := answerKey{i, familyOf(w)}
			if byLink[key] == nil {
				byLink[key] = map[netip.Addr]bool{}
			}
			byLink[key][w] = true
		}
	}
	return byLink, errors.Join(errs...)
}

// repeat announces all that is answered for once more.
func (a *answerer) repeat() {
	for _, l := range a.links {
		for _, address := range l.held() {
			a.shouts[address] = shoutTimes
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
		a.timer.Reset(shoutPause)
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

// answerLink is one family on one link: a socket, and one goroutine that reads
// it.
type answerLink struct {
	speech
	index    int
	name     string
	file     *os.File
	hardware net.HardwareAddr
	done     chan struct{} // closed when the reader has ended
	log      *slog.Logger
	leave    func() error // ends what join began

	mu      sync.Mutex
	answers map[netip.Addr]bool
	clashed map[netip.Addr]bool // was told of
}

func openLink(key answerKey, log *slog.Logger) (*answerLink, error) {
	how := speeches[key.ip]
	link, err := netlink.LinkByIndex(key.index)
	if err != nil {
		return nil, fmt.Errorf("looking up link %d: %w", key.index, err)
	}
	name := link.Attrs().Name
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	if how.filter != nil {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(how.filter)), Filter: &how.filter[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, how.ethertype)), Ifindex: key.index})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening for %s on %s: %w", how.name, name, err), unix.Close(fd))
	}
	l := &answerLink{speech: how, index: key.index, name: name, file: os.NewFile(uintptr(fd), how.name+"-"+name), hardware: link.Attrs().HardwareAddr,
		done: make(chan struct{}), log: log.With("link", name), leave: func() error { return nil },
		answers: map[netip.Addr]bool{}, clashed: map[netip.Addr]bool{}}
	go l.read()
	return l, nil
}

func (l *answerLink) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *answerLink) close() {
	_ = l.file.Close() // unblocks the reader
	<-l.done
	_ = l.leave() // nothing follows from it
}

// set returns the addresses that are new.
func (l *answerLink) set(addresses map[netip.Addr]bool) (newcomers []netip.Addr, err error) {
	l.mu.Lock()
	same := maps.Equal(l.answers, addresses)
	for a := range addresses {
		if !l.answers[a] {
			newcomers = append(newcomers, a)
		}
	}
	l.answers, l.clashed = addresses, map[netip.Addr]bool{}
	l.mu.Unlock()
	if l.join == nil || same {
		return newcomers, nil
	}
	leave, err := l.join(l.index, slices.Collect(maps.Keys(addresses)))
	if err != nil {
		l.mu.Lock()
		l.answers = map[netip.Addr]bool{} // so that it is tried again
		l.mu.Unlock()
		return nil, fmt.Errorf("listening for %s on %s: %w", l.speech.name, l.name, err)
	}
	_ = l.leave() // after the new one, so that no question is missed
	l.leave = leave
	return newcomers, nil
}

func (l *answerLink) held() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.answers))
}

// read answers until the socket is closed.
func (l *answerLink) read() {
	defer close(l.done)
	frame := make([]byte, 256)
	for {
		n, err := l.file.Read(frame)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENETDOWN): // reported once; it may come up again
			continue
		case err != nil:
			l.log.Warn(l.speech.name+" is not heard any more", "err", err)
			return
		}
		h, ok := l.parse(frame[:n])
		if !ok || bytes.Equal(h.mac[:], l.hardware) {
			continue
		}
		l.mu.Lock()
		answer := l.answers[h.asks]
		clash := l.answers[h.claims] && !l.clashed[h.claims]
		if clash {
			l.clashed[h.claims] = true
		}
		l.mu.Unlock()
		if clash {
			// Another node that has just come back from where it saw nobody, or
			// a stranger. Who heard it shall know better; once, because there
			// is no end to it if it thinks so too.
			l.log.Warn("somebody else uses the address of a load balancer", "address", h.claims, "hardware", net.HardwareAddr(h.mac[:]))
			l.announce(h.claims)
		}
		if answer {
			l.send(l.reply(l.hardware, h))
		}
	}
}

func (l *answerLink) send(frame []byte) {
	if _, err := l.file.Write(frame); err != nil && !errors.Is(err, os.ErrClosed) {
		l.log.Debug("an answer to "+l.speech.name+" was not sent", "err", err)
	}
}

// announce tells everybody on the link that an address is here now. It says
// whether this link answers for it.
func (l *answerLink) announce(a netip.Addr) bool {
	l.mu.Lock()
	here := l.answers[a]
	l.mu.Unlock()
	if here {
		for _, frame := range l.speech.announce(l.hardware, a) {
			l.send(frame)
		}
	}
	return here
}
