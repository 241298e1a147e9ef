package ledger

import (
	"reflect"
	"testing"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

func exampleAccount() *account {
	a := newAccount()
	a.open[7] = hold{at(start), 50}
	a.sent = []bucket{{at(start) - 5, 3}, {at(start) + 900_000_000, 10_000}}
	a.per = 24 * time.Hour
	a.done = []limit.Instant{at(start) - 100, at(start) - 100, at(start)}
	a.last, a.shrunk, a.shrunkAt = at(start), 2, at(start)-9
	a.until, a.class, a.reason = at(start)+1, PauseFull, "mailbox full; \x00 anything"
	a.limits = limit.Microsoft()
	a.limits.Group, a.limits.GroupRecipients = "moera", limit.MOERA()
	return a
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	free := exampleAccount()
	free.free = map[uint64]bool{7: true}
	for _, want := range []*account{newAccount(), exampleAccount(), free} {
		got, err := decodeAccount(want.encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decoded %+v, %v, want %+v", got, err, want)
		}
	}
	want := &exampleAccount().tally
	if got, err := decodeTally(want.record()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v, want %+v", got, err, want)
	}
	s := stamp{ledger: at(start), wall: -1, boot: "b", up: 5, lost: 9, serial: 1 << 60}
	if got, err := decodeStamp(s.encode()); err != nil || got != s {
		t.Errorf("decoded %+v, %v, want %+v", got, err, s)
	}
}

func TestDamagedRecordIsAnError(t *testing.T) {
	good := exampleAccount().encode()
	for n := range good {
		if _, err := decodeAccount(good[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are taken for a record", n, len(good))
		}
		bad := append([]byte(nil), good...)
		bad[n] ^= 0x10
		if _, err := decodeAccount(bad); err == nil {
			t.Errorf("a record with byte %d changed is taken for a good one", n)
		}
	}
}

// What passes the checksum may still be anything: it must neither panic nor fill the memory.
func FuzzDecodeAccount(f *testing.F) {
	f.Add(exampleAccount().encode()[4:])
	f.Add([]byte{2, 2})
	f.Fuzz(func(t *testing.T, body []byte) {
		sealed := (&encoder{b: append(make([]byte, 4), body...)}).seal()
		a, err := decodeAccount(sealed)
		if err != nil {
			return
		}
		again, err := decodeAccount(a.encode())
		if err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("%+v came back as %+v, %v", a, again, err)
		}
	})
}
