package flow

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
)

// MaxEntropy is how many bits of a hash may choose a hand.
const MaxEntropy = 60

// Entropy is how many bits of a hash it takes to choose a hand of so many queues:
// as many as there are ways to draw them one after the other.
func Entropy(queues, hand int) int {
	bits := 0.0
	for i := range hand {
		bits += math.Log2(float64(queues - i))
	}
	return int(math.Ceil(bits))
}

// hashOf is what chooses the hand of a flow: a FlowSchema and, where it tells its
// requests apart, what by.
func hashOf(schema, distinguisher string) uint64 {
	b := make([]byte, 0, 128)
	b = binary.AppendUvarint(b, uint64(len(schema)))
	b = append(append(b, schema...), distinguisher...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:]) >> (64 - MaxEntropy)
}

// deal calls use with each queue of the hand that a hash chooses: hand different
// ones of 0 to queues-1.
func deal(hash uint64, queues, hand int, use func(queue int)) {
	var few [16]int
	drawn := few[:0] // sorted
	for i := range hand {
		left := uint64(queues - i)
		card := int(hash % left)
		hash /= left
		// It is the card-th of those that are left.
		at := 0
		for at < len(drawn) && drawn[at] <= card {
			card++
			at++
		}
		drawn = slices.Insert(drawn, at, card)
		use(card)
	}
}
