package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisHealth is what matters of how a server is set up. A field that the server does not tell is
// empty.
type RedisHealth struct {
	Version   string
	Eviction  string        // maxmemory_policy; all but noeviction may throw away what was counted
	Durable   bool          // writes to an append-only file
	Memory    bool          // has a limit of memory (maxmemory)
	RoundTrip time.Duration // of one command; each lease costs one, and each verdict
	Locked    bool          // wants another password than ours, so that nothing else is known
}

// Health asks the server how it is set up (INFO). Errors hold no password.
func (r *Redis) Health(ctx context.Context) (RedisHealth, error) {
	if err := r.ping(ctx); err != nil { // that connects
		return RedisHealth{Locked: redis.IsAuthError(err)}, fmt.Errorf("the shared ledger does not answer: %w", err)
	}
	began := time.Now()
	if err := r.ping(ctx); err != nil {
		return RedisHealth{}, fmt.Errorf("the shared ledger does not answer: %w", err)
	}
	h := RedisHealth{RoundTrip: time.Since(began)}
	for _, part := range []string{"server", "memory", "persistence"} {
		text, err := r.client.Info(ctx, part).Result()
		if err != nil {
			return h, errors.Join(errors.New("the shared ledger does not tell how it is set up"), err)
		}
		h.read(text)
	}
	return h, nil
}

// read takes what a part of INFO tells: lines of name:value.
func (h *RedisHealth) read(text string) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "redis_version", "valkey_version": // Valkey tells both, its own one later
			h.Version = value
		case "maxmemory_policy":
			h.Eviction = value
		case "maxmemory":
			h.Memory = value != "0"
		case "aof_enabled":
			h.Durable = value == "1"
		}
	}
}
