package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// maxUDP is the largest answer by UDP: what passes every link unfragmented. A
// longer one is cut, and the client comes again by TCP.
const maxUDP = 1232

// resolver is the DNS server that pods ask.
type resolver struct {
	zone *zone
	up   *forwarder
	addr string
}

func newResolver(cfg Config, c *cluster) *resolver {
	pods, services := []netip.Prefix{cfg.PodCIDR}, []netip.Prefix{cfg.ServiceCIDR}
	if cfg.PodCIDR6.IsValid() {
		pods, services = append(pods, cfg.PodCIDR6), append(services, cfg.ServiceCIDR6)
	}
	up := newForwarder(cfg.Upstreams, func(a netip.Addr) bool {
		return slices.ContainsFunc(slices.Concat(pods, services), func(p netip.Prefix) bool { return p.Contains(a) })
	})
	if cfg.Log != nil {
		up.log = cfg.Log
	}
	return &resolver{
		zone: &zone{
			domain: dns.CanonicalName(cfg.Domain), address: cfg.ClusterDNS, pods: pods, served: services,
			serial: uint32(time.Now().Unix()), cluster: c,
		},
		up:   up,
		addr: netip.AddrPortFrom(cfg.ClusterDNS, 53).String(),
	}
}

// run serves once wait returns, until ctx ends. It reports what keeps it from
// serving, and nil when it does.
func (r *resolver) run(ctx context.Context, wait func() error, report func(error)) error {
	if err := wait(); err != nil {
		return ended(ctx, err)
	}
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		err := r.serve(ctx, func() { report(nil) })
		if ctx.Err() != nil {
			return nil
		}
		report(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// serve listens and answers until ctx ends or a listener fails.
func (r *resolver) serve(ctx context.Context, listening func()) error {
	packets, err := net.ListenPacket("udp", r.addr)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	streams, err := net.Listen("tcp", r.addr)
	if err != nil {
		packets.Close()
		return fmt.Errorf("listening: %w", err)
	}
	servers := []*dns.Server{
		{PacketConn: packets, Handler: r, UDPSize: 4096},
		{Listener: streams, Handler: r, IdleTimeout: func() time.Duration { return 10 * time.Second }},
	}
	listening()
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		g.Go(func() error {
			if err := s.ActivateAndServe(); ctx.Err() == nil {
				return fmt.Errorf("serving: %w", errors.Join(err, errors.New("the listener ended")))
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			select {
			case <-started:
				// Requests under way end by their own time limits.
				return s.Shutdown()
			default: // it failed before it started
				return errors.Join(packets.Close(), streams.Close())
			}
		})
	}
	return g.Wait()
}

// ServeDNS implements dns.Handler.
func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	_, overUDP := w.RemoteAddr().(*net.UDPAddr)
	if m := r.answer(q, overUDP); m != nil {
		// There is nobody to tell if the client has gone.
		_ = w.WriteMsg(m)
	}
}

// answer makes the whole reply to a query, nil for what deserves none.
func (r *resolver) answer(q *dns.Msg, overUDP bool) *dns.Msg {
	if q.Response {
		return nil
	}
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.Compress = true
	size := dns.MinMsgSize
	opt := q.IsEdns0()
	if opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		m.Rcode = dns.RcodeBadVers
	case q.Question[0].Qclass != dns.ClassINET, q.Question[0].Qtype == dns.TypeAXFR, q.Question[0].Qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused
	default:
		r.fill(m, q, overUDP)
	}
	if overUDP {
		m.Truncate(size)
	}
	return m
}

func (r *resolver) fill(m, q *dns.Msg, overUDP bool) {
	question := q.Question[0]
	res, ours := r.zone.lookup(question.Name, question.Qtype)
	if !ours {
		r.up.fill(m, q, question, overUDP)
		return
	}
	if len(res.answer) == 0 && !r.zone.seen() {
		m.Rcode = dns.RcodeServerFailure // we do not know yet: ask again
		return
	}
	m.Authoritative = true
	m.Rcode, m.Answer = res.rcode, res.answer
	if m.IsEdns0() != nil || !overUDP {
		m.Extra = append(res.extra, m.Extra...) // only where there is room
	}
	if res.alias != "" {
		question.Name = res.alias
		rest := new(dns.Msg)
		r.up.fill(rest, q, question, overUDP)
		m.Rcode, m.Truncated = rest.Rcode, rest.Truncated
		m.Answer = append(m.Answer, rest.Answer...)
		m.Ns = append(m.Ns, rest.Ns...)
		return
	}
	if res.rcode == dns.RcodeNameError || res.rcode == dns.RcodeSuccess && len(res.answer) == 0 {
		m.Ns = []dns.RR{r.zone.soa(r.zone.apex(question.Name))}
	}
}

// apex is the zone that a negative answer speaks for.
func (z *zone) apex(name string) string {
	if dns.IsSubDomain(z.domain, dns.CanonicalName(name)) {
		return z.domain
	}
	if dns.IsSubDomain("ip6.arpa.", dns.CanonicalName(name)) {
		return "ip6.arpa."
	}
	return "in-addr.arpa."
}
