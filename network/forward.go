package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	resolvConf = "/etc/resolv.conf"
	// resolvConfAge is how old our reading of the file may be.
	resolvConfAge = 2 * time.Second

	upstreamWait   = 2 * time.Second // for one answer
	upstreamRounds = 2               // over all upstreams
	maxInFlight    = 512             // questions to upstreams
	// failedFor is how long a server without an answer is asked last.
	failedFor = 10 * time.Second
)

// forwarder answers by asking others, and remembers a little.
type forwarder struct {
	fixed     []netip.AddrPort // nil: from the settings or the file
	file      string
	ourselves func(netip.Addr) bool
	inFlight  chan struct{}
	now       func() time.Time
	log       *slog.Logger
	cache     *dnsCache
	loops     *loopFinder

	mu       sync.Mutex
	settings dnsSettings
	list     []netip.AddrPort
	read     time.Time // when the file was last looked at
	modified time.Time
	// asking are the questions under way, so that nobody is asked one twice
	// at a time. That also bounds what a loop can do until it is found.
	asking map[flightKey]*flight
	// failed are the servers that gave no answer, and when: they are asked
	// last for a while.
	failed map[netip.AddrPort]time.Time
}

type flightKey struct {
	cacheKey
	overUDP bool
}

// flight is one question under way. Its answer is shared and not changed.
type flight struct {
	done   chan struct{}
	answer *dns.Msg // nil: there is none
}

func newForwarder(fixed []netip.AddrPort, ourselves func(netip.Addr) bool) *forwarder {
	return &forwarder{fixed: fixed, file: resolvConf, ourselves: ourselves, inFlight: make(chan struct{}, maxInFlight), now: time.Now,
		log: slog.New(slog.DiscardHandler), cache: newDNSCache(), loops: newLoopFinder(),
		asking: map[flightKey]*flight{}, failed: map[netip.AddrPort]time.Time{}}
}

// fill answers a question that came in query q.
func (f *forwarder) fill(m, q *dns.Msg, question dns.Question, overUDP bool) {
	key := cacheKey{name: strings.ToLower(question.Name), qtype: question.Qtype, cd: q.CheckingDisabled}
	if opt := q.IsEdns0(); opt != nil {
		key.do = opt.Do()
	}
	if !q.RecursionDesired {
		m.Rcode = dns.RcodeRefused
		return
	}
	if c := f.cache.get(key, f.now(), false); c != nil {
		c.fill(m)
		return
	}
	if f.loops.came(key.name, key.qtype) {
		m.Rcode = dns.RcodeServerFailure // it was our own question
		return
	}
	a := f.share(flightKey{key, overUDP}, question)
	if a == nil {
		m.Rcode = dns.RcodeServerFailure
		// Better what was true a while ago than nothing (RFC 8767).
		if c := f.cache.get(key, f.now(), true); c != nil {
			c.fill(m)
		}
		return
	}
	m.Rcode, m.Truncated, m.AuthenticatedData = a.Rcode, a.Truncated, a.AuthenticatedData
	m.Answer, m.Ns = slices.Clone(a.Answer), slices.Clone(a.Ns)
	for _, rr := range a.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
}

// share asks, or waits for who asks the same already. It returns nil if there
// is no answer.
func (f *forwarder) share(key flightKey, question dns.Question) *dns.Msg {
	f.mu.Lock()
	if other := f.asking[key]; other != nil {
		f.mu.Unlock()
		<-other.done // it ends by the time limits of its own questions
		return other.answer
	}
	mine := &flight{done: make(chan struct{})}
	f.asking[key] = mine
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.asking, key)
		f.mu.Unlock()
		close(mine.done)
	}()
	select {
	case f.inFlight <- struct{}{}:
		defer func() { <-f.inFlight }()
	default:
		return nil
	}
	a, err := f.ask(key.cacheKey, question, key.overUDP)
	if err != nil {
		f.log.Debug("a name was not resolved", "name", question.Name, "err", err)
		return nil
	}
	mine.answer = a
	f.cache.put(key.cacheKey, a, f.now())
	return a
}

var errNoUpstream = errors.New("there is no name server to ask")

// ask asks the upstreams in order, and again, until one has an answer. Another
// server's failure is an answer only if nobody has a better one.
func (f *forwarder) ask(key cacheKey, question dns.Question, overUDP bool) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(question.Name, question.Qtype)
	q.CheckingDisabled = key.cd
	q.SetEdns0(maxUDP, key.do)
	client := &dns.Client{Net: "tcp", Timeout: upstreamWait}
	if overUDP {
		client.Net = "udp"
	}
	var failed *dns.Msg
	err := errNoUpstream
	for range upstreamRounds {
		for _, up := range f.servers(key.name) {
			ctx, cancel := context.WithTimeout(context.Background(), upstreamWait)
			a, _, e := client.ExchangeContext(ctx, q, up.String())
			cancel()
			switch {
			case e != nil:
				err = e
				f.mu.Lock()
				f.failed[up] = f.now()
				f.mu.Unlock()
			case len(a.Question) != 1 || !strings.EqualFold(a.Question[0].Name, question.Name) || a.Question[0].Qtype != question.Qtype:
				err = errors.New("the answer is to another question")
			case a.Rcode == dns.RcodeServerFailure || a.Rcode == dns.RcodeRefused:
				failed = a
			default:
				return a, nil
			}
		}
		if failed != nil {
			return failed, nil
		}
	}
	return nil, err
}

// servers returns whom to ask about a name, in order: those of the longest
// domain that the cluster's settings name, or else the upstreams. One that
// leads back here is not asked.
func (f *forwarder) servers(name string) []netip.AddrPort {
	f.mu.Lock()
	all, ok := f.settings.serversFor(name)
	f.mu.Unlock()
	if !ok {
		all = f.upstreams()
	}
	now := f.now()
	var good, bad []netip.AddrPort
	for _, s := range all {
		if f.loops.leadsBack(s, now, f.log) {
			continue
		}
		f.mu.Lock()
		at, did := f.failed[s]
		f.mu.Unlock()
		if did && now.Sub(at) < failedFor {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

// configure takes what the cluster's settings say. What was remembered may
// come from servers that are not to be asked any more.
func (f *forwarder) configure(s dnsSettings) {
	f.mu.Lock()
	same := f.settings.equal(s)
	f.settings = s
	clear(f.failed)
	f.mu.Unlock()
	if !same {
		f.cache.clear()
		f.loops.forget()
	}
}

// upstreams returns whom to ask. The file is looked at when somebody asks, not
// otherwise.
func (f *forwarder) upstreams() []netip.AddrPort {
	if f.fixed != nil {
		return f.fixed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.settings.upstreams) > 0 {
		return f.settings.upstreams
	}
	if now := f.now(); f.read.IsZero() || now.Sub(f.read) > resolvConfAge {
		f.read = now
		if info, err := os.Stat(f.file); err == nil && !info.ModTime().Equal(f.modified) {
			if b, err := os.ReadFile(f.file); err == nil {
				f.modified, f.list = info.ModTime(), nameServers(string(b), f.ourselves)
				f.loops.forget()
			}
		}
	}
	return f.list
}

// nameServers reads a resolv.conf, without the servers that are ourselves.
func nameServers(file string, ourselves func(netip.Addr) bool) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(file) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil || ourselves(a.Unmap()) {
			continue
		}
		if ap := netip.AddrPortFrom(a, 53); !slices.Contains(out, ap) {
			out = append(out, ap)
		}
	}
	return out
}
