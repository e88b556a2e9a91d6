package wireguard

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func key(b byte) Key { return Key(bytes.Repeat([]byte{b}, 32)) }

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func peerAt(at string, allowed ...string) Peer {
	return Peer{netip.MustParseAddrPort(at), prefixes(allowed...)}
}

func TestChanges(t *testing.T) {
	port := uint16(51820)
	one, two := peerAt("192.0.2.1:51820", "10.244.1.0/24"), peerAt("192.0.2.2:51820", "10.244.2.0/24", "fd00::/64")
	base := Device{Key: key(9), Port: port, Peers: map[Key]Peer{key(1): one, key(2): two}}
	with := func(change func(*Device)) Device {
		d := base
		d.Peers = map[Key]Peer{}
		for k, p := range base.Peers {
			d.Peers[k] = p
		}
		change(&d)
		return d
	}
	k9 := key(9)
	for _, c := range []struct {
		what     string
		is, want Device
		anew     bool
		change   change
	}{
		{"nothing", base, base, false, change{}},
		{"from nothing", Device{}, base, false, change{Key: &k9, Port: &port, Peers: []peerChange{
			{key(1), one.Endpoint, one.Allowed, true}, {key(2), two.Endpoint, two.Allowed, true}}}},
		{"a peer moves", base, with(func(d *Device) { d.Peers[key(1)] = peerAt("192.0.2.9:51820", "10.244.1.0/24") }), false,
			change{Peers: []peerChange{{Key: key(1), Endpoint: netip.MustParseAddrPort("192.0.2.9:51820")}}}},
		{"a peer's range changes", base, with(func(d *Device) { d.Peers[key(1)] = peerAt("192.0.2.1:51820", "10.244.7.0/24") }), false,
			change{Peers: []peerChange{{Key: key(1), Allowed: prefixes("10.244.7.0/24")}}}},
		{"a peer has nothing any more", base, with(func(d *Device) { d.Peers[key(1)] = peerAt("192.0.2.1:51820") }), false,
			change{Peers: []peerChange{{Key: key(1), Allowed: []netip.Prefix{}}}}},
		{"a peer goes", base, with(func(d *Device) { delete(d.Peers, key(2)) }), false, change{Gone: []Key{key(2)}}},
		{"a peer has another key", base, with(func(d *Device) { delete(d.Peers, key(1)); d.Peers[key(3)] = one }), false,
			change{Gone: []Key{key(1)}, Peers: []peerChange{{key(3), one.Endpoint, one.Allowed, true}}}},
		{"our address changes", base, base, true, change{Peers: []peerChange{{Key: key(1), Endpoint: one.Endpoint}, {Key: key(2), Endpoint: two.Endpoint}}}},
	} {
		got := c.is.to(c.want, c.anew)
		if !reflect.DeepEqual(got, c.change) {
			t.Errorf("%s: %+v, not %+v", c.what, got, c.change)
		}
		if got.empty() != reflect.DeepEqual(c.change, change{}) {
			t.Errorf("%s: empty is %v", c.what, got.empty())
		}
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	k, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if k[0]&7 != 0 || k[31]&0xc0 != 0x40 {
		t.Errorf("%x is not clamped (RFC 7748, section 5)", k)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	if again, err := OpenKey(path); err != nil || again != k {
		t.Errorf("opened again it is another, %v", err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("there are %v, %v", files, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if other, err := OpenKey(path); err != nil || other == k {
		t.Errorf("a new one is the old one, %v", err)
	}
	if err := os.WriteFile(path, []byte("secret nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKey(path); err == nil || strings.Contains(err.Error(), "nonsense") || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged file: %v", err)
	}
}

// The vector of RFC 7748, section 6.1.
func TestPublicKey(t *testing.T) {
	private, err := ParseKey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if err != nil {
		t.Fatal(err)
	}
	if got := private.Public().String(); got != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("the public key is %s", got)
	}
}

func TestParseKey(t *testing.T) {
	for _, bad := range []string{"", "x", key(0).String(), key(1).String()[1:], key(1).String() + "AAAA", " " + key(1).String()} {
		if k, err := ParseKey(bad); err == nil {
			t.Errorf("%q is the key %s", bad, k)
		}
	}
	if k, err := ParseKey(key(7).String()); err != nil || k != key(7) {
		t.Errorf("%s, %v", k, err)
	}
}

func TestPrefixesAreSorted(t *testing.T) {
	all := prefixes("fd00::/64", "10.1.0.0/24", "10.0.0.0/16", "10.0.0.0/8")
	sortPrefixes(all)
	if want := prefixes("10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/24", "fd00::/64"); !slices.Equal(all, want) {
		t.Errorf("%v", all)
	}
}
