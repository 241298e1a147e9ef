package ledger

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/policy/limit/redistest"
)

// pauseOf returns what a ledger says of the pause of a mailbox.
func pauseOf(t *testing.T, x Store, l limit.Allowance) Pause {
	t.Helper()
	u, err := x.Usage(t.Context(), "erp@contoso.com", l, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return Pause{u.PausedUntil, u.PauseClass, u.PauseReason}
}

// TestPauseHasItsClass: every store keeps the class beside the words, whatever these are, until the
// pause ends.
func TestPauseHasItsClass(t *testing.T) {
	server := redistest.Start(t)
	shared := newHost(t, server.URL(), "a", 1)
	shared.waitFor(t, true)
	for name, x := range map[string]Store{
		"memory": NewMemory(), "bolt": openBolt(t, filepath.Join(t.TempDir(), "ledger.db"), BoltOptions{}),
		"redis":  openRedis(t, limit.Redis{URL: server.URL(), Tenant: "fabrikam.com"}),
		"shared": shared, "alone": newHost(t, "unix:///nonexistent/socket", "a", 1),
	} {
		for _, p := range []Pause{{Class: PauseQuota, Reason: "reworded"}, {Class: PauseFull}, {Class: "of a later version", Reason: "x"}, {Reason: "no class"}} {
			p.Until = time.Now().Add(time.Hour)
			if err := x.Pause(t.Context(), "erp@contoso.com", p, time.Now()); err != nil {
				t.Fatal(err)
			}
			if got := pauseOf(t, x, sharedLimits); got.Class != p.Class.known() || got.Reason != p.Reason || got.Until.IsZero() {
				t.Errorf("%s: %+v is kept as %+v", name, p, got)
			}
		}
		if err := x.Pause(t.Context(), "erp@contoso.com", Pause{Class: PauseQuota, Reason: "over"}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := pauseOf(t, x, sharedLimits); got != (Pause{}) {
			t.Errorf("%s: an ended pause is %+v", name, got)
		}
	}
}

// withoutClass makes the record of an account as versions wrote it that knew no classes.
func (a *account) withoutClass() []byte {
	c := *a
	c.class = ""
	b := c.encode()
	return (&encoder{b: b[:len(b)-1]}).seal() // less the length of the class
}

func TestRecordWithoutClass(t *testing.T) {
	want := exampleAccount()
	old := want.withoutClass()
	want.class = ""
	if got, err := decodeAccount(old); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v, want %+v", got, err, want)
	}
	if _, err := decodeAccount(append(binary.BigEndian.AppendUint32(nil, 0), old[4:]...)); err == nil {
		t.Error("a record with a wrong checksum is taken")
	}
}

// TestBoltReadsPausesWithoutClass: a file of an earlier version goes on to pause the mailbox, with
// the words that it has.
func TestBoltReadsPausesWithoutClass(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	b := openBolt(t, path, BoltOptions{})
	if err := b.Pause(t.Context(), "erp@contoso.com", Pause{time.Now().Add(time.Hour), PauseQuota, "old words"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	old := b.book.accounts["erp@contoso.com"].withoutClass()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketAccounts).Put([]byte("erp@contoso.com"), old) })
	if err != nil || db.Close() != nil {
		t.Fatal(err)
	}
	got := pauseOf(t, openBolt(t, path, BoltOptions{}), limit.Microsoft())
	if got.Class != PauseOther || got.Reason != "old words" || got.Until.IsZero() {
		t.Errorf("the pause is read as %+v", got)
	}
}

// TestRedisReadsPausesWithoutClass: so is one that a host with an earlier version has told the
// store.
func TestRedisReadsPausesWithoutClass(t *testing.T) {
	r := openRedis(t, limit.Redis{URL: redistest.Start(t).URL(), Tenant: "contoso.com"})
	if err := r.Pause(t.Context(), "erp@contoso.com", Pause{time.Now().Add(time.Hour), PauseQuota, "old words"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	const forget = `local a = cmsgpack.unpack(redis.call('GET', KEYS[1])); a.class = nil; redis.call('SET', KEYS[1], cmsgpack.pack(a)); return a.why`
	if why, err := r.client.Eval(context.Background(), forget, []string{r.prefix + "mailbox:erp@contoso.com"}).Text(); err != nil || why != "old words" {
		t.Fatal(why, err)
	}
	if got := pauseOf(t, r, limit.Microsoft()); got.Class != PauseOther || got.Reason != "old words" || got.Until.IsZero() {
		t.Errorf("the pause is read as %+v", got)
	}
}
