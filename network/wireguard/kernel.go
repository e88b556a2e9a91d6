package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's WireGuard is configured by the family "wireguard" of generic
// netlink: include/uapi/linux/wireguard.h says how.

// most is how many peers go into one message, whose parts have lengths of 16
// bits: a peer with addresses of both families takes less than 200 bytes.
const most = 100

// kernelLink is a link of type wireguard.
type kernelLink struct {
	name string
	conn *netlink.Conn
	// family is the number that the kernel has given the family.
	family uint16
}

func openKernel(name string) (*kernelLink, error) {
	conn, err := netlink.Dial(unix.NETLINK_GENERIC, nil)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	family, err := familyNumber(conn, unix.WG_GENL_NAME)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &kernelLink{name, conn, family}, nil
}

// familyNumber asks the kernel for the number of a family of generic netlink.
func familyNumber(conn *netlink.Conn, name string) (uint16, error) {
	e := netlink.NewAttributeEncoder()
	e.String(unix.CTRL_ATTR_FAMILY_NAME, name)
	body, err := e.Encode()
	if err != nil {
		return 0, err
	}
	// It answers or refuses; an acknowledgement would come behind the answer,
	// and be taken for the next one.
	answers, err := conn.Execute(message(unix.GENL_ID_CTRL, netlink.Request, unix.CTRL_CMD_GETFAMILY, 1, body))
	if err != nil {
		return 0, fmt.Errorf("asking the kernel for %s: %w", name, err)
	}
	for _, a := range answers {
		if len(a.Data) < genlHeader {
			continue
		}
		d, err := netlink.NewAttributeDecoder(a.Data[genlHeader:])
		if err != nil {
			return 0, err
		}
		for d.Next() {
			if d.Type() == unix.CTRL_ATTR_FAMILY_ID {
				return d.Uint16(), d.Err()
			}
		}
	}
	return 0, fmt.Errorf("asking the kernel for %s: %w", name, unix.ENOENT)
}

// genlHeader is the length of what precedes attributes in generic netlink.
const genlHeader = 4

func message(family uint16, flags netlink.HeaderFlags, command, version uint8, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(family), Flags: flags},
		Data:   append([]byte{command, version, 0, 0}, body...),
	}
}

func (k *kernelLink) close() error { return k.conn.Close() }

func (k *kernelLink) get() (Device, error) {
	e := netlink.NewAttributeEncoder()
	e.String(unix.WGDEVICE_A_IFNAME, k.name)
	body, err := e.Encode()
	if err != nil {
		return Device{}, err
	}
	answers, err := k.conn.Execute(message(k.family, netlink.Request|netlink.Dump, unix.WG_CMD_GET_DEVICE, unix.WG_GENL_VERSION, body))
	if err != nil {
		return Device{}, err
	}
	d := Device{Peers: map[Key]Peer{}}
	for _, a := range answers {
		if err := d.decode(a.Data); err != nil {
			return d, fmt.Errorf("what the kernel says of %s: %w", k.name, err)
		}
	}
	for _, p := range d.Peers {
		sortPrefixes(p.Allowed)
	}
	return d, nil
}

func (k *kernelLink) set(c change) error {
	bodies, err := c.encode(k.name)
	if err != nil {
		return err
	}
	for _, body := range bodies {
		if _, err := k.conn.Execute(message(k.family, netlink.Request|netlink.Acknowledge, unix.WG_CMD_SET_DEVICE, unix.WG_GENL_VERSION, body)); err != nil {
			return err
		}
	}
	return nil
}

// encode is a change as the kernel is told it, in as many messages as it needs.
func (c change) encode(link string) ([][]byte, error) {
	type part func(*netlink.AttributeEncoder) error
	var parts []part
	for _, key := range c.Gone {
		parts = append(parts, func(e *netlink.AttributeEncoder) error {
			e.Bytes(unix.WGPEER_A_PUBLIC_KEY, key[:])
			e.Uint32(unix.WGPEER_A_FLAGS, unix.WGPEER_F_REMOVE_ME)
			return nil
		})
	}
	for _, p := range c.Peers {
		parts = append(parts, p.encode)
	}
	var bodies [][]byte
	for first := true; first || len(parts) > 0; first = false {
		e := netlink.NewAttributeEncoder()
		e.String(unix.WGDEVICE_A_IFNAME, link)
		if first && c.Key != nil {
			e.Bytes(unix.WGDEVICE_A_PRIVATE_KEY, c.Key[:])
		}
		if first && c.Port != nil {
			e.Uint16(unix.WGDEVICE_A_LISTEN_PORT, *c.Port)
		}
		now := parts[:min(most, len(parts))]
		parts = parts[len(now):]
		if len(now) > 0 {
			e.Nested(unix.WGDEVICE_A_PEERS, func(list *netlink.AttributeEncoder) error {
				for i, p := range now {
					list.Nested(uint16(i), p)
				}
				return nil
			})
		}
		body, err := e.Encode()
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

func (p peerChange) encode(e *netlink.AttributeEncoder) error {
	e.Bytes(unix.WGPEER_A_PUBLIC_KEY, p.Key[:])
	if p.Allowed != nil {
		e.Uint32(unix.WGPEER_A_FLAGS, unix.WGPEER_F_REPLACE_ALLOWEDIPS)
	}
	if p.Endpoint.IsValid() {
		e.Bytes(unix.WGPEER_A_ENDPOINT, sockaddr(p.Endpoint))
	}
	if p.New {
		e.Uint16(unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, keepalive)
	}
	if len(p.Allowed) == 0 {
		return nil
	}
	e.Nested(unix.WGPEER_A_ALLOWEDIPS, func(list *netlink.AttributeEncoder) error {
		for i, a := range p.Allowed {
			list.Nested(uint16(i), func(e *netlink.AttributeEncoder) error {
				family := uint16(unix.AF_INET)
				if a.Addr().Is6() {
					family = unix.AF_INET6
				}
				e.Uint16(unix.WGALLOWEDIP_A_FAMILY, family)
				e.Bytes(unix.WGALLOWEDIP_A_IPADDR, a.Addr().AsSlice())
				e.Uint8(unix.WGALLOWEDIP_A_CIDR_MASK, uint8(a.Bits()))
				return nil
			})
		}
		return nil
	})
	return nil
}

// sockaddr is an address as the kernel's struct sockaddr_in or sockaddr_in6 has
// it: the family in the machine's byte order, the port in the network's.
func sockaddr(a netip.AddrPort) []byte {
	if a.Addr().Is4() {
		b := make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		binary.BigEndian.PutUint16(b[2:], a.Port())
		copy(b[4:], a.Addr().AsSlice())
		return b
	}
	b := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	binary.BigEndian.PutUint16(b[2:], a.Port())
	copy(b[8:], a.Addr().AsSlice())
	return b
}

func fromSockaddr(b []byte) (a netip.AddrPort) {
	if len(b) < 4 {
		return a
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= unix.SizeofSockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case family == unix.AF_INET6 && len(b) >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
	}
	return a
}

// decode takes in one message of an answer. A device with many peers comes in
// several, and so does a peer with many addresses.
func (d *Device) decode(data []byte) error {
	if len(data) < genlHeader {
		return errors.New("a message is too short")
	}
	a, err := netlink.NewAttributeDecoder(data[genlHeader:])
	if err != nil {
		return err
	}
	for a.Next() {
		switch a.Type() {
		case unix.WGDEVICE_A_PRIVATE_KEY:
			if b := a.Bytes(); len(b) == len(d.Key) {
				d.Key = Key(b)
			}
		case unix.WGDEVICE_A_LISTEN_PORT:
			d.Port = a.Uint16()
		case unix.WGDEVICE_A_PEERS:
			a.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(d.decodePeer)
				}
				return list.Err()
			})
		}
	}
	return a.Err()
}

func (d *Device) decodePeer(a *netlink.AttributeDecoder) error {
	var key Key
	var p Peer
	for a.Next() {
		switch a.Type() {
		case unix.WGPEER_A_PUBLIC_KEY:
			if b := a.Bytes(); len(b) == len(key) {
				key = Key(b)
			}
		case unix.WGPEER_A_ENDPOINT:
			p.Endpoint = fromSockaddr(a.Bytes())
		case unix.WGPEER_A_ALLOWEDIPS:
			a.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(p.decodeAllowed)
				}
				return list.Err()
			})
		}
	}
	if err := a.Err(); err != nil {
		return err
	}
	if key == (Key{}) {
		return errors.New("a peer has no key")
	}
	if known, more := d.Peers[key]; more {
		if !p.Endpoint.IsValid() {
			p.Endpoint = known.Endpoint
		}
		p.Allowed = append(known.Allowed, p.Allowed...)
	}
	d.Peers[key] = p
	return nil
}

func (p *Peer) decodeAllowed(a *netlink.AttributeDecoder) error {
	var addr netip.Addr
	bits := -1
	for a.Next() {
		switch a.Type() {
		case unix.WGALLOWEDIP_A_IPADDR:
			addr, _ = netip.AddrFromSlice(a.Bytes())
		case unix.WGALLOWEDIP_A_CIDR_MASK:
			bits = int(a.Uint8())
		}
	}
	if err := a.Err(); err != nil {
		return err
	}
	prefix := netip.PrefixFrom(addr, bits)
	if !prefix.IsValid() {
		return errors.New("a peer has a range that is none")
	}
	p.Allowed = append(p.Allowed, prefix)
	return nil
}
