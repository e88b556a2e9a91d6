package network

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/types"
)

// recordTTL is how long clients may keep what we say, yes or no, in seconds:
// pods come and go.
const recordTTL = 5

// zone answers for the cluster's domain and the reverse names of its
// addresses, as the specification "Kubernetes DNS-Based Service Discovery"
// says. It reads the cluster and touches nothing.
type zone struct {
	domain  string // lower case, fully qualified
	address netip.Addr
	pods    []netip.Prefix // the whole cluster's, of each family
	served  []netip.Prefix // those of services
	serial  uint32
	cluster *cluster
}

// result is what a zone knows of a name.
type result struct {
	rcode  int
	answer []dns.RR
	extra  []dns.RR
	// alias is the name outside the zone where the answer goes on: the last
	// CNAME's target.
	alias string
}

var (
	noSuchName = result{rcode: dns.RcodeNameError}
	noData     = result{rcode: dns.RcodeSuccess}
)

// maxAliases bounds how many ExternalName services may lead to each other.
const maxAliases = 8

// lookup answers a question. It returns false if the name is not ours to
// answer for.
func (z *zone) lookup(qname string, qtype uint16) (result, bool) {
	name := strings.ToLower(qname)
	z.cluster.mu.RLock()
	defer z.cluster.mu.RUnlock()
	if dns.IsSubDomain(z.domain, name) {
		return z.forward(qname, name, qtype, 0), true
	}
	return z.reverse(qname, name, qtype)
}

// seen says whether the cluster has been seen, so that "no" may be said. It is
// asked after lookup.
func (z *zone) seen() bool { return z.cluster.isSynced("services", "endpointslices") }

func (z *zone) forward(owner, name string, qtype uint16, depth int) result {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, z.domain))
	if len(labels) == 0 {
		switch qtype {
		case dns.TypeSOA:
			return result{answer: []dns.RR{z.soa(owner)}}
		case dns.TypeNS:
			return result{answer: []dns.RR{&dns.NS{Hdr: header(owner, dns.TypeNS), Ns: "ns.dns." + z.domain}},
				extra: addresses("ns.dns."+z.domain, dns.TypeANY, []netip.Addr{z.address})}
		}
		return noData
	}
	last := len(labels) - 1
	switch rest := labels[:last]; {
	case labels[last] == "svc":
		return z.services(owner, rest, qtype, depth)
	case labels[last] == "pod":
		return z.pod(owner, rest, qtype)
	case labels[last] == "dns-version" && len(rest) == 0:
		if qtype == dns.TypeTXT {
			return result{answer: []dns.RR{&dns.TXT{Hdr: header(owner, dns.TypeTXT), Txt: []string{"1.1.0"}}}}
		}
		return noData
	case labels[last] == "dns" && len(rest) == 0:
		return noData
	case labels[last] == "dns" && len(rest) == 1 && rest[0] == "ns":
		return result{answer: addresses(owner, qtype, []netip.Addr{z.address})}
	}
	return noSuchName
}

// services answers for what is below svc: labels are those before it.
func (z *zone) services(owner string, labels []string, qtype uint16, depth int) result {
	n := len(labels)
	if n == 0 {
		return noData
	}
	namespace := labels[n-1]
	if z.cluster.spaces[namespace] == 0 {
		return noSuchName
	}
	if n == 1 {
		return noData
	}
	s := z.cluster.services[types.NamespacedName{Namespace: namespace, Name: labels[n-2]}]
	if s == nil {
		return noSuchName
	}
	if s.external != "" {
		if n != 2 {
			return noSuchName
		}
		return z.external(owner, s, qtype, depth)
	}
	switch rest := labels[:n-2]; len(rest) {
	case 0:
		if qtype == dns.TypeSRV {
			if r := z.srv(owner, s, func(servicePort) bool { return true }); len(r.answer) > 0 || !s.headless {
				return r
			}
		}
		if !s.headless {
			return result{answer: addresses(owner, qtype, s.clusterIPs)}
		}
		all := z.ready(s, func(endpoint) bool { return true })
		if len(all) == 0 {
			return noSuchName // as the specification wants it
		}
		return result{answer: addresses(owner, qtype, all)}
	case 1:
		if proto, ok := strings.CutPrefix(rest[0], "_"); ok {
			if slices.ContainsFunc(s.ports, func(p servicePort) bool { return p.name != "" && p.proto.String() == proto }) {
				return noData
			}
			return noSuchName
		}
		if !s.headless {
			return noSuchName
		}
		at := z.ready(s, func(e endpoint) bool { return endpointName(e) == rest[0] })
		if len(at) == 0 {
			return noSuchName
		}
		return result{answer: addresses(owner, qtype, at)}
	case 2:
		port, ok1 := strings.CutPrefix(rest[0], "_")
		proto, ok2 := strings.CutPrefix(rest[1], "_")
		match := func(p servicePort) bool { return p.name == port && port != "" && p.proto.String() == proto }
		if !ok1 || !ok2 || !slices.ContainsFunc(s.ports, match) {
			return noSuchName
		}
		if s.headless && len(z.ready(s, func(endpoint) bool { return true })) == 0 {
			return noSuchName
		}
		if qtype == dns.TypeSRV {
			return z.srv(owner, s, match)
		}
		return noData
	}
	return noSuchName
}

// external leads to the name that an ExternalName service stands for.
func (z *zone) external(owner string, s *service, qtype uint16, depth int) result {
	target := dns.Fqdn(s.external)
	r := result{answer: []dns.RR{&dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: target}}}
	switch {
	case qtype == dns.TypeCNAME:
	case !dns.IsSubDomain(z.domain, target):
		r.alias = target
	case depth == maxAliases:
		r.rcode = dns.RcodeServerFailure
	default:
		next := z.forward(target, target, qtype, depth+1)
		r.rcode, r.alias, r.extra = next.rcode, next.alias, next.extra
		r.answer = append(r.answer, next.answer...)
	}
	return r
}

// ready returns the addresses of a headless service's endpoints.
func (z *zone) ready(s *service, match func(endpoint) bool) []netip.Addr {
	var out []netip.Addr
	for _, slice := range z.cluster.slicesOf(s.key) {
		for _, e := range slice.endpoints {
			if e.ready && match(e) && !slices.Contains(out, e.addr) {
				out = append(out, e.addr)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// endpointName is an endpoint's name below its service.
func endpointName(e endpoint) string {
	if e.hostname != "" {
		return e.hostname
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(e.addr.StringExpanded())
}

// serviceName is a service's name.
func (z *zone) serviceName(key types.NamespacedName) string {
	return key.Name + "." + key.Namespace + ".svc." + z.domain
}

// srv answers with those of a service's ports that match: at the service
// itself, or at each endpoint of a headless one.
func (z *zone) srv(owner string, s *service, match func(servicePort) bool) result {
	type target struct {
		name string
		port uint16
	}
	found := map[target][]netip.Addr{}
	own := z.serviceName(s.key)
	for _, p := range s.ports {
		if !match(p) {
			continue
		}
		if !s.headless {
			if len(s.clusterIPs) > 0 {
				found[target{own, p.port}] = s.clusterIPs
			}
			continue
		}
		for _, slice := range z.cluster.slicesOf(s.key) {
			for _, sp := range slice.ports {
				if sp.name != p.name || sp.proto != p.proto {
					continue
				}
				for _, e := range slice.endpoints {
					if e.ready {
						t := target{endpointName(e) + "." + own, sp.port}
						found[t] = append(found[t], e.addr)
					}
				}
			}
		}
	}
	var r result
	for t, ips := range found {
		r.answer = append(r.answer, &dns.SRV{Hdr: header(owner, dns.TypeSRV), Weight: uint16(max(1, 100/len(found))), Port: t.port, Target: t.name})
		for _, a := range addresses(t.name, dns.TypeANY, ips) {
			if !slices.ContainsFunc(r.extra, func(b dns.RR) bool { return dns.IsDuplicate(a, b) }) {
				r.extra = append(r.extra, a)
			}
		}
	}
	return r
}

// pod answers a-b-c-d.namespace.pod from the name alone, but only for
// addresses that a pod may have: of the pods' ranges, or a node's. In those of
// IPv6 a dash stands for each colon.
func (z *zone) pod(owner string, labels []string, qtype uint16) result {
	switch len(labels) {
	case 0, 1:
		return noData
	case 2:
		a, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
		if err != nil {
			a, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":"))
		}
		own := func() bool {
			for _, n := range z.cluster.nodes {
				if slices.Contains(n.addrs, a) {
					return true
				}
			}
			return false
		}
		if err == nil && (slices.ContainsFunc(z.pods, func(p netip.Prefix) bool { return p.Contains(a) }) || own()) {
			return result{answer: addresses(owner, qtype, []netip.Addr{a})}
		}
	}
	return noSuchName
}

// reverse answers for the names of addresses.
func (z *zone) reverse(owner, name string, qtype uint16) (result, bool) {
	prefix, ok := reversed(name)
	if !ok {
		return result{}, false
	}
	inside := slices.ContainsFunc(slices.Concat(z.pods, z.served), func(p netip.Prefix) bool {
		return p.Overlaps(prefix) && prefix.Bits() >= p.Bits()
	})
	if !prefix.IsSingleIP() {
		return noData, inside
	}
	var names []string
	if prefix.Addr() == z.address {
		names = append(names, "ns.dns."+z.domain)
	}
	if s := z.cluster.byIP[prefix.Addr()]; s != nil {
		names = append(names[:0], z.serviceName(s.key))
	}
	for _, slice := range z.cluster.byAddress[prefix.Addr()] {
		if s := z.cluster.services[slice.service]; s == nil || !s.headless {
			continue
		}
		for _, e := range slice.endpoints {
			if e.addr == prefix.Addr() && e.ready {
				names = append(names, endpointName(e)+"."+z.serviceName(slice.service))
			}
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return noSuchName, inside
	}
	if qtype != dns.TypePTR && qtype != dns.TypeANY {
		return noData, true
	}
	var r result
	for _, n := range names {
		r.answer = append(r.answer, &dns.PTR{Hdr: header(owner, dns.TypePTR), Ptr: n})
	}
	return r, true
}

// reversed reads a name below in-addr.arpa or ip6.arpa: an address, or the
// prefix that an incomplete one stands for.
func reversed(name string) (netip.Prefix, bool) {
	var bytes []byte
	if digits, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := dns.SplitDomainName(digits + ".")
		if len(labels) > 4 {
			return netip.Prefix{}, false
		}
		slices.Reverse(labels)
		for _, l := range labels {
			n := 0
			for _, c := range []byte(l) {
				if n = n*10 + int(c-'0'); c < '0' || c > '9' || n > 255 {
					return netip.Prefix{}, false
				}
			}
			bytes = append(bytes, byte(n))
		}
		bits := len(bytes) * 8
		bytes = append(bytes, make([]byte, 4-len(bytes))...)
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(bytes)), bits), true
	}
	if digits, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		labels := dns.SplitDomainName(digits + ".")
		if len(labels) > 32 {
			return netip.Prefix{}, false
		}
		slices.Reverse(labels)
		var addr [16]byte
		for i, l := range labels {
			d := strings.IndexByte("0123456789abcdef", l[0])
			if len(l) != 1 || d < 0 {
				return netip.Prefix{}, false
			}
			addr[i/2] |= byte(d) << (4 * (1 - i%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(addr), len(labels)*4), true
	}
	return netip.Prefix{}, false
}

func header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: recordTTL}
}

// addresses makes A or AAAA records, in any order: clients take the first.
func addresses(owner string, qtype uint16, all []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range all {
		switch {
		case a.Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			out = append(out, &dns.A{Hdr: header(owner, dns.TypeA), A: a.AsSlice()})
		case !a.Is4() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			out = append(out, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// soa is the zone's own record; in a negative answer its owner is the zone.
func (z *zone) soa(owner string) dns.RR {
	return &dns.SOA{Hdr: header(owner, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: z.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: recordTTL}
}
