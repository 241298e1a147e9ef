package ledger

import (
	"context"
	"sync"
	"time"

	"github.com/sendas/sendas/policy/limit"
)

// Memory is a Store that forgets when the process ends.
type Memory struct {
	mu   sync.Mutex // guards what follows
	book book
	told string // see diary
}

var _ Store = (*Memory)(nil)

// NewMemory makes an empty ledger.
func NewMemory() *Memory { return &Memory{book: newBook(MaxSession)} }

// Take implements [Store]. It never fails.
func (m *Memory) Take(_ context.Context, mailbox string, l limit.Allowance, now time.Time) (Answer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.book.forget(now)
	return m.book.take(mailbox, l, now), nil
}

// Settle implements [Store]. It never fails.
func (m *Memory) Settle(_ context.Context, mailbox string, lease uint64, o Outcome, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.book.settle(mailbox, lease, o, now)
	return nil
}

// Pause implements [Store]. It never fails.
func (m *Memory) Pause(_ context.Context, mailbox string, p Pause, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.book.pause(mailbox, p, now)
	return nil
}

// Usage implements [Store]. It never fails.
func (m *Memory) Usage(_ context.Context, mailbox string, l limit.Allowance, now time.Time) (Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.book.usage(mailbox, l, now), nil
}
