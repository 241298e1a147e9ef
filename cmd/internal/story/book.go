// Package story joins the two halves of the record, for whoever may read both, and words what became
// of a message: [Book.Find] lists messages, [Book.Story] tells of one, station by station, with what is
// still to come, and [Book.Report] sums a time up.
//
// The halves are tied by what is certain, and by nothing else: the Message-ID that Microsoft names when
// it accepts a message, where only one message can have been meant; what Postfix notes of a message that
// it could not deliver, where only one attempt was answered so; and Postfix's log, which has the process
// of an attempt beside the queue id. What cannot be tied is told as an attempt of the sender.
package story

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/internal/record"
)

// A Book is both halves of the record, open for reading. It is for one goroutine.
type Book struct {
	milter, token *half
	log           Log
}

// half is one half, which is read by a thread that has the rights of the file's owner alone: SQLite
// makes files beside it, and what the owner has put there is none of root's business. A nil half is one
// in which nothing was ever kept.
type half struct {
	work chan func(*record.Reader)
	done chan struct{}
}

// Open opens the halves that there are. The error says so where the user may not read them. log is
// where Postfix's lines are, nil for nowhere.
func Open(ctx context.Context, milterFile, tokenFile string, log Log) (*Book, error) {
	b := &Book{log: log}
	var err error
	if b.milter, err = openHalf(ctx, milterFile, record.MilterHalf); err != nil {
		return nil, err
	}
	if b.token, err = openHalf(ctx, tokenFile, record.TokenHalf); err != nil {
		b.Close()
		return nil, err
	}
	if b.milter == nil && b.token == nil {
		return nil, exit.Errorf(exit.Failed, `is "record: off" in sendas.yaml? else look at "sendas status"`, "nothing was recorded yet: there is neither %s nor %s", milterFile, tokenFile)
	}
	return b, nil
}

// Close closes the files.
func (b *Book) Close() {
	for _, h := range []*half{b.milter, b.token} {
		if h != nil {
			close(h.work)
			<-h.done
		}
	}
}

func openHalf(ctx context.Context, path string, which record.Half) (*half, error) {
	h := &half{make(chan func(*record.Reader)), make(chan struct{})}
	opened := make(chan error)
	go h.serve(ctx, path, which, opened)
	err := <-opened
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission) || err != nil && os.Geteuid() != 0 && strings.Contains(err.Error(), "unable to open"):
		return nil, exit.Errorf(exit.Failed, "it shows who wrote to whom, so it is for root: type it with sudo", "the record of the %s service cannot be read: %w", which, err)
	case err != nil:
		return nil, exit.Errorf(exit.Failed, "", "the record of the %s service cannot be read: %w", which, err)
	}
	return h, nil
}

// serve reads the half until work is closed. A thread of root ends with it, since it is not unlocked.
func (h *half) serve(ctx context.Context, path string, which record.Half, opened chan<- error) {
	defer close(h.done)
	if os.Geteuid() == 0 {
		runtime.LockOSThread()
	}
	if err := becomeOwner(path); err != nil {
		opened <- err
		return
	}
	r, err := record.OpenReader(ctx, path, which)
	opened <- err
	if err != nil {
		return
	}
	defer r.Close()
	for f := range h.work {
		f(r)
	}
}

// becomeOwner gives this thread of root the rights to files that the owner of a file has, and no others
// (setfsuid(2)).
func becomeOwner(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || st.Uid == 0 {
		return nil
	}
	if err := errors.Join(unix.Setfsgid(int(st.Gid)), unix.Setfsuid(int(st.Uid))); err != nil {
		return fmt.Errorf("reading %s as its owner: %w", path, err)
	}
	return nil
}

// Walk calls f with each message from since on, oldest first; see [record.Reader.Walk].
func (b *Book) Walk(ctx context.Context, since time.Time, f func(*record.Message) error) error {
	_, err := of(b.milter, func(r *record.Reader) (any, error) { return nil, r.Walk(ctx, since, f) })
	return err
}

// of asks a half; a nil one has nothing.
func of[T any](h *half, ask func(*record.Reader) (T, error)) (v T, err error) {
	if h == nil {
		return v, nil
	}
	done := make(chan struct{})
	h.work <- func(r *record.Reader) {
		defer close(done)
		v, err = ask(r)
	}
	<-done
	return v, err
}
