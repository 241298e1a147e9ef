package ledger

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sendas/sendas/policy/limit"
)

// Redis is a Store that several hosts share: Redis from 5, or Valkey; one server, the master that
// sentinels name, or a node of a cluster ([limit.ParseRedisURL]). Each call is one round trip,
// to one script that the server runs as a whole; time is the server's, so that hosts need not agree
// about it. A server clock that is set, forward or back, moves nothing: see the head of redis.lua.
//
// The server must not evict keys (maxmemory-policy noeviction), and should write to disk
// (appendonly yes). When it has lost its data nonetheless, the first host to ask that had used it
// before says so, and every mailbox counts as having used up all its windows at that moment, unless
// all hosts have booked anew what they had sent ([Shared] does that). Who knows better sets the
// field "lost" of the key that ends in :clock to 0. A server that forgets while all hosts restart
// cannot be told from a new one.
//
// When another process becomes the master (a replica takes its place, or it is started again), or
// it is back at an older state, what was done last may be missing: see reign.go.
//
// Keys start with the prefix and, as a hash tag, the tenant, so that they share a slot of a
// cluster. Those of mailboxes expire; the one that keeps the clock stays.
type Redis struct {
	client  redis.UniversalClient
	prefix  string
	session limit.Instant

	host    string // set by NewShared: membership
	hosts   int
	silence time.Duration
	reserve int

	server func() limit.Instant // instead of the server's TIME, in tests
	mono   func() time.Duration // a clock that nobody sets

	mu     sync.Mutex    // guards what follows
	epoch  string        // of the data, as last seen
	at     station       // as last told
	deeds  deeds         // of this process, as the server was told of them
	peers  []string      // hosts that were there, as last told to a member
	known  int           // how many hosts there are, as the server was told
	seen   limit.Instant // ledger time of the last answer
	seenAt time.Duration
	groups map[uint64]string // of leases out: Settle is not told
	doubt  []doubtful
}

// doubtful is a lease that the server may have given without our having heard of it.
type doubtful struct {
	mailbox, group string
	id             uint64
}

var _ Survivor = (*Redis)(nil)

//go:embed redis.lua
var redisSource string

var redisScript = limit.NewScript(redisSource)

// NewRedis makes the ledger on a server, without asking whether it is there.
func NewRedis(o limit.Redis) (*Redis, error) {
	client, err := o.Client("redis://:PASSWORD@HOST:6379/0")
	if err != nil {
		return nil, err
	}
	if o.MaxSession <= 0 {
		o.MaxSession = MaxSession
	}
	began := time.Now()
	return &Redis{
		client: client, prefix: o.Keys(), session: limit.Micros(o.MaxSession),
		mono: func() time.Duration { return time.Since(began) }, groups: make(map[uint64]string),
	}, nil
}

// Close ends the connections.
func (r *Redis) Close() error { return r.client.Close() }

// The requests and answers of redis.lua.
type (
	redisRate struct {
		N   int           `json:"n"`
		Per limit.Instant `json:"per"`
	}
	redisLimits struct {
		Messages    redisRate  `json:"messages"`
		Recipients  redisRate  `json:"recipients"`
		Connections int        `json:"connections"`
		Group       *redisRate `json:"group,omitempty"`
		Unseen      int        `json:"unseen,omitempty"`

		Ahead limit.Instant `json:"ahead,omitempty"`
	}
	redisOutcome struct {
		Submitted   bool `json:"submitted"`
		Concurrency bool `json:"concurrency"`
		Recipients  int  `json:"recipients"`
		Group       int  `json:"group"`
		Open        bool `json:"open,omitempty"`
	}
	redisRequest struct {
		Op      string        `json:"op"`
		Now     limit.Instant `json:"now,omitempty"`
		Bound   limit.Instant `json:"bound,omitempty"`
		Seen    limit.Instant `json:"seen,omitempty"` // of the last answer
		Session limit.Instant `json:"session"`
		Epoch   string        `json:"epoch"`
		Fresh   string        `json:"fresh"`
		Host    string        `json:"host,omitempty"`
		Hosts   int           `json:"hosts,omitempty"`
		Known   int           `json:"known,omitempty"` // how many there are, as far as this one knows
		Silence limit.Instant `json:"silence,omitempty"`
		Reserve int           `json:"reserve"`       // percent of the recipient limits that is kept for hosts on their own
		Age     limit.Instant `json:"age,omitempty"` // of what is told again
		ID      string        `json:"id,omitempty"`
		Limits  *redisLimits  `json:"limits,omitempty"`
		Grouped bool          `json:"grouped"`
		Outcome *redisOutcome `json:"outcome,omitempty"`
		Pause   limit.Instant `json:"pause"`
		Class   PauseClass    `json:"class"`
		Reason  string        `json:"reason"`

		// of join and book; the times are ages. What is told again under the same name replaces what
		// was told before.
		Name      string                      `json:"name,omitempty"`
		Remembers bool                        `json:"remembers"`
		Term      string                      `json:"term,omitempty"`  // of the reign in which all has been told
		Peers     []string                    `json:"peers,omitempty"` // hosts that were there when this one last asked
		Open      map[string][3]limit.Instant `json:"open,omitempty"`
		Done      []limit.Instant             `json:"done,omitempty"`
		Sent      [][2]limit.Instant          `json:"sent,omitempty"`
		GroupSent [][2]limit.Instant          `json:"groupSent,omitempty"`
	}
	redisAnswer struct {
		Now        string        `json:"now"`
		Epoch      string        `json:"epoch"`
		Rejoin     bool          `json:"rejoin"`
		Lost       string        `json:"lost"` // the wait is for what the server has lost: "data" or "master"
		Lease      bool          `json:"lease"`
		Begin      limit.Instant `json:"begin"`
		Wait       limit.Instant `json:"wait"`
		Cause      Cause         `json:"cause"`
		Class      PauseClass    `json:"class"`
		Reason     string        `json:"reason"`
		Messages   int           `json:"messages"`
		Recipients int           `json:"recipients"`
		Leases     int           `json:"leases"`
		Group      int           `json:"group"`
		Shrunk     int           `json:"shrunk"`
		Next       limit.Instant `json:"next"`
		Paused     limit.Instant `json:"paused"`
		station

		now  limit.Instant
		sent time.Duration // when the question was, by the clock that nobody sets
	}
	// A station is what a host has to know of the master that serves now. A reign (Term) begins when
	// another process becomes the master.
	station struct {
		Term    string        `json:"term"`
		Told    bool          `json:"told"`    // this host has told it what it did
		Was     string        `json:"was"`     // of the former reign all is known up to here,
		Gap     limit.Instant `json:"gap"`     // so long ago
		Hosts   int           `json:"hosts"`   // how many there are, by their number or by their names
		Members []string      `json:"members"` // those that are there
	}
)

// errRejoin says that the server does not know this host as a member, so it may be counting on less
// than all.
var errRejoin = errors.New("this host has to join the shared ledger again")

// run sends one request.
func (r *Redis) run(ctx context.Context, mailbox, group string, q redisRequest) (redisAnswer, error) {
	sent := r.prepare(&q)
	body, err := json.Marshal(q)
	if err != nil {
		return redisAnswer{}, err
	}
	keys := []string{r.prefix + "clock", r.prefix + "mailbox:" + mailbox, r.prefix + "group:" + group}
	text, err := redisScript.Run(ctx, r.client, keys, body)
	if err != nil {
		return redisAnswer{}, fmt.Errorf("the shared ledger does not answer: %w", err)
	}
	var a redisAnswer
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return redisAnswer{}, fmt.Errorf("the shared ledger answers something else: %w", err)
	}
	now, err := strconv.ParseInt(a.Now, 10, 64)
	if err != nil {
		return redisAnswer{}, fmt.Errorf("the shared ledger answers something else: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a.now, a.sent = limit.Instant(now), sent
	r.epoch, r.seen, r.seenAt = a.Epoch, max(r.seen, a.now), sent
	if a.Term != "" {
		r.at = a.station
	}
	if a.Rejoin {
		return a, errRejoin
	}
	return a, nil
}

// prepare fills in what every request needs, and returns when it was sent.
func (r *Redis) prepare(q *redisRequest) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.mono()
	q.Session, q.Epoch, q.Fresh = r.session, r.epoch, rand.Text()
	q.Known = max(r.hosts, r.at.Hosts)
	if q.Op != "beat" { // which alone may say fewer than before
		q.Known = max(q.Known, r.known)
	}
	r.known = max(r.known, q.Known)
	q.Host, q.Hosts, q.Silence, q.Reserve = r.host, r.hosts, limit.Micros(r.silence), r.reserve
	if r.server != nil {
		q.Now = r.server()
	}
	if r.seen != 0 {
		q.Bound, q.Seen = r.seen+limit.Micros(sent-r.seenAt), r.seen
	}
	return sent
}

// limits words limits for the script.
func (r *Redis) limits(l limit.Allowance) *redisLimits {
	rate := func(x limit.Rate) redisRate {
		return redisRate{N: x.N, Per: limit.Micros(x.Per)}
	}
	out := &redisLimits{Messages: rate(l.Messages), Recipients: rate(l.Recipients), Connections: l.Connections, Unseen: l.Unseen, Ahead: limit.Micros(min(l.Ahead, MaxAhead))}
	if l.Grouped() {
		g := rate(l.GroupRecipients)
		out.Group = &g
	}
	return out
}

// newID returns the name of a new lease: random, so that one of a server that has lost its data is
// never taken for another, and exact as a number of Lua.
func newID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])>>11 | 1
}

func idText(id uint64) string { return strconv.FormatUint(id, 10) }

// Take implements [Store]. The time of the caller does not matter. After an error the server may
// have given the lease; it is given back with the next call that succeeds, or expires.
func (r *Redis) Take(ctx context.Context, mailbox string, l limit.Allowance, _ time.Time) (Answer, error) {
	if err := r.clear(ctx); err != nil {
		return Answer{}, err
	}
	id, group := newID(), groupName(l)
	a, err := r.run(ctx, mailbox, group, redisRequest{Op: "take", ID: idText(id), Limits: r.limits(l)})
	if err != nil {
		if !errors.Is(err, errRejoin) {
			r.doubts(doubtful{mailbox, group, id})
		}
		return Answer{}, err
	}
	if !a.Lease {
		switch a.Lost {
		case "data":
			a.Reason = "the shared ledger has lost its data, and not all hosts have told it anew what they had sent"
		case "master":
			a.Reason = "the shared ledger has another master, and not all hosts have told it what they had sent last"
		}
		return Answer{Wait: a.Wait.Duration(), Cause: a.Cause, Reason: a.Reason}, nil
	}
	r.remember(id, group)
	r.note(deed{at: a.now, mono: a.sent, mailbox: mailbox, group: group, id: id, limits: &l, begin: a.Begin})
	return Answer{Lease: id, Begin: a.Begin.Duration()}, nil
}

func (r *Redis) remember(id uint64, group string) {
	if group == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.groups[id] = group
}

// maxDoubts bounds the leases to be given back; those beyond it expire.
const maxDoubts = 10_000

func (r *Redis) doubts(d ...doubtful) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.doubt) < maxDoubts {
		r.doubt = append(r.doubt, d...)
	}
}

// clear gives back the leases that are in doubt.
func (r *Redis) clear(ctx context.Context) error {
	r.mu.Lock()
	list := r.doubt
	r.doubt = nil
	r.mu.Unlock()
	for i, d := range list {
		if _, err := r.run(ctx, d.mailbox, d.group, settleRequest(d.id, d.group, Outcome{})); err != nil {
			r.doubts(list[i:]...)
			return err
		}
	}
	return nil
}

func settleRequest(id uint64, group string, o Outcome) redisRequest {
	return redisRequest{Op: "settle", ID: idText(id), Grouped: group != "",
		Outcome: &redisOutcome{Submitted: o.Submitted, Concurrency: o.Concurrency, Recipients: o.Recipients, Group: o.GroupRecipients, Open: o.Open}}
}

// Settle implements [Store]. After an error it may be called again.
func (r *Redis) Settle(ctx context.Context, mailbox string, lease uint64, o Outcome, _ time.Time) error {
	r.mu.Lock()
	group := r.groups[lease]
	r.mu.Unlock()
	a, err := r.run(ctx, mailbox, group, settleRequest(lease, group, o))
	if err != nil {
		return err
	}
	r.note(deed{at: a.now, mono: a.sent, mailbox: mailbox, group: group, id: lease, outcome: o})
	if o.Open {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.groups, lease)
	return nil
}

// Outstanding implements [Survivor]. The server does not know whose leases are whose.
func (r *Redis) Outstanding() []Outstanding { return nil }

// Adopt implements [Survivor].
func (r *Redis) Adopt(_ string, lease uint64, l limit.Allowance) { r.remember(lease, groupName(l)) }

// Pause implements [Store].
func (r *Redis) Pause(ctx context.Context, mailbox string, p Pause, now time.Time) error {
	q := redisRequest{Op: "pause", Class: p.Class, Reason: p.Reason}
	if !p.Until.IsZero() {
		q.Pause = max(0, limit.Micros(p.Until.Sub(now)))
	}
	a, err := r.run(ctx, mailbox, "", q)
	if err == nil {
		r.note(deed{at: a.now, mono: a.sent, mailbox: mailbox, pause: &p})
	}
	return err
}

// Usage implements [Store].
func (r *Redis) Usage(ctx context.Context, mailbox string, l limit.Allowance, now time.Time) (Usage, error) {
	a, err := r.run(ctx, mailbox, groupName(l), redisRequest{Op: "usage", Limits: r.limits(l)})
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Messages: a.Messages, Recipients: a.Recipients, Leases: a.Leases, GroupRecipients: a.Group, Shrunk: a.Shrunk}
	if a.Next > 0 {
		u.Next = now.Add(a.Next.Duration())
	}
	if a.Paused > 0 {
		u.PausedUntil, u.PauseClass, u.PauseReason = now.Add(a.Paused.Duration()), a.Class.known(), a.Reason
	}
	return u, nil
}

// ping reports whether the server is there that has our keys, and changes nothing.
func (r *Redis) ping(ctx context.Context) error {
	err := r.client.Exists(ctx, r.prefix+"clock").Err()
	limit.ReloadCluster(ctx, r.client, err)
	return err
}

// beat tells the server that this host is there. It returns errRejoin when the host is no member.
func (r *Redis) beat(ctx context.Context) error {
	r.mu.Lock()
	known := max(r.hosts, r.at.Hosts)
	r.mu.Unlock()
	a, err := r.run(ctx, "", "", redisRequest{Op: "beat"})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers, r.known = a.Members, known
	return nil
}

// join makes this host a member of the reign that it has told what it did. A host that remembers
// has booked all that it did since it was last seen.
func (r *Redis) join(ctx context.Context, remembers bool) error {
	r.mu.Lock()
	q := redisRequest{Op: "join", Remembers: remembers, Term: r.at.Term, Peers: r.peers}
	r.mu.Unlock()
	a, err := r.run(ctx, "", "", q)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = a.Members
	return nil
}

// count returns how many hosts share the server, as this one has told it last. What a host may do on
// its own follows from that, and what the server keeps back for it.
func (r *Redis) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(r.hosts, r.known)
}

// dataEpoch names the data that the server had when it last answered.
func (r *Redis) dataEpoch() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}
