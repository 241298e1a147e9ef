package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/ledger"
)

// A Journal remembers the sessions that have a lease, for the process that comes after this one:
// smtp(8) goes on with its delivery whatever becomes of the token service, and asks the next
// process about the replies that are still to come.
//
// It is a folder with one small file for each smtp(8) process, which holds no secret. The files
// survive the end of this process, also by kill -9, and that is all they have to survive: after the
// end of the system there is no session left, and the ledger has its leases on the disk. So nothing
// waits for the disk here. The methods are safe for concurrent use as long as each process id is
// used by one goroutine at a time.
type Journal struct {
	Dir    string
	uptime func() time.Duration // instead of the function uptime, in tests
}

// entry is what one file holds.
type entry struct {
	Mailbox  string    `json:"mailbox"`
	Label    string    `json:"label"`
	Sender   string    `json:"sender"`
	Lease    uint64    `json:"lease"`
	Began    time.Time `json:"began"`
	Stage    stage     `json:"stage"`
	Accepted int       `json:"accepted"`
	Born     string    `json:"born"` // see processBorn
	Seen     bool      `json:"seen,omitempty"`
	UID      uint32    `json:"uid,omitempty"`
	// Due is when the message may begin, by the function uptime, which a set clock does not move.
	Due time.Duration `json:"due,omitempty"`
}

// entrySize is the size of a file: a whole entry is written at one stroke and over the former one,
// so that a process that is killed leaves either. Addresses have at most 320 characters (RFC 5321,
// section 4.5.3.1).
const entrySize = 2048

// OpenJournal makes the folder, if there is none.
func OpenJournal(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keeping the deliveries under way: %w", err)
	}
	return &Journal{Dir: dir, uptime: uptime}, nil
}

func (j *Journal) path(pid int32) string { return filepath.Join(j.Dir, strconv.Itoa(int(pid))) }

// save writes the state of a process's session.
func (j *Journal) save(pid int32, s *session) error {
	e := entry{s.mailbox, s.label, s.sender, s.lease, s.began.Round(0), s.stage, s.accepted, s.born, s.seen, s.uid, 0}
	if left := time.Until(s.due); left > 0 {
		e.Due = j.uptime() + left
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(b) > entrySize {
		return fmt.Errorf("the session of mailbox %.100q does not fit into %d bytes", s.mailbox, entrySize)
	}
	f, err := os.OpenFile(j.path(pid), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(b, bytes.Repeat([]byte{' '}, entrySize-len(b))...), 0)
	return errors.Join(err, f.Close())
}

// remove forgets a process's session.
func (j *Journal) remove(pid int32) error {
	err := os.Remove(j.path(pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load returns the sessions of the process before this one, by process id. A file that cannot be
// read is none of ours, or was not finished when that process was killed: then its lease had not
// been handed out.
func (j *Journal) load() (map[int32]*entry, error) {
	files, err := os.ReadDir(j.Dir)
	if err != nil {
		return nil, err
	}
	list := make(map[int32]*entry, len(files))
	for _, f := range files {
		pid, err := strconv.ParseInt(f.Name(), 10, 32)
		if err != nil || pid <= 0 || !f.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(j.Dir, f.Name()))
		if err != nil {
			return nil, err
		}
		e := new(entry)
		if json.Unmarshal(b, e) != nil || e.Lease == 0 {
			e = nil
		}
		list[int32(pid)] = e
	}
	return list, nil
}

// alive reports whether the process that the entry is about is still there.
func (e *entry) alive(pid int32) bool {
	if errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) {
		return false
	}
	boot, start, _ := strings.Cut(e.Born, " ")
	bootNow, startNow, _ := strings.Cut(processBorn(pid), " ")
	return boot == bootNow && (start == startNow || start == "" || startNow == "")
}

// processBorn returns the name of this boot, and when within it a process was started
// (proc_pid_stat(5), starttime): the process's id alone may be another one's by now. The latter is
// missing where the system does not tell, as under ProtectProc=invisible.
func processBorn(pid int32) string { return bootID() + " " + startTime(pid) }

var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it all boots are one, and the start of the process decides
	return string(bytes.TrimSpace(b))
})

func startTime(pid int32) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		return ""
	}
	// The name of the program, in brackets, may hold anything; 20 fields of ours come after it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const starttime = 22 - 3 // of the fields after the name, counted from 0
	if len(fields) <= starttime {
		return ""
	}
	return fields[starttime]
}

// Adopt takes over the leases that an earlier process has given on the same ledger, and keeps the
// journal from now on. Sessions whose smtp(8) is still there go on where they were. The leases of
// the others are settled, as if their messages had been sent to as many recipients as a delivery
// can have. Call it after [Lessor.Use] and before the first look-up.
func (l *Lessor) Adopt(ctx context.Context, j *Journal) error {
	entries, err := j.load()
	if err != nil {
		return fmt.Errorf("reading the deliveries that were under way: %w", err)
	}
	l.journal = j
	known := make(map[uint64]bool, len(entries))
	survivor, _ := l.ledger.(ledger.Survivor)
	goOn := 0
	for pid, e := range entries {
		if e == nil {
			l.journaled(j.remove(pid))
			continue
		}
		known[e.Lease] = true
		s := l.adopted(e)
		if e.Due != 0 {
			s.due = time.Now().Add(min(e.Due-j.uptime(), ahead))
		}
		if survivor != nil {
			survivor.Adopt(s.mailbox, s.lease, s.limits)
		}
		if e.alive(pid) {
			l.recallOf(ctx, s) // before its verdict
			l.enter(Caller{PID: pid, UID: e.UID}, s)
			goOn++
			continue
		}
		if s.stage == atData { // perhaps it is not decided yet, see sweep
			s.left = time.Now()
			l.enter(Caller{PID: pid, UID: e.UID}, s)
			continue
		}
		o := lostOf(s.limits.Unseen)
		if !s.seen {
			o = s.lostOutcome(false)
		}
		l.settle(ctx, s.mailbox, s.lease, o)
		l.journaled(j.remove(pid))
	}
	if survivor == nil {
		return nil
	}
	orphans := survivor.Outstanding()
	orphans = slices.DeleteFunc(orphans, func(o ledger.Outstanding) bool { return known[o.Lease] })
	for _, o := range orphans {
		l.settle(ctx, o.Mailbox, o.Lease, lostOf(o.Recipients))
	}
	if len(entries)+len(orphans) > 0 {
		l.log.Info("deliveries of the former process taken over", "going_on", goOn, "lost", len(entries)+len(orphans)-goOn)
	}
	return nil
}

// Unseen is the outcome of a delivery of which nobody knows what became: the most that can have
// been.
var Unseen = ledger.Outcome{Submitted: true, Recipients: ledger.MaxDelivery, GroupRecipients: ledger.MaxDelivery}

// lostOf is Unseen of a delivery that may have had more recipients than most.
func lostOf(recipients int) ledger.Outcome {
	o := Unseen
	o.Recipients, o.GroupRecipients = max(o.Recipients, recipients), max(o.GroupRecipients, recipients)
	return o
}

// adopted makes a session of an entry. Its mailbox may have left the configuration meanwhile.
func (l *Lessor) adopted(e *entry) *session {
	s := &session{mailbox: e.Mailbox, label: e.Label, made: e.Mailbox != e.Label, tokens: noTokens{}, sender: e.Sender, lease: e.Lease,
		began: e.Began, stage: e.Stage, accepted: e.Accepted, born: e.Born, seen: e.Seen || e.Stage > atAuth, envelope: envelope{external: e.Accepted}} // who they were is not known
	if m := l.member(e.Sender, e.Mailbox); m != nil {
		s.tokens, s.limits = m.Tokens, m.Limits
	}
	return s
}

// noTokens stands for the credential of a mailbox that the configuration no longer has.
type noTokens struct{}

func (noTokens) Token(context.Context) (*entra.Token, error) {
	return nil, errors.New("the mailbox is no longer configured")
}

func (noTokens) Discard(entra.Secret) {}

// journaled says that the journal cannot be written, and when it can again: once each.
func (l *Lessor) journaled(err error) {
	if bad := err != nil; l.unjournaled.Swap(bad) == bad {
		return
	}
	if err == nil {
		l.log.Info("deliveries under way are kept in the journal again")
		return
	}
	l.log.Error("deliveries under way cannot be kept in the journal; should the service be killed, their mailboxes send less for a while",
		"error", err)
}
