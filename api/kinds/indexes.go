package kinds

import (
	"fmt"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Indexes is a set of completion indexes, as spans that neither touch nor
// overlap, in order. Jobs write them as "1,3-5,7".
type Indexes []Span

// Span is all from First to Last.
type Span struct{ First, Last int }

// ParseIndexes reads what String wrote. Indexes from limit on are left out: a
// Job may have fewer than it had. An error is of a text that is no such list.
func ParseIndexes(text string, limit int) (Indexes, error) {
	var all Indexes
	if text == "" {
		return nil, nil
	}
	last := -1
	for _, part := range strings.Split(text, ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			return all, fmt.Errorf("cannot convert string to integer for index: %q", from)
		}
		end := first
		if ranged {
			if end, err = strconv.Atoi(to); err != nil {
				return all, fmt.Errorf("cannot convert string to integer for index: %q", to)
			}
		}
		if first <= last || end < first || first < 0 {
			return all, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, first)
		}
		last = end
		if first >= limit {
			return all, nil
		}
		all = all.with(Span{first, min(end, limit-1)})
	}
	return all, nil
}

// with appends a span that begins after all others.
func (x Indexes) with(s Span) Indexes {
	if n := len(x); n > 0 && x[n-1].Last+1 >= s.First {
		x[n-1].Last = max(x[n-1].Last, s.Last)
		return x
	}
	return append(x, s)
}

// Has says whether an index is in the set.
func (x Indexes) Has(i int) bool {
	for _, s := range x {
		if i <= s.Last {
			return i >= s.First
		}
	}
	return false
}

// Len is how many indexes are in the set.
func (x Indexes) Len() (n int) {
	for _, s := range x {
		n += s.Last - s.First + 1
	}
	return n
}

// Add returns the set with an index more; x is not changed.
func (x Indexes) Add(i int) Indexes {
	if x.Has(i) {
		return x
	}
	out := make(Indexes, 0, len(x)+1)
	placed := false
	for _, s := range x {
		if !placed && i < s.First {
			out, placed = out.with(Span{i, i}), true
		}
		out = out.with(s)
	}
	if !placed {
		out = out.with(Span{i, i})
	}
	return out
}

func (x Indexes) String() string {
	var b strings.Builder
	for i, s := range x {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s.First))
		switch s.Last - s.First {
		case 0:
		case 1:
			b.WriteString("," + strconv.Itoa(s.Last))
		default:
			b.WriteString("-" + strconv.Itoa(s.Last))
		}
	}
	return b.String()
}

func selectorOf(j *batchv1.Job) (labels.Selector, error) {
	return metav1.LabelSelectorAsSelector(j.Spec.Selector)
}
