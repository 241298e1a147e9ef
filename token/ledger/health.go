package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	Replicas  int           // that follow it
	Waits     bool          // takes nothing while no replica follows it (min-replicas-to-write)
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
	node, err := r.node(ctx)
	if err != nil {
		return h, errors.Join(errors.New("the shared ledger does not tell which node has it"), err)
	}
	for _, part := range []string{"server", "memory", "persistence", "replication"} {
		text, err := node.Info(ctx, part).Result()
		if err != nil {
			return h, errors.Join(errors.New("the shared ledger does not tell how it is set up"), err)
		}
		h.read(text)
	}
	return h, nil
}

// node returns the server that has our keys, which in a cluster is one of several.
func (r *Redis) node(ctx context.Context) (redis.Cmdable, error) {
	if c, ok := r.client.(*redis.ClusterClient); ok {
		return c.MasterForKey(ctx, r.prefix+"clock")
	}
	return r.client, nil
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
		case "connected_slaves":
			h.Replicas, _ = strconv.Atoi(value)
		case "min_slaves_good_slaves": // told by a server alone that wants some
			h.Waits = true
		}
	}
}
