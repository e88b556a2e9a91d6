package network

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// nftTable is one of our tables in the kernel. Each change of one is one
// transaction.
type nftTable struct {
	name string
	ip   *family
}

func (t nftTable) nft() *nftables.Table { return &nftables.Table{Name: t.name, Family: t.ip.table} }

func (t nftTable) String() string { return t.ip.name + " " + t.name }

// connect opens a connection of its own for one transaction, so that a failed
// one leaves no answers behind for the next.
func connect() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		// A transaction is one message, and each of its parts is answered:
		// these are limits, not allocations.
		return errors.Join(c.SetWriteBuffer(64<<20), c.SetReadBuffer(64<<20))
	}))
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	return c, nil
}

// exists says whether the table is there: made by us before a restart.
func (t nftTable) exists() (bool, error) {
	c, err := connect()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(t.ip.table)
	if err != nil {
		return false, fmt.Errorf("listing nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == t.name }), nil
}

// remove deletes the table. One that is not there is no error.
func (t nftTable) remove() error {
	there, err := t.exists()
	if err != nil || !there {
		return err
	}
	c, err := connect()
	if err != nil {
		return err
	}
	c.DelTable(t.nft())
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the nftables table %s: %w", t, err)
	}
	return nil
}

// begin opens a transaction.
func (t nftTable) begin() (*batch, error) {
	c, err := connect()
	if err != nil {
		return nil, err
	}
	return &batch{c: c, nft: t.nft(), name: t.String()}, nil
}

// batch collects one transaction on one table.
type batch struct {
	c    *nftables.Conn
	nft  *nftables.Table
	name string
	err  error
}

// commit makes the kernel do all of it, or nothing.
func (b *batch) commit() error {
	if b.err != nil {
		return fmt.Errorf("encoding the nftables table %s: %w", b.name, b.err)
	}
	if err := b.c.Flush(); err != nil {
		return fmt.Errorf("changing the nftables table %s: %w", b.name, err)
	}
	return nil
}

func (b *batch) fail(err error) { b.err = errors.Join(b.err, err) }

// replace puts an empty table in the place of what may be there.
func (b *batch) replace() {
	b.c.AddTable(b.nft) // so that it is there to be deleted
	b.c.DelTable(b.nft)
	b.c.AddTable(b.nft)
}

func (b *batch) named(chain string) *nftables.Chain {
	return &nftables.Chain{Table: b.nft, Name: chain}
}

// chain adds one.
func (b *batch) chain(name string) { b.c.AddChain(b.named(name)) }

func (b *batch) rules(chain string, rules ...[]expr.Any) {
	for _, exprs := range rules {
		b.c.AddRule(&nftables.Rule{Table: b.nft, Chain: b.named(chain), Exprs: exprs})
	}
}

// clear takes the rules from chains, drop removes them.
func (b *batch) clear(chains ...string) {
	for _, name := range chains {
		b.c.FlushChain(b.named(name))
	}
}

func (b *batch) drop(chains ...string) {
	for _, name := range chains {
		b.c.DelChain(b.named(name))
	}
}

// set adds a set.
func (b *batch) set(s *nftables.Set) {
	s.Table = b.nft
	b.fail(b.c.AddSet(s, nil))
}

func (b *batch) dropSet(name string) { b.c.DelSet(&nftables.Set{Table: b.nft, Name: name}) }

// value is the data of an element: bytes, or the chain to go to. Both are
// empty in a set that is no map.
type value struct{ data, chain string }

// delete removes the elements that are gone or have another value now.
func (b *batch) delete(s *nftables.Set, was, is map[string]value) {
	b.elements(s, was, is, b.c.SetDeleteElements)
}

// add adds the elements that are new or have another value now.
func (b *batch) add(s *nftables.Set, was, is map[string]value) {
	b.elements(s, is, was, b.c.SetAddElements)
}

// elements passes those of has that hasNot does not have to f.
func (b *batch) elements(s *nftables.Set, has, hasNot map[string]value, f func(*nftables.Set, []nftables.SetElement) error) {
	s.Table = b.nft
	var keys []string
	for key, v := range has {
		if other, ok := hasNot[key]; !ok || other != v {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for part := range slices.Chunk(keys, chunk) {
		var elements []nftables.SetElement
		for _, key := range part {
			e := nftables.SetElement{Key: []byte(key), Val: []byte(has[key].data)}
			if chain := has[key].chain; chain != "" {
				e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}
			}
			elements = append(elements, e)
		}
		b.fail(f(s, elements))
	}
}

// changed returns the names that are gone, and those that are new or differ,
// both sorted.
func changed[V any](old, is map[string]V, equal func(a, b V) bool) (gone, differ []string) {
	for name := range old {
		if _, ok := is[name]; !ok {
			gone = append(gone, name)
		}
	}
	for name, v := range is {
		if was, ok := old[name]; !ok || !equal(was, v) {
			differ = append(differ, name)
		}
	}
	slices.Sort(gone)
	slices.Sort(differ)
	return gone, differ
}

func existing[V any](m map[string]V, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := m[n]; return !ok })
}
