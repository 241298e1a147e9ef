package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/milter/quota"
)

// An admissionStore is what the milter counts, and where it keeps that.
type admissionStore struct {
	counts *quota.Counts
	file   *quota.File // nil for none
	log    *slog.Logger

	stop context.CancelFunc
	done chan error
}

// openAdmission opens what milter.store says, and keeps it up to date until it is closed.
func openAdmission(c *config.Site, reg prometheus.Registerer, log *slog.Logger) (*admissionStore, error) {
	up := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sendas_limit_store_up", Help: "1 while the store of the milter's limits works; 0: this host counts alone, or its file cannot be written.",
	})
	reg.MustRegister(up)
	up.Set(1)
	s, store := &admissionStore{log: log, done: make(chan error, 1)}, c.Milter.StoreOf()
	var err error
	switch {
	case store.Shared():
		err = s.openShared(c, &store, up)
	case store.File() != "":
		err = s.openFile(store.File(), up)
	default:
		s.counts = quota.New()
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() { s.done <- s.counts.Run(ctx) }()
	return s, nil
}

// openFile opens the file of this host.
func (s *admissionStore) openFile(file string, up prometheus.Gauge) error {
	f, err := quota.OpenFile(file)
	if dir := filepath.Dir(file); errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return exit.Errorf(exit.Config, "the folder "+dir+" has to be there and to belong to the user of the milter (install -d -m 0700 -o sendas "+dir+"), or write milter.store: memory:",
			"milter.store: %w", err)
	}
	if err != nil {
		return exit.Errorf(exit.TempFail, "", "milter.store: %w", err)
	}
	if f.Replaced != nil {
		s.log.Error("what clients had submitted is forgotten: the file was damaged", "file", file, "aside", file+".damaged", "error", f.Replaced)
	}
	counts, err := quota.Open(context.Background(), f, func(err error) {
		if err == nil {
			up.Set(1)
			s.log.Info("what clients submit is saved again", "file", file)
			return
		}
		up.Set(0)
		s.log.Error("what clients submit is counted, but cannot be saved: a restart would forget it", "file", file, "error", err)
	})
	if err != nil {
		return exit.Errorf(exit.TempFail, "", "milter.store: %w", errors.Join(err, f.Close()))
	}
	s.file, s.counts = f, counts
	return nil
}

// openShared connects to the store that hosts share. It need not be there.
func (s *admissionStore) openShared(c *config.Site, store *config.Store, up prometheus.Gauge) error {
	o, err := store.Redis(c)
	if err != nil {
		return err
	}
	counts, err := quota.OpenShared(o, store.Hosts, func(err error) {
		if err != nil {
			up.Set(0)
			s.log.Error("the store of the limits is away: this host keeps to its share of them", "store", store.Name(), "hosts", store.Hosts, "error", err)
			return
		}
		up.Set(1)
		s.log.Info("the hosts share the limits", "store", store.Name(), "hosts", store.Hosts)
	})
	if err != nil {
		return exit.Errorf(exit.Config, "", "milter.store: %w", err)
	}
	s.counts = counts
	return nil
}

// close saves what is counted. Nothing may be counted any more.
func (s *admissionStore) close() {
	s.stop()
	if err := <-s.done; err != nil {
		s.log.Error("the last of what clients submitted could not be saved", "error", err)
	}
	if s.file == nil {
		return
	}
	if err := s.file.Close(); err != nil {
		s.log.Error("closing the store of the limits", "error", err)
	}
}
