package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/ledger"
)

// A tokenStore is the ledger of the token service with what has to be closed after it.
type tokenStore struct {
	ledger.Store
	close []io.Closer // in this order
}

// Close gives the store back.
func (s *tokenStore) Close() error {
	var errs []error
	for _, c := range s.close {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// openLedger opens the ledger that the configuration names. onChange is told whether the shared one
// is in use.
func openLedger(c *config.Site, log *slog.Logger, onChange func(shared bool)) (*tokenStore, error) {
	s := c.Token.StoreOf()
	switch {
	case s.Shared():
		return openShared(c, &s, log, onChange)
	case s.File() != "":
		b, err := openBolt(s.File(), log)
		if err != nil {
			return nil, err
		}
		return &tokenStore{Store: b, close: []io.Closer{b}}, nil
	}
	log.Warn("the ledger is in memory: what was sent is forgotten when the service ends, and Microsoft's limits may be crossed after it")
	return &tokenStore{Store: ledger.NewMemory()}, nil
}

func openBolt(file string, log *slog.Logger) (*ledger.Bolt, error) {
	b, err := ledger.OpenBolt(file, ledger.BoltOptions{Log: log})
	if err == nil {
		return b, nil
	}
	if dir := filepath.Dir(file); errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil, exit.Errorf(exit.Config, "the folder "+dir+" has to be there and to belong to the user of the token service (install -d -m 0700 -o sendas-token "+dir+")",
			"opening the ledger: %w", err)
	}
	return nil, exit.Errorf(exit.TempFail, "", "opening the ledger: %w", err)
}

// openShared opens the ledger that hosts share, with this host's own share of it in a file.
func openShared(c *config.Site, s *config.Store, log *slog.Logger, onChange func(bool)) (*tokenStore, error) {
	primary, err := s.Ledger(c)
	if err != nil {
		return nil, err
	}
	own, err := openBolt(filepath.Join(c.Token.StateDir, "share.db"), log)
	if err != nil {
		return nil, errors.Join(err, primary.Close())
	}
	// Of its own share no lease is adopted: what the store is told afterwards would not hold it.
	for _, o := range own.Outstanding() {
		if err := own.Settle(context.Background(), o.Mailbox, o.Lease, lease.Unseen, time.Now()); err != nil {
			return nil, exit.Errorf(exit.TempFail, "", "settling what was under way: %w", errors.Join(err, own.Close(), primary.Close()))
		}
	}
	diary, err := openBolt(filepath.Join(c.Token.StateDir, "diary.db"), log)
	if err != nil {
		return nil, errors.Join(err, own.Close(), primary.Close())
	}
	shared, err := ledger.NewShared(primary, s.Hosts, own, ledger.SharedOptions{Host: s.Host, Diary: diary, Log: log, OnChange: onChange})
	if err != nil {
		return nil, exit.Errorf(exit.Config, "write a name for this host under token.host", "token.store: %w",
			errors.Join(err, diary.Close(), own.Close(), primary.Close()))
	}
	return &tokenStore{Store: shared, close: []io.Closer{shared, diary, own, primary}}, nil
}
