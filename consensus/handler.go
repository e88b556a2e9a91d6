package consensus

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// The paths on which nodes call each other's consensus.
const (
	pathPropose   = "/conclave/v1/propose"
	pathReadIndex = "/conclave/v1/readindex"
	pathLease     = "/conclave/v1/lease"
	pathLeader    = "/conclave/v1/leader"
	pathRemove    = "/conclave/v1/remove"
	pathReady     = "/conclave/v1/readytolead"
	pathSum       = "/conclave/v1/sum"
	pathDiffers   = "/conclave/v1/differs"
	pathTail      = "/conclave/v1/tail"
)

// leaderAnswer is what a node knows of the leader. Only the leader itself, and
// only if a majority has just confirmed it, sets Verified and Servers; a caller
// that is not among them is surely out.
type leaderAnswer struct {
	Leader   string   `json:"leader,omitempty"`
	Term     uint64   `json:"term"`
	Verified bool     `json:"verified,omitempty"`
	Servers  []string `json:"servers,omitempty"`
	State    bool     `json:"state,omitempty"` // it has a log, or has voted
}

type leaseQuestion struct {
	Name string `json:"name"`
}

type leaseAnswer struct {
	Renewed bool   `json:"renewed"`
	Leader  string `json:"leader,omitempty"` // whom to ask instead
	// Age is how long before this answer the leader surely led; nil if it does
	// not know. See Node.authority.
	Age *time.Duration `json:"age,omitempty"`
}

type removeQuestion struct {
	ID string `json:"id"`
}

type removeAnswer struct {
	Removed bool   `json:"removed"`
	Error   string `json:"error,omitempty"` // asking again is useless
}

// call posts a question and reads the answer, both as JSON.
func call(ctx context.Context, c Caller, id, path string, question, answer any) error {
	b, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if b, err = c.Call(ctx, id, path, b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("reading the answer of node %s to %s: %w", id, path, err)
	}
	return nil
}

// Handler answers peers' calls below /conclave/v1/. Every caller must have the
// certificate of a node. Until Run has begun and after it has ended the
// answers are those of a node that knows no leader.
func (n *Node) Handler() http.Handler { return n.handler }

func (n *Node) newHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, answer func(ctx context.Context, caller string, body []byte) ([]byte, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			caller := n.c.PeerID(r)
			if caller == "" {
				http.Error(w, "a node's certificate is needed", http.StatusForbidden)
				return
			}
			if of := r.URL.Query().Get(incarnationParameter); of != "" && of != n.c.Incarnation.String() {
				http.Error(w, "this node is in incarnation "+n.c.Incarnation.String()+" of the cluster, not in "+of, http.StatusConflict)
				return
			}
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEntry+4096))
			if err == nil {
				body, err = answer(r.Context(), caller, body)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Write(body) // a caller that is gone needs no answer
		})
	}
	handle(pathPropose, func(ctx context.Context, _ string, body []byte) ([]byte, error) {
		e, err := decodeEntry(body)
		if err != nil {
			return nil, err
		}
		return n.propose(ctx, e.term, body).encode(), nil
	})
	handle(pathReadIndex, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		at, err := n.verify.do(ctx, n.verifyLeader)
		if err != nil {
			return nil, nil // an empty answer: ask somebody else
		}
		return at.encode(), nil
	})
	handle(pathLease, answerJSON(func(_ context.Context, caller string, q leaseQuestion) leaseAnswer {
		if n.leases.renew(caller, q.Name) {
			a := leaseAnswer{Renewed: true}
			if age, ok := n.authority(); ok {
				a.Age = &age
			}
			return a
		}
		return leaseAnswer{Leader: n.Leader()}
	}))
	handle(pathLeader, answerJSON(func(ctx context.Context, caller string, _ struct{}) (a leaderAnswer) {
		a.Leader, a.Term = n.leaderAndTerm()
		a.State = n.disk.hasState()
		at, err := n.verify.do(ctx, n.verifyLeader)
		if err != nil {
			return a
		}
		for _, s := range n.configuration().Servers {
			a.Servers = append(a.Servers, string(s.ID))
		}
		if slices.Contains(a.Servers, caller) || n.settled() == nil { // what was read before is committed now
			a.Verified, a.Term = true, at.term
		}
		return a
	}))
	handle(pathReady, answerJSON(func(ctx context.Context, _ string, _ struct{}) (none struct{}) {
		n.ready(ctx)
		return none
	}))
	handle(pathSum, answerJSON(func(context.Context, string, struct{}) sumAt { return n.store.newestSum() }))
	handle(pathTail, answerJSON(func(_ context.Context, _ string, q tailQuestion) tailAnswer { return n.tail(q) }))
	handle(pathDiffers, answerJSON(func(_ context.Context, caller string, _ struct{}) (none struct{}) {
		if caller == n.Leader() {
			n.fail(fmt.Errorf("%w: the state here differs from the leader's", ErrDamaged))
		}
		return none
	}))
	handle(pathRemove, answerJSON(func(_ context.Context, _ string, q removeQuestion) removeAnswer {
		if n.established() != nil {
			return n.removeHere(q.ID)
		}
		return removeAnswer{}
	}))
	return mux
}

func answerJSON[Q, A any](answer func(context.Context, string, Q) A) func(context.Context, string, []byte) ([]byte, error) {
	return func(ctx context.Context, caller string, body []byte) ([]byte, error) {
		var q Q
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, err
		}
		return json.Marshal(answer(ctx, caller, q))
	}
}
