package ledger

import (
	"context"
	"strconv"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// A reign is the time in which one process is the master of the shared ledger. Its successor, be it
// a replica or the same server started again, lacks what was done last: replication and the disk
// lag behind. So each host tells a new master what it has done since the moment up to which that
// one knows all, and no lease is given until all have, or a window has passed.

// A deed is what the server was told: a lease, its end, or a pause.
type deed struct {
	at      limit.Instant // by the server's clock
	mono    time.Duration // by ours, which nobody sets
	mailbox string
	group   string
	id      uint64
	limits  *limit.Allowance // of a lease
	begin   limit.Instant    // its place began so long after
	pause   *Pause
	outcome Outcome // of its end
}

// deeds are those of the last minute or so, the oldest first.
type deeds struct {
	list  []deed
	since limit.Instant // all of this process from here on are there; 0: none yet
}

// deedsKept is how long a deed is remembered after the next ones. Replication lags by less: with
// min-replicas-to-write a master without a replica takes nothing after 10 s. Where the new master
// lacks more, the diary knows it, if not as exactly.
const deedsKept = limit.Instant(time.Minute / time.Microsecond)

// note remembers what the server was told.
func (r *Redis) note(d deed) {
	if r.host == "" {
		return // nobody would tell it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	x := &r.deeds
	x.list = append(x.list, d)
	n := 0
	for n < len(x.list) && x.list[n].at < d.at-deedsKept {
		n++
	}
	if n > len(x.list)/2 { // not each time
		x.since = max(x.since, x.list[n-1].at+1)
		x.list = append([]deed(nil), x.list[n:]...)
	}
}

// begin says that the deeds of this process begin now. Again means that it has told more than deeds.
func (r *Redis) begin(again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if again || r.deeds.since == 0 {
		r.deeds = deeds{since: r.seen}
	}
}

// behind returns what is to be told to the master that serves now: all that was done from that
// moment on, if it is known so exactly, and how long ago it was.
func (r *Redis) behind() (list []deed, exact bool, gap limit.Instant, term string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.Term == "" || r.at.Told {
		return nil, true, 0, r.at.Term
	}
	was, err := strconv.ParseInt(r.at.Was, 10, 64)
	if err != nil || r.deeds.since == 0 || r.deeds.since > limit.Instant(was) {
		return nil, false, r.at.Gap, r.at.Term
	}
	for _, d := range r.deeds.list {
		if d.at >= limit.Instant(was) {
			list = append(list, d)
		}
	}
	return list, true, r.at.Gap, r.at.Term
}

// tell tells a deed again. Told twice in a reign, it counts once.
func (r *Redis) tell(ctx context.Context, d deed) error {
	age := limit.Micros(r.mono() - d.mono)
	switch {
	case d.pause != nil:
		return r.Pause(ctx, d.mailbox, *d.pause, time.Now())
	case d.limits != nil:
		q := redisRequest{Op: "again", ID: idText(d.id), Limits: r.limits(*d.limits), Age: age - d.begin}
		a, err := r.run(ctx, d.mailbox, d.group, q)
		if err == nil {
			d.at = a.now
			r.note(d)
		}
		return err
	}
	q := settleRequest(d.id, d.group, d.outcome)
	q.Age = age
	a, err := r.run(ctx, d.mailbox, d.group, q)
	if err == nil {
		d.at = a.now
		r.note(d)
	}
	return err
}

// lately reduces a trace to what may have come after that moment. Recipients are known by stretches
// of the window alone: the one that goes on there is told as a whole, to the safe side. So is what
// came a little before: the diary's clock is another one.
func (tr *trace) lately(now, gap limit.Instant) {
	const slack = limit.Instant(5 * time.Second / time.Microsecond)
	from := now - gap - slack
	for id, h := range tr.open {
		if h.given < from {
			delete(tr.open, id)
			delete(tr.group.open, id)
		}
	}
	late := func(list []limit.Instant) []limit.Instant {
		for len(list) > 0 && list[0] < from {
			list = list[1:]
		}
		return list
	}
	sent := func(list []bucket) []bucket {
		for len(list) > 0 && list[0].end < from {
			list = list[1:]
		}
		return list
	}
	tr.done, tr.tally.sent, tr.group.sent = late(tr.done), sent(tr.tally.sent), sent(tr.group.sent)
}

// nothing reports whether there is nothing to tell.
func (tr *trace) nothing() bool {
	return tr.tally.empty() && len(tr.done) == 0 && tr.group.empty()
}
