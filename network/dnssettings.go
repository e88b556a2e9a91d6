package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// forwardSetting, in the cluster's settings, names the servers that are asked
// about names outside the cluster; with a dot and a domain behind it, those
// that are asked about that domain.
const forwardSetting = "dns.forward"

// dnsSettings are what the cluster's settings say of DNS.
type dnsSettings struct {
	upstreams []netip.AddrPort // none: each node's own
	domains   []stubDomain     // the longest names first
}

type stubDomain struct {
	name    string // fully qualified, lower case
	servers []netip.AddrPort
}

func (s dnsSettings) equal(o dnsSettings) bool {
	return slices.Equal(s.upstreams, o.upstreams) && slices.EqualFunc(s.domains, o.domains, func(a, b stubDomain) bool {
		return a.name == b.name && slices.Equal(a.servers, b.servers)
	})
}

// serversFor are those of the domain that a name is in, false if it is in none.
func (s dnsSettings) serversFor(name string) ([]netip.AddrPort, bool) {
	for _, d := range s.domains {
		if dns.IsSubDomain(d.name, name) {
			return d.servers, true
		}
	}
	return nil, false
}

// parseDNSSettings reads the settings. What it cannot understand it leaves out,
// and says so.
func parseDNSSettings(data map[string]string) (s dnsSettings, problems []error) {
	for key, value := range data {
		domain, of := strings.CutPrefix(key, forwardSetting)
		if !of || domain != "" && domain[0] != '.' {
			continue
		}
		domain = strings.TrimPrefix(domain, ".")
		servers, err := parseServers(value)
		if _, ok := dns.IsDomainName(domain); err == nil && domain != "" && !ok {
			err = fmt.Errorf("%q is no domain", domain)
		}
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", key, err))
		case domain == "":
			s.upstreams = servers
		default:
			s.domains = append(s.domains, stubDomain{dns.CanonicalName(domain), servers})
		}
	}
	slices.SortFunc(s.domains, func(a, b stubDomain) int {
		if d := dns.CountLabel(b.name) - dns.CountLabel(a.name); d != 0 {
			return d
		}
		return strings.Compare(a.name, b.name)
	})
	return s, problems
}

// parseServers reads addresses, each with a port or not.
func parseServers(text string) (all []netip.AddrPort, err error) {
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", \t\n", r) }) {
		ap, err := netip.ParseAddrPort(part)
		if a, aerr := netip.ParseAddr(part); aerr == nil {
			ap, err = netip.AddrPortFrom(a, 53), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is not the address of a name server", part)
		}
		all = append(all, ap)
	}
	if len(all) == 0 {
		return nil, errors.New("no name server is named")
	}
	return all, nil
}

// settingsHandler hands the cluster's settings to the forwarder.
type settingsHandler struct {
	f   *forwarder
	log *slog.Logger
}

var _ api.Handler = settingsHandler{}

// Replace implements api.Handler.
func (h settingsHandler) Replace(objects []api.Object) {
	if len(objects) == 0 {
		h.f.configure(dnsSettings{})
	}
	for _, o := range objects {
		h.Apply(watch.Added, o)
	}
}

// Apply implements api.Handler.
func (h settingsHandler) Apply(event watch.EventType, o api.Object) {
	m, ok := o.(*corev1.ConfigMap)
	if !ok || event == watch.Deleted {
		h.f.configure(dnsSettings{})
		return
	}
	s, problems := parseDNSSettings(m.Data)
	for _, err := range problems {
		h.log.Warn("a setting of DNS is left out", "configmap", m.Namespace+"/"+m.Name, "err", err)
	}
	h.f.configure(s)
}

// loopFinder finds servers that ask us what we ask them, as a host's own
// resolver does that was told to use the cluster's: a question that nobody
// else would ask is put to each server once, and if it comes to us, the server
// is not asked any more. Whether it still does is looked at from time to time.
type loopFinder struct {
	mu sync.Mutex
	// asked are the servers that were tried, and when; back those of them that
	// led back here.
	asked map[netip.AddrPort]time.Time
	back  map[netip.AddrPort]bool
	// probes are the questions under way.
	probes map[string]netip.AddrPort
}

const (
	loopProbe = dns.TypeHINFO // nobody asks for that
	loopAgain = 5 * time.Minute
)

func newLoopFinder() *loopFinder {
	return &loopFinder{asked: map[netip.AddrPort]time.Time{}, back: map[netip.AddrPort]bool{}, probes: map[string]netip.AddrPort{}}
}

// forget makes every server be tried again.
func (l *loopFinder) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.asked)
	clear(l.back)
}

// leadsBack says whether a server is known to ask us. One that was not tried,
// or led back here long ago, is tried beside the question that is under way.
func (l *loopFinder) leadsBack(server netip.AddrPort, now time.Time, log *slog.Logger) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, tried := l.asked[server]
	if tried && !(l.back[server] && now.Sub(at) > loopAgain) {
		return l.back[server]
	}
	l.asked[server] = now
	delete(l.back, server)
	var b [12]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	name := hex.EncodeToString(b[:6]) + "." + hex.EncodeToString(b[6:]) + "."
	l.probes[name] = server
	go l.probe(name, server, log)
	return false
}

// probe asks the question. It ends by its own time limit.
func (l *loopFinder) probe(name string, server netip.AddrPort, log *slog.Logger) {
	q := new(dns.Msg)
	q.SetQuestion(name, loopProbe)
	ctx, cancel := context.WithTimeout(context.Background(), upstreamWait)
	defer cancel()
	// Whatever it answers: what matters is what we are asked meanwhile.
	_, _, _ = (&dns.Client{Net: "udp", Timeout: upstreamWait}).ExchangeContext(ctx, q, server.String())
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.probes, name)
	if l.back[server] {
		log.Warn("a name server asks us what we ask it, and is left out; name another one in the setting "+forwardSetting+" or in "+resolvConf, "server", server)
	}
}

// came says whether a question is one of ours that came back.
func (l *loopFinder) came(name string, qtype uint16) bool {
	if qtype != loopProbe {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	server, ours := l.probes[name]
	if ours {
		l.back[server] = true
	}
	return ours
}
