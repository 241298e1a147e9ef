package quota

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// memoryStore is an Store for one goroutine.
type memoryStore map[string][]byte

func (s memoryStore) Load(_ context.Context, fn func(string, []byte)) error {
	for k, v := range s {
		fn(k, v)
	}
	return nil
}

func (s memoryStore) Save(_ context.Context, records map[string][]byte) error {
	for k, v := range records {
		if v == nil {
			delete(s, k)
		} else {
			s[k] = v
		}
	}
	return nil
}

// brokenStore can be told to fail.
type brokenStore struct {
	memoryStore
	mu    sync.Mutex // guards what follows, and memoryStore
	err   error
	saves int
}

func (s *brokenStore) Save(ctx context.Context, records map[string][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saves++; s.err != nil || ctx.Err() != nil {
		return cmp.Or(s.err, ctx.Err())
	}
	return s.memoryStore.Save(ctx, records)
}

func (s *brokenStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *brokenStore) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.memoryStore))
}

// mustOpen opens a Counts on a store that must hold nothing strange.
func mustOpen(t testing.TB, s Store) *Counts {
	t.Helper()
	a, err := Open(t.Context(), s, func(err error) { t.Errorf("reported: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustSave(t testing.TB, a *Counts) {
	t.Helper()
	if err := a.save(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRestartForgetsNothingThatWasSaved(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := memoryStore{}
		old, q, now := mustOpen(t, s), drawQuota(r, "x"), dawn
		for range rapid.IntRange(1, 60).Draw(r, "messages") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(10*time.Minute)).Draw(r, "ns")))
			m, _ := old.Begin("x", q, now)
			m.Recipients(rapid.IntRange(1, 3).Draw(r, "recipients"), now)
			old.Commit(now, m)
		}
		mustBegin(t, old, "under way", q, now)
		mustSave(t, old)
		fresh := mustOpen(t, s)
		for range 20 {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(10*time.Minute)).Draw(r, "ns")))
			if got, want := fresh.Usage("x", now), old.Usage("x", now); !slices.Equal(got, want) {
				r.Fatalf("after the restart, Usage = %+v, want %+v", got, want)
			}
			got, want := fresh.Peek("x", q, 1, now), old.Peek("x", q, 1, now)
			if (got == nil) != (want == nil) || got != nil && *got != *want {
				r.Fatalf("after the restart, Peek = %+v, want %+v", got, want)
			}
		}
		if got := fresh.Usage("under way", now); len(got) > 0 && got[0].Reserved != 0 {
			r.Fatalf("a message of the old process is still under way: %+v", got)
		}
	})
}

func TestRestartUnderAClockThatIsBehind(t *testing.T) {
	s, q := memoryStore{}, Rates{Messages: mustRates(t, "1/h")}
	old := mustOpen(t, s)
	submit(t, old, "x", q, 1, dawn)
	mustSave(t, old)
	fresh, back := mustOpen(t, s), dawn.Add(-1000*time.Hour)
	no := fresh.Peek("x", q, 1, back)
	if no == nil {
		t.Fatal("the message is forgotten")
	}
	if wait := no.Opens.Sub(back); wait < time.Hour || wait > time.Hour+2*time.Second {
		t.Errorf("it opens in %v, want an hour", wait)
	}
}

// recordV1 is the record of a key with 20/m for messages and 500/h for recipients after two
// messages, of 7 recipients at dawn and of 300 recipients 61 s later. Where its form changes,
// meterVersion must change too.
var recordV1 = strings.Join([]string{
	"01",                                                                                    // version
	"80c4f4fc989380f518",                                                                    // 61 s after dawn
	"02",                                                                                    // rates
	"6d" + "14" + "80b09dc2df01", "8cd39aab01" + "0133" + "0000000000000000000000" + "0100", // messages, 20, 60 s
	"72" + "f403" + "80c0e285e368", "a09fed02" + "b30234" + "000000000000000000000000", // recipients, 500, 1 h
}, "")

func TestRecord(t *testing.T) {
	a := New()
	q := Rates{Messages: mustRates(t, "20/m"), Recipients: mustRates(t, "500/h")}
	submit(t, a, "x", q, 7, dawn)
	submit(t, a, "x", q, 300, dawn.Add(61*time.Second))
	if got := hex.EncodeToString(encodeMeter(a.meters["x"])); got != recordV1 {
		t.Errorf("the record is\n%s, want\n%s", got, recordV1)
	}
}

func TestDamagedRecordsAreForgotten(t *testing.T) {
	good, err := hex.DecodeString(recordV1)
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, c byte) []byte {
		b := bytes.Clone(good)
		b[at] = c
		return b
	}
	for _, tc := range []struct {
		name   string
		record []byte
		want   string
	}{
		{"empty", []byte{}, "the record is damaged"},
		{"other version", change(0, 9), "the record is of version 9, not 1"},
		{"more rates than a quota has", change(10, 200), "the record is damaged"},
		{"fewer rates", change(10, 1), "the record is damaged"},
		{"kind", change(11, 'x'), "the record is damaged"},
		{"period of years", change(18, 0x7f), "the record is damaged"},
		{"stretch in the future", change(23, 2), "the record is damaged"},
		{"cut", good[:len(good)-1], "the record is damaged"},
		{"more", append(bytes.Clone(good), 0), "the record is damaged"},
		{"number too long", bytes.Repeat([]byte{1, 0xff}, 30), "the record is damaged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := memoryStore{"bad": tc.record, "good": good}
			var reported []string
			a, err := Open(t.Context(), s, func(err error) { reported = append(reported, err.Error()) })
			if err != nil {
				t.Fatal(err)
			}
			if want := []string{`forgetting the admission count of "bad": ` + tc.want}; !slices.Equal(reported, want) {
				t.Errorf("reported %q, want %q", reported, want)
			}
			if a.Keys() != 1 || a.Usage("good", dawn.Add(61*time.Second))[1].Counted != 307 {
				t.Errorf("the good record is gone too")
			}
			mustSave(t, a)
			if _, ok := s["bad"]; ok {
				t.Error("the damaged record is still there")
			}
		})
	}
}

func TestAnyBytesAreARecordOrDamage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, _ := hex.DecodeString(recordV1)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		m, err := decodeMeter("x", b)
		if err != nil {
			return
		}
		again, err := decodeMeter("x", encodeMeter(m))
		if err != nil || !slices.Equal(again.windows, m.windows) || !slices.Equal(again.shape.rates, m.shape.rates) {
			t.Fatalf("read as %+v, and after writing it as %+v, %v", m, again, err)
		}
		for i, r := range m.shape.rates {
			if late := m.windows[i].leaves(0, r.Per) - m.booked; late > int64(r.Per)+slotWidth(r.Per)+1 {
				t.Fatalf("%v holds its places for %v after the last message", r, time.Duration(late))
			}
		}
	})
}

func TestStoreThatCannotBeReadIsAnError(t *testing.T) {
	_, err := Open(t.Context(), unreadable{}, nil)
	if want := "loading admission counts: disk on fire"; err == nil || err.Error() != want {
		t.Errorf("OpenAdmission: %v, want %s", err, want)
	}
}

type unreadable struct{ memoryStore }

func (unreadable) Load(context.Context, func(string, []byte)) error {
	return errors.New("disk on fire")
}

func TestManyKeysAreSavedInBatches(t *testing.T) {
	s, q := memoryStore{}, Rates{Messages: mustRates(t, "5/m")}
	a := mustOpen(t, s)
	const n = 5*saveBatch/2 + 1
	for i := range n {
		submit(t, a, fmt.Sprint(i), q, 1, dawn)
	}
	mustSave(t, a)
	if len(s) != n {
		t.Errorf("%d keys are saved, want %d", len(s), n)
	}
	for range n { // all are idle, and half of them come back
		a.tidy(dawn.Add(time.Hour))
	}
	for i := range n / 2 {
		submit(t, a, fmt.Sprint(i), q, 1, dawn.Add(time.Hour))
	}
	mustSave(t, a)
	if len(s) != n/2 {
		t.Errorf("then %d keys are saved, want %d", len(s), n/2)
	}
}

func TestOnlyWhatHasChangedIsSaved(t *testing.T) {
	s, q := &brokenStore{memoryStore: memoryStore{}}, Rates{Messages: mustRates(t, "5/m")}
	a := mustOpen(t, s)
	submit(t, a, "x", q, 1, dawn)
	submit(t, a, "x", q, 1, dawn)
	mustBegin(t, a, "y", q, dawn)
	mustSave(t, a)
	mustSave(t, a)
	if got := s.keys(); s.saves != 1 || !slices.Equal(got, []string{"x"}) {
		t.Errorf("%d saves of %q, want one of x alone", s.saves, got)
	}
}

// running is a Counts that saves, inside a bubble of synctest.
type running struct {
	a        *Counts
	store    *brokenStore
	reported chan error
	ended    chan error
	stop     context.CancelFunc
}

func run(t *testing.T) *running {
	t.Helper()
	r := &running{store: &brokenStore{memoryStore: memoryStore{}}, reported: make(chan error, 100), ended: make(chan error, 1)}
	var err error
	if r.a, err = Open(t.Context(), r.store, func(err error) { r.reported <- err }); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	go func() { r.ended <- r.a.Run(ctx) }()
	return r
}

func TestRunSavesEverySecondAndAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, q := run(t), Rates{Messages: mustRates(t, "5/m")}
		submit(t, r.a, "x", q, 1, time.Now())
		time.Sleep(saveInterval)
		synctest.Wait()
		if got := r.store.keys(); !slices.Equal(got, []string{"x"}) {
			t.Errorf("after a second, %q are saved, want x", got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := r.store.keys(); len(got) != 0 || r.a.Keys() != 0 {
			t.Errorf("after two minutes, %q are saved and %d keys known, want none", got, r.a.Keys())
		}
		submit(t, r.a, "y", q, 1, time.Now())
		r.stop()
		if err := <-r.ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if got := r.store.keys(); !slices.Equal(got, []string{"y"}) {
			t.Errorf("at the end, %q are saved, want y", got)
		}
	})
}

func TestRunReportsATroubleOnceAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, q := run(t), Rates{Messages: mustRates(t, "5/h")}
		r.store.fail(errors.New("no space left"))
		submit(t, r.a, "x", q, 1, time.Now())
		time.Sleep(10 * saveInterval)
		r.store.fail(nil)
		time.Sleep(2 * saveInterval)
		synctest.Wait()
		if got := r.store.keys(); !slices.Equal(got, []string{"x"}) {
			t.Errorf("in the end, %q are saved, want x", got)
		}
		close(r.reported)
		var got []string
		for err := range r.reported {
			got = append(got, fmt.Sprint(err))
		}
		if want := []string{"saving admission counts: no space left", "<nil>"}; !slices.Equal(got, want) {
			t.Errorf("reported %q, want %q", got, want)
		}
		r.store.fail(errors.New("gone"))
		submit(t, r.a, "x", q, 1, time.Now())
		r.stop()
		if err := <-r.ended; err == nil || err.Error() != "saving admission counts: gone" {
			t.Errorf("Run: %v, want the error of the last save", err)
		}
	})
}
