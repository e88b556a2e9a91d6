package network

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
)

func flowOf(proto protocol, from, to, server netip.AddrPort) *vnetlink.ConntrackFlow {
	return &vnetlink.ConntrackFlow{
		Forward: vnetlink.IPTuple{Protocol: uint8(proto), SrcIP: from.Addr().AsSlice(), SrcPort: from.Port(), DstIP: to.Addr().AsSlice(), DstPort: to.Port()},
		Reverse: vnetlink.IPTuple{Protocol: uint8(proto), SrcIP: server.Addr().AsSlice(), SrcPort: server.Port(), DstIP: from.Addr().AsSlice(), DstPort: from.Port()},
	}
}

// kernelText renders what the kernel holds in our table, element by element
// and expression by expression.
func kernelText() (string, error) { return tableText(nftTable{tableName, ip4}) }

func tableText(ours nftTable) (string, error) {
	table := ours.nft()
	c, err := connect()
	if err != nil {
		return "", err
	}
	var out []string
	sets, err := c.GetSets(table)
	if err != nil {
		return "", err
	}
	slices.SortFunc(sets, func(a, b *nftables.Set) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range sets {
		line := "set " + s.Name
		if s.HasTimeout {
			line += fmt.Sprintf(" timeout %s size %d", s.Timeout, s.Size)
		}
		elements, err := c.GetSetElements(s)
		if err != nil {
			return "", err
		}
		var lines []string
		for _, e := range elements {
			l := fmt.Sprintf("  %x", e.Key)
			if len(e.Val) > 0 {
				l += " : " + valueText(e.Val)
			}
			lines = append(lines, l)
		}
		slices.Sort(lines)
		out = append(append(out, line), lines...)
	}
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return "", err
	}
	slices.SortFunc(chains, func(a, b *nftables.Chain) int { return strings.Compare(a.Name, b.Name) })
	for _, ch := range chains {
		if ch.Table.Name != table.Name {
			continue
		}
		line := "chain " + ch.Name
		if ch.Hooknum != nil {
			line += fmt.Sprintf(" type %s hook %d priority %d", ch.Type, *ch.Hooknum, *ch.Priority)
		}
		out = append(out, line)
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return "", err
		}
		for _, r := range rules {
			var words []string
			for _, e := range r.Exprs {
				words = append(words, exprText(e))
			}
			out = append(out, "  "+strings.Join(words, " "))
		}
	}
	return strings.Join(out, "\n") + "\n", nil
}

// valueText renders an element's data: a verdict, or bytes.
func valueText(b []byte) string {
	if ad, err := netlink.NewAttributeDecoder(b); err == nil {
		ad.ByteOrder = binary.BigEndian
		var kind int32
		var chain string
		for ad.Next() {
			switch ad.Type() {
			case 1:
				kind = int32(ad.Uint32())
			case 2:
				chain = ad.String()
			}
		}
		if ad.Err() == nil && chain != "" {
			return fmt.Sprintf("%s %s", map[int32]string{int32(expr.VerdictGoto): "goto"}[kind], chain)
		}
	}
	return fmt.Sprintf("%x", b)
}

func exprText(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Payload:
		return fmt.Sprintf("[load %d:%d+%d r%d]", e.Base, e.Offset, e.Len, e.DestRegister)
	case *expr.Meta:
		if e.SourceRegister {
			return fmt.Sprintf("[set meta %d r%d]", e.Key, e.Register)
		}
		return fmt.Sprintf("[meta %d r%d]", e.Key, e.Register)
	case *expr.Cmp:
		return fmt.Sprintf("[cmp %d r%d %x]", e.Op, e.Register, e.Data)
	case *expr.Bitwise:
		return fmt.Sprintf("[r%d & %x ^ %x]", e.SourceRegister, e.Mask, e.Xor)
	case *expr.Lookup:
		if e.IsDestRegSet {
			return fmt.Sprintf("[lookup r%d %s r%d]", e.SourceRegister, e.SetName, e.DestRegister)
		}
		return fmt.Sprintf("[lookup r%d %s invert=%v]", e.SourceRegister, e.SetName, e.Invert)
	case *expr.Verdict:
		return strings.TrimSpace(fmt.Sprintf("[verdict %d %s]", e.Kind, e.Chain))
	case *expr.NAT:
		return fmt.Sprintf("[nat %d r%d r%d]", e.Type, e.RegAddrMin, e.RegProtoMin)
	case *expr.Dynset:
		return fmt.Sprintf("[update %s r%d r%d timeout %s]", e.SetName, e.SrcRegKey, e.SrcRegData, e.Timeout)
	case *expr.Numgen:
		return fmt.Sprintf("[random mod %d r%d]", e.Modulus, e.Register)
	default:
		return fmt.Sprintf("[%T %+v]", e, e)
	}
}

// inScratch runs f in a namespace of its own.
func inScratch(t *testing.T, f func() error) {
	t.Helper()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := inNewNamespace(path, "", f); err != nil {
		t.Fatal(err)
	}
	if err := removeNamespace(path); err != nil {
		t.Fatal(err)
	}
}

func TestKernelRules(t *testing.T) {
	inScratch(t, func() error {
		pods := []string{"10.244.1.5", "10.244.2.5", "10.244.1.9"}
		text, err := kernelOf(testBase, "10.96.0.20", "192.0.2.1", "192.0.2.2", "127.0.0.1", "192.168.0.2", pods)
		golden(t, "kernel.golden", text)
		return err
	})
}

func TestKernelRules6(t *testing.T) {
	needIPv6(t)
	inScratch(t, func() error {
		pods := []string{"fd00:77:0:f01::5", "fd00:77:0:f02::5", "fd00:77:0:f01::9"}
		text, err := kernelOf(Base{PodCIDR: testPodCIDR6, ServiceCIDR: testServiceCIDR6}, "fd00:77:0:ff::20", "2001:db8::1", "2001:db8::2", "fd00:aa::1", "fd00:aa::2", pods)
		golden(t, "kernel6.golden", text)
		if err != nil {
			return err
		}
		// Alone it also carries the overlay, and leads to DNS.
		text, err = kernelOf(Base{PodCIDR: testPodCIDR6, ServiceCIDR: testServiceCIDR6, DNS: testDNS6, Overlay: true}, "fd00:77:0:ff::20", "2001:db8::1", "2001:db8::2", "fd00:aa::1", "fd00:aa::2", pods)
		golden(t, "kernel6-alone.golden", text)
		return err
	})
}

// kernelOf is what the kernel holds of some rules of everything.
func kernelOf(base Base, cluster, external, refused, own, other string, pods []string) (string, error) {
	r := newRules(base)
	at := func(pod int, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr(pods[pod]), port) }
	r.Services[VIP{addr(cluster), tcp, 80}] = "svc-a/b/tcp/80"
	r.Services[VIP{addr(external), tcp, 80}] = "ext-a/b/tcp/80"
	r.NodePorts[Port{tcp, 30080}] = "ext-a/b/tcp/80"
	r.NodePorts[Port{udp, 30081}] = "ext-a/c/udp/80"
	r.Entries["ext-a/b/tcp/80"] = Entry{Cluster: "svc-a/b/tcp/80"}
	r.Entries["ext-a/c/udp/80"] = Entry{Cluster: "svc-a/b/tcp/80", LocalOnly: true}
	r.Balancers["svc-a/b/tcp/80"] = Balancer{Endpoints: []netip.AddrPort{at(0, 8080), at(1, 8080)}, Affinity: time.Minute}
	r.Refused[VIP{addr(refused), tcp, 80}] = struct{}{}
	r.HostPorts[VIP{addr(own), tcp, 8000}] = at(2, 80)
	r.HostPorts[VIP{netip.Addr{}, tcp, 8001}] = at(2, 80)
	r.Pods[addr(pods[2])] = struct{}{}
	r.Nodes[addr(other)] = struct{}{}
	k := newKernel(base.ip())
	if err := k.apply(r); err != nil {
		return "", err
	}
	return tableText(k.nftTable)
}

// randomRules are rules over few enough names that two of them overlap.
func randomRules(rnd *rand.Rand) *Rules {
	r := newRules(testBase)
	some := func(n int, f func(i int)) {
		for i := range n {
			if rnd.IntN(2) == 0 {
				f(i)
			}
		}
	}
	target := func() netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(rnd.IntN(4)), byte(rnd.IntN(4))}), 80)
	}
	some(6, func(i int) {
		b := Balancer{Affinity: []time.Duration{0, time.Minute, time.Hour}[rnd.IntN(3)]}
		for range 1 + rnd.IntN(5) {
			b.Endpoints = append(b.Endpoints, target())
		}
		slices.SortFunc(b.Endpoints, netip.AddrPort.Compare)
		b.Endpoints = slices.Compact(b.Endpoints)
		r.Balancers[fmt.Sprintf("svc-%d", i)] = b
	})
	var balancers, plain []string
	for name, b := range r.Balancers {
		if b.Affinity == 0 && rnd.IntN(2) == 0 {
			b.Plain = true
			r.Balancers[name] = b
			r.Picks[len(b.Endpoints)] = struct{}{}
			plain = append(plain, name)
			continue
		}
		balancers = append(balancers, name)
	}
	slices.Sort(plain)
	if len(plain) > 0 {
		some(4, func(i int) {
			r.Services[VIP{netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), []protocol{tcp, udp}[i%2], 80}] = plain[rnd.IntN(len(plain))]
		})
	}
	slices.Sort(balancers)
	if len(balancers) > 0 {
		pick := func() string { return balancers[rnd.IntN(len(balancers))] }
		some(4, func(i int) {
			e := Entry{Cluster: pick(), LocalOnly: rnd.IntN(2) == 0}
			if e.LocalOnly && rnd.IntN(2) == 0 {
				e.Local = pick()
			}
			r.Entries[fmt.Sprintf("ext-%d", i)] = e
		})
		chains := slices.Clone(balancers)
		for name := range r.Entries {
			chains = append(chains, name)
		}
		slices.Sort(chains)
		some(8, func(i int) {
			r.Services[VIP{netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), []protocol{tcp, udp}[i%2], 80}] = chains[rnd.IntN(len(chains))]
		})
		some(4, func(i int) { r.NodePorts[Port{tcp, uint16(30000 + i)}] = chains[rnd.IntN(len(chains))] })
	}
	some(4, func(i int) { r.Refused[VIP{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), tcp, 80}] = struct{}{} })
	some(4, func(i int) { r.HostPorts[VIP{netip.Addr{}, tcp, uint16(i)}] = target() })
	some(4, func(i int) { r.HostPorts[VIP{addr("127.0.0.1"), tcp, uint16(i)}] = target() })
	some(4, func(i int) { r.Pods[netip.AddrFrom4([4]byte{10, 244, 1, byte(i)})] = struct{}{} })
	some(4, func(i int) { r.Nodes[netip.AddrFrom4([4]byte{192, 168, 0, byte(i)})] = struct{}{} })
	return r
}

// However the kernel came to hold some rules, it holds the same.
func TestChangesAreAsGoodAsAFreshStart(t *testing.T) {
	t.Parallel()
	inScratch(t, func() error {
		rnd := rand.New(rand.NewPCG(1, 2))
		k := newKernel(ip4)
		for i := range 60 {
			r := randomRules(rnd)
			if err := k.apply(r); err != nil {
				return fmt.Errorf("change %d: %w", i, err)
			}
			changed, err := kernelText()
			if err != nil {
				return err
			}
			if err := newKernel(ip4).apply(r); err != nil {
				return fmt.Errorf("change %d, from scratch: %w", i, err)
			}
			fresh, err := kernelText()
			if err != nil {
				return err
			}
			if changed != fresh {
				t.Fatalf("change %d: the kernel holds\n%s\nfrom scratch it would hold\n%s", i, changed, fresh)
			}
		}
		return nil
	})
}

// A change that the kernel refuses changes nothing, and the next one starts
// from scratch.
func TestRefusedChangeIsMadeGood(t *testing.T) {
	inScratch(t, func() error {
		k := newKernel(ip4)
		r := newRules(testBase)
		if err := k.apply(r); err != nil {
			return err
		}
		before, err := kernelText()
		if err != nil {
			return err
		}
		bad := newRules(testBase)
		bad.Nodes[addr("192.168.0.2")] = struct{}{}
		bad.NodePorts[Port{tcp, 30000}] = "no-such-chain"
		if err := k.apply(bad); err == nil {
			t.Error("a rule that leads nowhere was accepted")
		}
		after, err := kernelText()
		if err != nil {
			return err
		}
		if before != after {
			t.Errorf("half of a change was made:\n%s", after)
		}
		// Somebody else's hand in our table: also found and made good.
		c, err := connect()
		if err != nil {
			return err
		}
		c.DelTable(k.nft())
		if err := c.Flush(); err != nil {
			return err
		}
		delete(bad.NodePorts, Port{tcp, 30000})
		if err := k.apply(bad); err != nil {
			return err
		}
		if there, err := k.exists(); err != nil || !there {
			t.Errorf("the table is there: %v, %v", there, err)
		}
		return nil
	})
}

// Many services are one transaction, and one more costs one more.
func TestManyServices(t *testing.T) {
	inScratch(t, func() error {
		r := newRules(testBase)
		var many []netip.AddrPort
		for i := range 3000 {
			many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i / 250), byte(i % 250)}), 80))
		}
		for i := range 1000 {
			name := fmt.Sprintf("svc-%d", i)
			r.Balancers[name] = Balancer{Endpoints: many[i : i+1+i%3]}
			r.Services[VIP{netip.AddrFrom4([4]byte{10, 96, byte(i / 250), byte(i % 250)}), tcp, 80}] = name
		}
		r.Balancers["svc-0"] = Balancer{Endpoints: many} // more than one message holds
		k := newKernel(ip4)
		start := time.Now()
		if err := k.apply(r); err != nil {
			return err
		}
		t.Logf("1000 services in %s", time.Since(start))
		more := *r
		more.Balancers = map[string]Balancer{}
		for name, b := range r.Balancers {
			more.Balancers[name] = b
		}
		more.Balancers["svc-1"] = Balancer{Endpoints: many[:3]}
		start = time.Now()
		if err := k.apply(&more); err != nil {
			return err
		}
		t.Logf("one change of them in %s", time.Since(start))
		text, err := kernelText()
		if err != nil {
			return err
		}
		if n := strings.Count(text, "chain svc-"); n != 1000 {
			t.Errorf("the kernel holds %d services", n)
		}
		if !strings.Contains(text, "[random mod 3000 ") {
			t.Error("the kernel does not choose among 3000 endpoints")
		}
		return nil
	})
}
