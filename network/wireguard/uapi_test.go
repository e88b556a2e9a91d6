package wireguard

import (
	"bufio"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

func TestText(t *testing.T) {
	k, port := key(0x0a), uint16(51820)
	c := change{Key: &k, Port: &port, Gone: []Key{key(1)}, Peers: []peerChange{
		{key(2), netip.MustParseAddrPort("192.0.2.2:51820"), prefixes("10.244.2.0/24", "fd00::/64"), true},
		{Key: key(3), Endpoint: netip.MustParseAddrPort("[2001:db8::3]:51820")},
		{Key: key(4), Allowed: []netip.Prefix{}},
	}}
	want := strings.NewReplacer("KA", strings.Repeat("0a", 32), "K1", strings.Repeat("01", 32), "K2", strings.Repeat("02", 32),
		"K3", strings.Repeat("03", 32), "K4", strings.Repeat("04", 32)).Replace(`set=1
private_key=KA
listen_port=51820
public_key=K1
remove=true
public_key=K2
endpoint=192.0.2.2:51820
replace_allowed_ips=true
allowed_ip=10.244.2.0/24
allowed_ip=fd00::/64
persistent_keepalive_interval=65535
public_key=K3
endpoint=[2001:db8::3]:51820
public_key=K4
replace_allowed_ips=true

`)
	if got := c.text(); got != want {
		t.Errorf("%s", got)
	}
}

// What the process is told it says again: the library's own reader and writer
// are at the other end.
func TestTextAndLibrary(t *testing.T) {
	d := device.NewDevice(tuntest.NewChannelTUN().TUN(), bindtest.NewChannelBinds()[0], device.NewLogger(device.LogLevelSilent, ""))
	defer d.Close()
	ask := func() Device {
		t.Helper()
		text, err := d.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		is, err := readUAPI(bufio.NewReader(strings.NewReader(text + "errno=0\n\n")))
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	tell := func(want Device) {
		t.Helper()
		text, ok := strings.CutPrefix(ask().to(want, false).text(), "set=1\n")
		if !ok {
			t.Fatal("the operation is missing")
		}
		if err := d.IpcSet(text); err != nil {
			t.Fatal(err)
		}
		is := ask()
		is.Port = want.Port // it has turned itself on, and chosen one
		if !is.to(want, false).empty() {
			t.Errorf("told %+v it says %+v", want, is)
		}
	}
	private := key(0x40) // clamped: the library does so
	first := Device{Key: private, Peers: map[Key]Peer{
		key(1): peerAt("127.0.0.1:51820", "10.244.1.0/24", "fd00:1::/64"),
		key(2): peerAt("127.0.0.1:51821", "10.244.2.0/24"),
	}}
	tell(first)
	// One goes, and its range is another's; one moves.
	tell(Device{Key: private, Peers: map[Key]Peer{
		key(2): peerAt("127.0.0.1:51829", "10.244.2.0/24"),
		key(3): peerAt("127.0.0.1:51823", "10.244.1.0/24", "fd00:1::/64"),
	}})
	tell(Device{Key: private, Peers: map[Key]Peer{}})
}

func TestReadText(t *testing.T) {
	for text, want := range map[string]error{
		"errno=0\n\n":   nil,
		"errno=-98\n\n": unix.EADDRINUSE,
		"errno=22\n\n":  unix.EINVAL,
	} {
		if _, err := readUAPI(bufio.NewReader(strings.NewReader(text))); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, bad := range []string{"", "listen_port=1\n", "errno=0\n", "errno=x\n\n", "nonsense\nerrno=0\n\n", "listen_port=65536\nerrno=0\n\n",
		"public_key=0102\nerrno=0\n\n", "endpoint=1.2.3.4:5\nerrno=0\n\n", "public_key=" + strings.Repeat("01", 32) + "\nallowed_ip=x\nerrno=0\n\n"} {
		if d, err := readUAPI(bufio.NewReader(strings.NewReader(bad))); err == nil {
			t.Errorf("%q is read as %+v", bad, d)
		}
	}
}

func FuzzReadText(f *testing.F) {
	f.Add("private_key=" + strings.Repeat("0a", 32) + "\nlisten_port=51820\npublic_key=" + strings.Repeat("01", 32) + "\nendpoint=1.2.3.4:5\nallowed_ip=10.0.0.0/8\nrx_bytes=7\nerrno=0\n\n")
	f.Add("errno=-22\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := readUAPI(bufio.NewReader(strings.NewReader(text)))
		if err == nil && !reflect.DeepEqual(d.to(d, false), change{}) {
			t.Errorf("%+v differs from itself", d)
		}
	})
}
