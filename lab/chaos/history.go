package chaos

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verb is what an operation does to a register.
type Verb string

// The verbs.
const (
	Read   Verb = "read"
	Create Verb = "create" // only if it is not there
	Write  Verb = "write"  // whatever is there, if something is
	Swap   Verb = "swap"   // only what was seen
	Delete Verb = "delete"
)

func (v Verb) writes() bool { return v != Read }

// Outcome is what a client was told.
type Outcome string

// The outcomes.
const (
	Done     Outcome = "done"
	Exists   Outcome = "exists"   // create: something is there
	Missing  Outcome = "missing"  // nothing is there
	Conflict Outcome = "conflict" // swap: something else is there
	Refused  Outcome = "refused"  // the answer says that nothing was done
	Unsent   Outcome = "unsent"   // nobody took the request
	Open     Outcome = "open"     // it may have happened, or happen yet
	Wrong    Outcome = "wrong"    // an answer that should not have been given
)

// Op is one use of one register.
type Op struct {
	Client   int           `json:"client"`
	Host     string        `json:"host"`
	Key      string        `json:"key"`
	Verb     Verb          `json:"verb"`
	Value    string        `json:"value,omitempty"`  // written, and unique
	Expect   string        `json:"expect,omitempty"` // swap: the value that shall be there
	Call     time.Duration `json:"call"`
	Return   time.Duration `json:"return"`
	Outcome  Outcome       `json:"outcome"`
	Got      string        `json:"got,omitempty"`      // read
	Revision string        `json:"revision,omitempty"` // of what was written or read
	Error    string        `json:"error,omitempty"`
}

// conclude finds the outcome in what a request ended with.
func (o *Op) conclude(err error) {
	if err == nil {
		o.Outcome = Done
		return
	}
	o.Error = err.Error()
	switch code := answered(err); {
	case code == 404 && o.Verb != Create:
		o.Outcome = Missing
	case code == 409 && o.Verb == Create:
		o.Outcome = Exists
	case code == 409 && o.Verb == Swap:
		o.Outcome = Conflict
	case code == 503, code == 429:
		o.Outcome = Refused
	case unsent(err):
		o.Outcome = Unsent
	case code == 0, code >= 500:
		o.Outcome = Open
	default:
		o.Outcome = Wrong
	}
}

// tells says whether an operation says anything about the register.
func (o Op) tells() bool {
	switch o.Outcome {
	case Done, Exists, Missing, Conflict:
		return true
	case Open:
		return o.Verb.writes()
	}
	return false
}

// keyring hands out registers. One that has been used a while, or whose history
// has many open ends, is put away and another takes its place: how long it takes
// to judge a history grows fast with both.
type keyring struct {
	mu   sync.Mutex
	made int
	keys []*register
}

type register struct {
	name       string
	uses, open int
}

const (
	registersAtOnce = 4
	usesPerRegister = 200
	openPerRegister = 6
)

func (k *keyring) take(rng *rand.Rand) (name string, release func(open bool)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.keys) < registersAtOnce {
		k.made++
		k.keys = append(k.keys, &register{name: fmt.Sprintf("r-%d", k.made)})
	}
	r := k.keys[rng.IntN(len(k.keys))]
	return r.name, func(open bool) {
		k.mu.Lock()
		defer k.mu.Unlock()
		r.uses++
		if open {
			r.open++
		}
		if r.uses >= usesPerRegister || r.open >= openPerRegister {
			k.keys = slices.DeleteFunc(k.keys, func(o *register) bool { return o == r })
		}
	}
}

// registers is what a register is, for porcupine: the state is its value, "" if
// it is not there.
var registers = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		return input.(Op).step(state.(string))
	},
	DescribeOperation: func(input, _ any) string {
		o := input.(Op)
		return fmt.Sprintf("%s %s %s%s → %s %s", o.Host, o.Verb, o.Expect, o.Value, o.Outcome, o.Got)
	},
}

// step says whether the operation can have had its outcome when the register
// held this value, and what it holds then.
func (o Op) step(now string) (possible bool, after string) {
	var applies bool
	switch o.Verb {
	case Read:
		return o.Outcome == Missing && now == "" || o.Outcome == Done && now == o.Got, now
	case Create:
		applies = now == ""
	case Swap:
		applies = now == o.Expect
	default:
		applies = now != ""
	}
	switch o.Outcome {
	case Open:
		if applies {
			return true, o.Value
		}
		return true, now // it had no effect, then
	case Done:
		return applies, o.Value
	case Exists, Missing:
		return (o.Outcome == Exists) == (now != ""), now
	}
	return now != "" && now != o.Expect, now // Conflict
}

// linearizable judges the history of each register, and returns those that
// cannot have come about one operation after the other, and those that could
// not be judged in time.
func linearizable(ops []Op, limit time.Duration) (wrong, undecided []string) {
	byKey := map[string][]porcupine.Operation{}
	var keys []string
	for _, o := range ops {
		if !o.tells() {
			continue
		}
		if byKey[o.Key] == nil {
			keys = append(keys, o.Key)
		}
		p := porcupine.Operation{ClientId: o.Client, Input: o, Output: o, Call: int64(o.Call), Return: int64(o.Return)}
		if o.Outcome == Open {
			p.Return = math.MaxInt64
		}
		byKey[o.Key] = append(byKey[o.Key], p)
	}
	for _, key := range keys {
		switch porcupine.CheckOperationsTimeout(registers, byKey[key], limit) {
		case porcupine.Illegal:
			wrong = append(wrong, key)
		case porcupine.Unknown:
			undecided = append(undecided, key)
		}
	}
	return wrong, undecided
}

// history is what a run records. Its methods may be called by all at once.
type history struct {
	mu  sync.Mutex
	ops []Op
	out *json.Encoder // nil: nothing is kept
	err error
}

func newHistory(out io.Writer) *history {
	h := &history{}
	if out != nil {
		h.out = json.NewEncoder(out)
	}
	return h
}

func (h *history) add(o Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
	h.write("op", o)
}

// also keeps something else in the history's file.
func (h *history) also(kind string, what any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.write(kind, what)
}

func (h *history) write(kind string, what any) {
	if h.out != nil && h.err == nil {
		h.err = h.out.Encode(map[string]any{kind: what})
	}
}

func (h *history) all() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}
