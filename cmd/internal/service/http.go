package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sendas/sendas/internal/exit"
)

// How long who asks by HTTP may take. The page asks every five seconds, so it keeps its connection.
const (
	headerTime  = 5 * time.Second
	requestTime = 10 * time.Second
	replyTime   = 30 * time.Second
	restTime    = 10 * time.Second // between two requests
	turnTime    = 10 * time.Second // until the same is no longer made for somebody else
)

// ServeHTTP serves figures until ctx ends. ready says why the service is not ready; more is served
// besides, by pattern.
//
// Anybody may be at the other end, so there are bounds on what that can take from Postfix:
// connections (see [doorkeeper]), time, and memory: each page is made for one at a time, since with
// 20,000 mailboxes it has 80 MB. Only who names this host gets an answer, but for /healthz.
func ServeHTTP(ctx context.Context, addr string, reg *prometheus.Registry, ready func() error, more map[string]http.Handler, log *slog.Logger) error {
	if addr == "" {
		return nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return exit.Errorf(exit.TempFail, "choose another address in sendas.yaml, or http: off", "listening for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /readyz", ownHost(addr, readiness(ready)))
	mux.Handle("GET /metrics", ownHost(addr, inTurn(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))))
	for pattern, h := range more {
		mux.Handle(pattern, ownHost(addr, inTurn(h)))
	}
	d := newDoorkeeper(ln, places(), log)
	srv := &http.Server{
		Handler: d.attend(mux), ReadHeaderTimeout: headerTime, ReadTimeout: requestTime, WriteTimeout: replyTime, IdleTimeout: restTime,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), ConnContext: d.context, ConnState: d.state,
	}
	context.AfterFunc(ctx, func() { srv.Close() })
	go func() {
		if err := srv.Serve(d); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("serving metrics", "error", err)
		}
	}()
	return nil
}

func readiness(ready func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
}

// inTurn lets one request after the other through. Who would wait too long is asked to come again.
func inTurn(h http.Handler) http.Handler {
	turn := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		late := time.NewTimer(turnTime)
		defer late.Stop()
		select {
		case turn <- struct{}{}:
		case <-r.Context().Done():
			return
		case <-late.C:
			w.Header().Set("Retry-After", "10")
			http.Error(w, "others ask for the same; come again", http.StatusServiceUnavailable)
			return
		}
		defer func() { <-turn }()
		h.ServeHTTP(w, r)
	})
}
