package quota

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sendas/sendas/policy/limit"
)

// dawn is when the tests of admissions begin.
var dawn = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

func mustRates(t testing.TB, list ...string) []limit.Rate {
	t.Helper()
	rates := make([]limit.Rate, len(list))
	for i, s := range list {
		var err error
		if rates[i], err = limit.ParseRate(s); err != nil {
			t.Fatal(err)
		}
	}
	return rates
}

// mustBegin begins a message that must not be refused.
func mustBegin(t testing.TB, a *Counts, key string, q Rates, now time.Time) *Reservation {
	t.Helper()
	r, no := a.Begin(key, q, now)
	if no != nil {
		t.Fatalf("Begin(%q) at %v is refused: %+v", key, now.Sub(dawn), no)
	}
	return r
}

// submit sends one message with so many recipients, which must not be refused.
func submit(t testing.TB, a *Counts, key string, q Rates, recipients int, now time.Time) {
	t.Helper()
	r := mustBegin(t, a, key, q, now)
	if no := r.Recipients(recipients, now); no != nil {
		t.Fatalf("%d recipients of %q at %v are refused: %+v", recipients, key, now.Sub(dawn), no)
	}
	if no := a.Commit(now, r); no != nil {
		t.Fatalf("Commit of %q at %v is refused: %+v", key, now.Sub(dawn), no)
	}
}

func TestMessageStopsAtTheRightRecipient(t *testing.T) {
	a, q := New(), Rates{Recipients: mustRates(t, "1000/h", "500/d")}
	submit(t, a, "sap", q, 3, dawn)
	r := mustBegin(t, a, "sap", q, dawn)
	for i := range 600 {
		no := r.Recipients(1, dawn.Add(time.Duration(i)*time.Millisecond))
		if want := i >= 497; (no != nil) != want {
			t.Fatalf("recipient %d: refusal %+v, want refused = %v", i+1, no, want)
		}
		if no != nil && (no.Key != "sap" || no.Kind != limit.KindRecipients || no.Rate != q.Recipients[1]) {
			t.Fatalf("recipient %d is refused for %+v, want 500/d of sap", i+1, no)
		}
	}
	if no := a.Commit(dawn.Add(time.Second), r); no != nil {
		t.Fatalf("the message with the recipients that it has is refused: %+v", no)
	}
	want := []Used{{limit.KindRecipients, q.Recipients[0], 500, 0}, {limit.KindRecipients, q.Recipients[1], 500, 0}}
	if got := a.Usage("sap", dawn.Add(time.Second)); !slices.Equal(got, want) {
		t.Errorf("Usage = %+v, want %+v", got, want)
	}
}

func TestRefusalTellsWhichLimitAndUntilWhen(t *testing.T) {
	type sent struct {
		at         time.Duration
		recipients int
	}
	for _, tc := range []struct {
		name       string
		messages   []string
		recipients []string
		sent       []sent
		at         time.Duration // when a message with one recipient is asked for
		rate       string        // "" where it is not refused
		opens      time.Duration // earliest; at most a 3072nd of the period more
	}{
		{"room", []string{"3/m"}, nil, []sent{{0, 1}, {0, 1}}, 0, "", 0},
		{"first leaves", []string{"3/m"}, nil, []sent{{0, 1}, {20 * time.Second, 1}, {40 * time.Second, 1}}, 50 * time.Second, "3/m", time.Minute},
		{"first has left", []string{"3/m"}, nil, []sent{{0, 1}, {20 * time.Second, 1}, {40 * time.Second, 1}}, 61 * time.Second, "", 0},
		{"the later of two", []string{"1/m", "2/h"}, nil, []sent{{0, 1}, {10 * time.Minute, 1}}, 10*time.Minute + time.Second, "2/h", time.Hour},
		{"the tighter of two", []string{"1/m", "20/h"}, nil, []sent{{0, 1}, {10 * time.Minute, 1}}, 10*time.Minute + time.Second, "1/m", 11 * time.Minute},
		{"recipients", []string{"9/m"}, []string{"10/d"}, []sent{{0, 4}, {3 * time.Hour, 6}}, 4 * time.Hour, "10/d", 24 * time.Hour},
		{"own period", []string{"1/6s"}, nil, []sent{{0, 1}}, 5 * time.Second, "1/6s", 6 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, q := New(), Rates{Messages: mustRates(t, tc.messages...), Recipients: mustRates(t, tc.recipients...)}
			began := dawn.Add(1_234_567_891) // where no stretch of time begins
			for _, s := range tc.sent {
				submit(t, a, "x", q, s.recipients, began.Add(s.at))
			}
			no := a.Peek("x", q, 1, began.Add(tc.at))
			if tc.rate == "" || no == nil {
				if (no == nil) != (tc.rate == "") {
					t.Fatalf("Peek = %+v, want rate %q", no, tc.rate)
				}
				return
			}
			if got := no.Rate.String(); got != tc.rate {
				t.Errorf("refused for %s, want %s", got, tc.rate)
			}
			late := no.Opens.Sub(began) - tc.opens
			if late < 0 || late > no.Rate.Per/3072+1 {
				t.Errorf("opens at %v, want %v and hardly more", no.Opens.Sub(began), tc.opens)
			}
			if no := a.Peek("x", q, 1, no.Opens.Add(-1)); no == nil {
				t.Error("it is open before it opens")
			}
			if no := a.Peek("x", q, 1, no.Opens); no != nil {
				t.Errorf("when it should open, it is refused: %+v", no)
			}
		})
	}
}

func TestMoreThanTheLimitAtOnceNeverOpens(t *testing.T) {
	a, q := New(), Rates{Recipients: mustRates(t, "500/d", "9000/31h")}
	r := mustBegin(t, a, "x", q, dawn)
	no := r.Recipients(600, dawn)
	if no == nil || !no.Opens.IsZero() || no.Rate.N != 500 {
		t.Fatalf("600 recipients at once: %+v, want a refusal by 500/d that never opens", no)
	}
	if no := r.Recipients(500, dawn); no != nil {
		t.Errorf("after that, 500 are refused: %+v", no)
	}
}

func TestUnderWayCountsUntilAborted(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "2/m")}
	r := mustBegin(t, a, "x", q, dawn)
	mustBegin(t, a, "x", q, dawn)
	if _, no := a.Begin("x", q, dawn); no == nil || no.Opens != dawn.Add(time.Minute) {
		t.Errorf("a third message: %+v, want a refusal that opens in a minute", no)
	}
	r.Abort()
	r.Abort() // the session ends after the message was refused
	if no := r.Recipients(1, dawn); no != nil {
		t.Errorf("a message that has ended is refused: %+v", no)
	}
	mustBegin(t, a, "x", q, dawn)
	if _, no := a.Begin("x", q, dawn); no == nil {
		t.Error("two aborts of one message gave two places back")
	}
}

func TestForgottenReservationsExpire(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "2/m")}
	first := mustBegin(t, a, "x", q, dawn)
	second := mustBegin(t, a, "x", q, dawn)
	half := dawn.Add(ReservationLife / 2)
	if no := second.Recipients(1, half); no != nil {
		t.Fatalf("a recipient is refused: %+v", no)
	}
	end := dawn.Add(ReservationLife)
	if got := a.Usage("x", end.Add(-1)); got[0].Reserved != 2 {
		t.Errorf("just before the life ends, %d are reserved, want 2", got[0].Reserved)
	}
	if no := a.Peek("x", q, 1, end); no != nil {
		t.Errorf("when the life of the first ends, another message is refused: %+v", no)
	}
	if got := a.Usage("x", end); got[0].Reserved != 1 {
		t.Errorf("when the life of the first ends, %d are reserved, want 1", got[0].Reserved)
	}
	if no := a.Commit(end, first); no != nil {
		t.Errorf("a late message is refused though there is room: %+v", no)
	}
	if got := a.Usage("x", end); got[0].Counted != 1 || got[0].Reserved != 1 {
		t.Errorf("after it, %+v, want one counted and one reserved", got)
	}
	if no := a.Commit(half.Add(ReservationLife), second); no != nil {
		t.Errorf("the second, late too, is refused: %+v", no)
	}
}

func TestReservationsExpireOneByOne(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "9/h")}
	var list [4]*Reservation
	for i := range list {
		list[i] = mustBegin(t, a, "x", q, dawn.Add(time.Duration(i)*time.Minute))
	}
	list[0].Abort() // the oldest
	list[2].Abort() // one in the middle
	for i, want := range []int{2, 1, 1, 0} {
		if got := a.Usage("x", dawn.Add(ReservationLife+time.Duration(i)*time.Minute)); got[0].Reserved != want {
			t.Errorf("after %d min and their life, %d are reserved, want %d", i, got[0].Reserved, want)
		}
	}
}

func TestLateMessageLosesItsPlaceToOthers(t *testing.T) {
	a := New()
	client, identity := Rates{Messages: mustRates(t, "9/m")}, Rates{Messages: mustRates(t, "1/h"), Recipients: mustRates(t, "50/h")}
	r1 := mustBegin(t, a, "x", client, dawn)
	r2 := mustBegin(t, a, IdentityKey("a@contoso.com"), identity, dawn)
	if no := r2.Recipients(7, dawn); no != nil {
		t.Fatal(no)
	}
	late := dawn.Add(ReservationLife)
	submit(t, a, IdentityKey("a@contoso.com"), identity, 1, late)
	no := a.Commit(late, r1, nil, r2)
	if no == nil || no.Key != "identity:a@contoso.com" || no.Rate.N != 1 {
		t.Fatalf("Commit = %+v, want a refusal of the identity", no)
	}
	if got := a.Usage("x", late); got[0].Counted+got[0].Reserved != 0 {
		t.Errorf("the client of the refused message has used %+v, want nothing", got)
	}
	if no := a.Commit(late, r1, r2); no != nil || a.Usage("x", late)[0].Counted != 0 {
		t.Errorf("a message that has ended is committed again: %+v", no)
	}
}

func TestLateMessageAsksForAllItsRecipientsAgain(t *testing.T) {
	a, q := New(), Rates{Recipients: mustRates(t, "10/d")}
	r := mustBegin(t, a, "x", q, dawn)
	if no := r.Recipients(6, dawn); no != nil {
		t.Fatal(no)
	}
	late := dawn.Add(ReservationLife)
	submit(t, a, "x", q, 4, late)
	if no := r.Recipients(1, late); no == nil {
		t.Error("7 recipients are let in where 6 places are left")
	}
	if no := a.Commit(late, r); no != nil {
		t.Errorf("6 recipients are refused where 6 places are left: %+v", no)
	}
}

func TestNoLimitsKeepNothing(t *testing.T) {
	a := New()
	r, no := a.Begin("x", Rates{}, dawn)
	if r != nil || no != nil || a.Keys() != 0 {
		t.Errorf("Begin = %v, %v and %d keys, want nothing at all", r, no, a.Keys())
	}
	if no := r.Recipients(1000, dawn); no != nil {
		t.Errorf("recipients are refused: %+v", no)
	}
	if no := a.Commit(dawn, r); no != nil {
		t.Errorf("the message is refused: %+v", no)
	}
	r.Abort()
	if no := a.Peek("x", Rates{}, 1000, dawn); no != nil {
		t.Errorf("Peek = %+v, want nothing", no)
	}
}

func TestNewQuotaKeepsTheWindowsOfTheSamePeriods(t *testing.T) {
	a := New()
	old := Rates{Messages: mustRates(t, "3/m", "9/h"), Recipients: mustRates(t, "8/d")}
	under := mustBegin(t, a, "x", old, dawn)
	submit(t, a, "x", old, 5, dawn)
	fresh := Rates{Messages: mustRates(t, "2/m", "30/2h"), Recipients: mustRates(t, "6/d")}
	want := []Used{
		{limit.KindMessages, fresh.Messages[0], 1, 1}, {limit.KindMessages, fresh.Messages[1], 0, 1}, {limit.KindRecipients, fresh.Recipients[0], 5, 0},
	}
	if no := a.Peek("x", fresh, 1, dawn); no != nil {
		t.Errorf("Peek = %+v, want none: what is under way may be the message that is asked about", no)
	}
	if no := a.Peek("x", Rates{Messages: mustRates(t, "1/m")}, 1, dawn); no == nil || no.Rate.N != 1 {
		t.Errorf("Peek = %+v, want a refusal by 1/m", no)
	}
	if _, no := a.Begin("x", fresh, dawn); no == nil || no.Rate.N != 2 {
		t.Errorf("Begin = %+v, want a refusal by 2/m", no)
	}
	if got := a.Usage("x", dawn); !slices.Equal(got, want) {
		t.Errorf("Usage = %+v\nwant %+v", got, want)
	}
	if no := a.Commit(dawn, under); no != nil {
		t.Errorf("what began under the old quota is refused: %+v", no)
	}
}

func TestTimeGoesOnWhenTheClockIsSet(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "1/m")}
	submit(t, a, "x", q, 1, dawn)
	for range 100 {
		if a.Peek("x", q, 1, dawn.Add(-900*time.Millisecond)) == nil || a.Peek("x", q, 1, dawn) == nil {
			t.Fatal("time runs ahead where callers overtake each other")
		}
	}
	back := dawn.Add(-24 * time.Hour) // set back by a day
	no := a.Peek("x", q, 1, back)
	if no == nil {
		t.Fatal("after the clock was set back, the message is forgotten")
	}
	if wait := no.Opens.Sub(back); wait < time.Minute || wait > time.Minute+time.Second {
		t.Errorf("after the clock was set back, it opens in %v, want a minute", wait)
	}
	if no := a.Peek("x", q, 1, no.Opens); no != nil {
		t.Errorf("then it is refused: %+v", no)
	}
}

func TestIdleKeysAreForgotten(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "5/m")}
	for i := range 1000 {
		submit(t, a, fmt.Sprint("old", i), q, 1, dawn)
	}
	later := dawn.Add(2 * time.Minute)
	for range 510 { // each looks at two
		submit(t, a, "new", Rates{Messages: mustRates(t, "1000/m")}, 1, later)
	}
	if got := a.Keys(); got != 1 {
		t.Errorf("%d keys are left, want 1", got)
	}
}

func TestKeysAreBounded(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "1/d")}
	a.most = 50
	var held []*Reservation
	for i := range 10 {
		held = append(held, mustBegin(t, a, fmt.Sprint("held", i), q, dawn))
	}
	for i := range 1000 {
		submit(t, a, fmt.Sprint("key", i), q, 1, dawn)
	}
	if got := a.Keys(); got < 50 || got > 51 { // one more, when all that were looked at had messages under way
		t.Errorf("%d keys are known, want 50 or 51", got)
	}
	for i, r := range held {
		if a.meters[r.key] == nil {
			t.Errorf("key %d with a message under way was forgotten", i)
		}
	}
}

func TestConcurrentClientsShareTheLimitExactly(t *testing.T) {
	a, q := New(), Rates{Messages: mustRates(t, "50/h"), Recipients: mustRates(t, "300/h")}
	now := time.Now()
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 40 {
				r, no := a.Begin("x", q, now)
				if no != nil {
					continue
				}
				if r.Recipients(2, now); (i+worker)%3 == 0 {
					r.Abort()
				} else if no := a.Commit(now, r); no != nil {
					t.Errorf("a message that was let in is refused at its end: %+v", no)
				}
				a.Usage("x", now)
			}
		})
	}
	wg.Wait()
	for { // fill up what aborted messages have left
		r, no := a.Begin("x", q, now)
		if no != nil {
			break
		}
		r.Recipients(2, now)
		a.Commit(now, r)
	}
	want := []Used{{limit.KindMessages, q.Messages[0], 50, 0}, {limit.KindRecipients, q.Recipients[0], 100, 0}}
	if got := a.Usage("x", now); !slices.Equal(got, want) {
		t.Errorf("Usage = %+v, want %+v", got, want)
	}
}

func TestCheckQuota(t *testing.T) {
	for _, tc := range []struct {
		messages, recipients []string
		want                 string
	}{
		{nil, nil, ""},
		{[]string{"20/m", "500/h"}, []string{"500/d"}, ""},
		{[]string{"20/m"}, []string{"20/m"}, ""},
		{[]string{"20/m", "30/60s"}, nil, "20/m and 30/m are for the same period; keep the one you mean"},
		{[]string{"500/m", "20/h"}, nil, "500/m is never reached beside 20/h; remove it or swap the counts"},
		{nil, []string{"500/d", "500/h"}, "500/h is never reached beside 500/d; remove it or swap the counts"},
		{[]string{"1/m", "2/h", "3/2h", "4/3h", "5/d"}, nil, "5 rates are more than anyone can oversee; keep 4"},
	} {
		got := ""
		if err := (Rates{mustRates(t, tc.messages...), mustRates(t, tc.recipients...)}).Check(); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("Check(%v, %v) = %q, want %q", tc.messages, tc.recipients, got, tc.want)
		}
	}
}

// model is what a Counts promises, written down as plainly as can be.
type model struct {
	quota map[string]Rates
	done  map[string][]event
	open  []*pending
}

type event struct {
	at         time.Time
	recipients int
}

type pending struct {
	key        string
	r          *Reservation
	recipients int
	touched    time.Time
	expired    bool
}

// counted returns how much of a kind was committed in the last period before now, which is open at
// its beginning.
func (m *model) counted(key string, k limit.Kind, per time.Duration, now time.Time) int {
	n := 0
	for _, e := range m.done[key] {
		if now.Sub(e.at) >= per {
			continue
		}
		if k == limit.KindMessages {
			n++
		} else {
			n += e.recipients
		}
	}
	return n
}

// reserved returns how much of a kind is under way.
func (m *model) reserved(key string, k limit.Kind) int {
	n := 0
	for _, p := range m.open {
		switch {
		case p.key != key || p.expired:
		case k == limit.KindMessages:
			n++
		default:
			n += p.recipients
		}
	}
	return n
}

func (m *model) expire(now time.Time) {
	for _, p := range m.open {
		p.expired = p.expired || now.Sub(p.touched) >= ReservationLife
	}
}

// judge holds a decision against the model: what was let in fits into the exact window, and what
// was refused would not have fitted into one that is longer by the documented error.
func (m *model) judge(t *rapid.T, key string, messages, recipients int, now time.Time, no *Refusal) {
	t.Helper()
	full := false
	for _, kr := range quotaRates(m.quota[key]) {
		more := messages
		if kr.kind == limit.KindRecipients {
			more = recipients
		}
		if more == 0 {
			continue
		}
		held := m.reserved(key, kr.kind)
		if exact := m.counted(key, kr.kind, kr.Per, now) + held + more; no == nil && exact > kr.N {
			t.Fatalf("let in as number %d of %v of %s", exact, kr, key)
		}
		slack := kr.Per + kr.Per/slotsPerPeriod + 2
		full = full || m.counted(key, kr.kind, slack, now)+held+more > kr.N
	}
	if no != nil && !full {
		t.Fatalf("%d messages and %d recipients of %s are refused (%+v) though there is room", messages, recipients, key, no)
	}
}

func quotaRates(q Rates) []kindRate {
	var list []kindRate
	for _, r := range q.Messages {
		list = append(list, kindRate{limit.KindMessages, r})
	}
	for _, r := range q.Recipients {
		list = append(list, kindRate{limit.KindRecipients, r})
	}
	return list
}

// drawQuota draws up to three rates, with periods that the steps of the test cross often.
func drawQuota(t *rapid.T, key string) Rates {
	rate := rapid.Custom(func(t *rapid.T) limit.Rate {
		per := rapid.SampledFrom([]time.Duration{100 * time.Millisecond, 6 * time.Second, 7001 * time.Millisecond, time.Minute, time.Hour, 2 * time.Hour}).Draw(t, "per")
		return limit.Rate{N: rapid.IntRange(1, 20).Draw(t, "n"), Per: per}
	})
	q := Rates{
		Messages:   rapid.SliceOfN(rate, 0, 2).Draw(t, key+" messages"),
		Recipients: rapid.SliceOfN(rate, 0, 1).Draw(t, key+" recipients"),
	}
	if len(q.Messages)+len(q.Recipients) == 0 {
		q.Messages = []limit.Rate{{N: 3, Per: time.Minute}}
	}
	return q
}

// world is a Counts, its model, and the time of both.
type world struct {
	*rapid.T
	*model
	a    *Counts
	keys []string
	now  time.Time
}

func TestAdmissionKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t, &model{quota: map[string]Rates{}, done: map[string][]event{}}, New(), []string{"printers", IdentityKey("scan@contoso.com")}, dawn}
		for _, k := range w.keys {
			w.quota[k] = drawQuota(t, k)
		}
		steps := []func(){w.wait, w.brink, w.begin, w.begin, w.begin, w.recipients, w.recipients, w.commit, w.commit, w.abort}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			rapid.SampledFrom(steps).Draw(t, "step")()
			for _, key := range w.keys {
				w.compare(key)
			}
		}
		for _, p := range w.open[:len(w.open)/2] {
			p.r.Abort()
		}
		w.a.tidy(w.now.Add(ReservationLife + 3*time.Hour)) // the others are forgotten
		if got := w.a.Keys(); got != 0 {
			t.Fatalf("after all is over, %d keys are left", got)
		}
	})
}

// wait lets time pass: mostly little of it, sometimes more than a reservation lives.
func (w *world) wait() {
	most := rapid.SampledFrom([]time.Duration{50 * time.Millisecond, time.Second, 10 * time.Second, 5 * time.Minute, 3 * ReservationLife / 2}).Draw(w.T, "most")
	w.now = w.now.Add(time.Duration(rapid.Int64Range(0, int64(most)).Draw(w.T, "ns")))
	w.expire(w.now)
}

// brink lets time pass until just before or after something that was counted may leave a window.
func (w *world) brink() {
	key := rapid.SampledFrom(w.keys).Draw(w.T, "key")
	rates := quotaRates(w.quota[key])
	if len(w.done[key]) == 0 {
		return
	}
	e, r := rapid.SampledFrom(w.done[key]).Draw(w.T, "event"), rapid.SampledFrom(rates).Draw(w.T, "rate")
	if at := e.at.Add(r.Per + time.Duration(rapid.Int64Range(-3, 3).Draw(w.T, "ns"))); at.After(w.now) {
		w.now = at
		w.expire(w.now)
	}
}

func (w *world) begin() {
	key := rapid.SampledFrom(w.keys).Draw(w.T, "key")
	peek := w.a.Peek(key, w.quota[key], 0, w.now)
	r, no := w.a.Begin(key, w.quota[key], w.now)
	idle := true // Peek passes over what is under way
	for _, u := range w.a.Usage(key, w.now) {
		idle = idle && (u.Reserved == 0 || no == nil && u.Reserved == 1)
	}
	if peek != nil && no == nil || peek == nil && no != nil && idle {
		w.Fatalf("Peek says %+v, Begin says %+v", peek, no)
	}
	w.judge(w.T, key, 1, 0, w.now, no)
	if no == nil {
		w.open = append(w.open, &pending{key: key, r: r, touched: w.now})
	}
}

// pick chooses a message under way; where there is none, one that no limit holds.
func (w *world) pick() *pending {
	if len(w.open) == 0 {
		return &pending{}
	}
	return w.open[rapid.IntRange(0, len(w.open)-1).Draw(w.T, "which")]
}

func (w *world) recipients() {
	p, n := w.pick(), rapid.IntRange(1, 9).Draw(w.T, "n")
	messages, recipients := p.again()
	no := p.r.Recipients(n, w.now)
	w.judge(w.T, p.key, messages, recipients+n, w.now, no)
	if no == nil {
		p.recipients, p.touched, p.expired = p.recipients+n, w.now, false
	}
}

// again returns what an expired message has to ask for once more.
func (p *pending) again() (messages, recipients int) {
	if p.expired {
		return 1, p.recipients
	}
	return 0, 0
}

func (w *world) commit() {
	p := w.pick()
	messages, recipients := p.again()
	no := w.a.Commit(w.now, p.r)
	w.judge(w.T, p.key, messages, recipients, w.now, no)
	if w.leave(p); no == nil {
		w.done[p.key] = append(w.done[p.key], event{w.now, p.recipients})
	}
}

func (w *world) abort() {
	p := w.pick()
	p.r.Abort()
	w.leave(p)
}

func (w *world) leave(p *pending) {
	w.open = slices.DeleteFunc(w.open, func(o *pending) bool { return o == p })
}

// compare holds the Counts's own figures against the model.
func (w *world) compare(key string) {
	w.Helper()
	for _, u := range w.a.Usage(key, w.now) {
		if want := w.reserved(key, u.Kind); u.Reserved != want {
			w.Fatalf("%s: %d %s are reserved, want %d", key, u.Reserved, u.Kind, want)
		}
		least := w.counted(key, u.Kind, u.Rate.Per, w.now)
		most := w.counted(key, u.Kind, u.Rate.Per+u.Rate.Per/slotsPerPeriod+2, w.now)
		if u.Counted < least || u.Counted > most || u.Counted > u.Rate.N {
			w.Fatalf("%s: %d of %s are counted, want %d to %d", key, u.Counted, u.Rate, least, most)
		}
	}
}
