package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"conclave/cli/internal/cli"
	"conclave/consensus"
	"conclave/identity"
)

// --- incarnations: who counts after a recovery ------------------------------------

// logIncarnation is an incarnation as it stands beside a log.
func logIncarnation(i identity.Incarnation) consensus.Incarnation {
	out := consensus.Incarnation{Number: i.Number, ID: i.ID}
	if i.Number > 0 {
		out.Proof, _ = json.Marshal(i) // a struct of numbers and texts
	}
	return out
}

// settleLog brings the log on the disk and what this node knows of the
// cluster's incarnation together, before anything runs.
func (s *Server) settleLog() error {
	of, err := consensus.Settle(s.path("raft"))
	if err != nil {
		return err
	}
	switch d := of.Compare(logIncarnation(s.node.Incarnation())); {
	case d > 0: // stopped in the middle of a recovery
		var i identity.Incarnation
		err := json.Unmarshal(of.Proof, &i)
		if err == nil {
			_, err = s.node.Adopt(i)
		}
		if err != nil {
			return fmt.Errorf("the incarnation of the log: %w", err)
		}
	case d < 0:
		s.log.Warn("the cluster was recovered without this master: its log is set aside", "log", consensus.Superseded(s.path("raft")))
		return consensus.SetAside(s.path("raft"))
	}
	return nil
}

// inDoubt has followIncarnations ask everybody.
func (s *Server) inDoubt() {
	select {
	case s.doubt <- struct{}{}:
	default:
	}
}

// adopt takes up a newer incarnation: what an older one's master does here ends.
func (s *Server) adopt(i identity.Incarnation) error {
	newer, err := s.node.Adopt(i)
	if err != nil || !newer {
		return err
	}
	s.log.Warn("the cluster was recovered", "by", i.By, "at", i.Began, "incarnation", i.Number)
	s.tellIncarnation(i)
	if m := s.master.Load(); m != nil && m.life.Compare(i) < 0 {
		m.finish(superseded)
	}
	s.fireMembers() // who is a master now is another question
	return nil
}

// exchangeIncarnation tells a node the newest incarnation, and learns its own.
func (s *Server) exchangeIncarnation(ctx context.Context, id string) error {
	mine, err := json.Marshal(s.node.Incarnation())
	if err != nil {
		return err
	}
	raw, err := s.dialer.Call(ctx, id, "/conclave/v1/incarnation", mine)
	if err != nil {
		return err
	}
	var theirs identity.Incarnation
	if err := json.Unmarshal(raw, &theirs); err != nil {
		return fmt.Errorf("node %s: its incarnation: %w", id, err)
	}
	return s.adopt(theirs)
}

// serveIncarnation is the other end. It answers once a master that counts no
// more has ended.
func (s *Server) serveIncarnation(_ string, w http.ResponseWriter, r *http.Request) {
	var theirs identity.Incarnation
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&theirs)
	m := s.master.Load()
	if err == nil {
		err = s.adopt(theirs)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if m != nil && m.life.Compare(s.node.Incarnation()) < 0 {
		select {
		case <-m.ended:
		case <-r.Context().Done():
		}
	}
	writeJSON(w, s.node.Incarnation())
}

// exchangeWait bounds one exchange, exchangeAgain is the pause after one that
// failed.
const (
	exchangeWait  = 5 * time.Second
	exchangeAgain = time.Second
)

// followIncarnations learns from every member that tells of a newer
// incarnation, and from all while there is doubt.
func (s *Server) followIncarnations(ctx context.Context) error {
	doubt := false
	for {
		changed := s.membersChanged()
		mine, failed := s.node.Incarnation(), false
		for id, theirs := range s.heardIncarnations() {
			if !doubt && theirs.Compare(mine) <= 0 {
				continue
			}
			try, cancel := context.WithTimeout(ctx, exchangeWait)
			if err := s.exchangeIncarnation(try, id); err != nil && ctx.Err() == nil {
				failed = true
				s.log.Debug("cannot learn of a newer incarnation", "node", id, "error", err)
			}
			cancel()
		}
		var again <-chan time.Time
		if failed {
			again = time.After(exchangeAgain)
		}
		doubt = false
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		case <-s.doubt:
			doubt = true
		}
	}
}

// confirmWait is how long a master that has just started looks for somebody who
// knows of a newer incarnation. Hosts that are up answer, or refuse, at once.
const confirmWait = time.Second

// confirmIncarnation asks every node that this one has ever met whether the
// cluster was recovered meanwhile. Gossip tells the same, a moment later than a
// majority of returned masters may elect a leader.
func (s *Server) confirmIncarnation(ctx context.Context, life identity.Incarnation) error {
	if life.Compare(s.begun) == 0 {
		return nil // begun here, after everybody was asked
	}
	ctx, cancel := context.WithTimeout(ctx, confirmWait)
	defer cancel()
	var asked sync.WaitGroup
	for id := range s.everybody() {
		asked.Go(func() { _ = s.exchangeIncarnation(ctx, id) }) // who is not there knows nothing
	}
	asked.Wait()
	if s.node.Incarnation().Compare(life) > 0 {
		return consensus.ErrSuperseded
	}
	return nil
}

// everybody are the other nodes that this one has met, dead or alive, and what
// people call them.
func (s *Server) everybody() map[string]string {
	all := map[string]string{}
	for id, at := range s.pool.Remembered() {
		all[id] = at.Addr().String()
	}
	for _, m := range s.pool.Members() {
		all[m.ID] = m.Name
	}
	delete(all, s.node.ID())
	return all
}

// prepareMaster hands a node what it needs to be a master.
func (s *Server) prepareMaster(ctx context.Context, id string, authority *identity.Authority) error {
	if s.node.Incarnation().Number > 0 {
		if err := s.exchangeIncarnation(ctx, id); err != nil {
			return err
		}
	}
	_, err := s.dialer.Call(ctx, id, "/conclave/v1/master", authority.Bundle())
	return err
}

// --- recovery ---------------------------------------------------------------------

// rebirth asks for this node's log to become the first of a new incarnation.
type rebirth struct {
	term   uint64
	result chan error // buffered
}

// beginIncarnation does it. Nothing runs on the log. An error that is returned
// leaves the log and what this node knows apart, for a restart to settle.
func (s *Server) beginIncarnation(authority *identity.Authority) error {
	r := s.rebirth.Swap(nil)
	if r == nil {
		return nil
	}
	now, err := authority.Proclaim(s.node.Incarnation(), s.node.Name(), "recover")
	if err == nil {
		_, err = consensus.Seed{
			ID: s.node.ID(), Dir: s.path("raft"), Codec: sealedCodec{authority.Sealer()}, Incarnation: logIncarnation(now),
			Term: r.term, Log: s.log.With("room", "consensus"),
		}.FromLog()
	}
	if err != nil {
		r.result <- err
		return nil // the log is as it was
	}
	s.begun = now
	err = s.adopt(now)
	r.result <- err
	return err
}

// report is what this node knows that matters when a majority is lost.
func (s *Server) report(ctx context.Context) (consensus.Report, error) {
	if m := s.master.Load(); m != nil {
		return m.consensus.Report(ctx)
	}
	r := consensus.Report{ID: s.node.ID()}
	for _, m := range s.consensusMembers() {
		if m.Alive {
			r.Alive = append(r.Alive, m.ID)
		}
	}
	return r, nil
}

func (s *Server) serveReport(_ string, w http.ResponseWriter, r *http.Request) {
	report, err := s.report(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, report)
}

// reportWait bounds the question to each node; who is off does not answer.
const reportWait = time.Second

// judge asks everybody and says who can go on alone, and what that may cost.
func (s *Server) judge(ctx context.Context) (loss consensus.Loss, answered int, err error) {
	own, err := s.report(ctx)
	if err != nil {
		return loss, 0, fmt.Errorf("this node's log cannot be read: %w", err)
	}
	reports := []consensus.Report{own}
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	names := s.everybody()
	for id := range names {
		asked.Go(func() {
			raw, err := s.dialer.Call(ctx, id, "/conclave/v1/report", nil)
			var r consensus.Report
			if err == nil && json.Unmarshal(raw, &r) == nil && r.ID == id {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, r)
			}
		})
	}
	asked.Wait()
	loss, err = consensus.Judge(reports, s.nameOf)
	switch {
	case errors.Is(err, consensus.ErrNotLost):
		err = fmt.Errorf("nothing is recovered: %w", err)
	case errors.Is(err, consensus.ErrNoLog):
		err = fmt.Errorf("%w: start conclave on a machine that was a master or a standby, or restore a snapshot with `conclave snapshot restore`", err)
	}
	return loss, len(reports), err
}

// nameOf is what people call a node.
func (s *Server) nameOf(id string) string {
	if id == s.node.ID() {
		return s.node.Name()
	}
	if name, ok := s.everybody()[id]; ok {
		return name
	}
	return fmt.Sprintf("%.8s", id)
}

// Recovery is what `conclave recover` shows before it asks.
type Recovery struct {
	ID    string   `json:"id"` // of the node whose log becomes the cluster's
	Term  uint64   `json:"term"`
	Index uint64   `json:"index"`
	Lines []string `json:"lines"`
}

// planRecovery says what a recovery would do.
func (s *Server) planRecovery(ctx context.Context) (Recovery, error) {
	loss, answered, err := s.judge(ctx)
	if err != nil {
		return Recovery{}, err
	}
	best, at := s.nameOf(loss.Best.ID), *loss.Best.Log
	var gone []string
	for _, id := range loss.Missing {
		gone = append(gone, s.nameOf(id))
	}
	slices.Sort(gone)
	dead := strings.Join(gone, ", ")
	when := "at a time that is not known"
	if !at.Written.IsZero() {
		when = fmt.Sprintf("%s (%s ago)", at.Written.Local().Format("2006-01-02 15:04:05 MST"), time.Since(at.Written).Round(time.Second))
	}
	return Recovery{ID: loss.Best.ID, Term: at.Term, Index: at.Index, Lines: []string{
		fmt.Sprintf("%d of %d masters do not answer: %s.", len(gone), len(loss.Best.Voters), dead),
		fmt.Sprintf("Of the %d nodes that answer, %s has the most of the log: up to revision %d, written %s.", answered, best, at.Index, when),
		fmt.Sprintf("%s would become the only master, with what it has; the other nodes follow it by themselves.", best),
		fmt.Sprintf("Lost is what was written after revision %d and reached none but %s. Whether there was anything, nobody can tell.", at.Index, dead),
		fmt.Sprintf("Make sure that %s: off, or beyond everybody's reach. What runs on apart from here is a second cluster, until it meets this one and gives its log up.", plural(len(gone), dead)),
	}}, nil
}

func plural(n int, names string) string {
	if n == 1 {
		return names + " is gone"
	}
	return names + " are gone"
}

// recover makes the node with the longest log the only master. want is what the
// user was shown.
func (s *Server) recover(ctx context.Context, want Recovery) (string, error) {
	began := time.Now()
	if want.ID == s.node.ID() {
		if err := s.recoverHere(ctx, want); err != nil {
			return "", err
		}
	} else {
		body, err := json.Marshal(want)
		if err != nil {
			return "", err
		}
		if _, err := s.dialer.Call(ctx, want.ID, "/conclave/v1/recover", body); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s leads since %.1f s after the word was given; the others follow: see `conclave status`", s.nameOf(want.ID), time.Since(began).Seconds()), nil
}

// serveRecover has this node's log become the cluster's, at the word of another
// node that may be a master.
func (s *Server) serveRecover(_ string, w http.ResponseWriter, r *http.Request) {
	if !identity.PeerEligible(r.TLS) {
		http.Error(w, "only a node that may be a master can ask for a recovery", http.StatusForbidden)
		return
	}
	var want Recovery
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&want)
	if err == nil {
		err = s.recoverHere(r.Context(), want)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

// recoverHere looks once more, from here, and goes ahead.
func (s *Server) recoverHere(ctx context.Context, want Recovery) error {
	loss, _, err := s.judge(ctx)
	if err != nil {
		return err
	}
	if at := loss.Best.Log; loss.Best.ID != want.ID || at.Term != want.Term || at.Index != want.Index {
		return fmt.Errorf("the best log is now %s's, up to revision %d: look again", s.nameOf(loss.Best.ID), at.Index)
	}
	m := s.master.Load()
	if m == nil {
		return errors.New("this node has no log any more: look again")
	}
	r := &rebirth{term: loss.Term, result: make(chan error, 1)}
	if !s.rebirth.CompareAndSwap(nil, r) {
		return errors.New("a recovery is under way already")
	}
	m.finish(reborn)
	<-m.ended
	select {
	case err = <-r.result:
	default:
		s.rebirth.CompareAndSwap(r, nil)
		err = errors.New("this node stopped being a master for another reason: look again")
	}
	if err != nil {
		return err
	}
	for {
		changed := s.membersChanged()
		if n := s.master.Load(); n != nil && n != m {
			return n.consensus.Sync(ctx)
		}
		select {
		case <-changed: // a master that starts tells the members so
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// staleAfter is how long a master may be without a leader before what it has is
// called old: elections take less.
const staleAfter = time.Second

// staleness says why what this master has may be old. One that has not caught
// up since its start does not know what of its log counts: it waits until it
// has.
func (m *master) staleness(ctx context.Context, name string) (string, error) {
	if !m.ready.Load() {
		return "", translate(storageErrors, m.consensus.Sync(ctx))
	}
	since := m.consensus.Leaderless()
	if since.IsZero() || time.Since(since) < staleAfter {
		return "", nil
	}
	return fmt.Sprintf("this may be old: it is node %s's own copy, at revision %d; it has reached no leader for %s",
		name, m.consensus.Store().Revision(), time.Since(since).Round(time.Second)), nil
}

// lossProblem says what is wrong where nobody leads, and what to do.
func (s *Server) lossProblem(c consensusStatus) string {
	var there, gone []string
	alive := map[string]bool{s.node.ID(): true}
	for _, m := range s.consensusMembers() {
		alive[m.ID] = alive[m.ID] || m.Alive && !m.Suspect
	}
	for id, votes := range c.Voters {
		switch {
		case votes && alive[id]:
			there = append(there, s.nameOf(id))
		case votes:
			gone = append(gone, s.nameOf(id))
		}
	}
	slices.Sort(gone)
	all := len(there) + len(gone)
	if len(there) > all/2 {
		return "no leader: the masters are electing one"
	}
	return fmt.Sprintf("no majority: %d of %d masters can be reached, and not %s. Nothing can be written or moved; what runs goes on. Start or reconnect them, or, if %s for good, run `conclave recover`",
		len(there), all, strings.Join(gone, ", "), plural(len(gone), strings.Join(gone, ", ")))
}

// --- the command ------------------------------------------------------------------

func recoverCommand(withData func(...cli.Flag) []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "recover", Usage: "go on without masters that are lost for good, from the longest log that is left",
		Description: "Where a majority of the masters is lost, nothing can be written. This finds, from any node that is left, who has the longest log, says what may be lost, and makes that node the only master. The others follow by themselves. It refuses while a majority could still answer.",
		Flags: withData(
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done"},
		),
		Action: runRecover,
	}
}

func runRecover(c *cli.Context) error {
	var plan Recovery
	if err := ask(c, http.MethodGet, "/recover", nil, &plan); err != nil {
		return err
	}
	for _, line := range plan.Lines {
		fmt.Fprintln(c.App.Writer, line)
	}
	if c.Bool("dry-run") {
		return nil
	}
	if !c.Bool("yes") {
		if err := confirm(c, "Recover now?"); err != nil {
			return err
		}
	}
	query := url.Values{"id": {plan.ID}, "term": {fmt.Sprint(plan.Term)}, "index": {fmt.Sprint(plan.Index)}}
	var done string
	if err := ask(c, http.MethodPost, "/recover?"+query.Encode(), nil, &done); err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, done)
	return nil
}

// confirm asks at the terminal; without one somebody has to say --yes.
func confirm(c *cli.Context, question string) error {
	if in, ok := c.App.Reader.(*os.File); !ok || !term.IsTerminal(int(in.Fd())) {
		return errors.New("nothing was done: there is no terminal to ask at; say --yes if you mean it")
	}
	fmt.Fprint(c.App.Writer, question+" [y/N] ")
	line, err := bufio.NewReader(c.App.Reader).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}
