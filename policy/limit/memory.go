package limit

import (
	"context"
	"sync"
	"time"
)

// Memory is a Ledger that forgets when the process ends.
type Memory struct {
	mu       sync.Mutex // guards what follows
	accounts map[string]*entry
	prune    int // when so many accounts are known, those that say nothing are forgotten
}

type entry struct {
	account
	limits Limits // of the last Take
}

var _ Ledger = (*Memory)(nil)

// NewMemory makes an empty ledger.
func NewMemory() *Memory { return &Memory{accounts: make(map[string]*entry), prune: minPrune} }

// minPrune is how many accounts are kept without a look at what they say.
const minPrune = 1000

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
	if len(m.accounts) >= m.prune {
		m.forget(now)
	}
	e := m.entry(mailbox)
	e.limits = l
	return e.take(l, now), nil
}

// forget drops the accounts that say no more than a new one would: where each sender of a domain is a mailbox of its
// own, strangers could fill the memory with them. Each is looked at once per doubling.
func (m *Memory) forget(now time.Time) {
	for name, e := range m.accounts {
		e.forget(e.limits, now)
		if len(e.open)+len(e.done)+len(e.sent) == 0 && now.Sub(e.last) >= e.limits.Messages.Per {
			delete(m.accounts, name)
		}
	}
	m.prune = max(minPrune, 2*len(m.accounts))
}

// Settle implements [Ledger]. It never fails.
func (m *Memory) Settle(_ context.Context, mailbox string, lease uint64, o Outcome, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(mailbox)
	e.settle(lease, o, e.limits.Recipients.Per, now)
	return nil
}

// Usage implements [Ledger]. It never fails.
func (m *Memory) Usage(_ context.Context, mailbox string, l Limits, now time.Time) (Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entry(mailbox).usage(l, now), nil
}
