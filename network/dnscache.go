package network

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// The cache is bounded in both: a node has little memory, and an answer
	// may have 64 KiB.
	cacheEntries = 4096
	cacheBytes   = 2 << 20

	maxCacheTTL = time.Hour
	maxNegative = 5 * time.Minute
	// staleFor is how long an answer that has expired is kept in case that
	// nobody answers any more; staleTTL is what is then said of it, in seconds.
	staleFor = time.Hour
	staleTTL = 30
	// entryOverhead is about what an entry takes beside its records.
	entryOverhead = 300
)

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
	size            int
}

// fill writes what was remembered into a reply.
func (c *cached) fill(m *dns.Msg) {
	m.Rcode, m.Answer, m.Ns, m.AuthenticatedData = c.rcode, c.answer, c.ns, c.authentic
}

// dnsCache remembers what others answered, yes and no, for as long as they
// said. What was used longest ago makes room.
type dnsCache struct {
	mu     sync.Mutex
	byKey  map[cacheKey]*list.Element
	recent *list.List // of *cached, the most recently used first
	size   int
}

func newDNSCache() *dnsCache {
	return &dnsCache{byKey: map[cacheKey]*list.Element{}, recent: list.New()}
}

// get returns what is known of a question, with the time to live that is left,
// nil if nothing. If stale, what has expired not long ago will do.
func (d *dnsCache) get(key cacheKey, now time.Time, stale bool) *cached {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.byKey[key]
	if e == nil {
		return nil
	}
	c := e.Value.(*cached)
	late := now.Sub(c.expires)
	if late >= staleFor || late >= 0 && len(c.answer) == 0 {
		d.drop(e)
		return nil
	}
	if late >= 0 && !stale {
		return nil
	}
	d.recent.MoveToFront(e)
	age := uint32(now.Sub(c.stored) / time.Second)
	aged := func(rrs []dns.RR) []dns.RR {
		out := make([]dns.RR, len(rrs))
		for i, rr := range rrs {
			out[i] = dns.Copy(rr)
			h := out[i].Header()
			switch {
			case late >= 0:
				h.Ttl = staleTTL
			case h.Ttl >= age:
				h.Ttl -= age
			default:
				h.Ttl = 0
			}
		}
		return out
	}
	return &cached{rcode: c.rcode, answer: aged(c.answer), ns: aged(c.ns), authentic: c.authentic}
}

// put keeps an answer for as long as it says, a negative one for as long as
// its SOA says (RFC 2308).
func (d *dnsCache) put(key cacheKey, a *dns.Msg, now time.Time) {
	ttl, ok := lifetime(a)
	if !ok || ttl <= 0 {
		return
	}
	// A copy: the message is about to be written, cut to size.
	a = a.Copy()
	c := &cached{key: key, rcode: a.Rcode, answer: a.Answer, ns: a.Ns, authentic: a.AuthenticatedData, stored: now, expires: now.Add(ttl),
		size: a.Len() + entryOverhead}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.byKey[key]; e != nil {
		d.drop(e)
	}
	d.byKey[key] = d.recent.PushFront(c)
	d.size += c.size
	for d.recent.Len() > cacheEntries || d.size > cacheBytes {
		d.drop(d.recent.Back())
	}
}

func (d *dnsCache) drop(e *list.Element) {
	c := d.recent.Remove(e).(*cached)
	delete(d.byKey, c.key)
	d.size -= c.size
}

func (d *dnsCache) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.byKey)
	d.recent.Init()
	d.size = 0
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
