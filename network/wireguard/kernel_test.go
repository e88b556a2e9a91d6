package wireguard

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// bytesOf reads hexadecimal digits with white space and comments behind //, in
// which *N stands for the byte before, N times in all.
func bytesOf(t *testing.T, text string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "//")
		for _, word := range strings.Fields(line) {
			word, times, many := strings.Cut(word, "*")
			n := 1
			if many {
				if _, err := fmt.Sscan(times, &n); err != nil {
					t.Fatal(err)
				}
			}
			digits.WriteString(strings.Repeat(word, n))
		}
	}
	raw, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// toKernel is what the kernel is told in TestKernelBytes, written by hand after
// include/uapi/linux/wireguard.h and include/uapi/linux/netlink.h: an attribute
// has two bytes of length, itself included, and two of type (the highest bit of
// which says that there are attributes in it), in the byte order of the
// machine, and fills up four bytes.
const toKernel = `
	0800 0200 77673000   // WGDEVICE_A_IFNAME "wg0", with its end
	2400 0300 0a*32      // WGDEVICE_A_PRIVATE_KEY
	0600 0600 6cca 0000  // WGDEVICE_A_LISTEN_PORT 51820
	c800 0880            // WGDEVICE_A_PEERS
	3000 0080            // the first
	2400 0100 01*32      // WGPEER_A_PUBLIC_KEY
	0800 0300 01000000   // WGPEER_A_FLAGS: WGPEER_F_REMOVE_ME
	9400 0180            // the second
	2400 0100 02*32      // WGPEER_A_PUBLIC_KEY
	0800 0300 02000000   // WGPEER_A_FLAGS: WGPEER_F_REPLACE_ALLOWEDIPS
	1400 0400            // WGPEER_A_ENDPOINT
	0200 ca6c c0000202 00*8 // AF_INET, 51820, 192.0.2.2
	0600 0500 ffff 0000  // WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL
	4800 0980            // WGPEER_A_ALLOWEDIPS
	1c00 0080            // the first
	0600 0100 0200 0000  // WGALLOWEDIP_A_FAMILY: AF_INET
	0800 0200 0af40200   // WGALLOWEDIP_A_IPADDR 10.244.2.0
	0500 0300 18 000000  // WGALLOWEDIP_A_CIDR_MASK 24
	2800 0180            // the second
	0600 0100 0a00 0000  // WGALLOWEDIP_A_FAMILY: AF_INET6
	1400 0200 fd 00*15 // WGALLOWEDIP_A_IPADDR fd00::
	0500 0300 40 000000  // WGALLOWEDIP_A_CIDR_MASK 64
`

func TestKernelBytes(t *testing.T) {
	private, port := key(0x0a), uint16(51820)
	bodies, err := change{Key: &private, Port: &port, Gone: []Key{key(1)}, Peers: []peerChange{
		{key(2), netip.MustParseAddrPort("192.0.2.2:51820"), prefixes("10.244.2.0/24", "fd00::/64"), true},
	}}.encode("wg0")
	if err != nil || len(bodies) != 1 {
		t.Fatalf("%d messages, %v", len(bodies), err)
	}
	if got, want := hex.EncodeToString(bodies[0]), hex.EncodeToString(bytesOf(t, toKernel)); got != want {
		t.Errorf("the message is\n%s\nand should be\n%s", got, want)
	}
	m := message(0x1c, netlink.Request|netlink.Acknowledge, unix.WG_CMD_SET_DEVICE, unix.WG_GENL_VERSION, []byte{1, 2})
	if m.Header.Type != 0x1c || m.Header.Flags != 5 || string(m.Data) != "\x01\x01\x00\x00\x01\x02" {
		t.Errorf("around it there is %+v", m)
	}
}

// fromKernel is what a kernel says of a device with two peers, in two messages:
// the second goes on with the second peer, whose addresses did not fit.
var fromKernel = []string{`
	00 01 0000           // WG_CMD_GET_DEVICE
	0600 0600 6cca 0000  // WGDEVICE_A_LISTEN_PORT 51820
	0800 0700 00000000   // WGDEVICE_A_FWMARK
	0800 0100 07000000   // WGDEVICE_A_IFINDEX
	0800 0200 77673000   // WGDEVICE_A_IFNAME "wg0"
	2400 0300 0a*32      // WGDEVICE_A_PRIVATE_KEY
	2400 0400 0b*32      // WGDEVICE_A_PUBLIC_KEY
	1401 0880            // WGDEVICE_A_PEERS
	a800 0080            // the first
	2400 0100 01*32      // WGPEER_A_PUBLIC_KEY
	2400 0200 00*32      // WGPEER_A_PRESHARED_KEY
	1400 0600 00*16      // WGPEER_A_LAST_HANDSHAKE_TIME
	0600 0500 ffff 0000  // WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL
	0c00 0800 05*8       // WGPEER_A_TX_BYTES
	0c00 0700 05*8       // WGPEER_A_RX_BYTES
	0800 0a00 01000000   // WGPEER_A_PROTOCOL_VERSION
	2000 0400 0a00 ca6c 00000000 20010db8 00*11 03 00*4 // WGPEER_A_ENDPOINT [2001:db8::3]:51820
	6800 0080            // the second
	2400 0100 02*32
	1400 0400 0200 ca6c c0000202 00*8 // WGPEER_A_ENDPOINT 192.0.2.2:51820
	2c00 0980            // WGPEER_A_ALLOWEDIPS
	2800 0080 0500 0300 40 000000 0600 0100 0a00 0000 1400 0200 fd 00*15 // fd00::/64
`, `
	00 01 0000           // WG_CMD_GET_DEVICE
	0800 0100 07000000   // WGDEVICE_A_IFINDEX
	4c00 0880            // WGDEVICE_A_PEERS
	4800 0080            // the second, again
	2400 0100 02*32
	2000 0980            // WGPEER_A_ALLOWEDIPS
	1c00 0080 0500 0300 18 000000 0600 0100 0200 0000 0800 0200 0af40200 // 10.244.2.0/24
`}

func decoded(t *testing.T) Device {
	t.Helper()
	d := Device{Peers: map[Key]Peer{}}
	for _, text := range fromKernel {
		if err := d.decode(bytesOf(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range d.Peers {
		sortPrefixes(p.Allowed)
	}
	return d
}

func TestKernelAnswers(t *testing.T) {
	want := Device{Key: key(0x0a), Port: 51820, Peers: map[Key]Peer{
		key(1): {Endpoint: netip.MustParseAddrPort("[2001:db8::3]:51820")},
		key(2): peerAt("192.0.2.2:51820", "10.244.2.0/24", "fd00::/64"),
	}}
	if got := decoded(t); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, not %+v", got, want)
	}
}

// What is told can be read back, however many peers there are and in however
// many messages.
func TestKernelManyPeers(t *testing.T) {
	for _, n := range []int{0, 1, most, most + 1, 3*most + 7} {
		want := Device{Key: key(9), Port: 7, Peers: map[Key]Peer{}}
		for i := range n {
			k := key(1)
			k[0], k[1] = byte(i), byte(i>>8)
			want.Peers[k] = peerAt(fmt.Sprintf("10.0.%d.%d:51820", i>>8, i&255), fmt.Sprintf("10.%d.%d.0/24", 100+i>>8, i&255), fmt.Sprintf("fd00:%x::/64", i))
		}
		bodies, err := (Device{}).to(want, false).encode("conclave.wg")
		if err != nil {
			t.Fatal(err)
		}
		if wanted := max(1, (n+most-1)/most); len(bodies) != wanted {
			t.Errorf("%d peers take %d messages, not %d", n, len(bodies), wanted)
		}
		got := Device{Peers: map[Key]Peer{}}
		for _, b := range bodies {
			if len(b) > 1<<15 {
				t.Errorf("a message of %d bytes", len(b))
			}
			if err := got.decode(append([]byte{0, 1, 0, 0}, b...)); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d peers come back as %d", n, len(got.Peers))
		}
	}
}

// The number of a family is asked of this kernel, for one that every kernel has
// and one that none has.
func TestFamilyNumber(t *testing.T) {
	conn, err := netlink.Dial(unix.NETLINK_GENERIC, nil)
	if err != nil {
		t.Skip("no generic netlink here: ", err)
	}
	defer conn.Close()
	if n, err := familyNumber(conn, "nlctrl"); err != nil || n != unix.GENL_ID_CTRL {
		t.Errorf("nlctrl is %d, %v", n, err)
	}
	if n, err := familyNumber(conn, "conclave-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a family that is none is %d, %v", n, err)
	}
}

func FuzzKernelAnswer(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0})
	f.Add([]byte("\x00\x01\x00\x00\x0c\x00\x08\x80\x08\x00\x00\x80\x04\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := Device{Peers: map[Key]Peer{}}
		if err := d.decode(data); err != nil {
			return
		}
		for _, p := range d.Peers {
			for _, a := range p.Allowed {
				if !a.IsValid() {
					t.Errorf("the range %v is none", a)
				}
			}
		}
	})
}
