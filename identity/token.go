package identity

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
)

// Token is what a new node needs to join: which CA to trust, proof that it may,
// and whom to ask.
type Token struct {
	CAHash    [32]byte // SHA-256 of the CA's certificate in DER
	Secret    []byte
	Addresses []string // host:port of TLS ports
}

const (
	tokenFamily = "conclave"
	tokenPrefix = tokenFamily + "1."
	maxToken    = 16 << 10
)

// Inside the base64 stand: the length of all that follows it (2 bytes), the CA
// hash, the secret (its length in a byte), the addresses, a CRC-32 (4 bytes).
// An address is its length in a byte and then 6 bytes for IPv4 and port, 18 for
// IPv6 and port, or 0x80 + the length of a text.

// String is the token as it is shown, "conclave1.<base64url>". A secret or an
// address that is too long to be written (255 and 127 bytes) is cut out, as
// are addresses beyond 64.
func (t Token) String() string {
	b := append([]byte{0, 0}, t.CAHash[:]...)
	secret := t.Secret
	if len(secret) > 255 {
		secret = nil
	}
	b = append(b, byte(len(secret)))
	b = append(b, secret...)
	for i, a := range t.Addresses {
		if i == 64 {
			break
		}
		ap, err := netip.ParseAddrPort(a)
		switch {
		case err == nil && ap.Addr().Zone() == "" && ap.String() == a && !ap.Addr().Is4In6():
			ip := ap.Addr().AsSlice()
			b = append(b, byte(len(ip)+2))
			b = append(b, ip...)
			b = binary.BigEndian.AppendUint16(b, ap.Port())
		case len(a) > 0 && len(a) <= 127:
			b = append(b, 0x80|byte(len(a)))
			b = append(b, a...)
		}
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2+4))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what String writes. Its errors tell a cut, a typing error
// and another version apart.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	text, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		if rest, ok := strings.CutPrefix(s, tokenFamily); ok && strings.TrimLeft(rest, "0123456789") != rest &&
			strings.HasPrefix(strings.TrimLeft(rest, "0123456789"), ".") {
			return Token{}, ErrTokenVersion
		}
		return Token{}, ErrTokenForm
	}
	if len(text) > maxToken {
		return Token{}, ErrTokenTypo
	}
	// A cut may fall inside a group of four characters, so the length is read
	// before the encoding is judged.
	if len(text) < 4 {
		return Token{}, ErrTokenTruncated
	}
	head, err := base64.RawURLEncoding.DecodeString(text[:4])
	if err != nil {
		return Token{}, ErrTokenTypo
	}
	total := 2 + int(binary.BigEndian.Uint16(head))
	if want := base64.RawURLEncoding.EncodedLen(total); len(text) < want {
		// A typing error in the first characters looks like a cut, too; both
		// are cured by copying again.
		return Token{}, ErrTokenTruncated
	} else if len(text) > want {
		return Token{}, ErrTokenTypo
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 2+32+1+4 {
		return Token{}, ErrTokenTypo
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return Token{}, ErrTokenTypo
	}
	t, err := decodeToken(body[2:])
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrTokenForm, err)
	}
	return t, nil
}

// decodeToken reads the body whose checksum was right.
func decodeToken(b []byte) (Token, error) {
	var t Token
	b = b[copy(t.CAHash[:], b):]
	take := func(n int) ([]byte, bool) {
		if len(b) < n {
			return nil, false
		}
		taken := b[:n:n]
		b = b[n:]
		return taken, true
	}
	if len(b) == 0 {
		return Token{}, fmt.Errorf("it has no secret")
	}
	secret, ok := take(1 + int(b[0]))
	if !ok {
		return Token{}, fmt.Errorf("its secret is cut")
	}
	t.Secret = secret[1:]
	for len(b) > 0 {
		raw, ok := take(1 + int(b[0]&0x7f))
		if !ok || len(raw) == 1 {
			return Token{}, fmt.Errorf("an address is cut")
		}
		a := raw[1:]
		switch {
		case raw[0]&0x80 != 0:
			t.Addresses = append(t.Addresses, string(a))
		case len(a) == 6 || len(a) == 18:
			ip, _ := netip.AddrFromSlice(a[:len(a)-2])
			port := binary.BigEndian.Uint16(a[len(a)-2:])
			t.Addresses = append(t.Addresses, netip.AddrPortFrom(ip, port).String())
		default:
			return Token{}, fmt.Errorf("an address has %d bytes", len(a))
		}
	}
	return t, nil
}
