package quota

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sendas/sendas/policy/limit"
)

//go:embed counts.lua
var admissionSource string

var admissionScript = limit.NewScript(admissionSource)

const (
	// sharedTimeout is how long a message may wait for the server, when no other time is given.
	// SMTP clients have minutes, but whoever waits holds one of Postfix's smtpd(8) processes.
	sharedTimeout = 500 * time.Millisecond
	// beatInterval is how often a host looks whether the server is there and still has its data.
	beatInterval = time.Second
	// bookBatch is how many keys are told to the server at once.
	bookBatch = 200
)

// OpenShared makes a Counts whose counts several hosts have in common, in a Redis (from 5) or
// Valkey; [Counts.Run] has to run. What is told by MaxSession in the options does not matter here,
// and Timeout is half a second where it is 0.
//
// # What is shared
//
// Places are reserved on each host alone, with the numbers that the server told it last.
// [Counts.Commit] asks the server, in one round trip and with one script, which counts the message
// for all its keys or for none: so never more than a rate is admitted by all hosts in sum, whatever
// each of them believes. Time is the server's; one that is set moves nothing. Keys expire when
// their last message has left every window.
//
// # While the server is away
//
// A host goes on with its share: each rate divided by the number of hosts, at least 1, of which
// what it has itself admitted lately is taken away, and never more than the whole rate allows by
// the numbers it knew last. Nobody is refused because of the server, and nobody waits longer than
// the timeout. When it is back, the hosts tell what they have admitted; so a period in which the
// server goes or comes can have more than the rate, by at most the shares of the other hosts, and
// one of which an answer was lost counts it twice. A server that has lost its data is told within a
// second what each host knows of its own.
//
// report hears when the server is away, once, and with nil when it is back. The error never has the
// password. It may be nil.
func OpenShared(o limit.Redis, hosts int, report func(error)) (*Counts, error) {
	if o.Timeout <= 0 {
		o.Timeout = sharedTimeout
	}
	client, err := o.Client("redis://HOST:6379/0")
	if err != nil {
		return nil, err
	}
	began := time.Now()
	a := New()
	a.report = report
	if report == nil {
		a.report = func(error) {}
	}
	a.shared = &sharedCounts{client: client, prefix: o.Keys(), hosts: max(1, hosts), timeout: o.Timeout,
		mono: func() time.Duration { return time.Since(began) }, owing: make(map[string]*meter)}
	a.beat(context.Background())
	return a, nil
}

// sharedCounts is what a Counts knows of the server. Its mutex guards what is below mono.
type sharedCounts struct {
	client  redis.UniversalClient
	prefix  string // of all keys
	hosts   int
	timeout time.Duration
	mono    func() time.Duration // a clock that nobody sets
	server  func() int64         // microseconds, in place of the server's clock, in tests

	beating sync.Mutex // one at a time; taken before that of Counts

	up     bool
	told   bool   // the first report has been made
	epoch  string // of the server's data that this host counts with
	newer  string // of data that it is telling what it knows
	seen   int64  // the server's time of the last answer, in microseconds
	seenAt time.Duration
	owing  map[string]*meter // that the server has to be told of
}

// mine is what this host has admitted of a meter's key, where the meter's own windows are those of
// all hosts.
type mine struct {
	windows []slots
	owed    []slots // of these, what the server has not been told; nil for nothing
}

// The requests and answers of counts.lua.
type (
	sharedRate struct {
		ID string `json:"id"` // m or r, and the period in microseconds
		N  int    `json:"n"`
	}
	sharedPast struct {
		ID  string `json:"id"`
		Age int64  `json:"age"`
		N   uint32 `json:"n"`
	}
	sharedKey struct {
		Recipients int          `json:"recipients"`
		Rates      []sharedRate `json:"rates,omitempty"`
		Past       []sharedPast `json:"past,omitempty"`
	}
	sharedRequest struct {
		Op    string      `json:"op"`
		Now   int64       `json:"now,omitempty"`
		Bound int64       `json:"bound,omitempty"`
		Epoch string      `json:"epoch"`
		Fresh string      `json:"fresh"`
		Keys  []sharedKey `json:"keys,omitempty"`
	}
	sharedAnswer struct {
		Now     string     `json:"now"`
		Epoch   string     `json:"epoch"`
		Rejoin  bool       `json:"rejoin"`
		Refused int        `json:"refused"` // which key, from 1; 0: none
		Rate    int        `json:"rate"`    // which rate of it, from 1
		Wait    int64      `json:"wait"`    // microseconds; -1: for ever
		States  [][]string `json:"states"`
	}
)

// sharedKeyOf words what a reservation asks for.
func sharedKeyOf(s *shape, recipients int) sharedKey {
	k := sharedKey{Recipients: recipients, Rates: make([]sharedRate, len(s.rates))}
	for i, r := range s.rates {
		k.Rates[i] = sharedRate{sharedID(r), r.N}
	}
	return k
}

func sharedID(r kindRate) string {
	return string(r.kind[0]) + strconv.FormatInt(int64(r.Per/time.Microsecond), 10)
}

// ask sends one request. a.mu is not held.
func (a *Counts) ask(ctx context.Context, names []string, q sharedRequest) (*sharedAnswer, error) {
	s := a.shared
	a.mu.Lock()
	sent := s.mono()
	q.Epoch, q.Fresh = s.epoch, rand.Text()
	if s.server != nil {
		q.Now = s.server()
	}
	if s.seen != 0 {
		q.Bound = s.seen + int64((sent-s.seenAt)/time.Microsecond)
	}
	a.mu.Unlock()
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	keys := []string{s.prefix + "admission-clock"}
	for _, n := range names {
		keys = append(keys, s.prefix+"admission:"+n)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	text, err := admissionScript.Run(ctx, s.client, keys, body)
	if err != nil {
		return nil, fmt.Errorf("the shared store does not answer: %w", err)
	}
	var answer sharedAnswer
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return nil, fmt.Errorf("the shared store answers something else: %w", err)
	}
	now, err := strconv.ParseInt(answer.Now, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("the shared store answers something else: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.seen, s.seenAt = max(s.seen, now), sent
	return &answer, nil
}

// commitShared is Commit with a server.
func (a *Counts) commitShared(now time.Time, list []*Reservation) *Refusal {
	a.mu.Lock()
	at := a.clock.Nanos(now)
	live, no := a.renewLocked(list, at)
	if no != nil || len(live) == 0 {
		a.mu.Unlock()
		return no
	}
	up := a.shared.up
	names, shapes := make([]string, len(live)), make([]*shape, len(live))
	q := sharedRequest{Op: "commit"}
	for i, r := range live {
		names[i], shapes[i] = r.key, r.in.shape
		q.Keys = append(q.Keys, sharedKeyOf(r.in.shape, r.recipients))
	}
	a.mu.Unlock()
	if up {
		answer, err := a.ask(context.Background(), names, q)
		switch {
		case err != nil:
			a.lost(err)
		case len(answer.States) == len(live):
			return a.settle(answer, live, shapes, at)
		} // else it has lost its data: the next beat tells it what this host knows, for which nobody waits here
	}
	return a.commitAlone(live, at)
}

// settle does as the server has decided.
func (a *Counts) settle(answer *sharedAnswer, live []*Reservation, shapes []*shape, at int64) *Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, r := range live {
		m := a.homeLocked(r, at)
		if answer.Refused == 0 {
			r.endLocked()
			m.own().book(m.shape, r.recipients, at)
		}
		if m.shape == shapes[i] { // else another quota has come into force meanwhile
			m.mirror(answer.States[i], at)
		}
		m.booked = at
	}
	i, j := answer.Refused-1, answer.Rate-1
	if i < 0 || i >= len(live) || j < 0 || j >= len(shapes[i].rates) {
		return nil
	}
	abortAllLocked(live)
	no := &Refusal{Key: live[i].key, Kind: shapes[i].rates[j].kind, Rate: shapes[i].rates[j].Rate}
	if answer.Wait >= 0 {
		no.Opens = a.clock.Wall(at + answer.Wait*int64(time.Microsecond))
	}
	return no
}

// mirror takes over what the server says of the windows.
func (m *meter) mirror(states []string, at int64) {
	for i, text := range states[:min(len(states), len(m.windows))] {
		m.windows[i] = slots{}
		words := strings.Fields(text)
		for ; len(words) >= 2; words = words[2:] {
			age, err := strconv.ParseInt(words[0], 10, 64)
			n, wrong := strconv.ParseUint(words[1], 10, 32)
			if err == nil && wrong == nil {
				m.windows[i].add(m.shape.rates[i].Per, int(n), at-age*int64(time.Microsecond))
			}
		}
	}
}

// commitAlone is Commit while the server is away: within this host's share.
func (a *Counts) commitAlone(live []*Reservation, at int64) *Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range live {
		m := a.homeLocked(r, at)
		shares := m.shape.shares(a.shared.hosts)
		if i, opens := inTheWay(shares, m.own().windows, 1, r.recipients, 0, 0, at); i >= 0 {
			abortAllLocked(live)
			return a.refusedLocked(m.key, shares[i], opens)
		}
	}
	for _, r := range live {
		m := a.homeLocked(r, at)
		r.endLocked()
		o := m.own()
		o.book(m.shape, r.recipients, at)
		if o.owed == nil {
			o.owed = make([]slots, len(m.windows))
		}
		count(m.shape, o.owed, r.recipients, at)
		m.book(r.recipients, at)
		a.shared.owing[m.key] = m
	}
	return nil
}

// own returns what this host has admitted.
func (m *meter) own() *mine {
	if m.mine == nil {
		m.mine = &mine{windows: make([]slots, len(m.windows))}
	}
	return m.mine
}

func (o *mine) book(s *shape, recipients int, at int64) { count(s, o.windows, recipients, at) }

// shares returns the rates of one of several hosts.
func (s *shape) shares(hosts int) []kindRate {
	list := make([]kindRate, len(s.rates))
	for i, r := range s.rates {
		r.N = max(1, r.N/hosts)
		list[i] = r
	}
	return list
}

// lost notes that the server is away.
func (a *Counts) lost(err error) {
	a.mu.Lock()
	s := a.shared
	tell := s.up || !s.told
	s.up, s.told = false, true
	a.mu.Unlock()
	if tell {
		a.report(err)
	}
}

// beat looks whether the server is there, and tells it what it does not know. It returns whether it
// is.
func (a *Counts) beat(ctx context.Context) bool {
	s := a.shared
	s.beating.Lock()
	defer s.beating.Unlock()
	answer, err := a.ask(ctx, nil, sharedRequest{Op: "beat"})
	if err == nil {
		a.oweAll(answer.Epoch)
		err = a.bookOwed(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			a.lost(err)
		}
		return false
	}
	a.mu.Lock()
	tell := !s.up
	s.up, s.told, s.epoch = true, true, answer.Epoch
	a.mu.Unlock()
	if tell {
		a.report(nil)
	}
	return true
}

// oweAll makes all that this host has admitted owed, once, if the server has other data than this
// host knew.
func (a *Counts) oweAll(epoch string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.shared
	if s.epoch == "" || s.epoch == epoch || s.newer == epoch {
		return
	}
	s.newer, s.seen = epoch, 0 // its clock may be another one, too
	for _, m := range a.all {
		if m.mine != nil {
			m.mine.owed = append([]slots(nil), m.mine.windows...)
			s.owing[m.key] = m
		}
	}
}

// bookOwed tells the server what it does not know.
func (a *Counts) bookOwed(ctx context.Context) error {
	for {
		batch, names, q := a.owed()
		if len(names) == 0 {
			return nil
		}
		if _, err := a.ask(ctx, names, q); err != nil {
			a.oweAgain(batch)
			return err
		}
	}
}

// owed takes the next of what is owed.
func (a *Counts) owed() (batch map[*meter][]slots, names []string, q sharedRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	batch, q.Op = make(map[*meter][]slots), "book"
	for key, m := range a.shared.owing {
		if len(names) == bookBatch {
			break
		}
		delete(a.shared.owing, key)
		if m.mine == nil || m.mine.owed == nil {
			continue
		}
		owed := m.mine.owed
		m.mine.owed = nil
		if past := pastOf(m.shape, owed, a.clock.Latest()); len(past) > 0 {
			batch[m] = owed
			names = append(names, key)
			q.Keys = append(q.Keys, sharedKey{Past: past})
		}
	}
	return batch, names, q
}

// pastOf words windows.
func pastOf(s *shape, windows []slots, now int64) (list []sharedPast) {
	for i, r := range s.rates[:min(len(s.rates), len(windows))] {
		w := &windows[i]
		for j, n := range w.count {
			if age := now - (w.leaves(j, r.Per) - int64(r.Per)); n > 0 && age < int64(r.Per) {
				list = append(list, sharedPast{sharedID(r), max(0, age/int64(time.Microsecond)), n})
			}
		}
	}
	return list
}

// oweAgain puts back what could not be told.
func (a *Counts) oweAgain(batch map[*meter][]slots) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for m, owed := range batch {
		if m.mine.owed == nil {
			m.mine.owed = make([]slots, len(m.windows))
		}
		for i := range m.mine.owed[:min(len(m.mine.owed), len(owed))] {
			m.mine.owed[i].merge(&owed[i])
		}
		a.shared.owing[m.key] = m
	}
}

// merge adds what another list of the same period has counted.
func (s *slots) merge(o *slots) {
	if k := o.newest - s.newest; k > 0 {
		s.shift(k)
		s.newest = o.newest
	}
	for i, n := range o.count {
		if j := i + int(s.newest-o.newest); n > 0 && j < len(s.count) {
			s.count[j] += n
			s.last[j] = max(s.last[j], o.last[i])
		}
	}
}

// runShared looks after the server until ctx ends, then ends the connections.
func (a *Counts) runShared(ctx context.Context) error {
	tick := time.NewTicker(beatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSaveTime)
			defer cancel()
			if err := a.bookOwed(last); err != nil {
				a.shared.client.Close()
				return err
			}
			return a.shared.client.Close()
		case <-tick.C:
		}
		a.tidy(time.Now())
		a.beat(ctx)
	}
}
