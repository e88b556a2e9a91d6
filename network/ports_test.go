package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// frame is one with a packet of UDP, as a pod makes it that may.
func frame(to net.HardwareAddr, from, dest netip.Addr, port uint16) []byte {
	text := []byte("past the rules")
	datagram := binary.BigEndian.AppendUint16(nil, 4000)
	datagram = binary.BigEndian.AppendUint16(datagram, port)
	datagram = binary.BigEndian.AppendUint16(datagram, uint16(8+len(text)))
	datagram = append(append(datagram, 0, 0), text...)
	packet := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(packet[2:], uint16(20+len(datagram)))
	packet = append(append(packet, from.AsSlice()...), dest.AsSlice()...)
	binary.BigEndian.PutUint16(packet[10:], checksum(packet))
	f := append(append(net.HardwareAddr{}, to...), podMAC(from)...)
	return append(append(append(f, 0x08, 0), packet...), datagram...)
}

// A pod that makes frames itself does not get past the policies of its
// neighbours, whether or not IP rules see what a bridge forwards.
func TestFramesBetweenPods(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	all.put(namespaceOf("default", map[string]string{}))
	for _, n := range all {
		a, b := all.run(n, labelled("default", "a-"+n.config.Name, nil)), all.run(n, labelled("default", "b-"+n.config.Name, nil))
		var bridge net.HardwareAddr
		var sink net.PacketConn
		n.in(func() error {
			link, err := netlink.LinkByName(bridgeName)
			if err == nil {
				bridge = link.Attrs().HardwareAddr
			}
			return err
		})
		b.in(func() (err error) {
			sink, err = net.ListenPacket("udp4", ":5000")
			return err
		})
		defer sink.Close()
		send := func(to net.HardwareAddr) {
			t.Helper()
			a.in(func() error {
				eth, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, frame(to, a.addr, b.addr, 5000), 0, &unix.SockaddrLinklayer{Ifindex: eth.Attrs().Index})
			})
		}
		arrives := func(patience time.Duration) bool {
			t.Helper()
			sink.SetReadDeadline(time.Now().Add(patience))
			_, _, err := sink.ReadFrom(make([]byte, 100))
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			return err == nil
		}
		send(bridge)
		if !arrives(5 * time.Second) {
			t.Fatalf("%s: a frame to the bridge does not arrive", n.config.Name)
		}
		all.put(policyYAML(t, "default", "deny", "{podSelector: {}, policyTypes: [Ingress]}"))
		for name, to := range map[string]net.HardwareAddr{"the bridge": bridge, "the neighbour's own link": podMAC(b.addr), "everybody": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "a group": {1, 0, 0x5e, 0, 0, 1}} {
			send(to)
			if arrives(300 * time.Millisecond) {
				t.Errorf("%s: a frame to %s arrives", n.config.Name, name)
			}
		}
		all.delete(policyYAML(t, "default", "deny", "{podSelector: {}}"))
		send(bridge)
		if !arrives(5 * time.Second) {
			t.Errorf("%s: without policies nothing arrives", n.config.Name)
		}
	}
}
