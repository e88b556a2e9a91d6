package network

import (
	"container/list"
	"context"
	"errors"
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

	cacheEntries = 1024
	maxCacheTTL  = time.Hour
	maxNegative  = 5 * time.Minute
)

// forwarder answers by asking others, and remembers a little.
type forwarder struct {
	fixed     []netip.AddrPort // nil: from file
	file      string
	ourselves func(netip.Addr) bool
	inFlight  chan struct{}
	now       func() time.Time

	mu       sync.Mutex
	list     []netip.AddrPort
	read     time.Time // when the file was last looked at
	modified time.Time
	cache    map[cacheKey]*list.Element
	recent   *list.List // of *cached, the most recently used first
}

// cacheKey is all of a question that the answer depends on.
type cacheKey struct {
	name  string
	qtype uint16
	do    bool
	cd    bool
}

type cached struct {
	key             cacheKey
	rcode           int
	answer, ns      []dns.RR
	authentic       bool
	stored, expires time.Time
}

func newForwarder(fixed []netip.AddrPort, ourselves func(netip.Addr) bool) *forwarder {
	return &forwarder{fixed: fixed, file: resolvConf, ourselves: ourselves, inFlight: make(chan struct{}, maxInFlight), now: time.Now,
		cache: map[cacheKey]*list.Element{}, recent: list.New()}
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
	if c := f.remembered(key); c != nil {
		m.Rcode, m.Answer, m.Ns, m.AuthenticatedData = c.rcode, c.answer, c.ns, c.authentic
		return
	}
	select {
	case f.inFlight <- struct{}{}:
		defer func() { <-f.inFlight }()
	default:
		m.Rcode = dns.RcodeServerFailure
		return
	}
	a, err := f.ask(key, question, overUDP)
	if err != nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	m.Rcode, m.Truncated, m.Answer, m.Ns, m.AuthenticatedData = a.Rcode, a.Truncated, a.Answer, a.Ns, a.AuthenticatedData
	for _, rr := range a.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
	f.remember(key, a)
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
		for _, up := range f.upstreams() {
			ctx, cancel := context.WithTimeout(context.Background(), upstreamWait)
			a, _, e := client.ExchangeContext(ctx, q, up.String())
			cancel()
			switch {
			case e != nil:
				err = e
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

// upstreams returns whom to ask. The file is looked at when somebody asks, not
// otherwise.
func (f *forwarder) upstreams() []netip.AddrPort {
	if f.fixed != nil {
		return f.fixed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); f.read.IsZero() || now.Sub(f.read) > resolvConfAge {
		f.read = now
		if info, err := os.Stat(f.file); err == nil && !info.ModTime().Equal(f.modified) {
			if b, err := os.ReadFile(f.file); err == nil {
				f.modified, f.list = info.ModTime(), nameServers(string(b), f.ourselves)
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

// remembered returns what is known of a question, with the time to live that
// is left, nil if nothing.
func (f *forwarder) remembered(key cacheKey) *cached {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.cache[key]
	if e == nil {
		return nil
	}
	c := e.Value.(*cached)
	now := f.now()
	if !now.Before(c.expires) {
		f.recent.Remove(e)
		delete(f.cache, key)
		return nil
	}
	f.recent.MoveToFront(e)
	age := uint32(now.Sub(c.stored) / time.Second)
	aged := func(rrs []dns.RR) []dns.RR {
		out := make([]dns.RR, len(rrs))
		for i, rr := range rrs {
			out[i] = dns.Copy(rr)
			if h := out[i].Header(); h.Ttl >= age {
				h.Ttl -= age
			} else {
				h.Ttl = 0
			}
		}
		return out
	}
	return &cached{rcode: c.rcode, answer: aged(c.answer), ns: aged(c.ns), authentic: c.authentic}
}

// remember keeps an answer for as long as it says, a negative one for as long
// as its SOA says (RFC 2308).
func (f *forwarder) remember(key cacheKey, a *dns.Msg) {
	ttl, ok := lifetime(a)
	if !ok || ttl <= 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.cache[key]; e != nil {
		f.recent.Remove(e)
	} else if f.recent.Len() >= cacheEntries {
		last := f.recent.Back()
		f.recent.Remove(last)
		delete(f.cache, last.Value.(*cached).key)
	}
	now := f.now()
	// A copy: the message is about to be written, cut to size.
	a = a.Copy()
	f.cache[key] = f.recent.PushFront(&cached{key: key, rcode: a.Rcode, answer: a.Answer, ns: a.Ns, authentic: a.AuthenticatedData, stored: now, expires: now.Add(ttl)})
}

// lifetime is how long an answer may be remembered, false if not at all.
func lifetime(a *dns.Msg) (time.Duration, bool) {
	if a.Truncated || a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		return 0, false
	}
	seconds, most, negative := uint32(maxCacheTTL/time.Second), maxCacheTTL, a.Rcode == dns.RcodeNameError || len(a.Answer) == 0
	for _, rr := range slices.Concat(a.Answer, a.Ns) {
		seconds = min(seconds, rr.Header().Ttl)
	}
	if negative {
		i := slices.IndexFunc(a.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA })
		if i < 0 {
			return 0, false
		}
		seconds, most = min(seconds, a.Ns[i].(*dns.SOA).Minttl), maxNegative
	}
	return min(time.Duration(seconds)*time.Second, most), true
}
