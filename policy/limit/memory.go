package limit

import (
	"context"
	"sync"
	"time"
)

// Memory is a Ledger that forgets when the process ends.
type Memory struct {
	mu       sync.Mutex // guards accounts and what is in them
	accounts map[string]*entry
}

type entry struct {
	account
	recipientsPer time.Duration // of the last Take, for Settle
}

var _ Ledger = (*Memory)(nil)

// NewMemory makes an empty ledger.
func NewMemory() *Memory { return &Memory{accounts: make(map[string]*entry)} }

func (m *Memory) entry(mailbox string) *entry {
	e := m.accounts[mailbox]
	if e == nil {
		e = &entry{account: *newAccount()}
		m.accounts[mailbox] = e
	}
	return e
}

// Take implements [Ledger]. It never fails.
func (m *Memory) Take(_ context.Context, mailbox string, l Limits, now time.Time) (Answer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(mailbox)
	e.recipientsPer = l.Recipients.Per
	return e.take(l, now), nil
}

// Settle implements [Ledger]. It never fails.
func (m *Memory) Settle(_ context.Context, mailbox string, lease uint64, o Outcome, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(mailbox)
	e.settle(lease, o, e.recipientsPer, now)
	return nil
}

// Usage implements [Ledger]. It never fails.
func (m *Memory) Usage(_ context.Context, mailbox string, l Limits, now time.Time) (Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entry(mailbox).usage(l, now), nil
}
