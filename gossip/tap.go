package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// memberlist's wire format, which it promises to keep.
const (
	wireSuspect  = 3
	wireAlive    = 4
	wireDead     = 5
	wireCompound = 7
	wireCRC      = 12

	wireEncrypted = 1 // AES-GCM without padding
)

// rumour is what memberlist tells others of a member.
type rumour struct {
	kind        byte // wireSuspect, wireAlive, wireDead
	Incarnation uint32
	Node        string
	From        string // not of wireAlive
}

// msgpack is shared, because it remembers how each type is read.
var msgpack = new(codec.MsgpackHandle)

// tap reads the rumours in packets that memberlist sends.
type tap struct {
	aead cipher.AEAD // nil: packets are not encrypted
	hear func(rumour)
}

func newTap(key []byte, hear func(rumour)) (*tap, error) {
	t := &tap{hear: hear}
	if len(key) > 0 {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		if t.aead, err = cipher.NewGCM(block); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// packet reads one packet. What it cannot read says nothing: suspicion is a
// hint, and the death that may follow is told by a callback.
func (t *tap) packet(b []byte) {
	if t.aead != nil {
		n := t.aead.NonceSize()
		if len(b) < 1+n || b[0] != wireEncrypted {
			return
		}
		plain, err := t.aead.Open(nil, b[1:1+n], b[1+n:], nil)
		if err != nil {
			return
		}
		b = plain
	}
	if len(b) > 5 && b[0] == wireCRC {
		b = b[5:]
	}
	t.message(b, true)
}

func (t *tap) message(b []byte, mayNest bool) {
	if len(b) == 0 {
		return
	}
	kind, body := b[0], b[1:]
	switch kind {
	case wireSuspect, wireAlive, wireDead:
		r := rumour{}
		if codec.NewDecoderBytes(body, msgpack).Decode(&r) == nil {
			r.kind = kind
			t.hear(r)
		}
	case wireCompound:
		if !mayNest || len(body) == 0 {
			return
		}
		count := int(body[0])
		if len(body) < 1+2*count {
			return
		}
		sizes, rest := body[1:1+2*count], body[1+2*count:]
		for ; len(sizes) > 0; sizes = sizes[2:] {
			size := int(binary.BigEndian.Uint16(sizes))
			if size > len(rest) {
				return
			}
			// A ping with rumours behind it nests once.
			t.message(rest[:size], false)
			rest = rest[size:]
		}
	}
}
